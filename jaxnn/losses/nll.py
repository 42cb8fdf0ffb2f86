"""Negative log-likelihood of probabilities: l = −log p_t.

Definition (p: probabilities of one row, t: its true class):
    l = −log p_t

Derivation (the notes'; dl stands for the upstream gradient, e(t) for the one-hot vector of t):
    only p_t affects l:   dp = −dl e(t) / p_t
    With class weights l is multiplied by weight_t; the product and the mean are derived in `_reduction`.

Residuals:
    p_t, one number a row, and the labels.

Conventions:
    A label outside [0, C) that is not `ignore_index` makes its row's loss and gradient NaN. Ignored rows are 0 in
    both. p_t = 0 gives an infinite loss. Losses are at least float32.

Source:
    Larochelle, Neural networks, "Gradient computation", loss gradient at output (−e(y) / f(x)_y); *Multi-class
    classification and backpropagation*, "Derivative for Cross Entropy Loss Layer"; Taura, Neural Networks Basics, "A
    handwritten digits recognition". Weights and `ignore_index` are derived here.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jaxnn.losses import _labels, _log_likelihood
from jaxnn.losses._reduction import reduce
from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import Type, accumulation_dtype, type_of
from jaxnn.rules.sharding import on_any_mesh, rows_sharding

Residuals = tuple[Array, Array, Type]  # p_t, labels, and the type of p


def _definition(
    p: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Array:
    rows = _labels.checked("p", p, targets, axis, weight, ignore_index)
    p = rows.x.astype(accumulation_dtype(rows.x.dtype))
    return _log_likelihood.plain(jnp.log(p), rows, arguments.one_of("reduction", reduction, arguments.REDUCTIONS))


@defined_by(_definition)
@on_any_mesh(rows_sharding("p"))
def nll(
    p: Float[ArrayLike, "..."],
    targets: Integer[ArrayLike, "..."],
    *,
    axis: int = -1,
    weight: Float[ArrayLike, " classes"] | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """Negative log-likelihood of *probabilities*: the notes' NLL.

    .. math:: l = -\\log p_t

    It takes probabilities. For log-probabilities use `nll_loss` (PyTorch's function of that name); for logits
    `cross_entropy`, which neither over- nor underflows.

    Args:
        p: probabilities, any shape with a class axis, any floating dtype.
        targets: class ids, integers, of p's shape without the class axis.
        axis: the class axis.
        weight: weight of each class, shape (C,), or None for 1 each.
        ignore_index: the label of rows to leave out, or None.
        reduction: "mean" (divides by the sum of the rows' weights), "sum" or "none".

    Returns:
        The loss in nats, at least float32: a scalar, or of targets' shape with "none".

    Raises:
        TypeError: `p` or `weight` is not floating, or `targets` not integer.
        ValueError: the shapes do not match, or an option is not one of its choices.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> jax.grad(nll)(jnp.array([0.3, 0.2, 0.5]), 2)
        Array([ 0.,  0., -2.], dtype=float32)

    References:
        Larochelle, Neural networks, "Gradient computation".
    """
    rows = _labels.checked("p", p, targets, axis, weight, ignore_index)
    l = _nll(rows.ignore_index, rows.x, rows.labels)
    d = _labels.row_weight(rows.labels, rows.weight, rows.ignore_index, l.dtype)
    return reduce(
        l if rows.weight is None else d * l,
        d,
        arguments.one_of("reduction", reduction, arguments.REDUCTIONS),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"l = -\log p_t",
    p=(
        r"dp = -dl\,\frac{e(t)}{p_t}",
        "Only the probability of the true class counts; the smaller it is, the more the loss falls as it grows.",
    ),
)
def _nll(ignore_index: int | None, p: Array, labels: Array) -> Array:
    return _nll_fwd(ignore_index, p, labels)[0]


def _nll_fwd(ignore_index: int | None, p: Array, labels: Array) -> tuple[Array, Residuals]:
    # 1 where there is no p_t: the row's loss is set below, and a 0 would leave NaN in derivatives of the gradient.
    p_t = jnp.where(
        _labels.is_label(labels, p.shape[-1]),
        _log_likelihood.at_label(p, labels),
        jnp.ones((), accumulation_dtype(p.dtype)),
    )
    return _log_likelihood.by_label(ignore_index, labels, p.shape[-1], -jnp.log(p_t)), (p_t, labels, type_of(p))


def _nll_bwd(ignore_index: int | None, residuals: Residuals, dl: Array) -> tuple[Array, None]:
    p_t, labels, p = residuals
    return _log_likelihood.to_label(ignore_index, labels, p, -dl / p_t), None


_nll.defvjp(_nll_fwd, _nll_bwd)
