"""Negative log-likelihood of probabilities (`nll`) and of log-probabilities (`nll_loss`).

Definition (p: probabilities of one row, t: its true class):
    nll:       l = −log p_t
    nll_loss:  l = −y_t, with y = log p

Derivation (the notes'; dl stands for the upstream gradient, e(t) for the one-hot vector of t):
    only p_t affects l:   dp = −dl e(t) / p_t
    only y_t affects l:   dy = −dl e(t)
    With class weights l is multiplied by weight_t; the product and the mean are derived in `_reduction`.

Residuals:
    nll: p_t, one number a row, and the labels. nll_loss: the labels.

Conventions:
    A label outside [0, C) that is not `ignore_index` makes its row's loss and gradient NaN. Ignored rows are 0 in
    both. p_t = 0 gives an infinite loss. Losses are at least float32.

Source:
    Larochelle, Neural networks, "Gradient computation", loss gradient at output (−e(y) / f(x)_y); lecture 001,
    "Derivative for Cross Entropy Loss Layer"; Taura, Neural Networks Basics, "A handwritten digits recognition".
    Weights, `ignore_index` and the log-probability form are derived here.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxnn.losses import _labels
from jaxnn.losses._reduction import reduce
from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import Type, accumulation_dtype, cotangent, type_of
from jaxnn.rules.sharding import on_any_mesh, rows_sharding


def _plain(log_p: Array, rows: _labels.Rows, reduction: str) -> Array:
    """The definition, from log-probabilities: a gather, a product and a sum."""
    classes = rows.x.shape[-1]
    valid = _labels.is_label(rows.labels, classes)
    safe = jnp.where(valid, rows.labels, jnp.zeros((), rows.labels.dtype))
    l = -jnp.take_along_axis(log_p, safe[..., None], -1, mode="fill")[..., 0] if classes else jnp.sum(log_p, -1)
    l = jnp.where(valid, l, jnp.nan)
    d = _labels.row_weight(rows.labels, rows.weight, rows.ignore_index, log_p.dtype)
    l = jnp.where(_labels.is_ignored(rows.labels, rows.ignore_index), jnp.zeros((), l.dtype), d * l)
    if reduction == "none":
        return l
    return jnp.sum(l) if reduction == "sum" else jnp.sum(l) / jnp.sum(d)


def _nll_definition(
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
    return _plain(jnp.log(p), rows, arguments.one_of("reduction", reduction, arguments.REDUCTIONS))


@defined_by(_nll_definition)
@on_any_mesh(rows_sharding("p"))
def nll(
    p: Float[ArrayLike, "*rows"],
    targets: Int[ArrayLike, "*rows"],
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


def _nll_fwd(ignore_index: int | None, p: Array, labels: Array) -> tuple[Array, Any]:
    # 1 where there is no p_t: the row's loss is set below, and a 0 would leave NaN in derivatives of the gradient.
    p_t = jnp.where(
        _labels.is_label(labels, p.shape[-1]), _at_label(p, labels), jnp.ones((), accumulation_dtype(p.dtype))
    )
    return _by_label(ignore_index, labels, p.shape[-1], -jnp.log(p_t)), (p_t, labels, type_of(p))


def _nll_bwd(ignore_index: int | None, residuals: Any, dl: Array) -> tuple[Array, None]:
    p_t, labels, p = residuals
    return _to_label(ignore_index, labels, p, -dl / p_t), None


_nll.defvjp(_nll_fwd, _nll_bwd)


def _nll_loss_definition(
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
    return _plain(log_p, rows, arguments.one_of("reduction", reduction, arguments.REDUCTIONS))


@defined_by(_nll_loss_definition)
@on_any_mesh(rows_sharding("log_p"))
def nll_loss(
    log_p: Float[ArrayLike, "*rows"],
    targets: Int[ArrayLike, "*rows"],
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


def _nll_loss_fwd(ignore_index: int | None, log_p: Array, labels: Array) -> tuple[Array, Any]:
    l = _by_label(ignore_index, labels, log_p.shape[-1], -_at_label(log_p, labels))
    return l, (labels, type_of(log_p))


def _nll_loss_bwd(ignore_index: int | None, residuals: Any, dl: Array) -> tuple[Array, None]:
    labels, log_p = residuals
    return _to_label(ignore_index, labels, log_p, -dl), None


_nll_loss.defvjp(_nll_loss_fwd, _nll_loss_bwd)


def _at_label(x: Array, labels: Array) -> Array:
    """Return x_t of each row, in at least float32."""
    return _labels.at_label(x, labels).astype(accumulation_dtype(x.dtype))


def _by_label(ignore_index: int | None, labels: Array, classes: int, l: Array) -> Array:
    """Return the rows' losses: NaN where there is no such class, 0 where the row is left out."""
    l = jnp.where(_labels.is_label(labels, classes), l, jnp.nan)
    return jnp.where(_labels.is_ignored(labels, ignore_index), jnp.zeros((), l.dtype), l)


def _to_label(ignore_index: int | None, labels: Array, x: Type, dx_t: Array) -> Array:
    """Return e(t) dx_t, the gradient of what only x_t affects; NaN and 0 as in `_by_label`."""
    zero = jnp.zeros((), dx_t.dtype)
    dx = jnp.where(_labels.one_hot(labels, x.aval.shape[-1]), dx_t[..., None], zero)
    dx = jnp.where(_labels.is_label(labels, x.aval.shape[-1])[..., None], dx, jnp.nan)
    dx = jnp.where(_labels.is_ignored(labels, ignore_index)[..., None], zero, dx)
    return cotangent(dx, x)
