"""The functions that are traced: their names, and which of their arguments are arrays, and of which numbers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX or of NumPy, or a tracer of one."""
    if isinstance(leaf, np.ndarray | np.generic):
        return bool(jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool)
    return isinstance(leaf, jax.Array)


def is_ref(leaf: Any) -> bool:
    """Whether a leaf is a mutable array, made with `jax.new_ref`, or a tracer of one."""
    return isinstance(leaf, jax.Ref)


def is_inexact(array: Any) -> bool:
    """Whether an array, or its type, has a floating-point or complex dtype; types without a dtype have none."""
    return hasattr(array, "dtype") and bool(jnp.issubdtype(array.dtype, np.inexact))


def function_name(f: Any) -> str:
    """Return a function's name."""
    if isinstance(f, functools.partial):
        return function_name(f.func)
    return str(getattr(f, "__name__", type(f).__name__))
