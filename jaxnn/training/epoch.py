"""Many steps in one program on the device: no Python loop per step, no copy of the data per batch.

The data set lies on each device as it was read (uint8 images). A chunk of steps is one compiled loop whose length is an
argument: progress, signals and saves act between chunks, and chunks of any length give the same bits, because a
step's batch and key depend on the number of the step alone.

Over a mesh the loop is each device's own program, under `shard_map`: of every batch a device takes its own rows from
its copy of the data, and all that the devices exchange is the gradient's one sum. The compiler, given the whole batch
to cut, would gather it at the components that work block by block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from jaxnn.training.step import Step, TrainState

Data = Array | np.ndarray[Any, Any]
IGNORED = -1  # the label of the rows that fill up a batch
SAME = PartitionSpec()  # type: ignore[no-untyped-call]  # on every device


def check_data(images: Data, labels: Data, batch_size: int) -> None:
    """Require one integer label an image, and a batch size between 1 and their number."""
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"`labels` (shape {labels.shape}, dtype {labels.dtype}) must be one row of integer class ids")
    if images.shape[:1] != labels.shape:
        raise ValueError(f"`labels` (shape {labels.shape}) must have one label for each of `images` {images.shape[:1]}")
    if not 1 <= batch_size <= labels.shape[0]:
        raise ValueError(f"`batch_size` ({batch_size}) must lie between 1 and the {labels.shape[0]} images")


class Batches(NamedTuple):
    """A data set, and which of its rows make up each batch of an epoch."""

    images: Array  # (N, ...)
    labels: Int[Array, " n"]
    rows: Int[Array, "batches size"]  # of a device its own rows; N where a batch is filled up

    def batch(self, index: Array) -> tuple[Array, Int[Array, " size"]]:
        """Return the images and labels of one batch; rows that fill it up have the label `IGNORED`."""
        rows, n = self.rows[index], self.labels.shape[0]
        row = jnp.minimum(rows, n - 1)
        return self.images[row], jnp.where(rows < n, self.labels[row].astype(jnp.int32), jnp.int32(IGNORED))


def make_batches(
    images: Data,
    labels: Data,
    order: np.ndarray[Any, Any],
    batch_size: int,
    *,
    mesh: Mesh | None = None,
    accumulate: int = 1,
) -> Batches:
    """Deal the rows of a data set out to batches, and those of a batch to the devices and their micro-batches.

    Args:
        images: the data set's images, shape (N, ...).
        labels: their labels, shape (N,).
        order: the order to take the rows in, a permutation of 0, …, N − 1.
        batch_size: rows a batch; the last batch may have fewer.
        mesh: the devices, in one axis; None for one.
        accumulate: micro-batches of each device.

    Returns:
        The batches; each is filled up to a multiple of the micro-batches of all devices.
    """
    n, parts = len(order), accumulate * (1 if mesh is None else mesh.size)
    batches = -(-n // batch_size)
    rows = np.full((batches, parts * -(-batch_size // parts)), n, np.int32)
    for batch in range(batches):
        some = order[batch * batch_size : (batch + 1) * batch_size]
        rows[batch, : len(some)] = some
    if mesh is None:
        return Batches(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(rows))
    cut = NamedSharding(mesh, _rows(mesh))
    here = jax.make_array_from_callback(rows.shape, cut, lambda index: rows[index])
    everywhere: tuple[Array, Array] = on_all_devices(mesh, (images, labels))
    return Batches(*everywhere, here)


def on_all_devices(mesh: Mesh | None, tree: Any) -> Any:
    """Return the arrays on every device of a mesh, of all processes; each process gives the same ones."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, SAME)

    def place(a: Any) -> Array:
        if isinstance(a, jax.Array) and a.sharding == everywhere:
            return a
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            key: Array = jax.random.wrap_key_data(place(jax.random.key_data(a)), impl=jax.random.key_impl(a))
            return key
        host = np.asarray(a)
        placed: Array = jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])
        return placed

    return jax.tree.map(place, tree)


