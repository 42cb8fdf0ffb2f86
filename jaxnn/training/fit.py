"""The loop around the epochs: chunks of at most half a second, progress between them, and a stop when asked."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxnn.training.epoch import Batches, check_data, run_steps
from jaxnn.training.step import Step, TrainState

CHUNK_SECONDS = 0.5


class Progress(NamedTuple):
    """Where the training is, after each chunk."""

    epoch: int  # from 1
    step: int  # steps done in this epoch
    steps: int  # steps an epoch
    metrics: dict[str, float]  # sums of the step's metrics over this epoch so far


class EpochResult(NamedTuple):
    """The state after an epoch, or after as much of it as there was."""

    epoch: int  # from 1
    state: TrainState
    metrics: dict[str, float]  # sums of the step's metrics over the epoch
    steps: int  # steps done in it
    finished: bool  # False when the training was stopped in it


class Diverged(Exception):
    """A loss or a parameter was not finite; the message says where, `state` is the last good one."""

    def __init__(self, epoch: int, step: int, state: TrainState) -> None:
        """Say where it happened."""
        super().__init__(
            f"the loss or a parameter is not finite in epoch {epoch}, step {step}: "
            f"try a lower learning rate, another optimizer, or look for NaN in the data, and see that the loss leaves "
            f"out the rows with the label -1, which fill up a last batch (ignore_index=-1)"
        )
        self.state = state


def fit(
    step: Step,
    state: TrainState,
    images: Array,
    labels: Int[Array, " n"],
    *,
    epochs: int,
    batch_size: int,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochResult]:
    """Train for some epochs over shuffled mini-batches, and yield after each.

    Args:
        step: the SGD step, from `make_step`; its batch is (images, labels), with the label `IGNORED` in the rows that
            fill up the last one.
        state: the state to begin with; used up.
        images: the data set's images, on the device, of any dtype.
        labels: their labels, shape (N,).
        epochs: passes over the data.
        batch_size: rows a batch; the last batch of an epoch may have fewer.
        on_progress: called after each chunk of at most about half a second.
        stop: asked after each chunk; True ends the training.

    Yields:
        The state and the metrics after each epoch; the state is valid until the next one is asked for.

    Raises:
        ValueError: images and labels do not match, or `batch_size` is below 1 or above their number.
        Diverged: a loss or a parameter is not finite.
    """
    check_data(images, labels, batch_size)
    n = labels.shape[0]
    steps, per_chunk = -(-n // batch_size), 1
    for epoch in range(1, epochs + 1):
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(state.key, 2**31), epoch), n)
        batches = Batches(images, labels, order)
        done, sums, stopped = 0, dict[str, float](), False
        while done < steps and not stopped:
            start = time.perf_counter()
            last = min(steps, done + per_chunk)
            state, taken, chunk, finite = run_steps(
                step, state, batches, jnp.int32(done), jnp.int32(last), batch_size=batch_size
            )
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in chunk.items()}
            if not finite:
                raise Diverged(epoch, int(taken) + 1, state)
            count, seconds = last - done, time.perf_counter() - start
            done = last
            # The first chunk, of one step, is also the one that compiles; then double up to the limit.
            per_chunk = max(1, min(2 * per_chunk, int(count * CHUNK_SECONDS / max(seconds, 1e-9))))
            on_progress(Progress(epoch, done, steps, sums))
            stopped = stop()
        finished = done == steps
        yield EpochResult(epoch, state, sums, done, finished)
        if stopped:
            return
