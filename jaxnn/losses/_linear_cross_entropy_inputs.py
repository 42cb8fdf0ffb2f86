"""The arguments of linear_cross_entropy: checked, in the rule's form, and the sizes of its blocks."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxnn.losses import _labels
from jaxnn.rules import arguments, sharding
from jaxnn.rules.blocks import least_overlapping, rows_that_fit
from jaxnn.rules.cotangents import Type, accumulation_dtype, resolve_precision, type_of
from jaxnn.rules.sharding import AxisName


class Sizes(NamedTuple):
    """How large blocks are."""

    rows: int  # in a block of the forward pass that forms the gradient
    classes: int  # in a block of the vocabulary
    summed: int  # classes in a block of which Σ exp(z) is taken


class Options(NamedTuple):
    """The static half of the loss."""

    z_loss: float
    softcap: float | None
    ignore_index: int | None
    forms_gradient: bool  # in the forward pass; the rule then returns the sum over the rows
    sizes: Sizes  # of blocks: a CPU's, or those of the platform for which the loops are lowered
    sizes_elsewhere: Sizes  # of all other platforms
    axis_name: AxisName | None
    precision: Any

    @property
    def rows(self) -> int:
        """The rows in a block."""
        return self.sizes.rows

    @property
    def classes(self) -> int:
        """The classes in a block."""
        return self.sizes.classes

    @property
    def summed(self) -> int:
        """The classes in a block of which Σ exp(z) is taken."""
        return self.sizes.summed


class Inputs(NamedTuple):
    """The arguments of the rule."""

    x: Float[Array, "rows inputs"]
    w: Float[Array, "classes inputs"]
    b: Float[Array, " classes"] | None
    alpha: Float[Array, " rows"]
    beta: Float[Array, " classes"] | None
    labels: Int[Array, " rows"]


def types(inputs: Inputs) -> list[Type | None]:
    """Return the types of the arguments that have a cotangent."""
    return [None if a is None else type_of(a) for a in inputs[:-1]]


def _block_sizes(
    holds_logits: bool, softcap: float | None, epsilon: float, block_size: int | None, n: int, v: int, d: int
) -> tuple[Sizes, Sizes]:
    """Return the sizes of blocks on a CPU, and those elsewhere.

    In `_linear_cross_entropy_blocks.by_rows` each block of rows reads and writes dW's sum, 4VD bytes, so more rows are
    faster. On a CPU 32 MB of logits are enough: then the products take nearly all of the time. What a block of classes
    adds to dW should stay in the CPU's cache until it is added: 2 MB of it, or 8 MB of logits where these are not held.
    On other devices everything is in main memory: blocks are large, 1 GB of logits or 128 MB, and have all V classes,
    where the product adds to the sum itself.
    """
    # Logits that are held are summed in place; capped or smoothed ones would need a second array.
    in_one = holds_logits and softcap is None and not epsilon

    def sizes(rows: int, classes: int) -> Sizes:
        if block_size is not None:
            rows, classes = (block_size, classes) if holds_logits else (rows, block_size)
        summed = least_overlapping(v, v if in_one else classes)
        return Sizes(least_overlapping(n, rows), least_overlapping(v, classes), summed)

    of_classes = rows_that_fit(2 << 20, d) if holds_logits else rows_that_fit(8 << 20, max(n, d))
    on_cpu = sizes(rows_that_fit(32 << 20, v), of_classes)
    return on_cpu, sizes(rows_that_fit(1 << 30, v), v if holds_logits else rows_that_fit(128 << 20, n))


def prepare(
    x: ArrayLike,
    w: ArrayLike,
    targets: ArrayLike,
    b: ArrayLike | None,
    weight: ArrayLike | None,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    reduction: str,
    memory: str,
    block_size: int | None,
    precision: Any,
    axis_name: AxisName | None,
) -> tuple[Inputs, Options, Array]:
    """Check the arguments; return the rule's, with all rows in one axis, and each row's weight in the mean."""
    x, w, b = arguments.linear(x, w, b)
    d, v = w.shape[1], w.shape[0]
    labels = arguments.class_ids("targets", targets)
    if labels.shape != x.shape[:-1]:
        raise ValueError(
            f"{arguments.described('targets', labels)} must have shape {x.shape[:-1]}, that of `x` without its last "
            f"axis"
        )
    weight = _labels.class_weight(weight, v)
    epsilon = arguments.fraction("label_smoothing", label_smoothing)
    z_loss = arguments.number("z_loss", z_loss, 0)
    softcap = None if logit_softcap is None else arguments.number("logit_softcap", logit_softcap, 0, exclusive=True)
    arguments.one_of("reduction", reduction, arguments.REDUCTIONS)
    arguments.one_of("memory", memory, ("fast", "lean"))
    block_size = None if block_size is None else arguments.integer("block_size", block_size, 1)
    ignore_index = (
        None if ignore_index is None else arguments.integer("ignore_index", ignore_index, -(2**31), 2**31 - 1)
    )
    count = v * sharding.axis_size(axis_name)

    forms_gradient = memory == "fast" and reduction != "none"
    blocks = _block_sizes(forms_gradient, softcap, epsilon, block_size, labels.size, v, d)
    options = Options(z_loss, softcap, ignore_index, forms_gradient, *blocks, axis_name, resolve_precision(precision))
    dtype = accumulation_dtype(x.dtype)
    counts = _labels.row_weight(labels, weight, ignore_index, dtype, axis_name)
    beta = None
    if epsilon:
        ones = jnp.ones(v, dtype) if weight is None else weight.astype(dtype)
        beta = ones * (epsilon / max(1, count))
    alpha = (1 - epsilon) * counts.reshape(-1)
    inputs = Inputs(x.reshape(labels.size, d), w, b, alpha, beta, labels.reshape(-1))
    return inputs, options, counts
