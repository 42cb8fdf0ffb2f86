"""Many steps in one program on the device: no Python loop over steps, no copy of the data for each batch.

Each device holds the whole data set as it was read (uint8 images). A chunk of steps is one compiled loop whose length
is an argument. Progress, signals and checkpoints are handled between chunks. Chunks of any length give the same bits,
because the batch and the key of a step depend only on its number.

With a mesh the loop runs under `shard_map`: each device takes its own rows of every batch from its copy of the data,
and the devices exchange only one sum per step, that of the gradient. If the compiler sharded the batch instead, it
would gather it at the components that work in blocks.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree
from numpy.typing import NDArray

from jaxnn.training.step import Step, TrainState

Data = Array | NDArray[Any]
IGNORED = -1  # the label of padding rows
REPLICATED = PartitionSpec()  # type: ignore[no-untyped-call]  # on every device


def check_data(images: Data, labels: Data, batch_size: int) -> None:
    """Require one integer label for each image, and a batch size between 1 and the number of images."""
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"`labels` (shape {labels.shape}, dtype {labels.dtype}) must be integer class ids, shape (N,)")
    if images.shape[:1] != labels.shape:
        raise ValueError(f"`labels` (shape {labels.shape}) must have one label for each of `images` {images.shape[:1]}")
    if not 1 <= batch_size <= labels.shape[0]:
        raise ValueError(f"`batch_size` ({batch_size}) must be between 1 and {labels.shape[0]}, the number of images")


class Batches(NamedTuple):
    """A data set, and the rows of it that form each batch of an epoch."""

    images: Array  # (N, ...)
    labels: Int[Array, " n"]
    rows: Int[Array, "batches size"]  # under `shard_map` the device's own rows; N for padding

    def batch(self, index: Array) -> tuple[Array, Int[Array, " size"]]:
        """Return the images and labels of one batch; padding rows have the label `IGNORED`."""
        rows, n = self.rows[index], self.labels.shape[0]
        row = jnp.minimum(rows, n - 1)
        return self.images[row], jnp.where(rows < n, self.labels[row].astype(jnp.int32), jnp.int32(IGNORED))


def make_batches(
    images: Data,
    labels: Data,
    order: NDArray[Any],
    batch_size: int,
    *,
    mesh: Mesh | None = None,
    accumulate: int = 1,
) -> Batches:
    """Assign the rows of a data set to batches, and those of each batch to devices and micro-batches.

    Args:
        images: the data set's images, shape (N, ...).
        labels: their labels, shape (N,).
        order: the order of the rows, a permutation of 0, …, N − 1.
        batch_size: rows per batch; the last batch may have fewer.
        mesh: the devices, along one axis; None for one device.
        accumulate: the number of micro-batches of each device.

    Returns:
        The batches, each padded to a multiple of the number of micro-batches of all devices.
    """
    n, parts = len(order), accumulate * (1 if mesh is None else mesh.size)
    batches = -(-n // batch_size)
    rows = np.full((batches, parts * -(-batch_size // parts)), n, np.int32)
    for batch in range(batches):
        some = order[batch * batch_size : (batch + 1) * batch_size]
        rows[batch, : len(some)] = some
    if mesh is None:
        return Batches(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(rows))
    sharded = jax.make_array_from_callback(rows.shape, NamedSharding(mesh, _rows(mesh)), lambda index: rows[index])
    replicated: tuple[Array, Array] = on_all_devices(mesh, (images, labels))
    return Batches(*replicated, sharded)


def on_all_devices(mesh: Mesh | None, tree: Any) -> Any:
    """Return the arrays replicated on all devices of a mesh; every process must pass the same arrays."""
    if mesh is None:
        return tree
    replicated = NamedSharding(mesh, REPLICATED)

    def replicate(a: Any) -> Array:
        if isinstance(a, jax.Array) and a.sharding == replicated:
            return a
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            key: Array = jax.random.wrap_key_data(replicate(jax.random.key_data(a)), impl=jax.random.key_impl(a))
            return key
        host = np.asarray(a)
        copies: Array = jax.make_array_from_callback(host.shape, replicated, lambda index: host[index])
        return copies

    return jax.tree.map(replicate, tree)


def _rows(mesh: Mesh) -> PartitionSpec:
    """Return how `Batches.rows` is sharded."""
    return PartitionSpec(None, *mesh.axis_names)  # type: ignore[no-untyped-call]


@functools.partial(jax.jit, static_argnames=("step", "mesh"), donate_argnames=("state",))
def run_steps(
    step: Step, state: TrainState, batches: Batches, first: Array, last: Array, *, mesh: Mesh | None = None
) -> tuple[TrainState, Array, dict[str, Array], Bool[Array, ""]]:
    """Take the steps `first`, …, `last` − 1 of an epoch; stop before the first step that is not finite.

    Args:
        step: the SGD step, from `make_step`; its metrics must be scalars; they are summed.
        state: the state before the steps; its buffers are donated.
        batches: the epoch's batches, from `make_batches`.
        first: number of the first batch.
        last: number of the batch to stop before.
        mesh: the devices that `batches` was made for, along the step's axis; None for one device.

    Returns:
        The state after the last finite step, the number of the next batch, the sums of the metrics over the steps, and
        whether all steps were finite.
    """
    chunk: Any = functools.partial(_chunk, step)
    if mesh is not None:
        specs = (REPLICATED, Batches(REPLICATED, REPLICATED, _rows(mesh)), REPLICATED, REPLICATED)  # type: ignore[arg-type]
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=specs, out_specs=REPLICATED)
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
    """Name the first result of a step that is not finite: the loss, or a leaf of the gradient or of the new state."""

    def one(state: TrainState, batches: Batches, index: Array) -> Any:
        batch = batches.batch(index)
        new, metrics = step(state, batch)
        made = metrics["loss"], step.gradient(state, batch)[0], new.params, new.opt_state
        return jax.tree.map(lambda a: _all_finite([a]), made)

    run: Any = one
    if mesh is not None:
        specs = (REPLICATED, Batches(REPLICATED, REPLICATED, _rows(mesh)), REPLICATED)  # type: ignore[arg-type]
        run = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=REPLICATED)
    names = "the loss", "the gradient of", "the new", "the optimizer's new"
    for what, tree in zip(names, jax.jit(run)(state, batches, index), strict=True):
        for at, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not leaf:
                return f"{what} {jax.tree_util.keystr(at, simple=True, separator='/')}".rstrip()
    return "the loss"  # not reproducible: the repeated step is finite


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
        batch_size: rows per batch, on all devices together.
        mesh: the devices that share the rows, along one axis; None for one device.

    Returns:
        The sums over the whole data set; each row counts once.

    Raises:
        ValueError: images and labels do not match, or `batch_size` is below 1 or above the number of images.
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
    specs = (REPLICATED, Batches(REPLICATED, REPLICATED, _rows(mesh)))  # type: ignore[arg-type]
    return jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=REPLICATED)(params, batches)