def _rows(mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(None, *mesh.axis_names)  # type: ignore[no-untyped-call]


@functools.partial(jax.jit, static_argnames=("step", "mesh"), donate_argnames=("state",))
def run_steps(
    step: Step, state: TrainState, batches: Batches, first: Array, last: Array, *, mesh: Mesh | None = None
) -> tuple[TrainState, Array, dict[str, Array], Bool[Array, ""]]:
    """Take the steps `first`, …, `last` − 1 of an epoch, and stop before the first that is not finite.

    Args:
        step: the SGD step, from `make_step`; its metrics must be scalars to sum.
        state: the state before the steps; donated.
        batches: the epoch's batches, from `make_batches`.
        first: number of the first batch.
        last: number of the batch to stop before.
        mesh: the devices that `batches` are dealt to, in the axis that the step was made for; None for one.

    Returns:
        The state after the last step that was finite, the number of the batch that comes next, the sums of the
        steps' metrics, and whether all steps were finite.
    """
    chunk: Any = functools.partial(_chunk, step)
    if mesh is not None:
        cut = (SAME, Batches(SAME, SAME, _rows(mesh)), SAME, SAME)  # type: ignore[arg-type]
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=cut, out_specs=SAME)
    return chunk(state, batches, jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32))  # type: ignore[no-any-return]


def _chunk(step: Step, state: TrainState, batches: Batches, first: Array, last: Array) -> Any:
    def body(carry: Any) -> Any:
        state, index, sums, _ = carry
        new, metrics = step(state, batches.batch(index))
        finite = jnp.isfinite(metrics["loss"]) & _all_finite((new.params, new.opt_state))
        state = jax.tree.map(lambda a, b: lax.select(finite, a, b), new, state)
        sums = jax.tree.map(lambda s, m: lax.select(finite, s + m, s), sums, metrics)
        return state, index + finite.astype(index.dtype), sums, finite

    shapes = jax.eval_shape(lambda s: step(s, batches.batch(first))[1], state)
    zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), shapes)
    return lax.while_loop(lambda c: (c[1] < last) & c[3], body, (state, first, zeros, jnp.array(True)))


def _all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, leaves, jnp.array(True))


def not_finite(step: Step, state: TrainState, batches: Batches, index: Array, *, mesh: Mesh | None) -> str:
    """Return what a step makes that is not finite: the loss, or else a leaf of the gradient or of the new state."""

    def one(state: TrainState, batches: Batches, index: Array) -> Any:
        batch = batches.batch(index)
        new, metrics = step(state, batch)
        made = metrics["loss"], step.gradient(state, batch)[0], new.params, new.opt_state
        return jax.tree.map(lambda a: _all_finite([a]), made)

    run: Any = one
    if mesh is not None:
        run = jax.shard_map(one, mesh=mesh, in_specs=(SAME, Batches(SAME, SAME, _rows(mesh)), SAME), out_specs=SAME)  # type: ignore[arg-type]
    names = "the loss", "the gradient of", "the new", "the optimizer's new"
    for what, tree in zip(names, jax.jit(run)(state, batches, index), strict=True):
        for at, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not leaf:
                return f"{what} {jax.tree_util.keystr(at, simple=True, separator='/')}".rstrip()
    return "the loss"  # an error of the machine: the same step is finite now


def evaluate(
    metrics: Any, params: PyTree[Array], images: Data, labels: Data, *, batch_size: int, mesh: Mesh | None = None
) -> Any:
    """Sum `metrics(params, batch)` over a data set, in batches, on the device.

    Args:
        metrics: maps parameters and a batch (images, labels) to a pytree of sums over the rows whose label is not
            `IGNORED`.
        params: the parameters.
        images: the data set's images, shape (N, ...).
        labels: their labels, shape (N,).
        batch_size: rows a batch, of all devices.
        mesh: the devices, in one axis, to deal the rows out to; None for one.

    Returns:
        The sums over the whole data set: each row counts once.

    Raises:
        ValueError: images and labels do not match, or `batch_size` is below 1 or above their number.
    """
    check_data(images, labels, batch_size)
    batches = make_batches(images, labels, np.arange(labels.shape[0]), batch_size, mesh=mesh)
    return _sums(metrics, on_all_devices(mesh, params), batches, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("metrics", "mesh"))
def _sums(metrics: Any, params: PyTree[Array], batches: Batches, *, mesh: Mesh | None) -> Any:
    def of_device(params: PyTree[Array], batches: Batches) -> Any:
        per_batch = lax.map(lambda i: metrics(params, batches.batch(i)), jnp.arange(batches.rows.shape[0]))
        sums = jax.tree.map(lambda m: jnp.sum(m, axis=0), per_batch)
        return sums if mesh is None else lax.psum(sums, mesh.axis_names)  # type: ignore[no-untyped-call]

    if mesh is None:
        return of_device(params, batches)
    cut = (SAME, Batches(SAME, SAME, _rows(mesh)))  # type: ignore[arg-type]
    return jax.shard_map(of_device, mesh=mesh, in_specs=cut, out_specs=SAME)(params, batches)
