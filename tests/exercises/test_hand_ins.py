"""Every hand-in of the list is judged as listed, and below level 3 no feedback gives the answer away."""

import ast
import json
import re
import textwrap

import pytest

from exercises.hand_ins import REFUSED, RIGHT, WRONG
from exercises.solutions import SOLUTIONS, hand_in
from jaxnn import exercises


def judged(folder, each):
    file = folder / "hand_in.py"
    file.write_text(hand_in(each.exercise, each.body, each.imports), encoding="utf-8")
    return exercises.check(file, each.exercise, hints=3, quiet=True)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("name", RIGHT)
def test_right_hand_ins_pass(name, tmp_path):
    feedback = judged(tmp_path, RIGHT[name])
    assert feedback.passed, feedback


# Pieces of formulas, as the notes write them; those of the solutions' code are taken from the code.
PIECES = [
    "1−p",
    "1−y",
    "p−e(t)",
    "−e(t)",
    "e(t)",
    "y(dy",
    "Σ",
    "σ",
    "dy−",
    "Wᵀ",
    "xᵀ",
    "−1/p",
    "2(y−t)",
    "sign(w)",
    "2w",
]


def pieces_of(name):
    """The parts of the solution's code that compute something."""
    computing = ast.BinOp | ast.Call | ast.Subscript | ast.UnaryOp
    nodes = ast.walk(ast.parse(textwrap.dedent(SOLUTIONS[name]).replace("return", "_ =")))
    return {text for node in nodes if isinstance(node, computing) for text in [ast.unparse(node).replace(" ", "")]
            if re.search("[a-zA-Z]", text)}  # fmt: skip


def assert_gives_nothing_away(feedback):
    assert pieces_of(feedback.exercise)
    for level in (0, 1, 2):
        less = feedback._replace(level=level)
        for text in (str(less), json.dumps(less.to_dict(), ensure_ascii=False)):
            assert not re.search(r"\d\.\d|\de[-+]?\d|nan|\binf\b", text), text
            compact = text.replace(" ", "")
            assert not [piece for piece in {*PIECES, *pieces_of(feedback.exercise)} if piece in compact], text


@pytest.mark.one_in(12)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_hand_ins_get_their_feedback_and_no_answer(name, tmp_path):
    listed, feedback = WRONG[name], judged(tmp_path, WRONG[name])
    wrong = [finding for finding in feedback.findings if not finding.passed]
    assert not feedback.error and sorted(f.name for f in wrong) == sorted(listed.wrong.split()), feedback
    upstream = exercises.find(listed.exercise).upstream
    expected = listed.property.format(upstream), listed.mistake.format(upstream)
    assert (wrong[0].property, wrong[0].mistake) == expected, feedback
    assert_gives_nothing_away(feedback)
    lines = {level: str(feedback._replace(level=level)).splitlines() for level in (0, 1, 2, 3)}
    for level, line in ((1, wrong[0].property), (2, wrong[0].mistake), (3, wrong[0].worst)):
        assert not line or [any(line in each for each in lines[k]) for k in lines] == [k >= level for k in lines]


def test_what_gives_the_answer_away_would_be_noticed():
    feedback = exercises.Feedback("softmax", "a.py", (), "", 2)._replace(error="dx is p * (dp - ...)")
    with pytest.raises(AssertionError):
        assert_gives_nothing_away(feedback._replace(error="use (dp * p).sum(-1, keepdims=True)"))
    with pytest.raises(AssertionError):
        assert_gives_nothing_away(feedback._replace(error="it is 0.25"))
    assert_gives_nothing_away(feedback._replace(error="the sign"))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_judged_says_why_in_one_line(name, tmp_path):
    each, words = REFUSED[name]
    feedback = judged(tmp_path, each)
    assert words in feedback.error and "\n" not in feedback.error and not feedback.passed, feedback


def test_the_list_is_long_enough():
    assert len(RIGHT) >= 40 and len(WRONG) >= 60 and set(SOLUTIONS) == set(exercises.EXERCISES)
    assert {each.exercise for each in WRONG.values()} == set(SOLUTIONS)
