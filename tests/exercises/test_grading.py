"""Grading a folder: good, bad and hostile hand-ins side by side, and what is written about the class."""

import json

import pytest

from exercises.solutions import SOLUTIONS, hand_in
from jaxnn.cli import main
from jaxnn.exercises import grading
from jaxnn.exercises import hand_in as running

DELETES = """
import os
for name in os.listdir("."):
    os.remove(name)
return dy * (x > 0)
"""
CLASS = {
    "ada/relu.py": hand_in("relu", SOLUTIONS["relu"]),
    "ada/softmax.py": hand_in("softmax", SOLUTIONS["softmax"]),
    "ada/helper.py": "",
    "bob.py": hand_in("softmax", "return dp * p * (1 - p)").replace("HINTS = 2", "HINTS = 3"),
    "cyd.py": hand_in("relu", DELETES),
    "dan.py": "def backward(:\n",
    "eve.py": hand_in("relu", "print('x' * 10**6)\nreturn dy"),
    "fay.py": hand_in("relu", "while True:\n    pass"),
    "gus.py": hand_in("relu", "a = b'x' * (3 * 10**9)\nreturn dy"),
    "hal.py": "def backward(dy, x, y):\n    return dy\n",
    "ivy.py": 'EXERCISE = "evil.py:exercise"\n',
}


@pytest.fixture
def hand_ins(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SECONDS", 12.0)
    for name, text in CLASS.items():
        file = tmp_path / "class" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "class" / "notes.txt").write_text("no hand-in")
    return tmp_path / "class"


