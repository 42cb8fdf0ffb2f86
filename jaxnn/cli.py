"""The command `jaxnn`.

Exit codes: 0 done; 1 a failure, in one line; 2 wrong usage, in one line; 130 or 143 stopped by Ctrl-C or SIGTERM.
Heavy imports wait until they are needed, so that `--help` and wrong usage answer at once.
"""

import argparse
import contextlib
import difflib
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from jaxnn.data import DATASETS, DataError, load
from jaxnn.models import MODELS, Classifier

if TYPE_CHECKING:
    from jaxnn.data import Dataset
    from jaxnn.training import EpochResult, Progress, TrainState

# As `jaxnn.training` has them, which takes a tenth of a second to import; a test keeps them equal.
OPTIMIZERS = ("sgd", "momentum", "adam", "adadelta")
SCHEDULES = ("constant", "cosine", "onecycle")


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


class Failure(Exception):
    """A failure with its one line and its exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        """Keep the exit code."""
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser().parse_args(argv)
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("jaxnn: stopped by Ctrl-C; nothing was learned yet, nothing is saved", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away: no one is left to be told. Keep the interpreter's last flush quiet, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, Failure | DataError | OSError) and type(error).__name__ != "Diverged":
            message = f"{type(error).__name__}: {message} (--debug shows the traceback)"
        print(f"jaxnn: error: {message}", file=sys.stderr)
        return error.code if isinstance(error, Failure) else 1


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def _number(kind: type[int] | type[float], low: float, high: float = math.inf, *, above: bool = False) -> Any:
    """Return an argparse type: a finite number in [low, high], or (low, high]."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not (low < value if above else low <= value) or not value <= high or not math.isfinite(value):
            bound = f"{'above' if above else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    return parse


