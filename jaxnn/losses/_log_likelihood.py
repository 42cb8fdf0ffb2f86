"""What nll and nll_loss share: the plain definition, the values at the labels, and their gradient."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxnn.losses import _labels
from jaxnn.rules.cotangents import Type, accumulation_dtype, cotangent


def plain(log_p: Array, rows: _labels.Rows, reduction: str) -> Array:
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


def at_label(x: Array, labels: Array) -> Array:
    """Return x_t of each row, in at least float32."""
    return _labels.at_label(x, labels).astype(accumulation_dtype(x.dtype))


def by_label(ignore_index: int | None, labels: Array, classes: int, l: Array) -> Array:
    """Return the rows' losses: NaN where the label is no class, 0 in ignored rows."""
    l = jnp.where(_labels.is_label(labels, classes), l, jnp.nan)
    return jnp.where(_labels.is_ignored(labels, ignore_index), jnp.zeros((), l.dtype), l)


def to_label(ignore_index: int | None, labels: Array, x: Type, dx_t: Array) -> Array:
    """Return e(t) dx_t, the gradient of a loss that only x_t affects; NaN and 0 as in `by_label`."""
    zero = jnp.zeros((), dx_t.dtype)
    dx = jnp.where(_labels.one_hot(labels, x.aval.shape[-1]), dx_t[..., None], zero)
    dx = jnp.where(_labels.is_label(labels, x.aval.shape[-1])[..., None], dx, jnp.nan)
    dx = jnp.where(_labels.is_ignored(labels, ignore_index)[..., None], zero, dx)
    return cotangent(dx, x)
