"""`jaxnn train`: one training, on one device or many, in one process or many."""

import argparse
import contextlib
import dataclasses
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from jaxnn.cli import cluster, outputs, supervisor
from jaxnn.cli.output_folder import STOPPED, OutputFolder, clear
from jaxnn.cli.progress import open_progress
from jaxnn.cli.run_checkpoints import RunCheckpoints
from jaxnn.cli.signals import StopRequest, signal_name, stop_signals_call
from jaxnn.cli.terminal import CommandError, print_error, print_line
from jaxnn.data import Dataset, Split, load
from jaxnn.models import MODELS, Classifier

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxnn.training import Diverged, Position, Progress, Step, TrainState

# A supervised child may get a signal twice: from its process group, and from its parent, which looks twice a second.
SAME_SIGNAL_SECONDS = 2.0
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # in JAX's messages about a peer that is gone


class Defaults(NamedTuple):
    """The settings of `train` for a data set and a model; they were chosen on the validation split."""

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

# Of the optimizers that are no default: one rate for all models and data sets. Adadelta adapts its steps by itself.
OTHER_LEARNING_RATES = {"sgd": 0.1, "momentum": 0.05, "adadelta": 1.0}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the parts of one training share."""

    options: argparse.Namespace
    dataset: Dataset
    classifier: Classifier
    mesh: "Mesh | None"  # None for one device
    output: OutputFolder
    stop: StopRequest
    child: supervisor.Child | None  # None if no supervisor watches this process
    say: Callable[[str], None]

    def report(self, event: bytes) -> None:
        """Report an event to the supervisor, if there is one."""
        if self.child is not None:
            self.child.report(event)

    def evaluate(self, state: "TrainState", split: Split) -> dict[str, Any]:
        """Return the loss, the accuracy and the confusion counts on a split."""
        from jaxnn import training

        size = min(1000, len(split.labels))
        sums = training.evaluate(
            self.classifier.metrics, state.params, split.images, split.labels, batch_size=size, mesh=self.mesh
        )
        count = int(sums["count"])
        loss, accuracy = float(sums["nll"]) / count, int(sums["correct"]) / count
        return {"loss": loss, "accuracy": accuracy, "confusion": sums["confusion"]}


def run(arguments: argparse.Namespace) -> int:
    """Train as the options say; return the exit code."""
    import jax

    options = _with_defaults(arguments)
    cluster.check(options)
    if options.checkpoint_dir == "":
        raise CommandError("--checkpoint-dir ('') must name a folder", 2)
    if options.checkpoint_dir is None and (options.resume or options.checkpoint_every is not None):
        raise CommandError("--checkpoint-dir must also be given, to save steps or to resume from one", 2)
    child = supervisor.child()
    if options.distributed and child is None:
        return _supervise(options)
    if child is not None:
        cluster.connect(options)
    else:
        cluster.require_devices()
    stop = StopRequest(0 if child is None else SAME_SIGNAL_SECONDS)
    with stop_signals_call(stop.handle), _open_output(options) as output:
        if child is not None:
            child.report(supervisor.CONNECTED)
        try:
            with jax.enable_x64(False):  # so that JAX_ENABLE_X64 changes no bit of a training, nor of a resumed one
                return _train(_prepare(options, output, stop, child))
        except RuntimeError as error:
            if options.distributed and not options.debug and any(word in str(error) for word in _LOST):
                raise CommandError(supervisor.LOST) from error
            raise


def _with_defaults(arguments: argparse.Namespace) -> argparse.Namespace:
    """Fill in the options that were left out. An optimizer other than the default has a learning rate of its own."""
    defaults = DEFAULTS["mnist" if arguments.dataset == "fashion_mnist" else arguments.dataset, arguments.model]
    rates = {"adam": defaults.learning_rate, **OTHER_LEARNING_RATES}
    optional = ("data_dir", "output", "coordinator", "processes", "process_id", "checkpoint_dir", "checkpoint_every")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    filled = defaults._asdict() | {"learning_rate": rates[arguments.optimizer or defaults.optimizer]}
    return argparse.Namespace(**(dict.fromkeys(optional) | filled | given))


def _supervise(options: argparse.Namespace) -> int:
    """Run the command in a child process and return its exit code; print what the child could not."""
    folder = _output_folder(options)
    new, end = not folder.exists(), supervisor.run(options.given)
    if end.unexplained:
        never_met = end.unexplained == supervisor.LOST and not end.connected
        print_error(f"jaxnn: error: {cluster.connect_error(options) if never_met else end.unexplained}")
        clear(folder)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty
    return end.code


def _output_folder(options: argparse.Namespace) -> Path:
    if options.output == "":
        raise CommandError("--output ('') must name a folder", 2)
    return Path(options.output or f"results/train-{options.dataset}-{options.model}").expanduser()


@contextlib.contextmanager
def _open_output(options: argparse.Namespace) -> Iterator[OutputFolder]:
    """Open the output folder; processes other than the main one get a temporary folder and print nothing."""
    if cluster.is_main_process():
        with OutputFolder(_output_folder(options)) as output:
            yield output
    else:
        options.quiet = True
        with tempfile.TemporaryDirectory() as folder, OutputFolder(Path(folder)) as output:
            yield output


def _prepare(
    options: argparse.Namespace, output: OutputFolder, stop: StopRequest, child: supervisor.Child | None
) -> Run:
    """Check what the processes have in common, load the data, and lay out the devices."""
    cluster.require_the_same_everywhere(cluster.shared_settings(options))
    _require_extras()
    dataset = _load(options, stop)
    images, count = dataset.train.images, len(dataset.train.labels)
    if options.batch_size > count:
        raise CommandError(f"--batch-size ({options.batch_size}) must be at most the {count} training images", 2)
    classifier = Classifier(MODELS[options.model], float(images.mean()), float(images.std()), options.dtype)
    say = (lambda _: None) if options.quiet else print_line
    return Run(options, dataset, classifier, cluster.mesh(options), output, stop, child, say)


def _require_extras() -> None:
    """Fail before the training, and not after it, if the pictures cannot be drawn."""
    try:
        import rich

        import jaxnn.plots.picture
    except Exception as error:
        message = f"matplotlib and rich must be installed to train ({error}); in a clone: pip install '.[train]'"
        raise CommandError(message) from error
    del rich, jaxnn


def _load(options: argparse.Namespace, stop: StopRequest) -> Dataset:
    """Load the data. A download runs in a thread, so that a signal can end the command meanwhile."""
    if not options.download:
        return load(options.dataset, options.data_dir)
    results: list[Any] = []

    def download() -> None:
        try:
            results.append(load(options.dataset, options.data_dir, download=True))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    while not results:
        thread.join(0.1)
        if stop.signal is not None:
            raise CommandError(f"stopped by {signal_name(stop.signal)} before the training", 128 + stop.signal)
    if isinstance(results[0], BaseException):
        raise results[0]
    return cast(Dataset, results[0])


def _train(run: Run) -> int:
    """Train, and write the results; return the exit code."""
    train, validation, test = (len(split.labels) for split in run.dataset[1:4])
    run.say(
        f"{run.options.model} on {run.dataset.name}: {train} training, {validation} validation and {test} test images, "
        f"on {cluster.hardware(run.mesh)}"
    )
    step, state = _first_state(run)
    config = outputs.configuration(run.options, run.dataset, run.classifier)
    with contextlib.closing(RunCheckpoints(run.options, run.dataset, run.mesh, config)) as checkpoints:
        cluster.require_the_same_everywhere({"the data's SHA-256": checkpoints.settings["data"]})
        state, start = checkpoints.resume(state, run.say)
        if checkpoints.rows:
            outputs.write_metrics(run.output, checkpoints.rows)
        state = _run_epochs(run, step, state, start, checkpoints)
        rows, seconds = checkpoints.rows, checkpoints.seconds()
    outputs.write_parameters(run.output, state.params, config)
    run.report(supervisor.TRAINED)
    if len(rows) < run.options.epochs:
        return _keep_stopped(run, int(state.step))
    return _finish(run, state, rows, seconds)


def _first_state(run: Run) -> "tuple[Step, TrainState]":
    """Return the SGD step, and the state before the first step."""
    import jax

    from jaxnn import training

    options, dataset = run.options, run.dataset
    steps = options.epochs * -(-len(dataset.train.labels) // options.batch_size)
    optimizer = training.make_optimizer(
        options.optimizer, options.learning_rate, steps, momentum=options.momentum, schedule=options.schedule
    )
    loss = run.classifier.loss(l2=options.l2, dropout=options.dropout)
    axis_name = None if run.mesh is None else cluster.AXIS
    step = training.make_step(loss, optimizer, axis_name=axis_name, accumulate=options.accumulate)

    @jax.jit  # one program compiles faster than its operations one by one
    def first(key: jax.Array) -> "TrainState":
        init_key, run_key = jax.random.split(key)
        params = run.classifier.model.init(init_key, dataset.train.images.shape[1:], len(dataset.classes))
        return training.init_state(params, optimizer, run_key)

    return step, first(jax.random.key(options.seed))


def _run_epochs(
    run: Run, step: "Step", state: "TrainState", start: "Position", checkpoints: RunCheckpoints
) -> "TrainState":
    """Train to the end, or until a stop is requested; return the last state."""
    from jaxnn import training

    options, (images, labels) = run.options, run.dataset.train
    with open_progress(options, run.say) as shown:

        def after_chunk(progress: "Progress") -> None:
            shown.after_chunk(progress)
            checkpoints.after_chunk(progress)
            run.report(supervisor.STEPPED)

        results = training.fit(
            step, state, images, labels, epochs=options.epochs, batch_size=options.batch_size, mesh=run.mesh,
            start=start, pause_every=options.checkpoint_every, on_progress=after_chunk, stop=run.stop,
        )  # fmt: skip
        try:
            for result in results:
                state = result.state
                if not result.finished:
                    checkpoints.save(state, training.Position(result.epoch, result.steps, result.metrics))
                    break
                validation = run.evaluate(state, run.dataset.validation)
                row = outputs.epoch_row(result, validation, checkpoints.seconds())
                checkpoints.rows.append(row)
                outputs.write_metrics(run.output, checkpoints.rows)
                checkpoints.after_epoch(result)
                shown.after_epoch(row)
                run.report(supervisor.STEPPED)
        except training.Diverged as error:
            raise _diverged(error, checkpoints) from error
        finally:
            checkpoints.wait()
    return state


def _diverged(error: "Diverged", checkpoints: RunCheckpoints) -> CommandError:
    """Save the last good state; return the error to raise, which names the options that may help."""
    from jaxnn import training

    last, folder = error.progress, checkpoints.folder
    checkpoints.save(last.state, training.Position(last.epoch, last.step, last.metrics))
    kept = "" if folder is None else f", and another --checkpoint-dir: {str(folder)!r} keeps the steps before"
    return CommandError(f"{error.where}: try a lower --learning-rate or another --optimizer{kept}")


def _keep_stopped(run: Run, steps: int) -> int:
    """Keep the parameters of a stopped training, beside an earlier result if there is one; return the exit code."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:  # perhaps only another process got the signal
        run.stop.signal = int(np.max(multihost_utils.process_allgather(np.int32(run.stop.signal or 0))))
        if not cluster.is_main_process():
            cluster.end_together()
            return 128 + run.stop.signal
    prefix = STOPPED if (run.output.folder / "params.npz").exists() else ""
    run.output.finish(prefix)
    cluster.end_together()
    number = run.stop.signal or signal.SIGINT
    print_error(
        f"jaxnn: stopped by {signal_name(number)} after {steps} step{'s' if steps != 1 else ''}; the parameters are in "
        f"{run.output.folder / f'{prefix}params.npz'}"
    )
    return 128 + number


def _finish(run: Run, state: "TrainState", rows: list[dict[str, Any]], seconds: float) -> int:
    """Evaluate the test split, once; write and print the results."""
    test = run.evaluate(state, run.dataset.test)
    rows.append({"test_loss": test["loss"], "test_accuracy": test["accuracy"], "seconds": round(seconds, 3)})
    if cluster.is_main_process():
        outputs.write_metrics(run.output, rows)
        outputs.draw(run.output, rows, test["confusion"], state.params, run.options.model, run.dataset)
        run.output.finish()
        run.say(outputs.summary(run.options, rows, run.output.folder))
    return 0
