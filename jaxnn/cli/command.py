"""The command `jaxnn`.

Exit codes: 0 done; 1 a failure, in one line; 2 wrong usage, in one line; 129, 130 or 143 stopped by the terminal's
end, Ctrl-C or SIGTERM.
Heavy imports wait until they are needed, so that `--help` and wrong usage answer at once.
"""

import argparse
import contextlib
import difflib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxnn.cli import train
from jaxnn.cli.terminal import Failure, complain, say
from jaxnn.data import DATASETS, DataError
from jaxnn.models import MODELS

# As `jaxnn.training` has them, which takes a tenth of a second to import; a test keeps them equal.
OPTIMIZERS = ("sgd", "momentum", "adam", "adadelta")
SCHEDULES = ("constant", "cosine", "onecycle")
DTYPES = ("float32", "bfloat16")

HUGE = sys.float_info.max


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no λ shows \u03bb
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser().parse_args(argv)
        arguments.given = list(sys.argv[1:] if argv is None else argv)
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        complain("jaxnn: stopped by Ctrl-C")
        return 130
    except Exception as error:
        if debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, Failure | DataError) and type(error).__name__ != "CheckpointError":
            message = f"{type(error).__name__}: {message} (--debug shows the traceback)"
        complain(f"jaxnn: error: {message}")
        return error.code if isinstance(error, Failure) else 1


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


def _devices(text: str) -> int | str:
    """Return a number of devices, or "all"."""
    return text if text == "all" else int(_number(int, 1)(text))


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
    training = commands.add_parser(
        "train",
        help="train a digit recogniser and draw what it learned",
        description="Train one of the notes' networks by their own derivatives; without options, their CNN on 1,797 "
        "real handwritten digits. Writes metrics.jsonl, params.npz, curves.png, confusion.png and filters.png.",
    )
    training.set_defaults(run=train.run)
    names: dict[str, Any] = {"metavar": "NAME"}
    add = training.add_argument
    add("--dataset", type=_one_of(DATASETS), default="digits", help=", ".join(DATASETS) + " (default: digits)", **names)
    add("--data-dir", metavar="DIR", help="folder of the four IDX files of mnist or fashion_mnist, .gz or raw; or of "
        "copies by tensorflow-datasets (default: its own)")  # fmt: skip
    add("--download", action="store_true", help="have tensorflow-datasets download the data set, if it is not there; "
        "nothing touches the network without")  # fmt: skip
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
    add("--dtype", type=_one_of(DTYPES), default="float32", help="to compute in; weights, their updates and the loss "
        "stay float32: float32, bfloat16 (default: float32)", **names)  # fmt: skip
    add("--devices", type=_devices, metavar="N|all", help="devices to deal each batch out to (default: 1; all of all "
        "processes with --distributed)")  # fmt: skip
    add("--accumulate", type=_number(int, 1, 10**9), default=1, metavar="N", help="micro-batches that a device takes "
        "its rows of a batch in, to save memory (default: 1)")  # fmt: skip
    add("--distributed", action="store_true", help="be one process of a run: on Slurm, Open MPI, Kubernetes and TPU "
        "pods as it is, elsewhere with the three options below")  # fmt: skip
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens, at this address alone")
    add("--processes", type=_number(int, 1, 10**6), metavar="N", help="processes of the run")
    add("--process-id", type=_number(int, 0, 10**6), metavar="I", help="number of this one, from 0")
    add("--checkpoint-dir", metavar="DIR", help="folder to save the training in after each epoch, when it is "
        "stopped or diverges: the newest three steps, and the best by validation")  # fmt: skip
    add("--checkpoint-every", type=_number(int, 1, 10**9), metavar="N", help="save every N steps, too")
    add("--resume", action="store_true", help="go on from the newest step in --checkpoint-dir, if there is one")
    add("--output", metavar="DIR", help="folder for the results (default: results/train-DATASET-MODEL)")
    add("--quiet", action="store_true", help="print nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    _add_compare(commands)
    _add_predict(commands)
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


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="tell what a trained network sees in images",
        description="Print the class of each image, and the probability of every class, by a network of `jaxnn train`. "
        "Images are resized and turned grey; the networks know light strokes on a dark ground.",
    )
    predict.set_defaults(run=_predict)
    add = predict.add_argument
    add("parameters", metavar="PARAMS_OR_CHECKPOINT", help="params.npz, a step, or the folder of --checkpoint-dir")
    add("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, GIF, BMP, WebP or .npy")
    add("--invert", action="store_true", help="the images are dark on light, as ink on paper")
    add("--json", action="store_true", help="print JSON")
    add("--debug", action="store_true", help="show the traceback of an error")


def _predict(arguments: argparse.Namespace) -> int:
    from jaxnn.cli import predict

    trained = predict.read_trained(arguments.parameters)
    images = (predict.read_image(path, invert=arguments.invert) for path in arguments.images)
    show = predict.to_json if arguments.json else predict.table
    say(show(arguments.images, trained, predict.predict(trained, images)))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    import jax

    from jaxnn.cli import compare

    with contextlib.suppress(RuntimeError):  # too late: then the check of shard_map says so
        jax.config.update("jax_num_cpu_devices", 2)  # type: ignore[no-untyped-call]
    try:
        cases, found = compare.find(arguments.names), []
        for case, report in compare.run(cases, arguments.level, arguments.seed):
            found.append((case, report))
            if sys.stderr.isatty():
                print(f"\r\x1b[K{len(found)}/{len(cases)} {case.name}", end="", file=sys.stderr, flush=True)
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if arguments.html is not None:
        _write_page(arguments, found)
    say(compare.to_json(found) if arguments.json else compare.table(found))
    failed = [report for _, report in found if not report.ok]
    if failed and not arguments.json:
        say("\n" + "\n\n".join(report.failed_lines() for report in failed))
    return 1 if failed else 0


def _write_page(arguments: argparse.Namespace, found: list[Any]) -> None:
    from jaxnn.cli import compare
    from jaxnn.plots.comparison import page

    command = " ".join(["jaxnn compare", *arguments.names, f"--level {arguments.level} --seed {arguments.seed}"])
    path = Path(arguments.html).expanduser()
    try:
        path.write_text(page([compare.entry(*one) for one in found], command, compare.versions()), encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot write --html {str(path)!r} ({error.strerror}); choose another file") from error
