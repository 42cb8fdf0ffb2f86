"""Penalties Ω(θ) on the parameters: Σ|w| and Σw².

Definition (w runs over every element of every parameter):
    l1_penalty: Ω = Σ |w|          l2_penalty: Ω = Σ w²     (without a half)

Derivation (derived here: the notes ask for ∇Ω and leave it open; dΩ stands for the upstream gradient):
    each w affects only its own term:
        l1_penalty: dw = dΩ sign(w)        l2_penalty: dw = 2 w dΩ

Residuals:
    the parameters, which are inputs.

Conventions:
    sign(0) = 0, the middle of |w|'s subgradients [−1, 1], so that a weight at 0 stays there (autodiff of |w|
    gives 1, the upper end). Sums run in at least float32; the result has the widest of the parameters' dtypes.

Source:
    Larochelle, Neural networks, "stochastic gradient descent (SGD)", which asks for the regularizer and its gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype, cotangent, type_of


def _l1_definition(params: PyTree[ArrayLike]) -> Array:
    return _sum_over(jnp.abs, _checked(params))


@defined_by(_l1_definition)
def l1_penalty(params: PyTree[Float[ArrayLike, "..."]]) -> Float[Array, ""]:
    """Sum of the parameters' absolute values.

    .. math:: \\Omega(\\theta) = \\sum |w|

    Args:
        params: a pytree of floating arrays.

    Returns:
        Ω, a scalar of at least float32.

    Raises:
        TypeError: a parameter is not of a floating-point dtype.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> jax.grad(l1_penalty)({"w": jnp.array([-2.0, 0.0, 3.0])})
        {'w': Array([-1.,  0.,  1.], dtype=float32)}

    References:
        Larochelle, Neural networks, "stochastic gradient descent (SGD)".
    """
    return _l1_penalty(_checked(params))


@jax.custom_vjp
@with_formulas(
    r"\Omega = \sum |w|",
    leaves=(r"dw = d\Omega\,\operatorname{sign}(w)", "+1 or −1, however large the weight is, and 0 at 0."),
)
def _l1_penalty(leaves: list[Array]) -> Array:
    return _l1_penalty_fwd(leaves)[0]


def _l1_penalty_fwd(leaves: list[Array]) -> tuple[Array, list[Array]]:
    return _sum_over(jnp.abs, leaves), leaves


def _l1_penalty_bwd(leaves: list[Array], d: Array) -> tuple[list[Array]]:
    return (
        [
            cotangent(
                jnp.sign(w).astype(accumulation_dtype(w.dtype)) * d.astype(accumulation_dtype(w.dtype)), type_of(w)
            )
            for w in leaves
        ],
    )


_l1_penalty.defvjp(_l1_penalty_fwd, _l1_penalty_bwd)


def _l2_definition(params: PyTree[ArrayLike]) -> Array:
    return _sum_over(jnp.square, _checked(params))


@defined_by(_l2_definition)
def l2_penalty(params: PyTree[Float[ArrayLike, "..."]]) -> Float[Array, ""]:
    """Sum of the parameters' squares, without a half.

    .. math:: \\Omega(\\theta) = \\sum w^2

    Args:
        params: a pytree of floating arrays.

    Returns:
        Ω, a scalar of at least float32.

    Raises:
        TypeError: a parameter is not of a floating-point dtype.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> jax.grad(l2_penalty)({"w": jnp.array([-2.0, 0.0, 3.0])})
        {'w': Array([-4.,  0.,  6.], dtype=float32)}

    References:
        Larochelle, Neural networks, "stochastic gradient descent (SGD)".
    """
    return _l2_penalty(_checked(params))


@jax.custom_vjp
@with_formulas(
    r"\Omega = \sum w^2",
    leaves=(r"dw = 2\,w\,d\Omega", "Twice the weight: the larger a weight, the stronger its decay."),
)
def _l2_penalty(leaves: list[Array]) -> Array:
    return _l2_penalty_fwd(leaves)[0]


def _l2_penalty_fwd(leaves: list[Array]) -> tuple[Array, list[Array]]:
    return _sum_over(jnp.square, leaves), leaves


def _l2_penalty_bwd(leaves: list[Array], d: Array) -> tuple[list[Array]]:
    return (
        [
            cotangent(2 * w.astype(accumulation_dtype(w.dtype)) * d.astype(accumulation_dtype(w.dtype)), type_of(w))
            for w in leaves
        ],
    )


_l2_penalty.defvjp(_l2_penalty_fwd, _l2_penalty_bwd)


def _sum_over(of: Callable[[Array], Array], leaves: list[Array]) -> Array:
    dtype: Any = max(
        (accumulation_dtype(w.dtype) for w in leaves), key=lambda dtype: dtype.itemsize, default=jnp.float32
    )
    return functools.reduce(jnp.add, (jnp.sum(of(w.astype(dtype))) for w in leaves), jnp.zeros((), dtype))


def _checked(params: PyTree[ArrayLike]) -> list[Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [arguments.floating(f"params{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]
