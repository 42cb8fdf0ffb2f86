"""The command `jaxnn`.

Exit codes: 0 done; 1 a failure, in one line; 2 wrong usage, in one line; 130 or 143 stopped by Ctrl-C or SIGTERM.
Heavy imports wait until they are needed, so that `--help` and wrong usage answer at once.
"""

import argparse
import contextlib
import difflib
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from jaxnn._files import write_whole
from jaxnn.data import DATASETS, DataError, load
from jaxnn.models import MODELS, Classifier

if TYPE_CHECKING:
    from jaxnn.data import Dataset
    from jaxnn.training import EpochResult, Progress, TrainState

# As `jaxnn.training` has them, which takes a tenth of a second to import; a test keeps them equal.
OPTIMIZERS = ("sgd", "momentum", "adam", "adadelta")
SCHEDULES = ("constant", "cosine", "onecycle")


HUGE = sys.float_info.max


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no λ shows \u03bb
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser().parse_args(argv)
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        _complain("jaxnn: stopped by Ctrl-C")
        return 130
    except Exception as error:
        if debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, Failure | DataError) and type(error).__name__ != "Diverged":
            message = f"{type(error).__name__}: {message} (--debug shows the traceback)"
        _complain(f"jaxnn: error: {message}")
        return error.code if isinstance(error, Failure) else 1


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def _say(line: str) -> None:
    """Print, unless the reader went away: a closed pipe is no reason to lose a training."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def _number(kind: type[int] | type[float], low: float, high: float = HUGE, *, above: bool = False) -> Any:
    """Return an argparse type: a finite number in [low, high], or (low, high]."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not (low < value if above else low <= value) or not value <= high:
            bound = f"{'above' if above else 'at least'} {low} and " + (f"at most {high}" if high < HUGE else "finite")
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    return parse


def _one_of(choices: tuple[str, ...]) -> Any:
    """Return an argparse type: one of the names, and the nearest one in the message otherwise."""

    def parse(text: str) -> str:
        if text in choices:
            return text
        near = difflib.get_close_matches(text.lower(), choices, 1, 0.4)
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
    add("--epochs", type=_number(int, 1, 10**6), metavar="N", help=f"passes over the training data {own}")
    add("--batch-size", type=_number(int, 1, 10**9), metavar="N", help=f"images a step {own}")
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
    _add_compare(commands)
    return parser


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="check rules against automatic and numeric gradients, and see what they cost",
        description="Check custom rules against JAX's automatic and a numeric derivative, and compare what they keep, "
        "need and take: every function of the library, those named, or your own. Ratios are custom / automatic.",
        epilog="FUNCTION takes no argument and returns a function and its example arguments, (f, (x, w)), or a list of "
        "such pairs; a third element may hold options of gradcheck.check. Exit code 1 when a check fails.",
    )
    compare.set_defaults(run=_compare)
    add = compare.add_argument
    add("names", nargs="*", metavar="NAME", help="a component, module:function or file.py:function (default: all)")
    levels: dict[str, Any] = {"type": _one_of(("full", "rule")), "metavar": "LEVEL"}
    add("--level", default="full", help="full, or rule for the quick core without costs (default: full)", **levels)
    add("--json", action="store_true", help="print everything found as JSON")
    add("--html", metavar="FILE", help="write a page with the table, the numeric error over the step, and the ratios")
    add("--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N", help="of the cotangents (default: 0)")
    add("--debug", action="store_true", help="show the traceback of an error")


def _compare(arguments: argparse.Namespace) -> int:
    import jax

    from jaxnn import compare

    with contextlib.suppress(RuntimeError):  # too late: then the check of shard_map says so
        jax.config.update("jax_num_cpu_devices", 2)  # type: ignore[no-untyped-call]
    try:
        cases, found = compare.find(arguments.names), []
        for case, report in compare.run(cases, arguments.level, arguments.seed):
            found.append((case, report))
            if sys.stderr.isatty():
                print(f"\r\x1b[K{len(found)}/{len(cases)} {case.name}", end="", file=sys.stderr, flush=True)
    except compare.UserError as error:
        raise Failure(str(error)) from error
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if arguments.html is not None:
        _write_page(arguments, found)
    _say(compare.to_json(found) if arguments.json else compare.table(found))
    failed = [report for _, report in found if not report.ok]
    if failed and not arguments.json:
        _say("\n" + "\n\n".join(report.failed_lines() for report in failed))
    return 1 if failed else 0


