"""Squared error: l = (y − t)².

Definition (y: prediction, t: truth):
    l_n = (y_n − t_n)²

Derivation (the notes', by the chain rule through the difference; dl stands for the upstream gradient):
    ∂l_n/∂y_n = 2 (y_n − t_n):    dy_n = 2 (y_n − t_n) dl_n,   dt_n = −dy_n

Residuals:
    y and t, which are inputs. (Their difference would suffice, but is a new array.)

Conventions:
    Shapes must be equal. Computed in at least float32, which the loss keeps.

Source:
    Taura, Neural Networks Basics, "A simple example (linear regression)" and "A linear regression example";
    *Multi-class classification and backpropagation*, "Recap: Backpropagation". The gradient with respect to t is
    derived here.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxnn.losses._reduction import reduce
from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype, cotangent, type_of
from jaxnn.rules.sharding import on_any_mesh, rows_sharding

Residuals = tuple[Array, Array]  # y and t


def _definition(y: ArrayLike, t: ArrayLike, *, reduction: str = "mean") -> Array:
    y, t = _checked(y, t, reduction)
    l = _difference(y, t) ** 2
    if reduction == "none":
        return l
    return jnp.sum(l) if reduction == "sum" else jnp.mean(l)


@defined_by(_definition)
@on_any_mesh(rows_sharding("y"))
def squared_error(
    y: Float[ArrayLike, "*shape"], t: Float[ArrayLike, "*shape"], *, reduction: str = "mean"
) -> Float[Array, "..."]:
    """Squared distance between predictions and truth.

    .. math:: l = (y - t)^2

    Args:
        y: predictions, any shape and floating dtype.
        t: true values, of y's shape.
        reduction: "mean" (over all elements), "sum" (the notes') or "none".

    Returns:
        The loss, at least float32: a scalar, or of y's shape with "none".

    Raises:
        TypeError: an argument is not of a floating-point dtype.
        ValueError: the shapes differ, or `reduction` is not one of its choices.

    Example:
        >>> import jax
        >>> jax.grad(squared_error)(3.0, 1.0)
        Array(4., dtype=float32)

    References:
        Taura, Neural Networks Basics, "A linear regression example".
    """
    y, t = _checked(y, t, reduction)
    l = _squared_error(y, t)
    return reduce(l, jnp.ones_like(l), reduction)


@jax.custom_vjp
@with_formulas(
    r"l_n = (y_n - t_n)^2",
    y=(r"dy_n = 2\,(y_n - t_n)\,dl_n", "Twice the error: large far from the truth, 0 at the truth."),
    t=(r"dt_n = -dy_n", "The negative of that for y."),
)
def _squared_error(y: Array, t: Array) -> Array:
    return _squared_error_fwd(y, t)[0]


def _squared_error_fwd(y: Array, t: Array) -> tuple[Array, Residuals]:
    return _difference(y, t) ** 2, (y, t)


def _squared_error_bwd(residuals: Residuals, dl: Array) -> tuple[Array, Array]:
    y, t = residuals
    dy = 2 * _difference(y, t) * dl
    return cotangent(dy, type_of(y)), cotangent(-dy, type_of(t))


_squared_error.defvjp(_squared_error_fwd, _squared_error_bwd)


def _difference(y: Array, t: Array) -> Array:
    dtype = max(accumulation_dtype(y.dtype), accumulation_dtype(t.dtype), key=lambda dtype: dtype.itemsize)
    return y.astype(dtype) - t.astype(dtype)


def _checked(y: ArrayLike, t: ArrayLike, reduction: str) -> tuple[Array, Array]:
    arguments.one_of("reduction", reduction, arguments.REDUCTIONS)
    y, t = arguments.floating("y", y), arguments.floating("t", t)
    arguments.same_shape("y", y, "t", t)
    return y, t
