"""Softmax: y = exp(x) / Σ exp(x).

Definition (the notes' p of logits l is y of x here):
    y_a = exp(x_a) / Σ_k exp(x_k)

Derivation (the notes', by the quotient rule; dy stands for ∂L/∂y):
    x_j affects every y_a, in two cases:
        j = a:  ∂y_a/∂x_a = [exp(x_a) Σ − exp(x_a)²] / Σ² = (1 − y_a) y_a
        j ≠ a:  ∂y_a/∂x_j = [0 − exp(x_a) exp(x_j)] / Σ²  = −y_j y_a
    The chain rule sums over every y that x_j affects:
        dx_j = dy_j (1 − y_j) y_j − Σ_{a≠j} dy_a y_j y_a = y_j (dy_j − Σ_a dy_a y_a)

Residuals:
    y, the output: both cases use only y. Also `where`, an input, if given.

Conventions:
    The largest x is subtracted first: y does not change, and nothing overflows. Entries where `where` is False are
    left out of the sum: their y and their gradient are 0, even if all are left out. Computed in at least float32.
    With `axis_name` each device has a part of the entries: the largest x and both sums are those of all devices.

Source:
    *Multi-class classification and backpropagation*, "The Softmax Function" and "The Chain Rule in Our Network" ff.
    (two cases, j = a and j ≠ a); Taura, Neural Networks Basics: "softmax". `where` is derived here.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import Type, accumulation_dtype, cotangent, type_of
from jaxnn.rules.sharding import AxisName
from jaxnn.rules.softmax_sums import Axes, at_most_largest, checked, largest, shifted, stored, summed, total

Residuals = tuple[Array, Array | None, Type]  # y, `where`, and the type of x


def _definition(
    x: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    axis_name: AxisName | None = None,
) -> Array:
    x, axes, where = checked(x, axis, where, axis_name)
    exp = jnp.exp(shifted(axes, x, where))
    return (exp / total(axes, exp, where)).astype(x.dtype)


@defined_by(_definition)
def softmax(
    x: Float[ArrayLike, "*shape"],
    axis: int | tuple[int, ...] = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    axis_name: AxisName | None = None,
) -> Float[Array, "*shape"]:
    """Turn logits into probabilities.

    .. math:: y_a = \\exp(x_a) / \\sum_k \\exp(x_k)

    Args:
        x: logits, any shape and floating dtype.
        axis: the axis, or axes, over which y sums to 1.
        where: booleans that broadcast to x's shape; entries where it is False are left out, and are 0.
        axis_name: the mesh axis over which the classes are sharded, inside `shard_map` or `pmap`: each device has its
            part of them, in order; the sums run over all.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError: `x` is not of a floating-point dtype, or `where` not boolean.
        ValueError: `axis` is none of x's, `where` does not broadcast to x, or `axis_name` is no mesh axis in scope.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> jax.jacrev(softmax)(jnp.array([0.0, 0.0]))
        Array([[ 0.25, -0.25],
               [-0.25,  0.25]], dtype=float32)

    References:
        *Multi-class classification and backpropagation*, "The Softmax Function"; Taura, Neural Networks Basics,
        "softmax".
    """
    x, axes, where = checked(x, axis, where, axis_name)
    return _softmax(axes, x, where)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"y_a = \frac{e^{x_a}}{\sum_k e^{x_k}}",
    x=(
        r"dx_j = y_j \left(dy_j - \sum_a dy_a\,y_a\right)",
        "A logit raises its own probability, by (1 − y) y, and lowers every other one, by the product of the two.",
    ),
)
def _softmax(axes: Axes, x: Array, where: Array | None) -> Array:
    return _softmax_fwd(axes, x, where)[0]


def _softmax_fwd(axes: Axes, x: Array, where: Array | None) -> tuple[Array, Residuals]:
    wide = x.astype(accumulation_dtype(x.dtype))
    # Without a mask a row of −∞ is NaN in any case, and XLA's CPU backend makes one kernel of the plain difference.
    exp = jnp.exp(wide - largest(axes, wide) if where is None else shifted(axes, x, where))
    y = (exp / total(axes, exp, where)).astype(x.dtype)
    return y, (y, where, type_of(x))


def _softmax_bwd(axes: Axes, residuals: Residuals, dy: Array) -> tuple[Array, None]:
    y, where, x = residuals
    dtype = y.dtype
    y, dy = at_most_largest(axes, y.astype(accumulation_dtype(dtype))), dy.astype(accumulation_dtype(dtype))
    dy = dy if where is None else jnp.where(where, dy, jnp.zeros((), dy.dtype))
    # dx_j = y_j (dy_j − Σ_a dy_a y_a)
    dx = y * (dy - stored(summed(axes, dy * y)))
    return cotangent(dx, x), None


_softmax.defvjp(_softmax_fwd, _softmax_bwd)
