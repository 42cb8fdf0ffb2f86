"""The functions that are traced: their names, and which of their arguments are arrays, and of which numbers."""

import functools
from collections.abc import Callable, Sequence
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


def with_arrays_apart(
    f: Callable[..., Any], args: Any, kwargs: Any, is_one: Callable[[Any], bool]
) -> tuple[Callable[..., Any], list[Any]]:
    """Return f as a function of those leaves of its arguments that `is_one` selects, and these leaves."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    where = [i for i, x in enumerate(leaves) if is_one(x)]

    def of_arrays(*arrays: Any) -> Any:
        filled = list(leaves)
        for i, x in zip(where, arrays, strict=True):
            filled[i] = x
        args, kwargs = jax.tree.unflatten(tree, filled)
        return f(*args, **kwargs)

    return of_arrays, [leaves[i] for i in where]


def random_values(avals: Sequence[Any]) -> list[Any]:
    """Return values of these types: random between 0.5 and 1.5, or ones for integers and booleans."""
    rng = np.random.default_rng(0)

    def value(aval: Any) -> Any:
        if aval.dtype == jax.dtypes.float0:
            return np.zeros(aval.shape, jax.dtypes.float0)
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), aval.shape) if aval.shape else jax.random.key(0)
        if not is_inexact(aval):
            return jnp.ones(aval.shape, aval.dtype)
        return jnp.asarray(rng.uniform(0.5, 1.5, aval.shape)).astype(aval.dtype)

    return [value(aval) for aval in avals]


def function_name(f: Any) -> str:
    """Return a function's name."""
    if isinstance(f, functools.partial):
        return function_name(f.func)
    return str(getattr(f, "__name__", type(f).__name__))
