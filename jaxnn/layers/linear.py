"""Linear: y = x Wᵀ + b.

Definition:
    y_i = Σ_j W_ij x_j + b_i, for each row x of a batch s: y_si = Σ_j W_ij x_sj + b_i
    x (..., I), W (O, I), b (O,) → y (..., O); s runs over all leading axes.

Derivation (the chain rule over every y that the variable affects; dy stands for ∂L/∂y):
    x_sj affects y_si for all i:       dx_sj = Σ_i dy_si W_ij    so  dx = dy W
    W_ij affects y_si for all s:       dW_ij = Σ_s dy_si x_sj    so  dW = dyᵀ x
    b_i  affects y_si for all s:       db_i  = Σ_s dy_si

Residuals:
    x and W, the factors of the two products: both are inputs, so nothing new is stored.

Conventions:
    Sums run in at least float32; every cotangent has its primal's dtype. Without leading axes dW is the outer
    product dy xᵀ of the notes.

Source:
    Taura, Neural Networks Basics: "Linear (a.k.a. Fully Connected Layer)", "Linear (Back Propagation 1)" and
    "(Back Propagation 2)". The sum over the samples s is derived here; the slides treat one sample.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import Type, accumulation_dtype, cotangent, resolve_precision, type_of
from jaxnn.rules.sharding import on_any_mesh, sharding_of

Residuals = tuple[Array, Array, Type | None]  # x, W, and the type of b


def _definition(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, *, precision: Any = None) -> Array:
    x, w, b = arguments.linear(x, w, b)
    y = jnp.matmul(x, w.T, precision=precision)
    return y if b is None else y + jnp.broadcast_to(b, y.shape)


@defined_by(_definition)
@on_any_mesh(lambda given: sharding_of(given["x"])[:-1] + sharding_of(given["w"])[:1])
def linear(
    x: Float[ArrayLike, "*batch inputs"],
    w: Float[ArrayLike, "outputs inputs"],
    b: Float[ArrayLike, " outputs"] | None = None,
    *,
    precision: Any = None,
) -> Float[Array, "*batch outputs"]:
    """Multiply the last axis by a matrix and add a bias.

    .. math:: y_i = \\sum_j W_{ij} x_j + b_i

    Args:
        x: input, shape (..., I), any floating dtype.
        w: weights, shape (O, I).
        b: bias, shape (O,), or None.
        precision: as in `jax.lax.dot_general`; None takes `jax.default_matmul_precision` as it is at this call, and
            the backward pass keeps it.

    Returns:
        y, shape (..., O), of the arguments' promoted dtype.

    Raises:
        TypeError: an argument is not of a floating-point dtype.
        ValueError: the shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> linear(jnp.array([1.0, 2.0]), jnp.array([[3.0, 4.0], [5.0, 6.0]]), jnp.array([0.0, 1.0]))
        Array([11., 18.], dtype=float32)

    References:
        Taura, Neural Networks Basics, "Linear (a.k.a. Fully Connected Layer)".
    """
    x, w, b = arguments.linear(x, w, b)
    return _linear(resolve_precision(precision), x, w, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"y_{si} = \sum_j W_{ij}\,x_{sj} \;(+\,b_i)",
    x=(r"dx_{sj} = \sum_i dy_{si}\,W_{ij}", "Output i moves with input j by the weight between them, W_ij."),
    w=(
        r"dW_{ij} = \sum_s dy_{si}\,x_{sj}",
        "Output i moves with its own weights alone, each by the input it multiplies.",
    ),
    b=(r"db_i = \sum_s dy_{si}", "Output i moves with its own bias, one for one."),
)
def _linear(precision: Any, x: Array, w: Array, b: Array | None) -> Array:
    return _linear_fwd(precision, x, w, b)[0]


def _linear_fwd(precision: Any, x: Array, w: Array, b: Array | None) -> tuple[Array, Residuals]:
    y = _contract(x, w, x.ndim - 1, 1, precision)
    y = y if b is None else y + jnp.broadcast_to(b.astype(y.dtype), y.shape)
    return y.astype(x.dtype), (x, w, None if b is None else type_of(b))


def _linear_bwd(precision: Any, residuals: Residuals, dy: Array) -> tuple[Array, Array, Array | None]:
    x, w, b = residuals
    samples = tuple(range(dy.ndim - 1))
    # dx_sj = Σ_i dy_si W_ij
    dx = _contract(dy, w, dy.ndim - 1, 0, precision)
    # dW_ij = Σ_s dy_si x_sj
    dw = lax.dot_general(
        dy, x, ((samples, samples), ((), ())), precision=precision, preferred_element_type=accumulation_dtype(x.dtype)
    )
    db = None if b is None else cotangent(jnp.sum(dy.astype(accumulation_dtype(dy.dtype)), axis=samples), b)
    return cotangent(dx, type_of(x)), cotangent(dw, type_of(w)), db


_linear.defvjp(_linear_fwd, _linear_bwd)


def _contract(a: Array, b: Array, a_axis: int, b_axis: int, precision: Any) -> Array:
    contracted = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, contracted, precision=precision, preferred_element_type=accumulation_dtype(a.dtype))
