"""Negative log-likelihood of log-probabilities: l = −y_t.

Definition (y = log p: log-probabilities of one row, t: its true class):
    l = −y_t

Derivation (dl stands for the upstream gradient, e(t) for the one-hot vector of t):
    only y_t affects l:   dy = −dl e(t)
    With class weights l is multiplied by weight_t; the product and the mean are derived in `_reduction`.

Residuals:
    the labels.

Conventions:
    Those of `nll`: a label outside [0, C) that is not `ignore_index` makes its row's loss and gradient NaN. Ignored
    rows are 0 in both. Losses are at least float32.

Source:
    Larochelle, Neural networks, "Gradient computation"; the form for log-probabilities, weights and `ignore_index`
    are derived here.
"""

import functools

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jaxnn.losses import _labels, _log_likelihood
from jaxnn.losses._reduction import reduce
from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import Type, accumulation_dtype, type_of
from jaxnn.rules.sharding import on_any_mesh, rows_sharding

Residuals = tuple[Array, Type]  # labels, and the type of y = log p


def _definition(
    log_p: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Array:
    rows = _labels.checked("log_p", log_p, targets, axis, weight, ignore_index)
    log_p = rows.x.astype(accumulation_dtype(rows.x.dtype))
    return _log_likelihood.plain(log_p, rows, arguments.one_of("reduction", reduction, arguments.REDUCTIONS))


@defined_by(_definition)
@on_any_mesh(rows_sharding("log_p"))
def nll_loss(
    log_p: Float[ArrayLike, "..."],
    targets: Integer[ArrayLike, "..."],
    *,
    axis: int = -1,
    weight: Float[ArrayLike, " classes"] | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """Negative log-likelihood of *log-probabilities*, as `torch.nn.functional.nll_loss`.

    .. math:: l = -y_t, \\quad y = \\log p

    It takes what `log_softmax` returns. For probabilities use `nll`; for logits `cross_entropy`.

    Args:
        log_p: logarithms of probabilities, any shape with a class axis, any floating dtype.
        targets: class ids, integers, of log_p's shape without the class axis.
        axis: the class axis.
        weight: weight of each class, shape (C,), or None for 1 each.
        ignore_index: the label of rows to leave out, or None.
        reduction: "mean" (divides by the sum of the rows' weights), "sum" or "none".

    Returns:
        The loss in nats, at least float32: a scalar, or of targets' shape with "none".

    Raises:
        TypeError: `log_p` or `weight` is not floating, or `targets` not integer.
        ValueError: the shapes do not match, or an option is not one of its choices.

    Example:
        >>> import jax.numpy as jnp
        >>> nll_loss(jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]])), jnp.array([0, 1]), reduction="none")
        Array([1.3862944, 0.6931472], dtype=float32)

    References:
        Larochelle, Neural networks, "Gradient computation"; the logarithmic form is derived here.
    """
    rows = _labels.checked("log_p", log_p, targets, axis, weight, ignore_index)
    l = _nll_loss(rows.ignore_index, rows.x, rows.labels)
    d = _labels.row_weight(rows.labels, rows.weight, rows.ignore_index, l.dtype)
    return reduce(
        l if rows.weight is None else d * l,
        d,
        arguments.one_of("reduction", reduction, arguments.REDUCTIONS),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"l = -y_t, \quad y = \log p",
    log_p=(r"dy = -dl\,e(t)", "Only the log-probability of the true class counts, and the loss falls one for one."),
)
def _nll_loss(ignore_index: int | None, log_p: Array, labels: Array) -> Array:
    return _nll_loss_fwd(ignore_index, log_p, labels)[0]


def _nll_loss_fwd(ignore_index: int | None, log_p: Array, labels: Array) -> tuple[Array, Residuals]:
    l = _log_likelihood.by_label(ignore_index, labels, log_p.shape[-1], -_log_likelihood.at_label(log_p, labels))
    return l, (labels, type_of(log_p))


def _nll_loss_bwd(ignore_index: int | None, residuals: Residuals, dl: Array) -> tuple[Array, None]:
    labels, log_p = residuals
    return _log_likelihood.to_label(ignore_index, labels, log_p, -dl), None


_nll_loss.defvjp(_nll_loss_fwd, _nll_loss_bwd)
