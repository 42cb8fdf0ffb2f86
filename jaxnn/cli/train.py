"""`jaxnn train`: a training from its options to its files, on one device or many, in one process or one of many."""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from jaxnn.cli import cluster, supervisor
from jaxnn.cli.output_folder import STOPPED, OutputFolder, clear
from jaxnn.cli.run_checkpoints import RunCheckpoints
from jaxnn.cli.terminal import Failure, complain, noting, say, signal_name
from jaxnn.data import load
from jaxnn.files import write_whole
from jaxnn.models import MODELS, Classifier

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxnn.data import Dataset
    from jaxnn.training import EpochResult, Progress, TrainState

_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # in JAX's messages about a peer that is gone


class Defaults(NamedTuple):
    """What `train` takes where nothing is said; picked on the validation split (README, "Accuracy")."""

    epochs: int
    batch_size: int
    learning_rate: float
    l2: float = 0.0
    optimizer: str = "adam"
    schedule: str = "onecycle"
    dropout: float | None = None


DEFAULTS = {
    ("digits", "softmax"): Defaults(60, 32, 0.01, 1e-4),
    ("digits", "mlp"): Defaults(60, 32, 0.003, dropout=0.3),
    ("digits", "cnn"): Defaults(60, 32, 0.003, 1e-4, dropout=0.25),
    ("digits", "convnet"): Defaults(30, 32, 0.003),
    ("mnist", "softmax"): Defaults(20, 128, 0.003),
    ("mnist", "mlp"): Defaults(20, 128, 0.002, dropout=0.3),
    ("mnist", "cnn"): Defaults(8, 128, 0.002, 1e-4, dropout=0.25),
    ("mnist", "convnet"): Defaults(8, 64, 0.001),
}


class _Stop:
    """Notes a Ctrl-C or SIGTERM, for the training to end at the next chunk.

    The handlers only take a note: an exception in the middle of a compilation can crash the interpreter, and one in a
    callback of the garbage collector is lost.
    """

    signal: int | None = None

    def __init__(self, apart: float) -> None:
        """Take signals within so many seconds for one: a child gets a whole process group's from its parent, too."""
        self.apart, self.since = apart, 0.0

    def __call__(self) -> bool:
        return self.signal is not None

    def note(self, number: int, _: Any) -> None:
        """Take note; a second signal ends the process as it is."""
        if self.signal is not None:
            if time.monotonic() - self.since < self.apart:
                return
            os._exit(128 + number)
        self.signal, self.since = number, time.monotonic()


def run(arguments: argparse.Namespace) -> int:
    """Train as the options say; return the exit code."""
    options = _with_defaults(arguments)
    cluster.check(options)
    if options.checkpoint_dir == "":
        raise Failure("--checkpoint-dir ('') must name a folder", 2)
    if options.checkpoint_dir is None and (options.resume or options.checkpoint_every is not None):
        raise Failure("--checkpoint-dir must be given, too, to save steps or go on from one", 2)
    supervised = supervisor.child()
    if options.distributed and supervised is None:
        return _supervise(options)
    if supervised is not None:
        cluster.connect(options)
    stop = _Stop(0 if supervised is None else 2.0)
    with noting(stop.note), _results(options) as results:
        if supervised is not None:
            supervised.says(supervisor.CONNECTED)
        try:
            cluster.require_the_same_everywhere(cluster.deciding(options))
            _require_extras()
            dataset = _load(options, stop)
            count = len(dataset.train.labels)
            if options.batch_size > count:
                raise Failure(f"--batch-size ({options.batch_size}) must be at most the {count} training images", 2)
            return _run(options, dataset, cluster.mesh(options), results, stop, supervised)
        except RuntimeError as error:
            if options.distributed and not options.debug and any(word in str(error) for word in _LOST):
                raise Failure(supervisor.LOST) from error
            raise


def _load(options: argparse.Namespace, stop: _Stop) -> "Dataset":
    """Load the data; a download, which may take long, is left to itself when a signal comes."""
    if not options.download:
        return load(options.dataset, options.data_dir)
    ends: list[Any] = []

    def download() -> None:
        try:
            ends.append(load(options.dataset, options.data_dir, download=True))
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    while not ends:
        thread.join(0.1)
        if stop.signal is not None:
            raise Failure(f"stopped by {signal_name(stop.signal)} before the training", 128 + stop.signal)
    if isinstance(ends[0], BaseException):
        raise ends[0]
    return cast("Dataset", ends[0])


