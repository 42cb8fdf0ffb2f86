"""Log-softmax: y = log softmax(x).

Definition:
    y_a = x_a − log Σ_k exp(x_k)

Derivation (derived here, in the manner of the notes' two cases for softmax; dy stands for ∂L/∂y, p for softmax(x)):
    x_j affects every y_a, in two cases:
        j = a:  ∂y_a/∂x_a = 1 − exp(x_a) / Σ = 1 − p_a
        j ≠ a:  ∂y_a/∂x_j =   − exp(x_j) / Σ =   − p_j
    The chain rule sums over every y that x_j affects:
        dx_j = dy_j − p_j Σ_a dy_a

Residuals:
    x (and `where`), inputs, and one number a row, Σ exp(x − max x): with the forward pass in the same program, as in a
    training step, XLA computes these exponentials once.

Conventions:
    As softmax; entries where `where` is False are −∞ (as in `jax.nn.log_softmax`) and their gradient is 0.

Source:
    Taura, Neural Networks Basics: "softmax" (its logarithm); the derivative is derived here.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import cotangent, type_of
from jaxnn.rules.sharding import AxisName
from jaxnn.rules.softmax_sums import Axes, checked, shifted, softmax_times, summed, total

Residuals = tuple[Array, Array, Array | None]  # x, Σ exp(x − max x), and `where`


def _definition(
    x: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    axis_name: AxisName | None = None,
) -> Array:
    x, axes, where = checked(x, axis, where, axis_name)
    from_largest = shifted(axes, x, where)
    y = from_largest - jnp.log(total(axes, jnp.exp(from_largest), where))
    return (y if where is None else jnp.where(where, y, -jnp.inf)).astype(x.dtype)


@defined_by(_definition)
def log_softmax(
    x: Float[ArrayLike, "*shape"],
    axis: int | tuple[int, ...] = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    axis_name: AxisName | None = None,
) -> Float[Array, "*shape"]:
    """Turn logits into logarithms of probabilities, without forming the probabilities.

    .. math:: y_a = x_a - \\log \\sum_k \\exp(x_k)

    Args:
        x: logits, any shape and floating dtype.
        axis: the axis, or axes, over which exp(y) sums to 1.
        where: booleans that broadcast to x's shape; entries where it is False are left out, and are −∞.
        axis_name: the mesh axis over which the classes are sharded, inside `shard_map` or `pmap`: each device has its
            part of them, in order; the sums run over all.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError: `x` is not of a floating-point dtype, or `where` not boolean.
        ValueError: `axis` is none of x's, `where` does not broadcast to x, or `axis_name` is no mesh axis in scope.

    Example:
        >>> import jax.numpy as jnp
        >>> log_softmax(jnp.array([0.0, 1000.0]))
        Array([-1000.,     0.], dtype=float32)

    References:
        Taura, Neural Networks Basics, "softmax".
    """
    x, axes, where = checked(x, axis, where, axis_name)
    return _log_softmax(axes, x, where)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"y_a = x_a - \log \sum_k e^{x_k}",
    x=(
        r"dx_j = dy_j - p_j \sum_a dy_a",
        "A logit raises its own log-probability by 1 − p and lowers every other one by p.",
    ),
)
def _log_softmax(axes: Axes, x: Array, where: Array | None) -> Array:
    return _log_softmax_fwd(axes, x, where)[0]


def _log_softmax_fwd(axes: Axes, x: Array, where: Array | None) -> tuple[Array, Residuals]:
    from_largest = shifted(axes, x, where)
    sums = total(axes, jnp.exp(from_largest), where)
    y = from_largest - jnp.log(sums)
    y = (y if where is None else jnp.where(where, y, -jnp.inf)).astype(x.dtype)
    return y, (x, sums, where)


def _log_softmax_bwd(axes: Axes, residuals: Residuals, dy: Array) -> tuple[Array, None]:
    x, sums, where = residuals
    zero, dy = jnp.zeros((), sums.dtype), dy.astype(sums.dtype)
    dy = dy if where is None else jnp.where(where, dy, zero)
    # dx_j = dy_j − p_j Σ_a dy_a
    dx = dy - softmax_times(axes, x, shifted(axes, x, where), sums, where, summed(axes, dy))
    return cotangent(dx if where is None else jnp.where(where, dx, zero), type_of(x)), None


_log_softmax.defvjp(_log_softmax_fwd, _log_softmax_bwd)
