"""The process in which a hand-in runs: a script that imports nothing of jaxnn, so that no answer is near.

It reads a request from its standard input, loads the file, calls the function on the arguments of each case, and writes
what came back to a pipe: a line of JSON, and an .npz of arrays, which can carry no code. It refuses automatic
differentiation, wherever and under whatever name it is called: what JAX makes for it cannot be made here.

This stops what students do by habit. It is no sandbox: untrusted code belongs in a container.
"""

import contextlib
import inspect
import io
import json
import linecache
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np

# Libraries that differentiate, or hold the answers.
REFUSED = {"jaxnn", "torch", "tensorflow", "autograd", "mxnet", "paddle", "tinygrad", "mlx", "pytensor", "casadi",
           "sympy", "numdifftools", "jax.experimental.jet"}  # fmt: skip
PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"}
AUTODIFF = "differentiates automatically"


class Refused(BaseException):
    """What a hand-in may not do. No `except Exception` of its own catches it."""

    first: tuple[str, int, str] | None = None  # what was refused first, also where the hand-in went on

    def __init__(self, what: str) -> None:
        """Note what was refused first, and where."""
        super().__init__(what)
        Refused.first = Refused.first or (what, *place(traceback.extract_stack()))


class Mistake(Exception):
    """What is wrong with what the function returns, in the student's terms."""


FILE = ""  # the hand-in


def place(frames: Iterable[traceback.FrameSummary]) -> tuple[int, str]:
    """Return line and text of the last frame in the hand-in; 0 and "" if there is none."""
    lines = [frame.lineno or 0 for frame in frames if frame.filename == FILE]
    return (lines[-1], linecache.getline(FILE, lines[-1]).strip()) if lines else (0, "")


def refuse_processes(event: str, _: Any) -> None:
    """Refuse what starts another process, in which all would be allowed."""
    if event in PROCESSES:
        raise Refused("starts another process")


class Finder:
    """Refuses an import; asked before all others."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Find nothing, or refuse."""
        for refused in REFUSED & {name.partition(".")[0], name}:
            raise Refused(f"imports {refused}")


def refuse_autodiff() -> None:
    """Let JAX make none of the objects by which it differentiates."""
    from jax._src.interpreters import ad

    def refused(*_: Any, **__: Any) -> NoReturn:
        raise Refused(AUTODIFF)

    for name in ("JVPTrace", "LinearizeTrace", "UndefinedPrimal", "ValAccum", "RefAccum", "NullAccum"):
        if hasattr(ad, name):
            getattr(ad, name).__init__ = refused
    for name in ("backward_pass", "backward_pass3"):
        if hasattr(ad, name):
            setattr(ad, name, refused)


def load(path: str, function: str) -> Callable[..., Any]:
    """Run the file, and return its function."""
    text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    beside = [
        file for file in pathlib.Path(path).parent.glob("*.py") if re.search(rf"\b{re.escape(file.stem)}\b", text)
    ]
    with_jax = "jax" in text or any(b"jax" in file.read_bytes() for file in beside)  # that it imports
    if with_jax:
        import jax  # noqa: F401 (before it is called)

        refuse_autodiff()
    sys.path.insert(0, os.path.dirname(path))
    sys.meta_path.insert(0, Finder)
    sys.addaudithook(refuse_processes)
    module = sys.modules["hand_in"] = types.ModuleType("hand_in")
    module.__file__ = path
    exec(compile(pathlib.Path(path).read_bytes(), path, "exec"), module.__dict__)
    if not with_jax and "jax" in sys.modules:
        raise Refused("imports jax without its name")
    found: Callable[..., Any] | None = vars(module).get(function)
    if not callable(found):
        raise Mistake(f"the file defines no function `{function}`")
    return found


def call(function: Callable[..., Any], arguments: list[Any], names: list[str]) -> tuple[dict[str, Any], list[int]]:
    """Return the gradients by name, each with the name of its dtype, and which arguments the function changed."""
    if "jax" in sys.modules:
        import jax.numpy as jnp

        given = [jnp.asarray(a) for a in arguments]
    else:
        given = [a.copy() for a in arguments]
    returned = function(*given)
    changed = [i for i, (a, b) in enumerate(zip(arguments, given, strict=True)) if not np.array_equal(a, b, True)]
    return {name: array(name, value) for name, value in by_name(returned, names).items()}, changed


