"""Dropout: each value is zeroed with probability P, the rest scaled so that the mean stays.

Definition (m: the mask, 1 with probability 1 − P, else 0):
    y_i = m_i x_i / (1 − P)

Derivation (derived here: the notes define dropout and no derivative; dy stands for ∂L/∂y):
    Given the mask, x_i affects only y_i, with ∂y_i/∂x_i = m_i / (1 − P):
        dx_i = dy_i m_i / (1 − P)
    which is dropout of dy with the same mask.

Residuals:
    the key. The backward pass recomputes the mask from it, so that the mask is never stored.

The mask:
    m_i = 1 where hash(i) ≥ t, with t = round(rate · 2³²). For a given key the hash permutes the 32-bit integers, so
    exactly t of its 2³² values drop: P = t / 2³², |P − rate| ≤ 2⁻³³, and scaling by 1 / (1 − P) is unbiased.

Conventions:
    A dropped NaN is 0. Rate 1 gives zeros. The scale is applied in at least float32. If `vmap` does not map the
    key, all samples share one mask.

Source:
    Taura, Neural Networks Basics: "Component functions" (dropout).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import Type, accumulation_dtype, cotangent, type_of

Key = Array | np.ndarray  # from `jax.random.key`, or its numbers, as `jax.random.PRNGKey` has them


def _definition(x: ArrayLike, rate: float, key: Key | None = None, *, deterministic: bool = False) -> Array:
    x, threshold, key = _checked(x, rate, key, deterministic)
    if threshold == 0 or key is None:
        return x
    if threshold == 1 << 32:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


@defined_by(_definition)
def dropout(
    x: Float[ArrayLike, "*shape"], rate: float, key: Key | None = None, *, deterministic: bool = False
) -> Float[Array, "*shape"]:
    """Zero each value with probability `rate` and scale the rest by 1 / (1 − rate).

    .. math:: y_i = m_i x_i / (1 - P)

    Args:
        x: input, any shape (at most 2³² elements) and floating dtype.
        rate: probability of dropping a value, a static float in [0, 1].
        key: PRNG key for the mask, from `jax.random.key`; needed when something can drop.
        deterministic: True returns x unchanged, as in evaluation.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError: `x` is not of a floating-point dtype, `rate` not a static number, or `key` not a single key.
        ValueError: `rate` lies outside [0, 1], or `key` is missing.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> y = dropout(jnp.ones(1000), 0.25, jax.random.key(0))
        >>> sorted(set(y.tolist()))
        [0.0, 1.3333333730697632]

    References:
        Taura, Neural Networks Basics, "Component functions".
    """
    x, threshold, key = _checked(x, rate, key, deterministic)
    if threshold == 0 or key is None:
        return x
    if threshold == 1 << 32:
        return jnp.zeros_like(x)
    return _dropout(threshold, x, key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"y_i = \frac{m_i\,x_i}{1 - P}",
    x=(r"dx_i = \frac{dy_i\,m_i}{1 - P}", "0 for a value that was dropped, 1 / (1 − P) for one that was kept."),
)
def _dropout(threshold: int, x: Array, key: Key) -> Array:
    return _dropout_fwd(threshold, x, key)[0]


def _dropout_fwd(threshold: int, x: Array, key: Key) -> tuple[Array, tuple[Key, Type]]:
    return _drop(threshold, x, key), (key, type_of(x))


def _dropout_bwd(threshold: int, residuals: tuple[Key, Type], dy: Array) -> tuple[Array, None]:
    key, x = residuals
    return cotangent(_drop(threshold, dy, key), x), None


_dropout.defvjp(_dropout_fwd, _dropout_bwd)


def _drop(threshold: int, x: Array, key: Key) -> Array:
    """Return m_i x_i / (1 − P)."""
    scale = 1 / (1 - threshold / 2**32)
    kept = (x.astype(accumulation_dtype(x.dtype)) * scale).astype(x.dtype)
    return jnp.where(_keep(threshold, x.shape, key), kept, jnp.zeros((), x.dtype))


def _keep(threshold: int, shape: tuple[int, ...], key: Key) -> Array:
    """Return m_i = (hash(i) ≥ t).

    The hash of a counter is keyed by 64 bits from threefry. XLA fuses it with the multiplication by m_i, so that no
    array of bits is stored. The definition draws all bits by threefry, which takes most of its time.
    """
    seeds = jax.random.bits(key, (2,), jnp.uint32)
    counter = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return jnp.greater_equal(_mix(_mix(counter ^ seeds[0]) + seeds[1]), jnp.uint32(threshold))


def _mix(h: Array) -> Array:
    """Permute the 32-bit integers so that each bit of the result depends on all of `h`'s.

    Shift-multiply rounds with the constants that C. Wellons' search found to avalanche best ("lowbias32").
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    h ^= h >> jnp.uint32(16)
    return h


def _checked(x: ArrayLike, rate: float, key: Key | None, deterministic: bool) -> tuple[Array, int, Key | None]:
    x = arguments.floating("x", x)
    rate = arguments.fraction("rate", rate)
    threshold = round(rate * 2**32)
    if arguments.flag("deterministic", deterministic):
        return x, threshold, None
    if key is None and threshold > 0:
        raise ValueError(
            f"`key` (None) must be a PRNG key when `rate` ({rate}) > 0; pass `jax.random.key(seed)`, or "
            f"`deterministic=True` in evaluation"
        )
    if key is None:
        return x, threshold, None
    if x.size > 1 << 32:
        raise ValueError(
            f"{arguments.described('x', x)} must have at most 2**32 elements; apply dropout to parts of it"
        )
    return x, threshold, _checked_key(key)


def _checked_key(key: Key) -> Key:
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and not (dtype == jnp.uint32 and key.ndim >= 1):
        raise TypeError(f"`key` ({type(key).__name__}) must be a PRNG key, from `jax.random.key(seed)`")
    if (key.ndim != 0) if typed else (key.shape not in ((2,), (4,))):
        raise TypeError(f"`key` (shape {key.shape}) must be a single PRNG key; use `jax.vmap` for one a sample")
    return key
