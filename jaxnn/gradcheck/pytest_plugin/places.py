"""Where a hand-written rule is defined: its name, its file and line, and the package that it belongs to."""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.discovery import file_and_line
from jaxnn.tracing.kinds import HiPrim


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
    """Return where a rule is defined, if `wanted` accepts one of the functions that compute its derivative.

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
    if not derivative:
        return None
    names = wanted_in("fun") + derivative
    return next((place for place in names if "<lambda>" not in place.name), names[0])


def _place(f: Any, kind: str) -> Place | None:
    file, line = file_and_line(f)
    if not file or not isinstance(getattr(f, "__module__", None), str):
        return None
    name = str(getattr(f, "__qualname__", type(f).__name__)).replace("<locals>.", "")
    return Place(name, f.__module__, file, line, kind)


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


def constants_of(rule: Any) -> str:
    """Return what tells a rule from others of the same place: what its functions close over, "eps=1e-06, axis=1"."""
    found = rule.params if isinstance(rule, HiPrim) else _closed_over(rule)
    return ", ".join(f"{name}={_short(value)}" for name, value in sorted(found.items()))


def tracer_in(rule: Any) -> str:
    """Return the name of a variable that a rule closes over and that holds a tracer; "" if there is none."""
    found = {} if isinstance(rule, HiPrim) else _closed_over(rule)
    traced = (name for name, value in found.items() if any(map(_is_tracer, jax.tree.leaves(value))))
    return next(traced, "")


def _closed_over(rule: Any) -> dict[str, Any]:
    """Return the variables that a rule's functions close over, without the rule itself."""
    functions = [f for part in ("fun", "fwd", "bwd", "jvp") for f in _functions(getattr(rule, part, None))]
    pairs = [pair for f in functions for pair in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)]
    found = {name: _content(cell) for name, cell in pairs}
    return {name: value for name, value in found.items() if not isinstance(value, jax.custom_vjp | jax.custom_jvp)}


def _is_tracer(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _short(value: Any) -> str:
    """Return a value as short text; different values have different texts, if they are numbers, arrays or functions."""
    if isinstance(value, jax.Array | np.ndarray) and not _is_tracer(value):
        array = np.asarray(jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value)
        return f"{array.dtype}{list(array.shape)}#{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"
    if inspect.isfunction(value):
        return f"{value.__qualname__}:{value.__code__.co_firstlineno}".replace("<locals>.", "")
    text = repr(value)
    return text if len(text) < 40 and " at 0x" not in text else type(value).__name__
