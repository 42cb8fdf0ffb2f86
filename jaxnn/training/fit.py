"""The loop over the epochs, in chunks of steps: between chunks it reports progress, and stops if requested."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxnn.errors import JaxnnError
from jaxnn.training.epoch import Data, check_data, make_batches, not_finite, on_all_devices, run_steps
from jaxnn.training.step import Step, TrainState

CHUNK_SECONDS = 0.5  # the longest that a chunk should take
SHUFFLE = 2**31  # folded into the key for the order of the rows; the steps fold in their own numbers, which are smaller


class Position(NamedTuple):
    """Where a training starts or resumes: with the state that belongs to it, the same steps follow."""

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    metrics: dict[str, float] = {}  # noqa: RUF012 (sums over these steps; never changed)


BEGINNING = Position()


class Progress(NamedTuple):
    """How far the training is, after each chunk."""

    epoch: int  # from 1
    step: int  # steps done in this epoch
    steps: int  # steps per epoch
    metrics: dict[str, float]  # sums of the step's metrics over this epoch so far
    state: TrainState  # valid until the next chunk


class EpochResult(NamedTuple):
    """The state after an epoch, or after the part of it that was done when the training stopped."""

    epoch: int  # from 1
    state: TrainState
    metrics: dict[str, float]  # sums of the step's metrics over the epoch
    steps: int  # steps done in it
    finished: bool  # False if the training stopped in this epoch


class Diverged(JaxnnError):
    """A loss or a parameter is not finite. The message says which; `progress` has the last finite state."""

    def __init__(self, what: str, progress: Progress) -> None:
        """Name what is not finite, and the step."""
        self.where = f"{what} is not finite in epoch {progress.epoch}, step {progress.step + 1}"
        super().__init__(
            f"{self.where}: try a lower learning rate or another optimizer, look for NaN in the data, and make sure "
            f"that the loss ignores the rows with the label -1, which pad the last batch (ignore_index=-1)"
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
    """Train on shuffled mini-batches, and yield after each epoch.

    Args:
        step: the SGD step, from `make_step`. Its batch is (images, labels); padding rows have the label `IGNORED`.
        state: the first state; its buffers are donated.
        images: the data set's images, of any dtype.
        labels: their labels, shape (N,).
        epochs: passes over the data.
        batch_size: rows per batch, on all devices together; the last batch of an epoch may have fewer.
        mesh: the devices along the step's `axis_name`; None for one. All their processes must call `fit` alike.
        start: the position to resume from, if `state` is not a first state.
        pause_every: a chunk ends at every multiple of this number of steps, counted over all epochs.
        on_progress: called after each chunk of at most about half a second.
        stop: called after each chunk; True, in any process, ends the training.

    Yields:
        The state and the metrics after each epoch. The state is valid until the next one is requested.

    Raises:
        ValueError: images and labels do not match, `batch_size` is below 1, above the number of images or below the
            number of micro-batches of all devices, or the step was made for another axis than the mesh's.
        Diverged: a loss or a parameter is not finite.
    """
    check_data(images, labels, batch_size)
    _check_mesh(step, mesh, batch_size)
    shuffle, n = jax.random.fold_in(state.key, SHUFFLE), labels.shape[0]
    state, images, labels = on_all_devices(mesh, (state, *map(jnp.asarray, (images, labels))))
    steps, length, stopped = -(-n // batch_size), 1, False
    for epoch in range(start.epoch, epochs + 1):
        order = jax.random.permutation(jax.random.fold_in(shuffle, epoch), n)
        batches = make_batches(images, labels, np.asarray(order), batch_size, mesh=mesh, accumulate=step.accumulate)
        done, sums = (start.step, dict(start.metrics)) if epoch == start.epoch else (0, {})
        while done < steps and not stopped:
            since, first = time.perf_counter(), done
            done = _chunk_end(first, length, steps, epoch, pause_every)
            state, index, chunk, finite = run_steps(step, state, batches, np.int32(first), np.int32(done), mesh=mesh)
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in chunk.items()}
            if not finite:
                what = not_finite(step, state, batches, index, mesh=mesh)
                raise Diverged(what, Progress(epoch, int(index), steps, sums, state))
            length = _next_length(length, done - first, time.perf_counter() - since)
            on_progress(Progress(epoch, done, steps, sums, state))
            length, stopped = _agree(length, stop())
        yield EpochResult(epoch, state, sums, done, done == steps)
        if stopped:
            return


def _chunk_end(first: int, length: int, steps: int, epoch: int, pause_every: int | None) -> int:
    """Return the step of the epoch at which a chunk ends that starts at step `first`."""
    end = min(steps, first + length)
    if pause_every is not None:
        before = (epoch - 1) * steps
        end = min(end, (before + first) // pause_every * pause_every + pause_every - before)
    return end


def _next_length(length: int, taken: int, seconds: float) -> int:
    """Return the length of the next chunk, from the speed of the last one.

    The first chunk is one step, because it includes the compilation. Then the length at most doubles.
    """
    return max(1, min(2 * length, int(taken * CHUNK_SECONDS / max(seconds, 1e-9))))


def _check_mesh(step: Step, mesh: Mesh | None, batch_size: int) -> None:
    axis, devices = step.axis_name, 1 if mesh is None else mesh.size
    if (None if mesh is None else mesh.axis_names) != (None if axis is None else (axis,)):
        axes = "none" if mesh is None else mesh.axis_names
        raise ValueError(f"`step` (axis_name {axis!r}) must be made for the axis of `mesh` ({axes})")
    if batch_size < (parts := devices * step.accumulate):
        raise ValueError(
            f"`batch_size` ({batch_size}) must be at least {parts}: one row for each micro-batch of each device "
            f"({devices} devices, {step.accumulate} micro-batches)"
        )


def _agree(length: int, stop: bool) -> tuple[int, bool]:
    """Return the shortest length over all processes, and whether any process wants to stop."""
    if jax.process_count() == 1:
        return length, stop
    from jax.experimental import multihost_utils

    wanted = multihost_utils.process_allgather(np.array([length, not stop], np.int32))
    least = np.min(np.asarray(wanted).reshape(-1, 2), 0)
    return int(least[0]), not least[1]
