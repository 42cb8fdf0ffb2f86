"""What softmax, log-softmax and the cross entropies share: shifted logits, their sums, 0 · ∞, and checks."""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from jaxnn import _checks
from jaxnn._rules import wide

Axes = tuple[int, ...]


def shifted(axes: Axes, x: Array, where: Array | None = None) -> Array:
    """Return x less its maximum over `axes`, in at least float32; −∞ where `where` is False.

    Softmax does not change when all logits do by the same amount, so the shift has no derivative.
    """
    x = x.astype(wide(x.dtype))
    x = x if where is None else jnp.where(where, x, -jnp.inf)
    largest = lax.stop_gradient(jnp.max(x, axes, keepdims=True, initial=-jnp.inf))
    return x - jnp.where(largest == -jnp.inf, jnp.zeros((), x.dtype), largest)


def total(axes: Axes, exp: Array, where: Array | None = None) -> Array:
    """Return Σ exp over `axes`; 1 where `where` leaves nothing to sum, so that nothing is divided by 0."""
    sums = jnp.sum(exp, axes, keepdims=True)
    if where is None:
        return sums
    return jnp.where(jnp.any(where, axes, keepdims=True), sums, jnp.ones((), exp.dtype))


def times(q: Array, x: Array) -> Array:
    """Return q x, with 0 where q is 0 and x infinite: a class that has no part in the target adds nothing."""
    return jnp.where(q == 0, jnp.zeros((), x.dtype), q * x)


def checked(x: ArrayLike, axis: int | Axes, where: Bool[ArrayLike, "..."] | None) -> tuple[Array, Axes, Array | None]:
    """Check the arguments of softmax and log-softmax; axes are counted from the front."""
    x = _checks.floating("x", x)
    axes = tuple(_checks.axis_in_range("x", a, x) for a in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(axes)) < len(axes):
        raise ValueError(f"`axis` ({axis}) must name each axis once")
    if where is None:
        return x, axes, None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"`where` (dtype {where.dtype}) must be boolean; convert it with `where.astype(bool)`")
    try:
        where = jnp.broadcast_to(where, x.shape)
    except ValueError:
        message = f"{_checks.described('where', where)} must broadcast to {_checks.described('x', x)}"
        raise ValueError(message) from None
    return x, axes, where
