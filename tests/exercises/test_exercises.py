"""Exercises: their files, own ones, limits of a hand-in, and the command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exercises.solutions import SOLUTIONS, hand_in
from jaxnn import exercises
from jaxnn.cli import main
from jaxnn.exercises import ExerciseError
from jaxnn.exercises import hand_in as running
from jaxnn.exercises.judging import trials

ROOT = Path(__file__).resolve().parents[2]
GATE = '''import jax.numpy as jnp
import numpy as np

from jaxnn import exercises


def gate(x, w):
    """A gate: tanh(x) times a weight of each column."""
    return jnp.tanh(x) * w


rng = np.random.default_rng(0)
exercise = exercises.from_function(gate, (rng.normal(size=(3, 2)), rng.normal(size=2)), batched=("x",))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder, text, name="hand_in.py"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", exercises.EXERCISES)
def test_a_starter_runs_and_is_not_written_yet(name, folder, capsys):
    assert main(["exercise", "start", name]) == 0
    text = (folder / f"{name}.py").read_text()
    assert max(map(len, text.splitlines())) <= 120 and len(text.splitlines()) < 90
    capsys.readouterr()
    assert main(["exercise", "check", f"{name}.py"]) == 1
    assert "not written yet" in capsys.readouterr().out
    names: dict = {}
    exec(text, names)  # its forward pass gives what the function to be written takes
    tried = trials(exercises.find(name))[0]
    exercise = exercises.find(name)
    inputs = (tried.case.inputs[each] for each in exercise.inputs)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        returned = names["forward"](*(jnp.asarray(a, "float32" if a.dtype == float else a.dtype) for a in inputs))
    outputs = returned if exercise.stages else (returned,)
    for each, value in zip(exercise.outputs, outputs, strict=True):
        if each in tried.values:
            np.testing.assert_allclose(np.asarray(value, np.float64), tried.values[each], rtol=1e-4, atol=1e-5)


def test_the_truth_is_our_own_rule_where_there_is_one():
    import jaxnn

    for name in ("softmax", "log_softmax", "relu"):
        exercise = exercises.find(name)
        for trial in trials(exercise):
            with jax.enable_x64(True):
                dy = jnp.asarray(trial.values[exercise.upstream])
                (dx,) = jax.vjp(getattr(jaxnn, name), jnp.asarray(trial.values["x"]))[1](dy)
            np.testing.assert_allclose(trial.truth.gradients[0], dx, rtol=1e-9, atol=1e-30)


def test_a_file_without_jax_gets_numpy_arrays_and_may_not_change_them(folder):
    body = "import numpy as np\ndef backward(dy, x, y):\n    assert type(dy) is np.ndarray\n    {}\n    return dy\n"
    assert exercises.check(written(folder, body.format("dy = dy * (x > 0)")), "relu").passed
    feedback = exercises.check(written(folder, body.format("dy[x <= 0] = 0")), "relu", hints=1)
    assert [(f.name, f.property) for f in feedback.findings if not f.passed] == [
        ("arguments", "dy changed in place: make a copy first")]  # fmt: skip
    hidden = "__import__('j' + 'ax')\ndef backward(dy, x, y):\n    return dy * (x > 0)\n"
    assert "imports jax without its name" in exercises.check(written(folder, hidden), "relu").error


def test_a_function_of_a_notebook():
    def backward(dp, x, p):
        return p * (dp - (dp * p).sum(-1, keepdims=True))

    assert exercises.check(backward, "softmax").passed

    def own_name(W, x, y, alpha):
        return W + alpha * jnp.outer(y - softmax(W @ x), x)  # noqa: F821 (given)

    assert exercises.check(own_name, "softmax_update").passed

    def backward(dp, x, p):
        return undefined  # noqa: F821

    line = backward.__code__.co_firstlineno + 1
    assert exercises.check(backward, "softmax").error.startswith(f"line {line} (`return undefined")
    assert "not passed" in repr(exercises.check(not_the_gradient, "softmax"))
    for function in (len, lambda dp, x, p: dp):
        with pytest.raises(ExerciseError, match="cannot be read"):
            exercises.check(function, "softmax")


def test_what_a_student_prints_is_shown(capfd):
    def backward(dy, x, y):
        print("here", dy.shape)
        return dy * (x > 0)

    assert exercises.check(backward, "relu").passed
    assert capfd.readouterr().err.count("here (3, 4)") == 1


def test_what_is_printed_before_an_error_is_shown_and_a_closed_output_is_none(folder, capfd):
    feedback = exercises.check(written(folder, "print('before')\nraise ValueError('here')\n"), "relu")
    assert "line 2" in feedback.error and "before" in capfd.readouterr().err
    closing = hand_in("relu", "import sys\nsys.stdout = None\nreturn dy * (x > 0)")
    assert exercises.check(written(folder, closing), "relu").passed


def test_blanks_of_a_network_are_not_said_to_follow(folder):
    text = hand_in("residual_block", SOLUTIONS["residual_block"].replace("dr = dy\n", "dr = dy / 2\n").replace(
        "dW1, dx = dz.T @ x, dy + dz @ W1", "dW1, dx = ..., ..."))  # fmt: skip
    found = {f.name: f.property for f in exercises.check(written(folder, text), "residual_block").findings}
    assert found["dx"] == found["dW1"] == "not written yet" and found["dz"].startswith(
        "may be wrong only because dr is wrong"
    )


FACTOR = 2.0


def own_global(x):
    return FACTOR * x


def own_root(x):
    """A root: \\sqrt and \"\"\" in a docstring."""
    return jnp.sqrt(x)