def _supervise(options: argparse.Namespace) -> int:
    """Run the command in a child process; return its exit code, and say what it could not."""
    folder = _output_folder(options)
    new, end = not folder.exists(), supervisor.run(options.given)
    if end.unexplained:
        unmet = end.unexplained == supervisor.LOST and not end.connected
        complain(f"jaxnn: error: {cluster.unmet(options) if unmet else end.unexplained}")
        clear(folder)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty
    return end.code


@contextlib.contextmanager
def _results(options: argparse.Namespace) -> Iterator[OutputFolder]:
    """Open the output folder; in the other processes of a distributed run one that is thrown away."""
    if cluster.leads():
        with OutputFolder(_output_folder(options)) as results:
            yield results
    else:
        options.quiet = True
        with tempfile.TemporaryDirectory() as folder, OutputFolder(Path(folder)) as results:
            yield results


def _run(
    options: argparse.Namespace,
    dataset: "Dataset",
    mesh: "Mesh | None",
    results: OutputFolder,
    stop: _Stop,
    supervised: supervisor.Child | None,
) -> int:
    import jax

    from jaxnn import training

    tell = (lambda _: None) if options.quiet else say
    count, shape = len(dataset.train.labels), dataset.train.images.shape[1:]
    classifier = Classifier(
        MODELS[options.model],
        float(dataset.train.images.mean()),
        float(dataset.train.images.std()),
        options.dtype,
    )
    tell(
        f"{options.model} on {dataset.name}: {count} training, {len(dataset.validation.labels)} validation and "
        f"{len(dataset.test.labels)} test images, on {cluster.hardware(mesh)}"
    )
    init_key, run_key = jax.random.split(jax.random.key(options.seed))
    params = classifier.model.init(init_key, shape, len(dataset.classes))
    steps = options.epochs * -(-count // options.batch_size)
    optimizer = training.make_optimizer(
        options.optimizer, options.learning_rate, steps, momentum=options.momentum, schedule=options.schedule
    )
    step = training.make_step(
        classifier.loss(l2=options.l2, dropout=options.dropout), optimizer,
        axis_name=None if mesh is None else "data", accumulate=options.accumulate,
    )  # fmt: skip
    state = training.init_state(params, optimizer, run_key)

    config = _config(options, shape, dataset, classifier)
    with contextlib.closing(RunCheckpoints(options, dataset, mesh, config)) as log:
        cluster.require_the_same_everywhere({"the data's SHA-256": log.run["data"]})
        state, position = log.resumed(state, tell)
        if rows := log.rows:
            _write_metrics(results, rows)
        with _progress_bar(options, tell) as on_progress:

            def heard(progress: "Progress") -> None:
                on_progress(progress)
                log.chunk(progress)
                if supervised is not None:
                    supervised.says(supervisor.STEPPED)

            epochs = training.fit(
                step, state, dataset.train.images, dataset.train.labels,
                epochs=options.epochs, batch_size=options.batch_size, mesh=mesh, start=position,
                pause_every=options.checkpoint_every, on_progress=heard, stop=stop,
            )  # fmt: skip
            try:
                for result in epochs:
                    state = result.state
                    if result.finished:
                        rows.append(_epoch_row(result, classifier, dataset, mesh, log.seconds()))
                        _write_metrics(results, rows)
                        log.epoch(result)
                        on_progress.epoch_done(rows[-1])
                        if supervised is not None:
                            supervised.says(supervisor.STEPPED)
                    else:
                        log.save(state, training.Position(result.epoch, result.steps, result.metrics))
            except training.Diverged as error:
                last = error.progress
                log.save(last.state, training.Position(last.epoch, last.step, last.metrics))
                where = f", and another --checkpoint-dir: {str(log.folder)!r} keeps the steps before"
                cure = f"try a lower --learning-rate or another --optimizer{where if log.folder else ''}"
                raise Failure(f"{error.where}: {cure}") from error
            finally:
                log.wait()
        seconds = log.seconds()
    with results.writing():
        training.save_params(results.staged / "params.npz", state.params, config)
    if supervised is not None:
        supervised.says(supervisor.TRAINED)
    if len(rows) < options.epochs:
        return _stopped(results, stop, int(state.step))

    test = _evaluate(classifier, state, dataset.test, mesh)
    rows.append({"test_loss": test["loss"], "test_accuracy": test["accuracy"], "seconds": round(seconds, 3)})
    if not cluster.leads():
        return 0
    _write_metrics(results, rows)
    with results.writing():
        _draw(results.staged, rows, test["confusion"], state, options, dataset)
    results.finish()
    tell(_summary(options, rows, results.folder))
    return 0


def _stopped(results: OutputFolder, stop: _Stop, steps: int) -> int:
    """Keep what was learned, beside an earlier result if there is one."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:  # the signal may have reached another process alone
        stop.signal = int(np.max(multihost_utils.process_allgather(np.int32(stop.signal or 0))))
        if not cluster.leads():
            cluster.end_together()
            return 128 + stop.signal
    prefix = STOPPED if (results.folder / "params.npz").exists() else ""
    results.finish(prefix)
    kept = results.folder / f"{prefix}params.npz"
    cluster.end_together()
    number = stop.signal or signal.SIGINT
    counted = f"{steps} step{'s' if steps != 1 else ''}"
    complain(f"jaxnn: stopped by {signal_name(number)} after {counted}; {kept} keeps what was learned")
    return 128 + number


def _with_defaults(arguments: argparse.Namespace) -> argparse.Namespace:
    """Fill in what was not said; an optimizer other than the default one keeps its own usual learning rate."""
    key = ("mnist" if arguments.dataset == "fashion_mnist" else arguments.dataset, arguments.model)
    defaults = DEFAULTS[key]
    usual = {"sgd": 0.1, "momentum": 0.05, "adam": defaults.learning_rate, "adadelta": 1.0}
    optimizer = arguments.optimizer or defaults.optimizer
    filled = {**defaults._asdict(), "learning_rate": usual[optimizer]}
    filled |= {name: value for name, value in vars(arguments).items() if value is not None}
    may_be_missing = dict.fromkeys(
        ("data_dir", "output", "coordinator", "processes", "process_id", "checkpoint_dir", "checkpoint_every")
    )
    return argparse.Namespace(**{**may_be_missing, **filled})


def _output_folder(options: argparse.Namespace) -> Path:
    if options.output == "":
        raise Failure("--output ('') must name a folder", 2)
    return Path(options.output or f"results/train-{options.dataset}-{options.model}").expanduser()


def _require_extras() -> None:
    """Find out before the training that the pictures can be drawn after it."""
    try:
        import rich

        import jaxnn.plots.training
    except Exception as error:
        message = f"matplotlib and rich must be installed to train ({error}); in a clone: pip install '.[train]'"
        raise Failure(message) from error
    del rich, jaxnn


class _Report:
    """Called with the progress after each chunk: shows nothing."""

    def __call__(self, progress: "Progress") -> None:
        """Take the progress."""

    def epoch_done(self, row: dict[str, Any]) -> None:
        """Take an epoch's row of metrics."""


class _Lines(_Report):
    """Off a terminal: one line an epoch."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def epoch_done(self, row: dict[str, Any]) -> None:
        self.tell(
            f"epoch {row['epoch']:3d}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}  "
            f"validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}  "
            f"{row['seconds']:.1f} s"
        )


class _Bar(_Report):
    """On a terminal: a bar over the whole training, with loss, accuracy and images/s."""

    def __init__(self, bar: Any, epochs: int) -> None:
        self.bar, self.epochs = bar, epochs
        with contextlib.suppress(OSError):
            bar.start()
        self.task = bar.add_task("compiling", total=None)
        self.start: float | None = None
        self.images = 0.0

    def __call__(self, progress: "Progress") -> None:
        count, now = progress.metrics["count"], time.perf_counter()
        if self.start is None:  # the first chunk compiled: the rate counts from here
            self.start, self.images = now, -count
        rate = (self.images + count) / max(now - self.start, 1e-9) if self.images + count > 0 else 0.0
        self.bar.update(
            self.task,
            total=self.epochs * progress.steps,
            completed=(progress.epoch - 1) * progress.steps + progress.step,
            description=f"epoch {progress.epoch}/{self.epochs}  loss {progress.metrics['nll'] / count:.4f}  "
            f"accuracy {progress.metrics['correct'] / count:.2%}  {rate:,.0f} images/s",
        )
        if progress.step == progress.steps:
            self.images += count


@contextlib.contextmanager
def _progress_bar(options: argparse.Namespace, tell: Callable[[str], None]) -> Iterator[_Report]:
    if options.quiet or sys.stderr is None or not sys.stderr.isatty():
        yield _Lines(tell)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn()
    bar = Bar(*columns, console=Console(stderr=True))
    try:
        yield _Bar(bar, options.epochs)
    finally:
        with contextlib.suppress(OSError):  # a terminal that went away is no reason to lose a training
            bar.stop()


def _evaluate(classifier: Classifier, state: "TrainState", split: Any, mesh: "Mesh | None") -> dict[str, Any]:
    from jaxnn import training

    size = min(1000, len(split.labels))
    sums = training.evaluate(classifier.metrics, state.params, split.images, split.labels, batch_size=size, mesh=mesh)
    count = int(sums["count"])
    loss, accuracy = float(sums["nll"]) / count, int(sums["correct"]) / count
    return {"loss": loss, "accuracy": accuracy, "confusion": sums["confusion"]}


def _epoch_row(
    result: "EpochResult", classifier: Classifier, dataset: "Dataset", mesh: "Mesh | None", seconds: float
) -> dict[str, Any]:
    validation, sums = _evaluate(classifier, result.state, dataset.validation, mesh), result.metrics
    if not math.isfinite(validation["loss"]):
        # The last update can leave parameters that are finite, and of no use.
        raise Failure(f"the validation loss is not finite after epoch {result.epoch}: try a lower learning rate")
    return {
        "epoch": result.epoch,
        "step": int(result.state.step),
        "train_loss": sums["nll"] / sums["count"],
        "train_accuracy": sums["correct"] / sums["count"],
        "validation_loss": validation["loss"],
        "validation_accuracy": validation["accuracy"],
        "seconds": round(seconds, 3),
    }


def _write_metrics(results: OutputFolder, rows: list[dict[str, Any]]) -> None:
    with results.writing():
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_whole(results.staged / "metrics.jsonl", lines.encode())


def _config(
    options: argparse.Namespace, shape: tuple[int, ...], dataset: "Dataset", classifier: Classifier
) -> dict[str, Any]:
    """Return what is needed to use the parameters again, and what they were made with."""
    made_with = (
        "dataset",
        "epochs",
        "batch_size",
        "optimizer",
        "learning_rate",
        "schedule",
        "momentum",
        "l2",
        "dropout",
        "dtype",
        "accumulate",
    )
    return {
        "model": options.model,
        "input_shape": list(shape),
        "classes": list(dataset.classes),
        "normalisation": {"mean": classifier.mean, "std": classifier.std},
        "seed": options.seed,
        **{name: getattr(options, name) for name in made_with},
    }


def _draw(
    output: Path,
    rows: list[dict[str, Any]],
    counts: Any,
    state: "TrainState",
    options: argparse.Namespace,
    dataset: "Dataset",
) -> None:
    import numpy as np

    from jaxnn.plots import training as plots

    title = f"{options.model} on {dataset.name}"
    plots.curves(output / "curves.png", rows, title)
    plots.confusion(output / "confusion.png", np.asarray(counts), dataset.classes, f"{title}, test split")
    height, width, _ = dataset.train.images.shape[1:]
    params = state.params
    if options.model in ("cnn", "convnet"):  # (height, width, input channel, output channel)
        weights = np.moveaxis(
            np.asarray(params["W0"] if options.model == "cnn" else params["conv1"]["w"])[:, :, 0], -1, 0
        )
        plots.filters(output / "filters.png", weights, f"{title}: filters of the first layer")
    else:  # (unit, pixels), of which 64 are enough to see
        first = np.asarray(params["linear" if options.model == "softmax" else "linear1"]["w"])[:64]
        labels = dataset.classes if options.model == "softmax" else None
        plots.filters(
            output / "filters.png", first.reshape(-1, height, width), f"{title}: weights of the first layer", labels
        )


def _summary(options: argparse.Namespace, rows: list[dict[str, Any]], output: Path) -> str:
    last, before = rows[-1], rows[-2]
    lines = {
        "test accuracy": f"{last['test_accuracy']:.2%}",
        "test loss": f"{last['test_loss']:.4f}",
        "validation accuracy": f"{before['validation_accuracy']:.2%}",
        "training time": f"{last['seconds']:.1f} s with compilation, {options.epochs} epochs, {before['step']} steps",
        "metrics": str(output / "metrics.jsonl"),
        "parameters": str(output / "params.npz"),
        "pictures": ", ".join(str(output / f"{name}.png") for name in ("curves", "confusion", "filters")),
    }
    return "\n".join(f"{name:<20} {value}" for name, value in lines.items())
