"""Class labels: which are valid, which are ignored, and the weight of their rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxnn.rules import arguments, sharding
from jaxnn.rules.cotangents import accumulation_dtype


class Rows(NamedTuple):
    """The arguments of a loss over classes, checked, with the class axis last.

    The targets have one of two forms: class ids, one for each row; or, only in `cross_entropy`, probabilities of x's
    shape.
    """

    x: Float[Array, "*rows classes"]
    labels: Int[Array, "*rows"]  # or Float[Array, "*rows classes"], for probabilities
    weight: Float[Array, " classes"] | None
    ignore_index: int | None


def checked(
    name: str, x: ArrayLike, targets: ArrayLike, axis: int, weight: ArrayLike | None, ignore_index: int | None
) -> Rows:
    """Check the arguments of a loss over class ids and move the class axis to the end."""
    x = class_axis_last(name, x, axis)
    labels = arguments.class_ids("targets", targets)
    if labels.shape != x.shape[:-1]:
        raise ValueError(
            f"{arguments.described('targets', labels)} must have shape {x.shape[:-1]}, that of `{name}` without its "
            f"class axis"
        )
    index = None if ignore_index is None else arguments.integer("ignore_index", ignore_index, -(2**31), 2**31 - 1)
    return Rows(x, labels, class_weight(weight, x.shape[-1]), index)


def class_axis_last(name: str, x: ArrayLike, axis: int) -> Array:
    """Return `x` with its class axis at the end."""
    x = arguments.floating(name, x)
    if x.ndim < 1:
        raise ValueError(f"`{name}` (shape ()) must have at least one axis, of classes")
    return jnp.moveaxis(x, arguments.axis_in_range(name, axis, x), -1)


def class_weight(weight: ArrayLike | None, classes: int) -> Array | None:
    """Return the class weights, in at least float32."""
    if weight is None:
        return None
    weight = arguments.floating("weight", weight)
    if weight.shape != (classes,):
        raise ValueError(f"{arguments.described('weight', weight)} must have shape ({classes},), one weight a class")
    return weight.astype(accumulation_dtype(weight.dtype))


def is_label(labels: Int[Array, "*rows"], classes: int) -> Bool[Array, "*rows"]:
    """Tell which labels name a class."""
    return (labels >= 0) & (labels < classes)


def is_ignored(labels: Int[Array, "*rows"], ignore_index: int | None) -> Bool[Array, "*rows"]:
    """Tell which rows are ignored."""
    if ignore_index is None:
        return jnp.zeros(labels.shape, bool)
    return labels == jnp.asarray(ignore_index, labels.dtype)


def one_hot(labels: Int[Array, "*rows"], classes: int) -> Bool[Array, "*rows classes"]:
    """Return e(t), as booleans; a row of False where t is no label."""
    ids = jnp.arange(classes, dtype=labels.dtype)
    return labels[..., None] == ids.reshape((1,) * labels.ndim + (classes,))


def at_label(x: Float[Array, "*rows classes"], labels: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """Return x_t of each row, and any number where t is no label (0 where there are no classes)."""
    index = in_range(labels, x.shape[-1])[..., None]
    return jnp.take_along_axis(x, index, -1, mode="promise_in_bounds")[..., 0]


def at_label_by_comparison(x: Float[Array, "*rows classes"], labels: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """Return x_t of each row, and 0 where t is no label, in a pass over x: where x is an intermediate result.

    A gather would have it stored first.
    """
    return jnp.sum(jnp.where(one_hot(labels, x.shape[-1]), x, jnp.zeros((), x.dtype)), -1)


def less_at_label(
    x: Float[Array, "*rows classes"], labels: Int[Array, "*rows"], y: Float[Array, "*rows"]
) -> Float[Array, "*rows classes"]:
    """Return x with y subtracted at each row's label.

    Where t is no label, y is subtracted at class 0: there y must be 0, or the row NaN.
    """
    if x.shape[-1] == 0:
        return x
    less: Callable[..., Array] = lambda row, label, y: row.at[label].add(-y)  # noqa: E731
    for _ in labels.shape:
        less = jax.vmap(less)
    return less(x, in_range(labels, x.shape[-1]), y)


def in_range(labels: Int[Array, "*rows"], classes: int) -> Int[Array, "*rows"]:
    """Return the labels as indices, 0 for those that are no label."""
    return jnp.where(is_label(labels, classes), labels, jnp.zeros((), labels.dtype)).astype(jnp.int32)


def row_weight(
    labels: Int[Array, "*rows"],
    weight: Float[Array, " classes"] | None,
    ignore_index: int | None,
    dtype: Any,
    axis_name: sharding.AxisName | None = None,
) -> Float[Array, "*rows"]:
    """Return the weight of each row's label: 0 where it is ignored, 1 where it is no label."""
    ones, zero = jnp.ones(labels.shape, dtype), jnp.zeros((), dtype)
    of_row = ones
    if weight is not None and len(weight):
        here = local_labels(labels, len(weight), axis_name)
        of_label = weight.astype(dtype)[in_range(here, len(weight))]
        of_label = sharding.all_reduce(axis_name, lax.psum, jnp.where(is_label(here, len(weight)), of_label, zero))
        of_row = jnp.where(is_label(labels, len(weight) * sharding.axis_size(axis_name)), of_label, ones)
    return jnp.where(is_ignored(labels, ignore_index), zero, of_row)


def local_labels(labels: Int[Array, "*rows"], classes: int, axis_name: sharding.AxisName | None) -> Int[Array, "*rows"]:
    """Return the labels counted from the first of this device's classes."""
    return labels if axis_name is None else labels - (lax.axis_index(axis_name) * classes).astype(labels.dtype)
