"""ReLU: y = max(x, 0).

Definition:
    y_i = relu(x_i) = x_i where x_i > 0, else 0

Derivation (the chain rule over every y that the variable affects; dy stands for ∂L/∂y):
    x_j affects only y_j, with ∂y_j/∂x_j = 1 where x_j > 0, else 0:
        dx_j = dy_j where x_j > 0, else 0

Residuals:
    the mask x > 0, one byte an element: its size does not grow with x's dtype.

Conventions:
    relu'(0) = 0, as in the notes' definition (one of their slides passes the gradient at 0: see the errata) and in
    JAX. relu(NaN) is NaN and relu'(NaN) = 0, as in JAX; PyTorch passes the gradient at NaN.

Source:
    Taura, Neural Networks Basics: "ReLU", derivative and back propagation.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas


def _definition(x: ArrayLike) -> Array:
    return jax.nn.relu(arguments.floating("x", x))


@defined_by(_definition)
def relu(x: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Set negative values to zero.

    .. math:: y = \\max(x, 0)

    Args:
        x: input, any shape and floating dtype.

    Returns:
        y, of x's shape and dtype.

    Raises:
        TypeError: `x` is not of a floating-point dtype.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> relu(jnp.array([-1.0, 0.0, 2.0]))
        Array([0., 0., 2.], dtype=float32)
        >>> jax.vmap(jax.grad(relu))(jnp.array([-1.0, 0.0, 2.0]))
        Array([0., 0., 1.], dtype=float32)

    References:
        Taura, Neural Networks Basics, "ReLU".
    """
    return _relu(arguments.floating("x", x))


@jax.custom_vjp
@with_formulas(
    r"y_i = \max(x_i, 0)",
    x=(r"dx_j = dy_j\,[x_j > 0]", "1 where x is positive, else 0: a gradient passes as it is, or stops."),
)
def _relu(x: Array) -> Array:
    return _relu_fwd(x)[0]


def _relu_fwd(x: Array) -> tuple[Array, Bool[Array, "*shape"]]:
    return jnp.maximum(x, jnp.zeros((), x.dtype)), x > 0


def _relu_bwd(positive: Bool[Array, "*shape"], dy: Array) -> tuple[Array]:
    return (jnp.where(positive, dy, jnp.zeros((), dy.dtype)),)


_relu.defvjp(_relu_fwd, _relu_bwd)
