"""Grading a folder of hand-ins: each in a process of its own, then the class as a whole."""

import collections
import concurrent.futures
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxnn.exercises import hand_in
from jaxnn.exercises.exercise import Exercise, ExerciseError
from jaxnn.exercises.feedback import Feedback, check, told
from jaxnn.exercises.finding import EXERCISES
from jaxnn.exercises.hand_in import plain, read
from jaxnn.exercises.judging import FOLLOWS, trials

# Why a hand-in could not be judged, as it is counted over the class: what its line holds, and the name.
KINDS = {
    hand_in.REFUSED: "not by hand: refused",
    "is not valid Python": "not valid Python",
    "no answer within": "an endless loop, or one that is too long",
    "of memory": "too much memory",
    " raises ": "an error is raised",
    "which is not installed": "imports what is not installed",
}
LECTURER = 3  # the lecturer's level of feedback


class Graded(NamedTuple):
    """A student's hand-in, with what the lecturer sees of it."""

    student: str
    file: str
    feedback: Feedback

    @property
    def mistakes(self) -> list[str]:
        """What is wrong with it, as it is counted over the class."""
        if self.feedback.error:
            return [_kind_of(self.feedback.error)]
        wrong = [f for f in self.feedback.findings if not f.passed and not f.property.startswith(FOLLOWS)]
        return list(dict.fromkeys(f.mistake or f.property for f in wrong))


def grade(
    folder: str | Path, exercise: Exercise | None = None, *, progress: Callable[[int, int], None] = lambda *_: None
) -> list[Graded]:
    """Judge all hand-ins of a folder.

    Args:
      folder: it holds a file for each student, or a folder for each student with the student's files.
      exercise: what they are hand-ins of; None takes the exercise that each file names, one of the notes'.
      progress: it is called with how many are done, and how many there are.

    Returns:
      The hand-ins in the order of the students' names, each with all levels of feedback.

    Raises:
      ExerciseError: there is no such folder, or no hand-in in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ExerciseError(f"{str(folder)!r} must be a folder of hand-ins")
    found = list(_hand_ins(folder))
    if not found:
        raise ExerciseError(f"{str(folder)!r} has no hand-in: a .py file for each student, or a folder with one")
    chosen = [_exercise_of(path, exercise) for _, path in found]
    for each in {id(e): e for e in chosen if isinstance(e, Exercise)}.values():
        trials(each)  # JAX works here alone, and not in the threads that wait for the hand-ins
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [pool.submit(_graded, folder, s, p, e) for (s, p), e in zip(found, chosen, strict=True)]
        for done, _ in enumerate(concurrent.futures.as_completed(waiting), 1):
            progress(done, len(waiting))
        return [each.result() for each in waiting]


def _kind_of(error: str) -> str:
    return next((kind for words, kind in KINDS.items() if words in error), "could not be judged")


def _hand_ins(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each student with a hand-in: files that name an exercise, or a student's only file."""
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and entry.suffix == ".py":
            yield entry.stem, entry
        elif entry.is_dir() and entry.name[0] not in "._":
            files = sorted(entry.rglob("*.py"))
            chosen = [path for path in files if _names_exercise(path)] or files
            yield from ((entry.name, path) for path in chosen or [entry])


def _names_exercise(path: Path) -> bool:
    try:
        return read(path).exercise is not None
    except ExerciseError:
        return True


def _exercise_of(path: Path, given: Exercise | None) -> Exercise | str:
    """Return what a file is a hand-in of; or why that is unknown. No file of a student is run for it."""
    if path.is_dir():
        return "no hand-in: the folder has no .py file"
    try:
        name = read(path).exercise
    except ExerciseError as error:
        return str(error) if given is None else given
    if given is not None:
        other = name is not None and name != given.name and (name in EXERCISES or given.name in EXERCISES)
        return f"it is a hand-in of {plain(name)!r}, and not of {given.name!r}" if other else given
    if name is None:
        return 'it names no exercise: the line EXERCISE = "..." is missing'
    return EXERCISES.get(name, f"it names the exercise {plain(name)!r}, which is not a built-in one: use --exercise")


def _graded(folder: Path, student: str, path: Path, exercise: Exercise | str) -> Graded:
    file = str(path.relative_to(folder))
    if isinstance(exercise, str):
        return Graded(student, file, Feedback("?", file, (), exercise, LECTURER))
    try:
        return Graded(student, file, check(path, exercise, hints=LECTURER, quiet=True, alone=path.parent == folder))
    except Exception as error:  # one hand-in is not the end of the others
        return Graded(
            student, file, Feedback(exercise.name, file, (), plain(f"{type(error).__name__}: {error}"), LECTURER)
        )


def frequencies(graded: list[Graded]) -> dict[str, int]:
    """Return how many hand-ins have each mistake, the most frequent first."""
    return dict(collections.Counter(m for each in graded for m in each.mistakes).most_common())


def to_dict(graded: list[Graded]) -> dict[str, Any]:
    """Return the class as a dictionary of plain values."""
    rows = [{"student": g.student, **g.feedback.to_dict(), "file": g.file, "mistakes": g.mistakes} for g in graded]
    return {"hand_ins": rows, "passed": sum(g.feedback.passed for g in graded), "mistakes": frequencies(graded)}


def gradescope(graded: list[Graded], hints: int) -> str:
    """Return one student's results in Gradescope's form, with the feedback of a level: a point for each gradient."""
    tests = []
    for each in graded:
        feedback = each.feedback
        for finding in feedback.findings:
            output = feedback.error or "\n".join(told(finding, hints))
            tests.append(_test(f"{feedback.exercise}: {finding.name}", finding.passed, output))
        if not feedback.findings:
            tests.append(_test(feedback.exercise, False, feedback.error))
    text = "\n\n".join(str(each.feedback._replace(level=hints)) for each in graded)
    return json.dumps({"output": text, "stdout_visibility": "hidden", "tests": tests}, indent=1, ensure_ascii=False)


def _test(name: str, passed: bool, output: str) -> dict[str, Any]:
    status = "passed" if passed else "failed"
    points = 0.0 if name.endswith(": arguments") else 1.0  # that they are left alone earns none
    return {"name": name, "score": points * passed, "max_score": points, "status": status, "output": output}
