"""What is told of a hand-in: text, and a dictionary, at a level of feedback from 0 to 3."""

import inspect
import tempfile
import textwrap
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxnn.exercises import hand_in as hand_ins
from jaxnn.exercises.exercise import Exercise, ExerciseError, source_of
from jaxnn.exercises.finding import find
from jaxnn.exercises.judging import UNWRITTEN, WRONG, Finding, judge, trials

LEVELS = (0, 1, 2, 3)
NO_MISTAKE, NOT_JUDGED = "no typical mistake is recognised", "could not be judged"


class Feedback(NamedTuple):
    """What is told of a hand-in.

    Attributes:
      exercise: the exercise's name.
      file: the hand-in's file.
      findings: what was found of each gradient.
      error: why it could not be judged, in one line.
      level: how much is told.
      stages: whether the exercise is a network, of which a table is shown.
    """

    exercise: str
    file: str
    findings: tuple[Finding, ...]
    error: str
    level: int
    stages: bool = False

    @property
    def passed(self) -> bool:
        """Whether all gradients are right."""
        return not self.error and all(finding.passed for finding in self.findings)

    def __repr__(self) -> str:
        """Return the lines for the student, also where a notebook shows the value of a cell."""
        if self.error:
            return f"{self.exercise}: {NOT_JUDGED}\n  {self.error}"
        lines = [f"{self.exercise}: {'passed' if self.passed else 'not passed'}"]
        width = max(len(finding.name) for finding in self.findings)
        for finding in self.findings:
            lines.append(f"  {finding.name:{width}}  {_head(finding, self.stages and self.level > 0)}")
            lines += [f"  {'':{width}}    {line}" for line in told(finding, self.level)]
        if not self.passed and self.level < LEVELS[-1]:
            lines.append(f"(feedback level {self.level} of {LEVELS[-1]})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as a dictionary of plain values."""
        gradients = [
            {"name": f.name, "passed": f.passed, "feedback": told(f, self.level)} for f in self.findings
        ]  # fmt: skip
        head = {"exercise": self.exercise, "file": self.file, "passed": self.passed, "level": self.level}
        return {**head, "error": self.error or None, "gradients": gradients}


def _head(finding: Finding, as_table: bool) -> str:
    """Return the verdict; of a network's gradient with what of it is right."""
    verdict = "passed" if finding.passed else "not passed"
    if finding.passed or not as_table or finding.name == "arguments" or finding.property == UNWRITTEN:
        return verdict
    exact, close = ("yes" if each else "no" for each in (finding.exact, finding.close))
    return f"shape ok, exact: {exact}, close: {close}" if finding.shape else "shape wrong"


def told(finding: Finding, level: int) -> list[str]:
    """Return what a level tells of a gradient that did not pass."""
    if finding.passed or level < 1:
        return []
    lines = [finding.property]
    if level >= 2 and finding.mistake:
        lines.append(f"mistake: {finding.mistake}")
    elif level >= 2 and finding.property.startswith(WRONG):
        lines.append(NO_MISTAKE)
    if level >= 3 and finding.worst:
        lines.append(f"worst: {finding.worst}")
    return lines


def check(
    hand_in: str | Path | Callable[..., Any],
    exercise: Exercise | str,
    *,
    hints: int | None = None,
    quiet: bool = False,
    alone: bool = False,
) -> Feedback:
    """Judge a hand-in.

    Args:
      hand_in: its file; or its function, as in a notebook, which may use `np`, `jnp` and what it defines itself. It
        runs in a process of its own, with limits of 20 s and 2 GB.
      exercise: what it is a hand-in of, or its name.
      hints: the level of feedback, from 0 to 3; None takes the file's, or the exercise's.
      quiet: do not show what it prints.
      alone: the other Python files of the file's folder are not its own.

    Returns:
      The feedback: print it, or see `passed`.

    Raises:
      ExerciseError: the file or the function's source cannot be read, or there is no exercise of this name.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxnn import exercises
      >>> file = pathlib.Path(tempfile.mkdtemp(), "relu.py")
      >>> text = exercises.starter(exercises.find("relu")).replace("dx = ...", "dx = dy * (x >= 0)")
      >>> _ = file.write_text(text)
      >>> exercises.check(file, "relu")
      relu: not passed
        dx  not passed
              wrong only where x is 0
      (feedback level 2 of 3)
    """
    exercise = find(exercise) if isinstance(exercise, str) else exercise
    if not callable(hand_in):
        return _check_file(Path(hand_in), exercise, hints, quiet, alone)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{exercise.function}.py")
        path.write_text(_file_of(hand_in, exercise), encoding="utf-8")
        path.with_name("given.py").write_text(
            f"import jax\nimport numpy as np\n{source_of(exercise)}\n", encoding="utf-8"
        )
        return _check_file(path, exercise, hints, quiet, False)


def _file_of(function: Callable[..., Any], exercise: Exercise) -> str:
    """Return a file with this function, on the lines that it has in its cell, and with the exercise's forward pass."""
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        lines, first = [], 0
    if not lines or function.__name__ == "<lambda>":
        raise ExerciseError(f"the source of {function!r} cannot be read: define it by `def` in a cell or a file")
    name = function.__name__
    last = f"from given import *\n{exercise.function} = {name}\n"
    return "\n" * (first - 1) + textwrap.dedent("".join(lines)) + "\n" + last.replace(f"{name} = {name}\n", "")


def _check_file(path: Path, exercise: Exercise, hints: int | None, quiet: bool, alone: bool) -> Feedback:
    level = exercise.hints if hints is None else hints
    try:
        head = hand_ins.read(path)
    except ExerciseError as unread:
        if not path.is_file():
            raise
        return Feedback(exercise.name, path.name, _not_judged(exercise), str(unread), level)
    level = level if hints is not None or head.hints is None else head.hints
    tried = trials(exercise)
    values, dtypes = [t.values for t in tried], [t.case.dtype for t in tried]
    result = hand_ins.run(path, exercise, values, dtypes, quiet=quiet, alone=alone)
    error = result.error or _error_of_all(result)
    findings = _not_judged(exercise) if error else tuple(judge(exercise, result))
    return Feedback(exercise.name, path.name, findings, error, level, exercise.stages)


def _not_judged(exercise: Exercise) -> tuple[Finding, ...]:
    return tuple(Finding(name, False, NOT_JUDGED) for name in exercise.gradients)


def _error_of_all(result: hand_ins.Result) -> str:
    """Return the error of a function that does not even take the arguments of the base case."""
    return result.cases[0].error if result.cases else ""
