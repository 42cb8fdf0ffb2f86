"""Where a hand-written rule is defined: its name, its file and line, and the package that it belongs to."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import hijax

HiPrim = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive  # its name before jax 0.12


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a rule is defined.

    Attributes:
      name: its name in the module, "norms.rms_norm".
      module: the module's name, "mypkg.norms".
      file: the file.
      line: the line where the function, or the class, begins.
      kind: "custom_vjp", "custom_jvp" or "HiPrim".
    """

    name: str
    module: str
    file: str
    line: int
    kind: str

    @property
    def key(self) -> str:
        return f"{self.file}:{self.line}:{self.name}:{self.kind}"


def place_of(rule: Any, wanted: Callable[[Place], bool]) -> Place | None:
    """Return where a rule is defined, if one of the functions that compute its derivative is wanted.

    The rule has the name of the decorated function, if that is wanted too.
    """
    if isinstance(rule, HiPrim):
        place = _place(type(rule), "HiPrim")
        return place if place is not None and wanted(place) else None
    kind = "custom_vjp" if isinstance(rule, jax.custom_vjp) else "custom_jvp"

    def wanted_in(*parts: str) -> list[Place]:
        functions = [f for part in parts for f in _functions(getattr(rule, part, None))]
        return [place for f in functions if (place := _place(f, kind)) is not None and wanted(place)]

    derivative = wanted_in("bwd", "fwd", "jvp")
    return (wanted_in("fun") + derivative)[0] if derivative else None


def _place(f: Any, kind: str) -> Place | None:
    parts = list(vars(f).values()) if inspect.isclass(f) else [f]
    code = next((part.__code__ for part in parts if hasattr(part, "__code__")), None)
    if code is None or not isinstance(getattr(f, "__module__", None), str):
        return None
    try:
        line = inspect.getsourcelines(f)[1] if inspect.isclass(f) else code.co_firstlineno
    except (TypeError, OSError):  # a class that was made by calling `type`
        line = code.co_firstlineno
    name = str(getattr(f, "__qualname__", type(f).__name__)).replace("<locals>.", "")
    return Place(name, f.__module__, os.path.abspath(code.co_filename), line, kind)


def _functions(f: Any, depth: int = 3) -> Iterator[Callable[..., Any]]:
    """Yield a function, and those that it wraps: of partials, methods, decorators and closures."""
    if f is None or depth == 0:
        return
    if isinstance(f, functools.partial):
        inner = [f.func, *f.args, *f.keywords.values()]
    elif inspect.ismethod(f):
        inner = [f.__func__]
    elif hasattr(f, "__wrapped__") and not inspect.isclass(f):
        inner = [f.__wrapped__]
    elif inspect.isfunction(f):
        yield f
        inner = [_content(cell) for cell in f.__closure__ or ()]
    elif callable(f) and not inspect.isclass(f) and not inspect.isbuiltin(f):
        inner = [type(f).__call__]
    else:
        return
    for other in inner:
        if callable(other):
            yield from _functions(other, depth - 1)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None
