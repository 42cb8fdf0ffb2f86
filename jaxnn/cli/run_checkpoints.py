"""The steps of a run on disk: which it goes on from, and which it leaves."""

import argparse
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxnn.cli import cluster
from jaxnn.cli.terminal import Failure, complain
from jaxnn.files import cure

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxnn.data import Dataset
    from jaxnn.training import Checkpoints, EpochResult, Position, Progress, TrainState


class RunCheckpoints:
    """The steps of a run on disk: which one it goes on from, and which it leaves; none without --checkpoint-dir."""

    DECIDES = (
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
        self.run = {name: getattr(options, name) for name in self.DECIDES} | {"data": _digest(dataset)}
        self.machine = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "devices": 1 if mesh is None else mesh.size,
            "processes": jax.process_count(),
            "accumulate": options.accumulate,
        }
        self.rows: list[dict[str, Any]] = []
        self.before, self.since = 0.0, time.perf_counter()
        self.steps: Checkpoints | None = None
        if self.folder is not None and cluster.leads():
            with self._writing():
                self.steps = training.Checkpoints(self.folder)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Name the folder and the cure when a step cannot be written."""
        try:
            yield
        except OSError as error:
            reason = f"cannot write to --checkpoint-dir {str(self.folder)!r} ({error.strerror})"
            kept = ", the steps before are kept" if any(Path(self.folder or "").glob("step-*")) else ""
            raise Failure(f"{reason}{kept}; {cure(error)}") from error

    def resumed(self, state: "TrainState", tell: Callable[[str], None]) -> "tuple[TrainState, Position]":
        """Return the state and the position to go on from: the newest step's, or the beginning."""
        from jaxnn import training

        if self.folder is None:
            return state, training.Position()
        saved, damaged = training.newest_step(self.folder)
        if (saved or damaged) and not self.options.resume:
            name = damaged[0] if saved is None else f"step {saved.step}"
            raise Failure(
                f"--checkpoint-dir {str(self.folder)!r} holds a training already ({name}); go on with it by --resume, "
                f"or choose another folder"
            )
        newest = None if saved is None else saved.sha256
        cluster.require_the_same_everywhere({"the newest step in --checkpoint-dir, which all must share,": newest})
        if saved is None:
            if damaged:
                raise Failure(f"no step can be resumed: {'; '.join(damaged)}; remove them, or choose another folder")
            return state, training.Position()
        if (difference := _difference(saved.about["run"], self.run)) is not None:
            name, theirs, ours = difference
            name = "the data's SHA-256" if name == "data" else f"--{name.replace('_', '-')}"
            raise Failure(
                f"--resume needs the run of {str(self.folder)!r}, and another is asked for: {name} was {theirs} and is "
                f"{ours}; give what it was, or another --checkpoint-dir"
            )
        tell_of = complain if cluster.leads() else (lambda _: None)
        for line in damaged:
            tell_of(f"jaxnn: {line}; going on from step {saved.step}")
        if (difference := _difference(saved.about["machine"], self.machine)) is not None:
            name, theirs, ours = difference
            tell_of(
                f"jaxnn: going on within rounding, not bit for bit as without a stop: {name} was {theirs} and is {ours}"
            )
        state = saved.restored(state)
        self.rows, self.before = saved.about["rows"], saved.about["seconds"]
        position = training.Position(*saved.about["position"])
        tell(f"going on from step {saved.step}, in epoch {position.epoch}")
        return state, position

    def seconds(self) -> float:
        """Return how long the training has taken, in all its parts."""
        return self.before + time.perf_counter() - self.since

    def chunk(self, progress: "Progress") -> None:
        """Save, where a chunk ends at one of the steps to save at."""
        from jaxnn import training

        every, done = self.options.checkpoint_every, (progress.epoch - 1) * progress.steps + progress.step
        if every is not None and done % every == 0 and progress.step < progress.steps:
            self.save(progress.state, training.Position(progress.epoch, progress.step, progress.metrics))

    def epoch(self, result: "EpochResult") -> None:
        """Save the end of an epoch, which its validation may prove to be the best."""
        from jaxnn import training

        last = self.rows[-1]
        score = [last["validation_accuracy"], -last["validation_loss"]]
        self.save(result.state, training.Position(result.epoch + 1), score)

    def save(self, state: "TrainState", position: "Position", score: list[float] | None = None) -> None:
        """Begin to write a step."""
        if self.steps is not None:
            about = {
                "run": self.run, "machine": self.machine, "position": position, "rows": self.rows,
                "seconds": self.seconds(), "config": self.config,
            }  # fmt: skip
            with self._writing():
                self.steps.save(int(state.step), state, about, score)

    def wait(self) -> None:
        """Wait until all that was begun is on the disk."""
        if self.steps is not None:
            with self._writing():
                self.steps.wait()

    def close(self) -> None:
        """Leave the folder to others."""
        if self.steps is not None:
            self.steps.close()


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first thing that differs, with what it was and what it is."""
    for name in ours | theirs:
        if theirs.get(name) != ours.get(name):
            return name, theirs.get(name), ours.get(name)
    return None


def _digest(dataset: "Dataset") -> str:
    """Return the SHA-256 of a data set's contents."""
    content = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        content.update(split.images.tobytes() + split.labels.tobytes())
    return content.hexdigest()
