"""A hand-in: what its file says of itself, and what its function returns, from a process of its own with limits."""

import ast
import contextlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnn.exercises.exercise import Arrays, Exercise, ExerciseError

SECONDS = 20.0
REFUSED = "refused"
MEMORY = 2 << 30  # bytes
MOST_BYTES = 64 << 20  # that the process may send: the gradients are small
LONGEST = 160  # characters of a line of the hand-in, or of an error, that are shown
# What a hand-in needs of the environment. Nothing else is inherited: there may be secrets.
KEPT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH")


class NotPython(ExerciseError):
    """A file that Python cannot read."""


class HandIn(NamedTuple):
    """What a file says of itself, read without running it."""

    path: Path
    exercise: str | None
    hints: int | None


class Returned(NamedTuple):
    """What the function returned at a case: arrays with the names of their dtypes; or what it raised."""

    gradients: Arrays
    dtypes: dict[str, str]
    changed: list[int]  # which of its arguments it changed
    error: str = ""


class Result(NamedTuple):
    """What came back from a hand-in, for each case; or why nothing did, in one line."""

    cases: list[Returned]
    error: str = ""


def read(path: Path) -> HandIn:
    """Read the exercise and the level of hints that a file names.

    Raises:
      ExerciseError: it is no Python file, or names a level that does not exist.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise ExerciseError(f"cannot read {str(path)!r} ({error.strerror})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"line {line} of " if line else ""
        raise NotPython(f"{where}{str(path)!r} is not valid Python: {plain(getattr(error, 'msg', error))}") from None
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            constants |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    exercise, hints = (_literal(constants[name]) if name in constants else None for name in ("EXERCISE", "HINTS"))
    if hints is not None and (type(hints) is not int or hints not in (0, 1, 2, 3)):
        raise ExerciseError(f"HINTS in {str(path)!r} is {plain(hints)}, and must be 0, 1, 2 or 3")
    return HandIn(path, exercise if isinstance(exercise, str) else None, hints)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return ast.unparse(node)


def plain(text: Any) -> str:
    """Return what a student wrote as one short line that a terminal and a file can show."""
    line = "".join(c if c.isprintable() else " " for c in str(text)).encode(errors="backslashreplace").decode()
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def run(path: Path, exercise: Exercise, values: list[Arrays], dtypes: list[str], *, quiet: bool, alone: bool) -> Result:
    """Run a hand-in on the values of each case, in a copy of its folder, so that it can delete nothing.

    Args:
      path: its file.
      exercise: what it is a hand-in of.
      values: for each case, the values that its function takes, by name.
      dtypes: for each case, the dtype of the floating-point arguments.
      quiet: do not show what it prints.
      alone: leave the other Python files of its folder behind, which are other students'.

    Returns:
      What came back.
    """
    with tempfile.TemporaryDirectory(prefix="hand-in-", ignore_cleanup_errors=True) as folder:
        work = Path(folder, "work")
        work.mkdir()
        for each in {path} if alone else {path, *path.parent.glob("*.py")}:
            if each.is_file():
                shutil.copy(each, work / each.name)
        return _run(work / path.name, exercise, values, dtypes, folder, quiet)


def _run(file: Path, exercise: Exercise, values: list[Arrays], dtypes: list[str], folder: str, quiet: bool) -> Result:
    from_child, to_parent = os.pipe()
    request: dict[str, Any] = {"file": str(file), "pipe": to_parent, "cases": len(values)}
    request |= {"function": exercise.function, "takes": exercise.takes, "names": exercise.gradients}
    arrays: Arrays = {}
    request["dtypes"] = []
    for case, (given, dtype) in enumerate(zip(values, dtypes, strict=True)):
        arguments = [given[name] for name in exercise.takes]
        arrays |= {f"{case}.{i}": a for i, a in enumerate(arguments)}
        request["dtypes"].append([dtype if a.dtype == np.float64 else str(a.dtype) for a in arguments])
    saved = io.BytesIO()
    np.savez(saved, **arrays)
    with tempfile.TemporaryFile() as sent:
        sent.write(json.dumps(request).encode() + b"\n" + saved.getvalue())
        sent.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=sent,
            stdout=subprocess.DEVNULL if quiet else 2,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**{k: os.environ[k] for k in KEPT if k in os.environ}, "HOME": folder, "TMPDIR": folder,
                 "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=file.parent,
            pass_fds=(to_parent,),
            start_new_session=True,
        )  # fmt: skip
    os.close(to_parent)
    try:
        received, late = _received(from_child, child)
    finally:
        os.close(from_child)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if len(received) >= MOST_BYTES:
        return Result([], f"it returns more than {MOST_BYTES >> 20} MB")
    if late:
        return Result([], f"no answer within {SECONDS:g} s: an endless loop, or a loop that is too long")
    return _result(received, child.returncode, len(values))


# Packages are found where this process finds them. The folder of the hand-in is added later: a student's file may have
# the name of one of Python's modules. The hand-in cannot raise the limits again.
_CHILD = f"""
import runpy, sys
sys.path[:] = {[path for path in sys.path if path]!r}
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, ({MEMORY}, {MEMORY}))
except (ImportError, ValueError, OSError):  # where there are no such limits
    pass
