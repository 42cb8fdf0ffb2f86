"""The targets of cross_entropy: class ids or probabilities, checked, weighted and smoothed, and sums over them."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxnn.losses import _labels
from jaxnn.rules import arguments, sharding
from jaxnn.rules.sharding import AxisName
from jaxnn.rules.softmax_sums import Axes, zero_safe_product


class Options(NamedTuple):
    """The static half of the loss."""

    label_smoothing: float
    ignore_index: int | None
    axis_name: AxisName | None

    @property
    def axes(self) -> Axes:
        """What Σ_k runs over."""
        return Axes((-1,), self.axis_name)

    def classes(self, x: Array) -> int:
        """Return the number of classes, over all devices."""
        return x.shape[-1] * sharding.axis_size(self.axis_name)


def smoothed(options: Options, targets: Array, like: Array) -> Array:
    """Return u = (1 − ε) T + ε/C, with T = e(t) for class ids."""
    floating = jnp.issubdtype(targets.dtype, jnp.floating)
    u = (targets if floating else _labels.one_hot(_here(options, targets, like), like.shape[-1])).astype(like.dtype)
    epsilon = options.label_smoothing
    return u if epsilon == 0 else (1 - epsilon) * u + epsilon / max(1, options.classes(like))


def weighted(weight: Array | None, u: Array) -> Array:
    return u if weight is None else jnp.broadcast_to(weight.astype(u.dtype), u.shape) * u


def expected(options: Options, targets: Array, weight: Array | None, x: Array) -> Array:
    """Return Σ_c q_c x_c of this device's classes, which for a class id is (1 − ε) ω_t x_t + ε/C Σ_c ω_c x_c."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return jnp.sum(zero_safe_product(weighted(weight, smoothed(options, targets, x)), x), -1)
    classes, epsilon, here = x.shape[-1], options.label_smoothing, _here(options, targets, x)
    at_label: Array = lax.platform_dependent(x, here, cpu=_labels.at_label, default=_labels.at_label_by_comparison)
    if weight is not None and classes:
        at_label = zero_safe_product(weight.astype(x.dtype)[_labels.in_range(here, classes)], at_label)
    if options.axis_name is not None:  # the label's class may be on another device
        at_label = jnp.where(_labels.is_label(here, classes), at_label, jnp.zeros((), x.dtype))
    if epsilon == 0:
        return at_label
    share = jnp.full(x.shape, epsilon / max(1, options.classes(x)), x.dtype)
    at_label = zero_safe_product(jnp.full((), 1 - epsilon, x.dtype), at_label)
    return at_label + jnp.sum(zero_safe_product(weighted(weight, share), x), -1)


def gradient(options: Options, targets: Array, weight: Array | None, p: Array, q_here: Array, dl: Array) -> Array:
    """Return dl (p Σ_c q_c − q); NaN in the rows whose label is no class, 0 in ignored rows.

    The argument p is softmax(x) Σ_c q_c, and `q_here` the sum of q over this device's classes. For class ids without
    smoothing, q is 0 except at the label. On a CPU it is then subtracted there alone, as dl p − dl q: a comparison of
    every class with the label takes longer (`python scripts/bench.py optimisations`).
    """
    classes = options.classes(p)

    def everywhere(targets: Array, weight: Array | None, p: Array, q_here: Array, dl: Array) -> Array:
        q = weighted(weight, smoothed(options, targets, p))
        return by_label(options, targets, classes, dl * (p - q))

    def at_label(targets: Array, weight: Array | None, p: Array, q_here: Array, dl: Array) -> Array:
        dx, at_label = (by_label(options, targets, classes, dl * each) for each in (p, q_here))
        return _labels.less_at_label(dx, _here(options, targets, p), jnp.squeeze(at_label, -1))

    if jnp.issubdtype(targets.dtype, jnp.floating) or options.label_smoothing != 0:
        return everywhere(targets, weight, p, q_here, dl)
    dx: Array = lax.platform_dependent(targets, weight, p, q_here, dl, cpu=at_label, default=everywhere)
    return dx


def _here(options: Options, labels: Array, x: Array) -> Array:
    """Return the labels counted from the first of this device's classes."""
    return _labels.local_labels(labels, x.shape[-1], options.axis_name)


def by_label(options: Options, targets: Array, classes: int, x: Array, bad: float = jnp.nan) -> Array:
    """Return x with `bad` in the rows whose label is no class, and 0 in ignored rows."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return x
    valid, ignored = _labels.is_label(targets, classes), _labels.is_ignored(targets, options.ignore_index)
    if x.ndim > targets.ndim:
        valid, ignored = valid[..., None], ignored[..., None]
    return jnp.where(ignored, jnp.zeros((), x.dtype), jnp.where(valid, x, jnp.asarray(bad, x.dtype)))


def counts(options: Options, rows: _labels.Rows, l: Array) -> Array:
    """Return what each row counts for in the mean."""
    if jnp.issubdtype(rows.labels.dtype, jnp.floating):
        return jnp.ones_like(l)
    return _labels.row_weight(rows.labels, rows.weight, rows.ignore_index, l.dtype, options.axis_name)


def checked(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    weight: ArrayLike | None,
    ignore_index: int | None,
    label_smoothing: float,
    reduction: str,
    axis_name: AxisName | None,
) -> tuple[_labels.Rows, Options]:
    sharding.axis_size(axis_name)
    arguments.one_of("reduction", reduction, arguments.REDUCTIONS)
    label_smoothing = arguments.fraction("label_smoothing", label_smoothing)
    t = arguments.array("targets", targets)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        rows = _labels.checked("logits", logits, t, axis, weight, ignore_index)
        return rows, Options(label_smoothing, rows.ignore_index, axis_name)
    if ignore_index is not None:
        raise ValueError(
            f"`ignore_index` ({ignore_index}) must be None when `targets` (dtype {t.dtype}) are probabilities; "
            f"pass class ids, or give the rows to ignore `targets` of 0"
        )
    x = _labels.class_axis_last("logits", logits, axis)
    t = _labels.class_axis_last("targets", t, axis)
    arguments.same_shape("targets", t, "logits", x)
    rows = _labels.Rows(x, t, _labels.class_weight(weight, x.shape[-1]), None)
    return rows, Options(label_smoothing, None, axis_name)