def by_name(returned: Any, names: list[str]) -> dict[str, Any]:
    """Return what the function returned as a dictionary with a value for each name."""
    wanted = ", ".join(names)
    if returned is None:
        raise Mistake(f"the function returns None: end it with `return {wanted}`")
    if isinstance(returned, dict):
        if missing := [name for name in names if name not in returned]:
            raise Mistake(f"the dictionary that is returned lacks {', '.join(missing)}")
        return {name: returned[name] for name in names}
    if isinstance(returned, list) and len(returned) == 1 and hasattr(returned[0], "shape"):
        returned = tuple(returned)
    if len(names) == 1 and not isinstance(returned, tuple):
        returned = (returned,)
    if not isinstance(returned, tuple | list) or len(returned) != len(names):
        count = len(returned) if isinstance(returned, tuple | list) else 1
        raise Mistake(f"the function returns {count} value{'s' * (count != 1)}, and must return {len(names)}: {wanted}")
    return dict(zip(names, returned, strict=True))


def array(name: str, value: Any) -> tuple[Any, str] | None:
    """Return an array in float64, and the dtype that it had; None for a value that is still to be written."""
    if value is Ellipsis:
        return None
    if value is None:
        raise Mistake(f"{name} is None")
    try:
        found = np.asarray(value)
        dtype = str(found.dtype)
        return (found if found.dtype.kind in "biuc" else found.astype(np.float64)), dtype
    except (TypeError, ValueError):
        raise Mistake(f"{name} (of type {type(value).__name__}) is no array of numbers") from None


def error_of(error: BaseException) -> dict[str, Any]:
    """Return what to tell the student of an error of the file."""
    line, text = place(traceback.extract_tb(error.__traceback__))
    if isinstance(error, SyntaxError) and error.filename == FILE:
        return {"kind": "syntax", "text": str(error.msg), "line": error.lineno or 0, "code": (error.text or "").strip()}
    if isinstance(error, ModuleNotFoundError):
        return {"kind": "import", "text": str(error.name), "line": line, "code": text}
    if isinstance(error, Mistake):
        return {"kind": "mistake", "text": str(error), "line": 0, "code": ""}
    name = type(error).__name__
    try:
        message = " ".join(str(error).split())[:200]
    except BaseException:  # whatever the hand-in made of it
        message = ""
    if "ellipsis" in message.lower():  # a blank that is used further down
        return {"kind": "blank", "text": "", "line": line, "code": text}
    return {"kind": "error", "text": f"{name}: {message}" if message else name, "line": line, "code": text}


def show() -> None:
    """Write out what the hand-in has printed, if it has left its output open."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()


def answer(request: dict[str, Any], arrays: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Run the hand-in; return what is told of each case, and the arrays."""
    found: dict[str, Any] = {}
    told: list[Any] = []
    function = load(FILE, request["function"])
    takes = request["takes"]
    try:
        inspect.signature(function).bind(*takes)
    except TypeError:
        raise Mistake(f"`{request['function']}` must take {', '.join(takes)}, in this order") from None
    for case in range(request["cases"]):
        if case == 1:  # what it prints is shown once
            show()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        arguments = [arrays[f"{case}.{i}"].astype(dtype) for i, dtype in enumerate(request["dtypes"][case])]
        try:
            gradients, changed = call(function, arguments, request["names"])
            written = {name: of_name for name, of_name in gradients.items() if of_name is not None}
            found |= {f"{case}.{name}": value for name, (value, _) in written.items()}
            told.append({"dtypes": {name: dtype for name, (_, dtype) in written.items()}, "changed": changed})
        except Exception as error:
            told.append({"error": error_of(error)})
    return told, found


def main() -> None:
    """Answer one request."""
    global FILE
    request = json.loads(sys.stdin.buffer.readline())
    arrays = dict(np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False))
    FILE = request["file"]
    pipe = os.fdopen(request["pipe"], "wb")
    told: list[Any] = []
    found: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    try:
        told, found = answer(request, arrays)
    except Refused:
        pass
    except BaseException as raised:
        error = error_of(raised)
    if Refused.first:
        what, line, text = Refused.first
        told, found, error = [], {}, {"kind": "refused", "text": what, "line": line, "code": text}
    saved = io.BytesIO()
    np.savez(saved, **found)
    pipe.write(json.dumps({"cases": told, "error": error}).encode() + b"\n" + saved.getvalue())
    pipe.flush()
    show()
    os._exit(0)  # not by way of what the file has registered


if __name__ == "__main__":
    main()