def test_a_class(hand_ins, tmp_path, capsys):
    output = tmp_path / "grades"
    assert main(["exercise", "grade", str(hand_ins), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "3 of 10 hand-ins passed" in printed
    rows = {row["file"]: row for row in json.loads((output / "grades.json").read_text())["hand_ins"]}
    assert [file for file, row in rows.items() if row["passed"]] == ["ada/relu.py", "ada/softmax.py", "cyd.py"]
    for file, words in {
        "dan.py": "is not valid Python", "fay.py": "no answer within 12 s", "gus.py": "2 GB of memory", "hal.py": "names no exercise",
        "ivy.py": "use --exercise",
    }.items():  # fmt: skip
        assert words in rows[file]["error"], rows[file]
    assert rows["eve.py"]["mistakes"] == ["this is dy itself: nothing is done with it"]
    assert {file.name for file in hand_ins.iterdir()} >= {"cyd.py", "notes.txt"}  # what was deleted was a copy

    results = json.loads((output / "students" / "bob" / "results.json").read_text())
    (test,) = results["tests"]
    assert test["status"] == "failed" and test["score"] == 0.0 and test["max_score"] == 1.0
    assert test["output"].splitlines() == [
        "wrong only for j ≠ a", "mistake: terms are missing: each input affects every output"]  # fmt: skip
    ada = json.loads((output / "students" / "ada" / "results.json").read_text())
    assert [(t["name"], t["status"]) for t in ada["tests"]] == [("relu: dx", "passed"), ("softmax: dx", "passed")]

    page = (output / "class.html").read_text()
    assert "3 of 10 hand-ins passed" in page and "<script" not in page and "dx[" in page
    assert (output / "mistakes.png").read_bytes().startswith(b"\x89PNG")


def test_one_exercise_for_all(hand_ins, tmp_path, capsys):
    for name in ("fay.py", "gus.py"):
        (hand_ins / name).unlink()
    graded = {each.file: each for each in grading.grade(hand_ins, grading.EXERCISES["relu"])}
    assert "is a hand-in of 'softmax', and not of 'relu'" in graded["bob.py"].feedback.error
    assert graded["hal.py"].mistakes == ["this is dy itself: nothing is done with it"]


def test_frequencies_count_each_hand_in_once(hand_ins):
    for name in CLASS:
        if name not in ("bob.py", "hal.py", "eve.py"):
            (hand_ins / name).unlink()
    (hand_ins / "ada").rmdir()
    graded = grading.grade(hand_ins)
    assert grading.frequencies(graded) == {
        "terms are missing: each input affects every output": 1,
        "this is dy itself: nothing is done with it": 1,
        "could not be judged": 1,
    }


def test_an_exercise_of_ones_own(tmp_path, capsys):
    (tmp_path / "course.py").write_text(
        "import jax.numpy as jnp\nfrom jaxnn import exercises\n\n\ndef gate(x):\n    return jnp.tanh(x)\n\n\n"
        "exercise = exercises.from_function(gate, (jnp.ones((3, 2)) / 2,))\n"
    )
    own = f"{tmp_path / 'course.py'}:exercise"
    assert main(["exercise", "start", own, "--output", str(tmp_path / "class")]) == 0
    file = tmp_path / "class" / "gate.py"
    text = file.read_text()
    assert 'EXERCISE = "course.py:exercise"' in text
    file.write_text(text.replace("dx = ...", "dx = dy * (1 - y**2)"))
    assert main(["exercise", "grade", str(tmp_path / "class"), "--exercise", own, "--output", str(tmp_path / "g")]) == 0
    assert "1 of 1 hand-ins passed" in capsys.readouterr().out


def test_hand_ins_of_one_folder_do_not_meet(tmp_path):
    (tmp_path / "bob.py").write_text(hand_in("relu", SOLUTIONS["relu"]))
    (tmp_path / "carl.py").write_text('EXERCISE = "relu"\nfrom bob import backward\n')
    (tmp_path / "numpy_only.py").write_text(
        'EXERCISE = "relu"\n\ndef backward(dy, x, y):\n    dx = dy.copy()\n    dx[x <= 0] = 0\n    return dx\n')  # fmt: skip
    (tmp_path / "kim" / "deeper").mkdir(parents=True)
    (tmp_path / "kim" / "deeper" / "relu.py").write_text(hand_in("relu", SOLUTIONS["relu"]))
    (tmp_path / "otto").mkdir()
    graded = {each.student: each.feedback for each in grading.grade(tmp_path)}
    assert "imports 'bob', which is not installed" in graded["carl"].error
    assert graded["numpy_only"].passed and graded["kim"].passed and "no hand-in" in graded["otto"].error


def test_what_a_student_writes_ends_nobody_elses_grading(tmp_path, capsys):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.py").write_text(hand_in("relu", "raise ValueError('\\udc80 \\x1b[2J')"))
    (tmp_path / "class" / "b.py").write_text('EXERCISE = "relu"\nx = ' + "-" * 100_000 + "1\n")
    (tmp_path / "class" / "c.py").write_text(hand_in("relu", SOLUTIONS["relu"]))
    assert main(["exercise", "grade", str(tmp_path / "class"), "--output", str(tmp_path / "g")]) == 0
    out = capsys.readouterr().out
    assert "1 of 3 hand-ins passed" in out and "\x1b" not in out
    (tmp_path / "file").write_text("")
    (tmp_path / "g" / "grades.json").write_text("earlier")
    assert main(["exercise", "grade", str(tmp_path / "nowhere"), "--output", str(tmp_path / "g")]) == 2
    assert (tmp_path / "g" / "grades.json").read_text() == "earlier"
    assert main(["exercise", "grade", str(tmp_path / "class"), "--output", str(tmp_path / "file")]) == 2


def test_a_page_escapes_what_students_write(tmp_path):
    from jaxnn.plots.class_page import page

    gradient = {"name": "dx", "passed": False, "feedback": ["<b>"]}
    row = {
        "student": "<script>",
        "file": "a&b",
        "exercise": "relu",
        "passed": False,
        "error": None,
        "gradients": [gradient],
    }
    text = page({"hand_ins": [row], "passed": 0, "mistakes": {"<i>": 1}}, "t", "s", {})
    assert "<script>" not in text and "<b></li>" not in text and "&lt;i&gt;" in text
