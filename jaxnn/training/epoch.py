"""Many steps in one program on the device: no Python loop per step, no copy of the data per batch.

The data set lies on the device as it was read (uint8 images). A chunk of steps is one compiled loop whose length is an
argument: progress, signals and saves act between chunks, and chunks of any length give the same bits, because a
step's batch and key depend on the number of the step alone.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from jaxnn.training.step import Step, TrainState

IGNORED = -1  # the label of the rows that fill up a last batch


def check_data(images: Array, labels: Array, batch_size: int) -> None:
    """Require one integer label an image, and a batch size between 1 and their number."""
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"`labels` (shape {labels.shape}, dtype {labels.dtype}) must be one row of integer class ids")
    if images.shape[:1] != labels.shape:
        raise ValueError(f"`labels` (shape {labels.shape}) must have one label for each of `images` {images.shape[:1]}")
    if not 1 <= batch_size <= labels.shape[0]:
        raise ValueError(f"`batch_size` ({batch_size}) must lie between 1 and the {labels.shape[0]} images")


class Batches(NamedTuple):
    """A data set on the device, and the order an epoch takes it in."""

    images: Array  # (N, ...)
    labels: Int[Array, " n"]
    order: Int[Array, " n"]

    def batch(self, index: Array, size: int) -> tuple[Array, Int[Array, " size"]]:
        """Return the images and labels of one batch; rows past the end have the label `IGNORED`."""
        n = self.order.shape[0]
        position = index * size + jnp.arange(size)
        rows = self.order[jnp.minimum(position, n - 1)]
        return self.images[rows], jnp.where(position < n, self.labels[rows], jnp.int32(IGNORED))


@functools.partial(jax.jit, static_argnames=("step", "batch_size"), donate_argnames=("state",))
def run_steps(
    step: Step, state: TrainState, batches: Batches, first: Array, last: Array, *, batch_size: int
) -> tuple[TrainState, Array, dict[str, Array], Bool[Array, ""]]:
    """Take the steps `first`, …, `last` − 1 of an epoch, and stop before the first that is not finite.

    Args:
        step: the SGD step, from `make_step`; its metrics must be scalars to sum.
        state: the state before the steps; donated.
        batches: the data set and the epoch's order.
        first: number of the first batch.
        last: number of the batch to stop before.
        batch_size: rows a batch.

    Returns:
        The state after the last step that was finite, the number of the batch that comes next, the sums of the
        steps' metrics, and whether all steps were finite.
    """

    def body(carry: Any) -> Any:
        state, index, sums, _ = carry
        new, metrics = step(state, batches.batch(index, batch_size))
        finite = jnp.isfinite(metrics["loss"]) & _all_finite((new.params, new.opt_state))
        state = jax.tree.map(lambda a, b: lax.select(finite, a, b), new, state)
        sums = jax.tree.map(lambda s, m: lax.select(finite, s + m, s), sums, metrics)
        return state, index + finite.astype(index.dtype), sums, finite

    shapes = jax.eval_shape(lambda s: step(s, batches.batch(first, batch_size))[1], state)
    zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), shapes)
    first, last = jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32)
    return lax.while_loop(lambda c: (c[1] < last) & c[3], body, (state, first, zeros, jnp.array(True)))


def _all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, leaves, jnp.array(True))


@functools.partial(jax.jit, static_argnames=("metrics", "batch_size"))
def evaluate(metrics: Any, params: PyTree[Array], images: Array, labels: Array, *, batch_size: int) -> Any:
    """Sum `metrics(params, batch)` over a data set, in batches, on the device.

    Args:
        metrics: maps parameters and a batch (images, labels) to a pytree of sums over the rows whose label is not
            `IGNORED`.
        params: the parameters.
        images: the data set's images, shape (N, ...).
        labels: their labels, shape (N,).
        batch_size: rows a batch.

    Returns:
        The sums over the whole data set: each row counts once.

    Raises:
        ValueError: images and labels do not match, or `batch_size` is below 1 or above their number.
    """
    check_data(images, labels, batch_size)
    batches = Batches(images, labels, jnp.arange(images.shape[0]))
    count = -(-images.shape[0] // batch_size)
    per_batch = lax.map(lambda i: metrics(params, batches.batch(i, batch_size)), jnp.arange(count))
    return jax.tree.map(lambda m: jnp.sum(m, axis=0), per_batch)
