"""The values that are recorded: on the host, as plain numbers and arrays; and which of several calls is the hardest."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.tracing.functions import is_array


def is_key(x: Any) -> bool:
    """Whether a value is an array of PRNG keys."""
    return isinstance(x, jax.Array) and bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def host(x: Any) -> Any:
    """Return an array on the host, where nobody deletes it; keys and other things as they are."""
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and not is_key(x):
        return np.array(x)
    return np.array(x, subok=False) if isinstance(x, np.ndarray) else x


def plain(x: Any) -> Any:
    """Return a number or a NumPy array in place of those that JAX makes of them under a trace."""
    if type(x).__module__.startswith("jax."):
        base = next((base for base in (bool, int, float, complex) if isinstance(x, base)), None)
        if base is not None:
            return base(x)
    return np.array(x, subok=False) if isinstance(x, np.ndarray) else x


def hardness(x: Any) -> float:
    """Return how well an array tests a rule: finite, not all 0 or 1, not all equal, with ties and large numbers."""
    if not is_array(x) or is_key(x) or not jnp.issubdtype(x.dtype, np.inexact) or not x.size:
        return 0.0
    with np.errstate(all="ignore"):
        x = np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64).ravel()[: 2**16]
        size, distinct = np.abs(x), len(np.unique(x))
        finite = bool(np.isfinite(x).all())
        varied, tied, large = distinct > 1, 1 < distinct < x.size, bool((size > 20).any())
        generic = not np.isin(size, (0.0, 1.0)).all()
        return float(8 * finite + 4 * bool(size.any()) + 4 * generic + 2 * varied + tied + large)


def examples(arrays: list[Any], batches: Any) -> Iterator[list[Any]]:
    """Yield examples of a call under vmap: the first, the middle and the last of each batch."""
    if not batches:
        yield arrays
        return
    outer, *inner = batches
    sizes = [x.shape[d] for x, d in zip(arrays, outer, strict=True) if d is not None]
    size = sizes[0] if sizes else 1
    for index in sorted({0, size // 2, max(size - 1, 0)} if size else ()):
        one = [x if d is None else _taken(x, index, d) for x, d in zip(arrays, outer, strict=True)]
        yield from examples(one, inner)


def _taken(x: Any, index: int, axis: int) -> Any:
    return x[(slice(None),) * axis + (index,)]
