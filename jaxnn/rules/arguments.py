"""Argument checks of the components: one line that names the argument, its value, the requirement and the cure."""

import operator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

REDUCTIONS = ("mean", "sum", "none")


def described(name: str, x: jax.Array) -> str:
    """Name an array in a message: "`w` (shape (3, 4))"."""
    return f"`{name}` (shape {x.shape})"


def array(name: str, x: ArrayLike) -> jax.Array:
    """Return `x` as an array; 64-bit integers are clipped to int32, so an invalid label stays invalid."""
    try:
        if x is None:  # JAX would read it as NaN
            raise TypeError
        if isinstance(x, int | np.ndarray | np.integer) and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            host = np.asarray(x)
            if host.dtype.kind in "iu" and host.dtype.itemsize == 8:
                return jnp.asarray(np.clip(host, -(2**31), 2**31 - 1).astype(np.int32))
        return jnp.asarray(x)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"`{name}` ({type(x).__name__}) must be an array of numbers") from None


FLOATING = ("float16", "bfloat16", "float32", "float64")


def floating(name: str, x: ArrayLike) -> jax.Array:
    """Return `x` as an array, which must be of a real floating-point dtype."""
    checked = array(name, x)
    if str(checked.dtype) not in FLOATING:
        raise TypeError(
            f"`{name}` (dtype {checked.dtype}) must have a floating-point dtype, one of {', '.join(FLOATING)}; "
            f"convert it with `{name}.astype(jnp.float32)`"
        )
    return checked


def class_ids(name: str, x: ArrayLike) -> jax.Array:
    """Return `x` as an array of class ids, signed so that -1 and -100 stay negative."""
    ids = array(name, x)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"`{name}` (dtype {ids.dtype}) must hold integer class ids; convert it with `{name}.astype(jnp.int32)`"
        )
    return ids.astype(jnp.int64 if ids.dtype.itemsize == 8 else jnp.int32)


def fraction(name: str, value: Any) -> float:
    """Return a static float option in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"`{name}` ({type(value).__name__}) must be a static float in [0, 1]; "
            f"under jit pass it as a static argument"
        )
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` ({value}) must lie in [0, 1]")
    return float(value)


def number(name: str, value: Any, minimum: float, exclusive: bool = False) -> float:
    """Return a static, finite float option, at least `minimum`, or above it."""
    requirement = f"{'above' if exclusive else 'at least'} {minimum}"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"`{name}` ({type(value).__name__}) must be a static float {requirement}; "
            f"under jit pass it as a static argument"
        )
    if not minimum <= value < float("inf") or (exclusive and value == minimum):
        raise ValueError(f"`{name}` ({value}) must be finite and {requirement}")
    return float(value)


def pair(name: str, value: Any, minimum: int) -> tuple[int, int]:
    """Return an option given as an int or as (int, int) as a pair, each at least `minimum`."""
    values = value if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"`{name}` ({value!r}) must be an int or a pair of ints, (height, width)")
    height, width = integer(name, values[0], minimum), integer(name, values[1], minimum)
    return height, width


def flag(name: str, value: Any) -> bool:
    """Return a static bool option."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"`{name}` ({type(value).__name__}) must be a static bool; under jit pass it as a static argument"
        )
    return bool(value)


def integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return a static int option, at least `minimum` and at most `maximum`."""
    try:
        # In Python a bool is an int; as a stride or a number of groups it is a mistake.
        number = operator.index(value) if not isinstance(value, (bool, np.bool_)) else None
    except (TypeError, jax.errors.JAXTypeError):
        number = None
    if number is None:
        raise TypeError(f"`{name}` ({value!r}) must be a static int, and not {type(value).__name__}")
    if number < minimum:
        raise ValueError(f"`{name}` ({number}) must be at least {minimum}")
    if maximum is not None and number > maximum:
        raise ValueError(f"`{name}` ({number}) must be at most {maximum}")
    return number


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return an option that must be one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` ({value!r}) must be one of {', '.join(map(repr, choices))}")
    return value


def layout(value: str) -> Literal["NCHW", "NHWC"]:
    """Return the layout of an image."""
    one_of("layout", value, ("NCHW", "NHWC"))
    return "NCHW" if value == "NCHW" else "NHWC"


def axis_in_range(name: str, axis: int, x: jax.Array) -> int:
    """Return `axis` counted from the front."""
    number = integer("axis", axis, -(2**31))
    if not -x.ndim <= number < x.ndim:
        raise ValueError(f"`axis` ({axis}) must be one of the axes of {described(name, x)}")
    return number % x.ndim


def linear(x: ArrayLike, w: ArrayLike, b: ArrayLike | None) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return x (..., I), w (O, I) and b (O,) or None, in their promoted dtype."""
    x, w = floating("x", x), floating("w", w)
    b = None if b is None else floating("b", b)
    if x.ndim < 1:
        raise ValueError("`x` (shape ()) must have at least one axis, of input features")
    if w.ndim != 2:
        raise ValueError(f"{described('w', w)} must have two axes, (outputs, inputs)")
    if w.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{described('w', w)} must have {x.shape[-1]} input features to match {described('x', x)}; `w` is "
            f"(outputs, inputs)"
        )
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"{described('b', b)} must have shape {w.shape[:1]} to match `w`'s outputs")
    dtype = jnp.result_type(x, w) if b is None else jnp.result_type(x, w, b)
    return x.astype(dtype), w.astype(dtype), None if b is None else b.astype(dtype)


def same_shape(name: str, x: jax.Array, other_name: str, other: jax.Array) -> None:
    """Require equal shapes: to broadcast in a loss is nearly always a mistake."""
    if x.shape != other.shape:
        raise ValueError(
            f"{described(name, x)} must have the shape of {described(other_name, other)}; reshape or broadcast it first"
        )