def own_pair(x):
    return x, x


def test_an_own_function_that_overflows_in_float16_is_tried_in_float32_alone():
    def steep(x):
        return jnp.exp(x)

    assert [c.dtype for c in exercises.from_function(steep, (np.full(3, 30.0),)).cases] == ["float32"]
    assert [c.dtype for c in exercises.from_function(own_root, (np.ones(3),)).cases] == ["float32", "float16"]


def not_the_gradient(dp, x, p):
    return dp


def test_an_exercise_of_ones_own(folder, capsys):
    written(folder, GATE, "course.py")
    assert main(["exercise", "start", "course.py:exercise"]) == 0
    file = folder / "gate.py"
    text = file.read_text()
    assert 'EXERCISE = "course.py:exercise"' in text and "return jnp.tanh(x) * w" in text
    right = text.replace("dx = ...", "dx = dy * w * (1 - jnp.tanh(x) ** 2)").replace(
        "dw = ...", "dw = (dy * jnp.tanh(x)).sum(0)"
    )
    file.write_text(right)
    assert main(["exercise", "check", "gate.py"]) == 0
    file.write_text(right.replace(".sum(0)", ".mean(0)"))
    capsys.readouterr()
    assert main(["exercise", "check", str(file), "--json", "told.json"]) == 1
    told = json.loads((folder / "told.json").read_text())
    assert [g["feedback"] for g in told["gradients"]] == [
        [], ["wrong only for a batch above 1",
             "mistake: a mean over the batch in the place of a sum, or a sum in the place of a mean"]]  # fmt: skip


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: exercises.from_function(lambda x: x, (1.0,)), "and not by a lambda"),
        (lambda: exercises.from_function(len, (1.0,)), "whose source can be read"),
        (lambda: exercises.from_function(not_the_gradient, (1.0,)), "one for each of dp, x, p"),
        (lambda: exercises.from_function(not_the_gradient, (1, 2, 3)), "floating-point dtype"),
        (lambda: exercises.from_function(own_global, (np.ones(2),)), "nothing but its arguments"),
        (lambda: exercises.from_function(own_root, (-np.ones(2),)), "finite derivatives"),
        (lambda: exercises.from_function(own_root, (np.ones(0),)), "at least one element"),
        (lambda: exercises.from_function(own_root, ([[1.0], [1.0, 2.0]],)), "arrays of numbers"),
        (lambda: exercises.from_function(own_root, (np.ones(2),), batched=("z",)), "must name arguments"),
        (lambda: exercises.from_function(own_root, (np.ones(2),), hints=7), "must be 0, 1, 2 or 3"),
        (lambda: exercises.from_function(own_pair, (np.ones(2),)), "must return one array"),
        (lambda: exercises.find("softmx"), "did you mean 'softmax'"),
        (lambda: exercises.find("nowhere.py:x"), "which is not there"),
    ],
)
def test_errors_of_an_exercise(make, words):
    with pytest.raises(ExerciseError, match=words):
        make()


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = 1\n", "the file defines no function `backward`"),
        ("def backward(dy):\n    return dy\n", "`backward` must take dy, x, y, in this order"),
        ("def backward(:\n", "line 1 of"),
        ("HINTS = 7\ndef backward(dy, x, y):\n    return dy\n", "must be 0, 1, 2 or 3"),
        ("import nothing_here\n", "imports 'nothing_here', which is not installed here"),
        ("def backward(dy, x, y):\n    return dy, x\n", "returns 2 values, and must return 1: dx"),
        ("raise SystemExit\n", "SystemExit"),
    ],
)
def test_bad_files_are_one_line(text, words, folder, capsys):
    file = written(folder, text)
    assert main(["exercise", "check", str(file), "--exercise", "relu"]) == 4
    out = capsys.readouterr().out
    assert words in out and len(out.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["start", "softmx"], "did you mean 'softmax'?"),
        (["check", "missing.py", "--exercise", "relu"], "cannot read 'missing.py'"),
        (["check", "unnamed.py"], "names no exercise"),
        (["check", "unnamed.py", "--hints", "5"], "at most 3"),
        (["grade", "nowhere"], "must be a folder of hand-ins"),
        (["grade", "empty"], "has no hand-in"),
    ],
)
def test_wrong_usage(arguments, words, folder, capsys):
    written(folder, "x = 1\n", "unnamed.py")
    (folder / "empty").mkdir()
    try:
        code = main(["exercise", *arguments])
    except SystemExit as stopped:  # argparse's own
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and words in error and len(error.splitlines()) == 1


