"""The loop around the epochs: chunks of at most half a second, progress between them, and a stop when asked."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxnn.training.epoch import Data, check_data, make_batches, not_finite, on_all_devices, run_steps
from jaxnn.training.step import Step, TrainState

CHUNK_SECONDS = 0.5


class Position(NamedTuple):
    """Where a training begins, or goes on: with the state that belongs to it, it takes the same steps again."""

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    metrics: dict[str, float] = {}  # noqa: RUF012 (sums over these steps; never changed)


BEGINNING = Position()


class Progress(NamedTuple):
    """Where the training is, after each chunk."""

    epoch: int  # from 1
    step: int  # steps done in this epoch
    steps: int  # steps an epoch
    metrics: dict[str, float]  # sums of the step's metrics over this epoch so far
    state: TrainState  # valid until the next chunk


class EpochResult(NamedTuple):
    """The state after an epoch, or after as much of it as there was."""

    epoch: int  # from 1
    state: TrainState
    metrics: dict[str, float]  # sums of the step's metrics over the epoch
    steps: int  # steps done in it
    finished: bool  # False when the training was stopped in it


class Diverged(Exception):
    """A loss or a parameter was not finite; the message says which, `progress` has the last good state."""

    def __init__(self, what: str, progress: Progress) -> None:
        """Say where it happened."""
        self.where = f"{what} is not finite in epoch {progress.epoch}, step {progress.step + 1}"
        super().__init__(
            f"{self.where}: try a lower learning rate, another optimizer, or look for NaN in the data, and see that "
            f"the loss leaves out the rows with the label -1, which fill up a last batch (ignore_index=-1)"
        )
        self.progress = progress


def fit(
    step: Step,
    state: TrainState,
    images: Data,
    labels: Data,
    *,
    epochs: int,
    batch_size: int,
    mesh: Mesh | None = None,
    start: Position = BEGINNING,
    pause_every: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochResult]:
    """Train for some epochs over shuffled mini-batches, and yield after each.

    Args:
        step: the SGD step, from `make_step`; its batch is (images, labels), with the label `IGNORED` in the rows that
            fill up the last one.
        state: the state to begin with; used up.
        images: the data set's images, of any dtype.
        labels: their labels, shape (N,).
        epochs: passes over the data.
        batch_size: rows a batch, of all devices; the last batch of an epoch may have fewer.
        mesh: the devices, in the axis that the step was made for (`axis_name`), of one process or many; None for one
            device. With many processes each calls `fit` with the same arguments.
        start: where to go on, if the state is not that of the beginning.
        pause_every: steps, counted over all epochs, at whose multiples a chunk ends; None for no such steps.
        on_progress: called after each chunk of at most about half a second.
        stop: asked after each chunk; True, in any process, ends the training.

    Yields:
        The state and the metrics after each epoch; the state is valid until the next one is asked for.

    Raises:
        ValueError: images and labels do not match, `batch_size` is below 1, above their number or below that of the
            micro-batches of all devices, or the step was made for another axis than the mesh's.
        Diverged: a loss or a parameter is not finite.
    """
    check_data(images, labels, batch_size)
    _check_mesh(step, mesh, batch_size)
    shuffle, n = jax.random.fold_in(state.key, 2**31), labels.shape[0]
    state, images, labels = on_all_devices(mesh, (state, *map(jnp.asarray, (images, labels))))
    steps, per_chunk = -(-n // batch_size), 1
    for epoch in range(start.epoch, epochs + 1):
        order = jax.random.permutation(jax.random.fold_in(shuffle, epoch), n)
        batches = make_batches(images, labels, np.asarray(order), batch_size, mesh=mesh, accumulate=step.accumulate)
        done, sums = (start.step, dict(start.metrics)) if epoch == start.epoch else (0, {})
        stopped = False
        while done < steps and not stopped:
            since = time.perf_counter()
            last = min(steps, done + per_chunk)
            if pause_every is not None:
                before = (epoch - 1) * steps
                last = min(last, (before + done) // pause_every * pause_every + pause_every - before)
            state, taken, chunk, finite = run_steps(step, state, batches, np.int32(done), np.int32(last), mesh=mesh)
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in chunk.items()}
            if not finite:
                what = not_finite(step, state, batches, taken, mesh=mesh)
                raise Diverged(what, Progress(epoch, int(taken), steps, sums, state))
            count, seconds = last - done, time.perf_counter() - since
            done = last
            on_progress(Progress(epoch, done, steps, sums, state))
            # The first chunk, of one step, is also the one that compiles; then double up to the limit.
            per_chunk = max(1, min(2 * per_chunk, int(count * CHUNK_SECONDS / max(seconds, 1e-9))))
            per_chunk, stopped = _agreed(per_chunk, stop())
        finished = done == steps
        yield EpochResult(epoch, state, sums, done, finished)
        if stopped:
            return


def _check_mesh(step: Step, mesh: Mesh | None, batch_size: int) -> None:
    axis, devices = step.axis_name, 1 if mesh is None else mesh.size
    if (None if mesh is None else mesh.axis_names) != (None if axis is None else (axis,)):
        axes = "none" if mesh is None else mesh.axis_names
        raise ValueError(f"`step` (axis_name {axis!r}) must be made for the axis of `mesh` ({axes})")
    if batch_size < (parts := devices * step.accumulate):
        raise ValueError(
            f"`batch_size` ({batch_size}) must be at least {parts}, a row for each of {devices} devices and "
            f"{step.accumulate} micro-batches"
        )


def _agreed(per_chunk: int, stop: bool) -> tuple[int, bool]:
    """Return the shortest chunk that a process wants, and whether any wants to stop: all do the same."""
    if jax.process_count() == 1:
        return per_chunk, stop
    wanted = multihost_utils.process_allgather(np.array([per_chunk, not stop], np.int32))
    least = np.min(np.asarray(wanted).reshape(-1, 2), 0)
    return int(least[0]), not least[1]
