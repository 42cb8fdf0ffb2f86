"""Sigmoid: y = σ(x) = 1 / (1 + e^−x).

Definition:
    y_i = 1 / (1 + exp(−x_i))

Derivation (derived here: the notes define no derivative; dy stands for ∂L/∂y):
    By the quotient rule ∂y/∂x = e^−x / (1 + e^−x)² = [1 / (1 + e^−x)] · [e^−x / (1 + e^−x)] = σ(x) σ(−x), so
        dx_i = dy_i σ(x_i) σ(−x_i)

Residuals:
    x, an input, so nothing new is stored. The usual y (1 − y) would keep y instead, and be wrong in the right tail:
    in float32, with XLA's logistic on a CPU, it is 17% too large at x = 15 and 0 at x = 17. σ(x) σ(−x) is right
    there, up to rounding.

Conventions:
    Computed in at least float32. σ(±∞) is 1 and 0, with derivative 0.

Source:
    named in the notes as a task with 0/1 targets only (Taura, Neural Networks Basics, "What is machine learning?").
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype


def _definition(x: ArrayLike) -> Array:
    return jax.nn.sigmoid(arguments.floating("x", x))


@defined_by(_definition)
def sigmoid(x: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Squash into (0, 1).

    .. math:: y = 1 / (1 + e^{-x})

    Args:
        x: input, any shape and floating dtype.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError: `x` is not of a floating-point dtype.

    Example:
        >>> import jax
        >>> sigmoid(0.0)
        Array(0.5, dtype=float32)
        >>> jax.grad(sigmoid)(0.0)
        Array(0.25, dtype=float32)

    References:
        Derived here; see the module's docstring.
    """
    return _sigmoid(arguments.floating("x", x))


@jax.custom_vjp
@with_formulas(
    r"y_i = \frac{1}{1 + e^{-x_i}}",
    x=(r"dx_i = dy_i\,\sigma(x_i)\,\sigma(-x_i)", "At most 1/4, at x = 0; far from 0 a sigmoid hardly moves."),
)
def _sigmoid(x: Array) -> Array:
    return _sigmoid_fwd(x)[0]


def _sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    return jax.lax.logistic(x.astype(accumulation_dtype(x.dtype))).astype(x.dtype), x


def _sigmoid_bwd(x: Array, dy: Array) -> tuple[Array]:
    small = jnp.exp(-jnp.abs(x.astype(accumulation_dtype(x.dtype))))  # σ(x) σ(−x) = e^−x / (1 + e^−x)², which is even
    dx = dy.astype(small.dtype) * (small / jnp.square(1 + small))
    return (dx.astype(x.dtype),)


_sigmoid.defvjp(_sigmoid_fwd, _sigmoid_bwd)
