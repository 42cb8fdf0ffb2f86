"""`jaxnn exercise`: list the exercises, start one, check a hand-in, grade a folder of them."""

import argparse
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import jax

from jaxnn import exercises
from jaxnn.cli.terminal import CommandError, print_line
from jaxnn.exercises import EXERCISES, Exercise, ExerciseError, grading
from jaxnn.exercises.hand_in import NotPython, read
from jaxnn.files import write_whole
from jaxnn.plots.class_page import page

USAGE, NOT_PASSED, NOT_JUDGED = 2, 1, 4  # exit codes


def run(options: argparse.Namespace) -> int:
    """Run a command of `jaxnn exercise`, and return its exit code."""
    command = {"list": _list, "start": _start, "check": _check, "grade": _grade}[options.exercise_command]
    try:
        return command(options)
    except ExerciseError as error:
        raise CommandError(str(error), USAGE) from error


def _list(_: argparse.Namespace) -> int:
    width = max(map(len, EXERCISES))
    print_line("\n".join(f"{name:{width}}  {exercise.title}" for name, exercise in EXERCISES.items()))
    return 0


def _start(options: argparse.Namespace) -> int:
    exercise = exercises.find(options.name)
    file = Path(options.output).expanduser() / f"{exercise.name}.py"
    own, _, name = options.name.rpartition(":")
    called = f"{Path(own).name}:{name}" if own else name  # students have the file beside theirs
    text = exercises.starter(exercise).replace(f'EXERCISE = "{exercise.name}"', f'EXERCISE = "{called}"')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise CommandError(f"{error.filename!r} exists and is not replaced; choose another --output", USAGE) from None
    except OSError as error:
        raise CommandError(f"cannot write {str(file)!r} ({error.strerror}); choose another --output", USAGE) from error
    print_line(f"{file}\nWrite `{exercise.function}` in it, then: jaxnn exercise check {shlex.quote(str(file))}")
    return 0


def _check(options: argparse.Namespace) -> int:
    path = Path(options.file).expanduser()
    try:
        name = options.exercise or _named(path)
    except NotPython as error:
        raise CommandError(str(error), NOT_JUDGED) from error
    feedback = exercises.check(path, exercises.find(name, path.parent), hints=options.hints)
    print_line(str(feedback))
    if options.json is not None:
        _write(Path(options.json), json.dumps(feedback.to_dict(), indent=1, ensure_ascii=False))
    return NOT_JUDGED if feedback.error else 0 if feedback.passed else NOT_PASSED


def _named(path: Path) -> str:
    name = read(path).exercise
    if name is None:
        raise ExerciseError(f'{str(path)!r} names no exercise: put back its line EXERCISE = "...", or give --exercise')
    return name


def _grade(options: argparse.Namespace) -> int:
    folder, output = Path(options.folder).expanduser(), Path(options.output).expanduser()
    exercise = None if options.exercise is None else exercises.find(options.exercise)
    try:
        from jaxnn.plots.mistakes import mistakes
    except ImportError as error:  # the other commands do without it
        raise CommandError(f"grade needs {error.name}: pip install '.[train]' in the clone of jaxnn", USAGE) from error
    _make(output)  # before the work, so that it is not in vain
    graded = grading.grade(folder, exercise, progress=_progress)
    title = f"{folder.resolve().name}: {len(graded)} hand-ins"
    found = grading.to_dict(graded)
    _write(output / "grades.json", json.dumps(found, indent=1, ensure_ascii=False))
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    _write(output / "class.html", page(found, title, f"jaxnn exercise grade {shlex.quote(options.folder)}", versions))
    mistakes(output / "mistakes.png", found["mistakes"], len(graded), title)
    for student, own in groupby(graded, lambda each: each.student):
        hand_ins = list(own)
        level = _level(options.hints, [each.feedback.exercise for each in hand_ins], exercise)
        _write(output / "students" / student / "results.json", grading.gradescope(hand_ins, level))
    print_line(_table(graded))
    print_line(f"\n{found['passed']} of {len(graded)} hand-ins passed")
    print_line("\n".join(f"{count:4}  {name}" for name, count in found["mistakes"].items()))
    print_line(f"\nwritten: {output}/class.html, mistakes.png, grades.json, students/*/results.json")
    return 0


def _level(given: int | None, names: Iterable[str], exercise: Exercise | None) -> int:
    """Return the level of the students' feedback: never the one that a hand-in sets for itself."""
    own = [exercise] if exercise else [EXERCISES[name] for name in names if name in EXERCISES]
    return given if given is not None else min((each.hints for each in own), default=0)


def _table(graded: list[grading.Graded]) -> str:
    rows = []
    for each in graded:
        feedback = each.feedback
        wrong = [finding.name for finding in feedback.findings if not finding.passed]
        verdict = "could not be judged" if feedback.error else "passed" if feedback.passed else "not passed"
        rows.append((each.student, feedback.exercise, verdict, feedback.error or ", ".join(wrong)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{done} of {of}" if done < of else "\r\x1b[K", end="", file=sys.stderr, flush=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CommandError(
            f"cannot write to {str(folder)!r} ({error.strerror}); choose another --output", USAGE
        ) from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it has no name"
        raise CommandError(f"cannot write {str(path)!r} ({reason}); choose another name", USAGE) from error
