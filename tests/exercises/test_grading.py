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
    "gus.py": hand_in("relu", "a = [b'x' * 10**8 for _ in range(100)]\nreturn dy"),
    "hal.py": "def backward(dy, x, y):\n    return dy\n",
    "ivy.py": 'EXERCISE = "evil.py:exercise"\n',
}


@pytest.fixture
def hand_ins(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SECONDS", 8.0)
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
        "dan.py": "is no Python", "fay.py": "no answer within 8 s", "gus.py": "2 GB of memory", "hal.py": "names no exercise",
        "ivy.py": "give it with --exercise",
    }.items():  # fmt: skip
        assert words in rows[file]["error"], rows[file]
    assert rows["eve.py"]["mistakes"] == ["the upstream gradient itself: nothing is done with it"]
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
    assert graded["hal.py"].mistakes == ["the upstream gradient itself: nothing is done with it"]


def test_frequencies_count_each_hand_in_once(hand_ins):
    for name in CLASS:
        if name not in ("bob.py", "hal.py", "eve.py"):
            (hand_ins / name).unlink()
    (hand_ins / "ada").rmdir()
    graded = grading.grade(hand_ins)
    assert grading.frequencies(graded) == {
        "terms are missing: each input affects every output": 1,
        "the upstream gradient itself: nothing is done with it": 1,
        grading.NOT_JUDGED: 1,
    }


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