def _one_of(choices: tuple[str, ...]) -> Any:
    """Return an argparse type: one of the names, and the nearest one in the message otherwise."""

    def parse(text: str) -> str:
        if text in choices:
            return text
        near = difflib.get_close_matches(text, choices, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise argparse.ArgumentTypeError(f"unknown name {text!r}, must be one of {', '.join(choices)}{hint}")

    return parse


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = _Parser(prog="jaxnn", description="Neural networks by hand-derived gradients, in JAX.")
    parser.add_argument("--version", action="version", version=f"jaxnn {version('jaxnn-vjp')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a digit recogniser and draw what it learned",
        description="Train one of the notes' networks by their own derivatives; without options, their CNN on 1,797 "
        "real handwritten digits. Writes metrics.jsonl, params.npz, curves.png, confusion.png and filters.png.",
    )
    train.set_defaults(run=_train)
    names: dict[str, Any] = {"metavar": "NAME"}
    add = train.add_argument
    add("--dataset", type=_one_of(DATASETS), default="digits", help=", ".join(DATASETS) + " (default: digits)", **names)
    add("--data-dir", metavar="DIR", help="folder of the four IDX files of mnist or fashion_mnist, .gz or raw")
    add("--model", type=_one_of(tuple(MODELS)), default="cnn", help=", ".join(MODELS) + " (default: cnn)", **names)
    own = "(default: what suits the model and the data set)"
    add("--epochs", type=_number(int, 1), metavar="N", help=f"passes over the training data {own}")
    add("--batch-size", type=_number(int, 1), metavar="N", help=f"images a step {own}")
    add("--optimizer", type=_one_of(OPTIMIZERS), help=f"{', '.join(OPTIMIZERS)} {own}", **names)
    add("--learning-rate", type=_number(float, 0, above=True), metavar="X", help=f"α, the schedule's peak {own}")
    add("--schedule", type=_one_of(SCHEDULES), help=f"of the learning rate: {', '.join(SCHEDULES)} {own}", **names)
    add("--momentum", type=_number(float, 0, 1), default=0.9, metavar="X", help="of momentum (default: 0.9)")
    add("--l2", type=_number(float, 0), metavar="X", help=f"λ of the penalty λΣw² on weights, not biases {own}")
    add("--dropout", type=_number(float, 0, 1), metavar="X", help=f"rate of every dropout layer {own}")
    add("--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N", help="of all randomness (default: 0)")
    add("--output", metavar="DIR", help="folder for the results (default: results/train-DATASET-MODEL)")
    add("--quiet", action="store_true", help="print nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Stop:
    """Notes the first Ctrl-C or SIGTERM, for the training to end at the next chunk; a second one is not held back."""

    signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hold back the first signal."""
        former = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _: Any) -> None:
            self.signal = number
            for s, handler in former.items():
                signal.signal(s, handler)

        for s in former:
            signal.signal(s, note)
        try:
            yield
        finally:
            for s, handler in former.items():
                signal.signal(s, handler)


def _train(arguments: argparse.Namespace) -> int:
    options = _with_defaults(arguments)
    say = (lambda *_: None) if options.quiet else print
    output = _output_folder(Path(options.output or f"results/train-{options.dataset}-{options.model}"))
    _require_extras()

    import jax

    from jaxnn import training

    dataset = load(options.dataset, options.data_dir)
    count = len(dataset.train.labels)
    if options.batch_size > count:
        raise Failure(f"--batch-size ({options.batch_size}) must be at most the {count} training images", 2)
    model = MODELS[options.model]
    shape = dataset.train.images.shape[1:]
    classifier = Classifier(model, float(dataset.train.images.mean()), float(dataset.train.images.std()))
    say(
        f"{options.model} on {dataset.name}: {count} training, {len(dataset.validation.labels)} validation and "
        f"{len(dataset.test.labels)} test images, on {jax.devices()[0].device_kind}"
    )

    init_key, run_key = jax.random.split(jax.random.key(options.seed))
    params = model.init(init_key, shape, len(dataset.classes))
    steps = options.epochs * -(-count // options.batch_size)
    optimizer = training.make_optimizer(
        options.optimizer, options.learning_rate, steps, momentum=options.momentum, schedule=options.schedule
    )
    step = training.make_step(classifier.loss(l2=options.l2, dropout=options.dropout), optimizer)
    state = training.init_state(params, optimizer, run_key)

    stop, start = _Stop(), time.perf_counter()
    rows: list[dict[str, Any]] = []
    config = _config(options, shape, dataset, classifier)
    with stop.listening(), _progress_bar(options.epochs, options.quiet) as on_progress:
        images, labels = jax.device_put((dataset.train.images, dataset.train.labels))
        epochs = training.fit(
            step, state, images, labels,
            epochs=options.epochs, batch_size=options.batch_size, on_progress=on_progress, stop=stop,
        )  # fmt: skip
        for result in epochs:
            state = result.state
            if result.finished:
                rows.append(_epoch_row(result, classifier, dataset, time.perf_counter() - start))
                _write_metrics(output, rows)
                on_progress.epoch_done(rows[-1])
    seconds = time.perf_counter() - start
    training.save_params(output / "params.npz", state.params, config)
    if stop.signal is not None:
        name = "Ctrl-C" if stop.signal == signal.SIGINT else "SIGTERM"
        print(f"jaxnn: stopped by {name} after {int(state.step)} steps; {output / 'params.npz'} keeps what was learned",
              file=sys.stderr)  # fmt: skip
        return 128 + stop.signal

    test = _evaluate(classifier, state, dataset.test)
    rows.append({"test_loss": test["loss"], "test_accuracy": test["accuracy"], "seconds": round(seconds, 3)})
    _write_metrics(output, rows)
    _draw(output, rows, test["confusion"], state, options, dataset)
    say(_summary(options, rows, output))
    return 0


def _with_defaults(arguments: argparse.Namespace) -> argparse.Namespace:
    """Fill in what was not said; an optimizer other than the default one keeps its own usual learning rate."""
    key = ("mnist" if arguments.dataset == "fashion_mnist" else arguments.dataset, arguments.model)
    defaults = DEFAULTS[key]
    usual = {"sgd": 0.1, "momentum": 0.05, "adam": defaults.learning_rate, "adadelta": 1.0}
    optimizer = arguments.optimizer or defaults.optimizer
    filled = {**defaults._asdict(), "learning_rate": usual[optimizer]}
    filled |= {name: value for name, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(**{"data_dir": None, "output": None, **filled})


def _output_folder(folder: Path) -> Path:
    """Make the folder, and write into it, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        message = f"cannot write to the output folder {str(folder)!r} ({error.strerror}); choose another with --output"
        raise Failure(message) from error
    return folder


def _require_extras() -> None:
    """Find out before the training that the pictures can be drawn after it."""
    from importlib.util import find_spec

    missing = [name for name in ("matplotlib", "rich") if find_spec(name) is None]
    if missing:
        raise Failure(f"{' and '.join(missing)} must be installed to train; in a clone: pip install '.[train]'")


class _Report:
    """Called with the progress after each chunk: shows nothing."""

    def __call__(self, progress: "Progress") -> None:
        """Take the progress."""

    def epoch_done(self, row: dict[str, Any]) -> None:
        """Take an epoch's row of metrics."""


class _Lines(_Report):
    """Off a terminal: one line an epoch."""

    def epoch_done(self, row: dict[str, Any]) -> None:
        print(
            f"epoch {row['epoch']:3d}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}  "
            f"validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}  "
            f"{row['seconds']:.1f} s",
            flush=True,
        )


class _Bar(_Report):
    """On a terminal: a bar over the whole training, with loss, accuracy and images/s."""

    def __init__(self, bar: Any, epochs: int) -> None:
        self.bar, self.epochs = bar, epochs
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
def _progress_bar(epochs: int, quiet: bool) -> Iterator[_Report]:
    if quiet or not sys.stderr.isatty():
        yield _Report() if quiet else _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, epochs)


def _evaluate(classifier: Classifier, state: "TrainState", split: Any) -> dict[str, Any]:
    from jaxnn import training

    size = min(1000, len(split.labels))
    sums = training.evaluate(classifier.metrics, state.params, split.images, split.labels, batch_size=size)
    count = int(sums["count"])
    loss, accuracy = float(sums["nll"]) / count, int(sums["correct"]) / count
    return {"loss": loss, "accuracy": accuracy, "confusion": sums["confusion"]}


def _epoch_row(result: "EpochResult", classifier: Classifier, dataset: "Dataset", seconds: float) -> dict[str, Any]:
    validation, sums = _evaluate(classifier, result.state, dataset.validation), result.metrics
    return {
        "epoch": result.epoch,
        "step": int(result.state.step),
        "train_loss": sums["nll"] / sums["count"],
        "train_accuracy": sums["correct"] / sums["count"],
        "validation_loss": validation["loss"],
        "validation_accuracy": validation["accuracy"],
        "seconds": round(seconds, 3),
    }


def _write_metrics(output: Path, rows: list[dict[str, Any]]) -> None:
    from jaxnn._files import write_whole

    write_whole(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


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

    from jaxnn import plots

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
