"""The checkpoints of a run: which one it resumes from, and which ones it saves."""

import argparse
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxnn.cli import cluster
from jaxnn.cli.terminal import CommandError, print_error
from jaxnn.files import cure

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxnn.data import Dataset
    from jaxnn.training import Checkpoints, EpochResult, Position, Progress, TrainState


class RunCheckpoints:
    """The checkpoints of a run, and the metrics of its epochs. Without --checkpoint-dir nothing is read or saved."""

    MUST_MATCH = (  # to resume a run
        "dataset", "model", "seed", "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "momentum", "l2",
        "dropout", "dtype",
    )  # fmt: skip

    def __init__(
        self, options: argparse.Namespace, dataset: "Dataset", mesh: "Mesh | None", config: dict[str, Any]
    ) -> None:
        import jax

        from jaxnn import training

        self.options, self.config = options, config
        self.folder = None if options.checkpoint_dir is None else Path(options.checkpoint_dir).expanduser()
        self.settings = {name: getattr(options, name) for name in self.MUST_MATCH} | {"data": _digest(dataset)}
        self.machine = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "devices": 1 if mesh is None else mesh.size,
            "processes": jax.process_count(),
            "accumulate": options.accumulate,
        }
        self.rows: list[dict[str, Any]] = []
        self.earlier_seconds, self.since = 0.0, time.perf_counter()
        self.steps: Checkpoints | None = None
        if self.folder is not None and cluster.is_main_process():
            with self._writing():
                self.steps = training.Checkpoints(self.folder)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn an error of the disk into one that names the folder and the cure."""
        try:
            yield
        except OSError as error:
            reason = f"cannot write to --checkpoint-dir {str(self.folder)!r} ({error.strerror})"
            kept = ", the earlier steps are kept" if any(Path(self.folder or "").glob("step-*")) else ""
            raise CommandError(f"{reason}{kept}; {cure(error)}") from error

    def resume(self, state: "TrainState", say: Callable[[str], None]) -> "tuple[TrainState, Position]":
        """Return the state and the position to continue from: those of the newest step, or the given state."""
        from jaxnn import training

        if self.folder is None:
            return state, training.Position()
        saved, damaged = training.newest_step(self.folder)
        if (saved or damaged) and not self.options.resume:
            name = damaged[0] if saved is None else f"step {saved.step}"
            raise CommandError(
                f"--checkpoint-dir {str(self.folder)!r} already holds a training ({name}); continue it with --resume, "
                f"or choose another folder"
            )
        newest = None if saved is None else saved.sha256
        cluster.require_the_same_everywhere({"the newest step in --checkpoint-dir, which all must share,": newest})
        if saved is None:
            if damaged:
                raise CommandError(
                    f"no step can be resumed: {'; '.join(damaged)}; remove them, or choose another folder"
                )
            return state, training.Position()
        self._check_settings(saved.about["run"])
        if cluster.is_main_process():
            for line in damaged:
                print_error(f"jaxnn: {line}; resuming from step {saved.step}")
            self._warn_of_rounding(saved.about["machine"])
        state = saved.restored(state)
        self.rows, self.earlier_seconds = saved.about["rows"], saved.about["seconds"]
        position = training.Position(*saved.about["position"])
        say(f"resuming from step {saved.step}, in epoch {position.epoch}")
        return state, position

    def _check_settings(self, saved: dict[str, Any]) -> None:
        """Require the options and the data of the run that was saved."""
        if (difference := _difference(saved, self.settings)) is not None:
            name, before, now = difference
            name = "the data's SHA-256" if name == "data" else f"--{name.replace('_', '-')}"
            raise CommandError(
                f"--resume must continue the same run as in {str(self.folder)!r}: {name} was {before} and is {now}; "
                f"restore it, or choose another --checkpoint-dir"
            )

    def _warn_of_rounding(self, saved: dict[str, Any]) -> None:
        """Warn if the run continues on something else, where the results are not the same bits."""
        if (difference := _difference(saved, self.machine)) is not None:
            name, before, now = difference
            print_error(
                f"jaxnn: the resumed training equals an uninterrupted one up to rounding, not bit for bit: {name} was "
                f"{before} and is {now}"
            )

    def seconds(self) -> float:
        """Return how long the training has taken, including the time before it was resumed."""
        return self.earlier_seconds + time.perf_counter() - self.since

    def after_chunk(self, progress: "Progress") -> None:
        """Save if the chunk ends at a step that --checkpoint-every names."""
        from jaxnn import training

        every, done = self.options.checkpoint_every, (progress.epoch - 1) * progress.steps + progress.step
        if every is not None and done % every == 0 and progress.step < progress.steps:
            self.save(progress.state, training.Position(progress.epoch, progress.step, progress.metrics))

    def after_epoch(self, result: "EpochResult") -> None:
        """Save the end of an epoch, with its validation metrics as the score."""
        from jaxnn import training

        last = self.rows[-1]
        score = [last["validation_accuracy"], -last["validation_loss"]]
        self.save(result.state, training.Position(result.epoch + 1), score)

    def save(self, state: "TrainState", position: "Position", score: list[float] | None = None) -> None:
        """Start to write a step."""
        if self.steps is not None:
            about = {
                "run": self.settings, "machine": self.machine, "position": position, "rows": self.rows,
                "seconds": self.seconds(), "config": self.config,
            }  # fmt: skip
            with self._writing():
                self.steps.save(int(state.step), state, about, score)

    def wait(self) -> None:
        """Wait until the steps are on the disk."""
        if self.steps is not None:
            with self._writing():
                self.steps.wait()

    def close(self) -> None:
        """Let other runs use the folder."""
        if self.steps is not None:
            self.steps.close()


def _difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first name whose values differ, and both values."""
    for name in now | before:
        if before.get(name) != now.get(name):
            return name, before.get(name), now.get(name)
    return None


def _digest(dataset: "Dataset") -> str:
    """Return the SHA-256 of a data set's contents."""
    content = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        content.update(split.images.tobytes() + split.labels.tobytes())
    return content.hexdigest()
