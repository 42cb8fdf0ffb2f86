"""Tanh: y = tanh(x).

Definition:
    y_i = (e^{x_i} − e^{−x_i}) / (e^{x_i} + e^{−x_i})

Derivation (derived here: the notes define no derivative; dy stands for ∂L/∂y):
    By the quotient rule ∂y/∂x = 4 / (e^x + e^−x)² = 4 σ(2x) σ(−2x) with σ(x) = 1 / (1 + e^−x), so
        dx_i = 4 dy_i σ(2 x_i) σ(−2 x_i)

Residuals:
    x, an input, so nothing new is stored. The usual 1 − y² would keep y instead, and lose both tails: in float32, with
    XLA's tanh on a CPU, it is 0 at x = 8. The product is right there, up to rounding.

Conventions:
    Computed in at least float32. tanh(±∞) = ±1, with derivative 0.

Source:
    not in the notes; beside the sigmoid for completeness.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype


def _definition(x: ArrayLike) -> Array:
    return jnp.tanh(arguments.floating("x", x))


@defined_by(_definition)
def tanh(x: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Squash into (−1, 1).

    .. math:: y = \\tanh(x)

    Args:
        x: input, any shape and floating dtype.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError: `x` is not of a floating-point dtype.

    Example:
        >>> import jax
        >>> jax.grad(tanh)(0.0)
        Array(1., dtype=float32)

    References:
        Derived here; see the module's docstring.
    """
    return _tanh(arguments.floating("x", x))


@jax.custom_vjp
@with_formulas(
    r"y_i = \frac{e^{x_i} - e^{-x_i}}{e^{x_i} + e^{-x_i}}",
    x=(r"dx_i = 4\,dy_i\,\sigma(2 x_i)\,\sigma(-2 x_i)", "At most 1, at x = 0; far from 0 tanh hardly moves."),
)
def _tanh(x: Array) -> Array:
    return _tanh_fwd(x)[0]


def _tanh_fwd(x: Array) -> tuple[Array, Array]:
    return jnp.tanh(x.astype(accumulation_dtype(x.dtype))).astype(x.dtype), x


def _tanh_bwd(x: Array, dy: Array) -> tuple[Array]:
    # σ(2x) σ(−2x) = e^−2x / (1 + e^−2x)², which is even.
    small = jnp.exp(-2 * jnp.abs(x.astype(accumulation_dtype(x.dtype))))
    dx = dy.astype(small.dtype) * (4 * small / jnp.square(1 + small))
    return (dx.astype(x.dtype),)


_tanh.defvjp(_tanh_fwd, _tanh_bwd)