def test_start_replaces_no_file(folder, capsys):
    assert main(["exercise", "start", "relu", "--output", "deep/er"]) == 0
    assert main(["exercise", "start", "relu", "--output", "deep/er"]) == 2
    assert "exists and is not replaced" in capsys.readouterr().err


def test_list_names_all(capsys):
    assert main(["exercise", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(exercises.EXERCISES)


@pytest.mark.more
def test_limits_of_time_and_memory(folder, monkeypatch):
    monkeypatch.setattr(running, "SECONDS", 12.0)
    loop = written(folder, hand_in("relu", "while True:\n    pass"))
    assert "no answer within 12 s" in exercises.check(loop, "relu").error
    memory = written(folder, hand_in("relu", "a = np.ones(10**9)\nreturn dy", "import numpy as np"))
    assert "takes more than 2 GB of memory" in exercises.check(memory, "relu").error


def test_no_secret_and_no_handle_is_inherited(folder, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with open(written(folder, "", "kept.txt")) as kept:
        os.set_inheritable(kept.fileno(), True)
        body = """
            import os
            assert 'SECRET_TOKEN' not in os.environ
            for number in range(64):
                try:
                    assert os.fstat(number).st_ino != INODE
                except OSError:
                    pass
            return dy * (x > 0)
        """.replace("INODE", str(os.fstat(kept.fileno()).st_ino))
        feedback = exercises.check(written(folder, hand_in("relu", body)), "relu")
    assert feedback.passed, feedback


def test_exercises_are_imported_only_when_they_are_used():
    code = (
        "import sys, jaxnn; assert 'jaxnn.exercises' not in sys.modules; print(jaxnn.exercises.find('relu').gradients)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('dx',)"


def test_hints_in_the_file(folder):
    text = hand_in("softmax", "return dp * p")
    for hints in (0, 1, 2, 3):
        file = written(folder, text.replace("HINTS = 2", f"HINTS = {hints}"))
        assert exercises.check(file, "softmax").level == hints
    assert "HINTS = 2" in text and set(SOLUTIONS)


def test_the_transcript_in_the_readme_is_what_is_printed(folder, monkeypatch, capsys):
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(def backward.*?)```", page, re.S)[1]
    transcript = re.search(r"```console\n(.*?)```", page, re.S)[1]
    starter = exercises.starter(exercises.find("softmax"))
    written(
        folder,
        starter.replace(starter[starter.index("def backward") : starter.index("EXERCISE")], f"{code}\n"),
        "softmax.py",
    )
    for command, printed in re.findall(r"\$ jaxnn (.*)\n([^$]*)", transcript):
        main(command.split())
        shown = capsys.readouterr().out
        numbers = r"\d+\.\d+"
        assert re.sub(numbers, "#", shown) == re.sub(numbers, "#", printed)
        for a, b in zip(re.findall(numbers, shown), re.findall(numbers, printed), strict=True):
            assert abs(float(a) - float(b)) <= 1e-4