runpy.run_path({str(Path(__file__).with_name("_child.py"))!r}, run_name="__main__")
"""


def _received(pipe: int, child: Any) -> tuple[bytes, bool]:
    """Return what the process sent until it closed the pipe, and whether its time was up."""
    received, deadline = b"", time.monotonic() + SECONDS
    while (left := deadline - time.monotonic()) > 0 and len(received) < MOST_BYTES:
        if select.select([pipe], [], [], min(left, 0.1))[0]:
            if not (part := os.read(pipe, 1 << 20)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(1.0)
                return received, False
            received += part
        elif child.poll() is not None and not select.select([pipe], [], [], 0)[0]:
            return received, False  # a process that it started holds the pipe
    return received, left <= 0


def _result(received: bytes, code: int, cases: int) -> Result:
    """Read what the process sent, which may be anything."""
    head, _, rest = received.partition(b"\n")
    try:
        told = json.loads(head)
        arrays = dict(np.load(io.BytesIO(rest), allow_pickle=False)) if rest else {}
        if told["error"]:
            return Result([], _line_of(told["error"]))
        found = [_returned(i, each, arrays) for i, each in enumerate(told["cases"])]
        if len(found) != cases:
            raise ValueError("it wrote to the pipe itself")
        return Result(found)
    except Exception:
        if code < 0:
            name = signal.Signals(-code).name
            more = f": it takes more than {MEMORY >> 30} GB of memory, or crashes"
            return Result([], f"its process was ended by {name}{more if -code in (6, 9, 11) else ''}")
        return Result([], "its process ended without an answer: the file must not exit")


def _returned(case: int, told: Any, arrays: Arrays) -> Returned:
    if "error" in told:
        return Returned({}, {}, [], _line_of(told["error"]))
    found = {name: np.asarray(arrays[f"{case}.{name}"]) for name in told["dtypes"]}
    return Returned(found, dict(told["dtypes"]), [int(i) for i in told["changed"]])


def _line_of(error: Any) -> str:
    """Return an error of a hand-in as one line, in the student's terms."""
    kind, text, line, code = str(error["kind"]), plain(error["text"]), int(error["line"]), plain(error["code"])
    at = f"line {line} (`{code}`)" if line and code else f"line {line}" if line else ""
    if kind == "refused":
        cure = "a hand-in must not" if "process" in text else "write the derivative by hand"
        return f"{REFUSED}: {at or 'the file'} {text}; {cure}"
    if kind == "import":
        return f"{at or 'the file'} imports {text!r}, which is not installed here: use NumPy or JAX"
    if kind == "mistake":
        return text
    if kind == "blank":
        return f"{at or 'the file'} uses a value that is still a blank: write that first"
    if kind == "syntax":
        return f"{at or 'the file'} is not valid Python: {text}"
    if "MemoryError" in text or "RESOURCE_EXHAUSTED" in text:
        return f"{at or 'the file'} takes more than {MEMORY >> 30} GB of memory"
    return f"{at or 'the file'} raises {text}"
