"""Functions that are traced: their arguments, their names, and what JAX says when one cannot be traced."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BRANCHED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
NOT_TRACEABLE = (*BRANCHED, jax.errors.UnexpectedTracerError)


def branched(name: str, error: Exception) -> str:
    """Say that a function looks at values that are not there while it is traced."""
    reason = str(error).splitlines()[0].rstrip(".")
    return (
        f"`f` ({name}) must not branch in Python on the value of an array ({reason}); "
        "use jax.lax.cond or jnp.where, or pass the value as a Python scalar"
    )


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, of JAX or NumPy, or a tracer of one."""
    if isinstance(leaf, np.ndarray | np.generic):
        return bool(jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool)
    return isinstance(leaf, jax.Array)


def is_inexact(leaf: Any) -> bool:
    """Whether an array, or its type, has a floating-point or complex dtype."""
    return bool(jnp.issubdtype(leaf.dtype, np.inexact))


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_missing_in_jax(error: BaseException) -> bool:
    """Whether JAX says that it has not got an operation for a dtype: no mistake of a rule."""
    words = str(error)
    if isinstance(error, NotImplementedError):
        return "dtype" in words
    return words.startswith("UNIMPLEMENTED") or "does not accept dtype" in words


def function_name(f: Any) -> str:
    """Return a function's name."""
    if isinstance(f, functools.partial):
        return function_name(f.func)
    return str(getattr(f, "__name__", type(f).__name__))