def _write_page(arguments: argparse.Namespace, found: list[Any]) -> None:
    from jaxnn import compare
    from jaxnn.plots.comparison import page

    command = " ".join(["jaxnn compare", *arguments.names, f"--level {arguments.level} --seed {arguments.seed}"])
    path = Path(arguments.html).expanduser()
    try:
        path.write_text(page([compare.entry(*one) for one in found], command, compare.versions()), encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot write --html {str(path)!r} ({error.strerror}); choose another file") from error


class _Stop:
    """Notes a Ctrl-C or SIGTERM, for the training to end at the next chunk.

    The handlers only take a note: an exception in the middle of a compilation can crash the interpreter.
    """

    signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        """The signal's name for people."""
        return "Ctrl-C" if self.signal == signal.SIGINT else "SIGTERM"

    def _note(self, number: int, _: Any) -> None:
        self.signal = self.signal or number

    @contextlib.contextmanager
    def listening(self) -> Iterator["_Stop"]:
        """Hold the signals back that would end the process, and leave ignored ones ignored."""
        former = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        held = {s: handler for s, handler in former.items() if handler is not signal.SIG_IGN}
        for s in held:
            signal.signal(s, self._note)
        try:
            yield self
        finally:
            for s, handler in held.items():
                signal.signal(s, handler)


class _Results:
    """The files of a run: gathered in a hidden folder, and moved into the output folder together when it ends.

    A run that fails leaves nothing behind and an earlier result as it was.
    """

    NAMES = ("metrics.jsonl", "params.npz", "curves.png", "confusion.png", "filters.png")

    def __init__(self, folder: Path) -> None:
        self.folder, self.new = folder, not folder.exists()
        occupied = [name for name in self.NAMES if (folder / name).is_dir()]
        if occupied:
            raise Failure(f"{str(folder / occupied[0])!r} is a folder and in the way; choose another --output")
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
            self.staged = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))

    def __enter__(self) -> "_Results":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.staged, ignore_errors=True)
        if self.new:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # only if it is empty

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Name the folder and the cure when something cannot be written."""
        try:
            yield
        except OSError as error:
            reason = f"cannot write to the output folder {str(self.folder)!r} ({error.strerror})"
            raise Failure(f"{reason}; make room or choose another folder with --output") from error

    def finish(self, prefix: str = "") -> None:
        """Move the gathered files into the folder."""
        with self.writing():
            for name in self.NAMES:
                if (self.staged / name).exists():
                    os.replace(self.staged / name, self.folder / f"{prefix}{name}")


def _train(arguments: argparse.Namespace) -> int:
    options = _with_defaults(arguments)
    with _Stop().listening() as stop, _Results(_output_folder(options)) as results:
        _require_extras()
        dataset = load(options.dataset, options.data_dir)
        count = len(dataset.train.labels)
        if options.batch_size > count:
            raise Failure(f"--batch-size ({options.batch_size}) must be at most the {count} training images", 2)
        return _run(options, dataset, results, stop)


def _run(options: argparse.Namespace, dataset: "Dataset", results: _Results, stop: _Stop) -> int:
    import jax

    from jaxnn import training

    say = (lambda _: None) if options.quiet else _say
    count, shape = len(dataset.train.labels), dataset.train.images.shape[1:]
    classifier = Classifier(
        MODELS[options.model], float(dataset.train.images.mean()), float(dataset.train.images.std())
    )
    say(
        f"{options.model} on {dataset.name}: {count} training, {len(dataset.validation.labels)} validation and "
        f"{len(dataset.test.labels)} test images, on {jax.devices()[0].device_kind}"
    )
    init_key, run_key = jax.random.split(jax.random.key(options.seed))
    params = classifier.model.init(init_key, shape, len(dataset.classes))
    steps = options.epochs * -(-count // options.batch_size)
    optimizer = training.make_optimizer(
        options.optimizer, options.learning_rate, steps, momentum=options.momentum, schedule=options.schedule
    )
    step = training.make_step(classifier.loss(l2=options.l2, dropout=options.dropout), optimizer)
    state = training.init_state(params, optimizer, run_key)

    start, rows = time.perf_counter(), list[dict[str, Any]]()
    with _progress_bar(options, say) as on_progress:
        images, labels = jax.device_put((dataset.train.images, dataset.train.labels))
        epochs = training.fit(
            step, state, images, labels,
            epochs=options.epochs, batch_size=options.batch_size, on_progress=on_progress, stop=stop,
        )  # fmt: skip
        for result in epochs:
            state = result.state
            if result.finished:
                rows.append(_epoch_row(result, classifier, dataset, time.perf_counter() - start))
                _write_metrics(results, rows)
                on_progress.epoch_done(rows[-1])
    seconds = time.perf_counter() - start
    with results.writing():
        training.save_params(results.staged / "params.npz", state.params, _config(options, shape, dataset, classifier))
    if stop():
        return _stopped(results, stop, int(state.step))

    test = _evaluate(classifier, state, dataset.test)
    rows.append({"test_loss": test["loss"], "test_accuracy": test["accuracy"], "seconds": round(seconds, 3)})
    _write_metrics(results, rows)
    with results.writing():
        _draw(results.staged, rows, test["confusion"], state, options, dataset)
    results.finish()
    say(_summary(options, rows, results.folder))
    return 0


def _stopped(results: _Results, stop: _Stop, steps: int) -> int:
    """Keep what was learned, beside an earlier result if there is one."""
    prefix = "stopped-" if (results.folder / "params.npz").exists() else ""
    results.finish(prefix)
    kept = results.folder / f"{prefix}params.npz"
    _complain(f"jaxnn: stopped by {stop.name} after {steps} steps; {kept} keeps what was learned")
    return 128 + (stop.signal or 0)


def _with_defaults(arguments: argparse.Namespace) -> argparse.Namespace:
    """Fill in what was not said; an optimizer other than the default one keeps its own usual learning rate."""
    key = ("mnist" if arguments.dataset == "fashion_mnist" else arguments.dataset, arguments.model)
    defaults = DEFAULTS[key]
    usual = {"sgd": 0.1, "momentum": 0.05, "adam": defaults.learning_rate, "adadelta": 1.0}
    optimizer = arguments.optimizer or defaults.optimizer
    filled = {**defaults._asdict(), "learning_rate": usual[optimizer]}
    filled |= {name: value for name, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(**{"data_dir": None, "output": None, **filled})


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

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def epoch_done(self, row: dict[str, Any]) -> None:
        self.say(
            f"epoch {row['epoch']:3d}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}  "
            f"validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}  "
            f"{row['seconds']:.1f} s"
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
def _progress_bar(options: argparse.Namespace, say: Callable[[str], None]) -> Iterator[_Report]:
    if options.quiet or sys.stderr is None or not sys.stderr.isatty():
        yield _Lines(say)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, options.epochs)


def _evaluate(classifier: Classifier, state: "TrainState", split: Any) -> dict[str, Any]:
    from jaxnn import training

    size = min(1000, len(split.labels))
    sums = training.evaluate(classifier.metrics, state.params, split.images, split.labels, batch_size=size)
    count = int(sums["count"])
    loss, accuracy = float(sums["nll"]) / count, int(sums["correct"]) / count
    return {"loss": loss, "accuracy": accuracy, "confusion": sums["confusion"]}


def _epoch_row(result: "EpochResult", classifier: Classifier, dataset: "Dataset", seconds: float) -> dict[str, Any]:
    validation, sums = _evaluate(classifier, result.state, dataset.validation), result.metrics
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


def _write_metrics(results: _Results, rows: list[dict[str, Any]]) -> None:
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
