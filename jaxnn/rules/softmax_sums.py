"""What softmax, log-softmax and the cross entropies share: shifted logits, their sums, 0 · ∞ = 0, and checks."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from jaxnn.rules import arguments, sharding
from jaxnn.rules.cotangents import accumulation_dtype


class Axes(NamedTuple):
    """What to sum over: axes of an array, and the mesh axes over which these are sharded."""

    of_array: tuple[int, ...]
    of_mesh: sharding.AxisName | None


def shifted(axes: Axes, x: Array, where: Array | None = None) -> Array:
    """Return x less its maximum over `axes`, in at least float32; −∞ where `where` is False, also where all is.

    Softmax is the same for logits that all are smaller by one number, so the shift has no derivative.
    """
    x = x.astype(accumulation_dtype(x.dtype))
    x = x if where is None else jnp.where(where, x, -jnp.inf)
    shift = largest(axes, x)
    return x - jnp.where(shift == -jnp.inf, jnp.zeros((), x.dtype), shift)


def largest(axes: Axes, x: Array) -> Array:
    """Return the maximum of x over `axes`, which keep length 1; it has no derivative."""
    within = lax.stop_gradient(jnp.max(x, axes.of_array, keepdims=True, initial=-jnp.inf))
    return sharding.all_reduce(axes.of_mesh, lax.pmax, within)


def total(axes: Axes, exp: Array, where: Array | None = None) -> Array:
    """Return Σ exp over `axes`; 1 where `where` leaves nothing to sum, so that nothing is divided by 0."""
    sums = summed(axes, exp)
    if where is None:
        return sums
    return jnp.where(summed(axes, where) > 0, sums, jnp.ones((), exp.dtype))


def summed(axes: Axes, x: Array) -> Array:
    """Return Σ x over `axes`, which keep length 1."""
    return sharding.all_reduce(axes.of_mesh, lax.psum, jnp.sum(x, axes.of_array, keepdims=True))


def softmax_times(axes: Axes, x: Array, from_largest: Array, sums: Array, where: Array | None, factor: Array) -> Array:
    """Return p · factor, with p = softmax(x): one factor a row; `from_largest` is `shifted` x, `sums` its `total`.

    On a GPU the sums are computed again, unless the axes are sharded. XLA makes one kernel of a row's maximum, its sum
    and what follows; with sums from another kernel the backward pass is several kernels, and each reads the row.
    """

    def with_sums(x: Array, from_largest: Array, sums: Array, factor: Array) -> Array:
        return jnp.exp(from_largest) * (factor / sums)

    def in_one_kernel(x: Array, from_largest: Array, sums: Array, factor: Array) -> Array:
        x = lax.optimization_barrier(x)  # type: ignore[no-untyped-call] # else the sums are the forward pass's
        exp = jnp.exp(shifted(axes, x, where))
        return exp / total(axes, exp, where) * factor

    if axes.of_mesh is not None:  # where a sum is communication
        return with_sums(x, from_largest, sums, factor)
    product: Array = lax.platform_dependent(x, from_largest, sums, factor, cuda=in_one_kernel, default=with_sums)
    return product


def at_most_largest(axes: Axes, y: Array) -> Array:
    """Return y, which is min(y, max y).

    On a GPU, XLA fuses a row's sums into one kernel if such a maximum and minimum precede them.
    """

    def limited(y: Array) -> Array:
        return jnp.minimum(y, jnp.max(y, axes.of_array, keepdims=True, initial=-jnp.inf))

    same: Array = lax.platform_dependent(y, cuda=limited, default=lambda y: y)
    return same


def stored(sums: Array) -> Array:
    """Return the sums, stored in memory; they lie between −∞ and ∞.

    On a CPU, XLA would fuse the sums of softmax's backward pass with the loop that uses them, which was slower than two
    loops (`python scripts/bench.py optimisations`). The limits change nothing, and keep them apart.
    """

    def limited(sums: Array) -> Array:
        infinity = jnp.asarray(jnp.inf, sums.dtype)
        return lax.clamp(-infinity, sums, infinity)

    same: Array = lax.platform_dependent(sums, cpu=limited, default=lambda sums: sums)
    return same


def zero_safe_product(q: Array, x: Array) -> Array:
    """Return q x, with 0 where q is 0 and x infinite: a class that has no part in the target adds nothing."""
    return jnp.where(q == 0, jnp.zeros((), x.dtype), q * x)


def checked(
    x: ArrayLike, axis: int | tuple[int, ...], where: Bool[ArrayLike, "..."] | None, axis_name: sharding.AxisName | None
) -> tuple[Array, Axes, Array | None]:
    """Check the arguments of softmax and log-softmax; axes are counted from the front."""
    x = arguments.floating("x", x)
    sharding.axis_size(axis_name)
    axes = tuple(arguments.axis_in_range("x", a, x) for a in _several(axis))
    if len(set(axes)) < len(axes):
        raise ValueError(f"`axis` ({axis}) must name each axis once")
    if where is None:
        return x, Axes(axes, axis_name), None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"`where` (dtype {where.dtype}) must be boolean; convert it with `where.astype(bool)`")
    try:
        where = jnp.broadcast_to(where, x.shape)
    except ValueError:
        message = f"{arguments.described('where', where)} must broadcast to {arguments.described('x', x)}"
        raise ValueError(message) from None
    return x, Axes(axes, axis_name), where


def _several(axis: Any) -> tuple[int, ...]:
    """Return `axis` as a tuple of static ints."""
    try:
        return tuple(arguments.integer("axis", a, -(2**31)) for a in (axis if isinstance(axis, tuple) else (axis,)))
    except TypeError:
        kind = type(axis).__name__
        raise TypeError(f"`axis` ({axis!r}) must be a static int or a tuple of ints, and not {kind}") from None
