"""The options of the commands, with their help texts."""

import argparse
import difflib
import sys
from importlib.metadata import version
from typing import Any, NoReturn

from jaxnn.accelerators.targets import target
from jaxnn.data import DATASETS
from jaxnn.models import MODELS
from jaxnn.training import OPTIMIZERS, SCHEDULES

DTYPES = ("float32", "bfloat16")
LEVELS = ("full", "rule")
HUGE = sys.float_info.max


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the parsed `command` says which one was given."""
    parser = _Parser(prog="jaxnn", description="Neural networks in JAX, trained with hand-derived gradients.")
    parser.add_argument("--version", action="version", version=f"jaxnn {version('jaxnn-vjp')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (_add_train, _add_compare, _add_predict, _add_exercise):
        add(commands).add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Option(argparse.Action):
    """Stores the value of an option, which may be given once."""

    given = False

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string is not None and self.given:
            raise argparse.ArgumentError(self, "it is given twice; give it once")
        self.given = True
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


class _Switch(_Option):
    """Is False, and True if the option is given."""

    def __init__(self, option_strings: Any, dest: str, **others: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, **others)


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def refuse_repeated_options(self) -> None:
        """Let the options that are added after this be given once."""
        for name, action in ((None, _Option), ("store", _Option), ("store_true", _Switch)):
            self.register("action", name, action)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def _number(kind: type[int] | type[float], low: float, high: float = HUGE, *, above: bool = False) -> Any:
    """Return an argparse type: a finite number in [low, high], or in (low, high] if `above`."""

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


def _targets(text: str) -> tuple[str, ...]:
    """Return the names of accelerators, between commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        return tuple(target(name).name for name in names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _one_of(choices: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of an option that takes one of the names; a wrong name gets the nearest one as a hint."""

    def parse(text: str) -> str:
        if text in choices:
            return text
        near = difflib.get_close_matches(text.lower(), choices, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise argparse.ArgumentTypeError(f"unknown name {text!r}, must be one of {', '.join(choices)}{hint}")

    return {"type": parse, "metavar": "NAME"}


def _add_train(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a digit classifier and draw what it learned",
        description="Train one of the lecture notes' networks with hand-derived gradients; by default their CNN, on "
        "1,797 real handwritten digits. Writes metrics.jsonl, params.npz, curves.png, confusion.png and filters.png.",
    )
    _add_data_and_model(command.add_argument)
    _add_optimisation(command.add_argument)
    _add_devices(command.add_argument)
    _add_outputs(command.add_argument)
    return command


def _add_data_and_model(add: Any) -> None:
    names = ", ".join(DATASETS)
    add("--dataset", **_one_of(DATASETS), default="digits", help=f"{names} (default: digits)")
    add("--data-dir", metavar="DIR", help="folder with the four IDX files of mnist or fashion_mnist, .gz or raw; or "
        "torchvision's root; or folder with copies made by tensorflow-datasets (default: its own folder)")  # fmt: skip
    add("--download", action="store_true", help="let tensorflow-datasets download the data set if it is missing; "
        "without this option the network is never used")  # fmt: skip
    models = tuple(MODELS)
    add("--model", **_one_of(models), default="cnn", help=f"{', '.join(models)} (default: cnn)")


def _add_optimisation(add: Any) -> None:
    tuned = "(default: tuned for the model and the data set)"
    add("--epochs", type=_number(int, 1, 10**6), metavar="N", help=f"passes over the training images {tuned}")
    add("--batch-size", type=_number(int, 1, 10**9), metavar="N", help=f"images per step {tuned}")
    add("--optimizer", **_one_of(OPTIMIZERS), help=f"{', '.join(OPTIMIZERS)} {tuned}")
    add("--learning-rate", type=_number(float, 0, above=True), metavar="X", help=f"α, the schedule's maximum {tuned}")
    add("--schedule", **_one_of(SCHEDULES), help=f"learning-rate schedule: {', '.join(SCHEDULES)} {tuned}")
    add("--momentum", type=_number(float, 0, 1), default=0.9, metavar="X", help="decay rate of the momentum optimizer "
        "(default: 0.9)")  # fmt: skip
    add("--l2", type=_number(float, 0), metavar="X", help=f"λ in the penalty λΣw² of weights, without biases {tuned}")
    add("--dropout", type=_number(float, 0, 1), metavar="X", help=f"rate of all dropout layers {tuned}")
    add("--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N", help="seed of all randomness (default: 0)")
    add("--dtype", **_one_of(DTYPES), default="float32", help="dtype of the network's computation: float32, bfloat16 "
        "(default: float32); parameters, updates and loss are always float32")  # fmt: skip


def _add_devices(add: Any) -> None:
    add("--devices", type=_devices, metavar="N|all", help="number of devices that share each batch (default: 1; with "
        "--distributed all devices of all processes)")  # fmt: skip
    add("--accumulate", type=_number(int, 1, 10**9), default=1, metavar="N", help="micro-batches per device and step, "
        "to save memory (default: 1)")  # fmt: skip
    add("--distributed", action="store_true", help="run as one of several processes; Slurm, Open MPI, Kubernetes and "
        "TPU pods are detected, elsewhere give the three options below")  # fmt: skip
    add("--coordinator", metavar="HOST:PORT", help="address at which process 0 listens")
    add("--processes", type=_number(int, 1, 10**6), metavar="N", help="number of processes of the run")
    add("--process-id", type=_number(int, 0, 10**6), metavar="I", help="number of this process, from 0")


def _add_outputs(add: Any) -> None:
    add("--checkpoint-dir", metavar="DIR", help="folder for checkpoints: saved after each epoch, on a stop, and on "
        "divergence; the newest three and the best by validation are kept")  # fmt: skip
    add("--checkpoint-every", type=_number(int, 1, 10**9), metavar="N", help="also save every N steps")
    add("--resume", action="store_true", help="continue from the newest step in --checkpoint-dir, if there is one")
    add("--output", metavar="DIR", help="folder for the results (default: results/train-DATASET-MODEL)")
    add("--quiet", action="store_true", help="print nothing but errors")


def _add_compare(commands: Any) -> argparse.ArgumentParser:
    command: _Parser = commands.add_parser(
        "compare",
        help="check rules against automatic and numeric gradients, and measure their cost",
        description="Check custom rules against JAX's automatic derivative and a numeric one, and compare their "
        "residuals, memory and time: of every function of the library, of the named ones, or of your own. Ratios are "
        "custom / automatic.",
        epilog="FUNCTION takes no argument. It returns a function and its example arguments, (f, (x, w)), or a list of "
        "such pairs; a third element may be a dict of options of gradcheck.check. Each file runs in a process of its "
        "own, with its own imports; what it prints goes to the standard error. Exit codes: 0 all rules are right; 1 a "
        "rule is wrong; else 4 a case could not be run; else 3 a rule is unproven; 2 wrong usage, and nothing is "
        "judged.",
    )
    command.refuse_repeated_options()
    add = command.add_argument
    add("names", nargs="*", metavar="NAME", help="a component, module:function or file.py:function (default: all)")
    add("--package", metavar="PACKAGE", help="list the rules that an installed package defines, and check those for "
        "which arguments can be made; NAMEs are then rules of it (default: all)")  # fmt: skip
    add("--report", metavar="FILE", help="with --package: the file that `pytest --gradcheck-report FILE.json` wrote, "
        "which says what a run reached and found")  # fmt: skip
    add("--level", **_one_of(LEVELS) | {"metavar": "LEVEL"}, default="full", help="full; or rule, the quick core "
        "without costs (default: full)")  # fmt: skip
    add("--target", type=_targets, default=(), metavar="A,B", help="compile for these accelerators too, which need not "
        "be there: tpu:v5e:2x2, cuda:h100, ...")  # fmt: skip
    add("--json", action="store_true", help="print all results as JSON")
    add("--html", metavar="FILE", help="write a page with the table, the ratios, and the curves of the numeric error")
    add("--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N", help="seed of the cotangents (default: 0)")
    return command


def _add_predict(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "predict",
        help="classify images with a trained network",
        description="Print the class of each image and the probability of every class, by a network that `jaxnn train` "
        "trained. Images are resized and converted to grey; the networks expect light strokes on a dark background.",
    )
    add = command.add_argument
    add(
        "parameters",
        metavar="PARAMS_OR_CHECKPOINT",
        help="params.npz, the folder of --output or of --checkpoint-dir, or a step",
    )
    add("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, GIF, BMP, WebP or .npy")
    add("--invert", action="store_true", help="the images are dark on light, such as ink on paper")
    add("--json", action="store_true", help="print JSON")
    return command


def _add_exercise(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "exercise",
        help="backprop by hand as an exercise: start one, check it, grade a class",
        description="Exercises for a course: write the backward pass of a layer, a loss or a network by hand, and be "
        "told what is wrong without being told what is right.",
    )
    actions = command.add_subparsers(required=True, metavar="ACTION", dest="exercise_command")
    actions.add_parser("list", help="list the exercises")
    start = actions.add_parser("start", help="write the file that a student begins with").add_argument
    start("name", metavar="NAME", help="an exercise of the list, or file.py:name, an exercise of yours")
    start("--output", metavar="DIR", default=".", help="folder for the file (default: this one)")
    check = actions.add_parser(
        "check",
        help="judge a hand-in",
        epilog="Exit codes: 0 passed; 1 not passed; 4 could not be judged; 2 wrong usage.",
    ).add_argument
    check("file", metavar="FILE", help="the hand-in")
    check("--hints", type=_number(int, 0, 3), metavar="N", help="0 passed or not; 1 what property fails; 2 the typical "
        "mistake; 3 the worst element (default: what the file says)")  # fmt: skip
    check("--exercise", metavar="NAME", help="what it is a hand-in of (default: what the file says)")
    check("--json", metavar="FILE", help="also write the feedback as JSON")
    grade = actions.add_parser(
        "grade",
        help="judge a folder of hand-ins",
        description="Each hand-in runs in a process of its own, with limits of 20 s and 2 GB, in a copy of its folder, "
        "without the environment's secrets. That is no sandbox: untrusted code belongs in a container.",
    ).add_argument
    grade("folder", metavar="FOLDER", help="a file for each student, or a folder with the files of each student")
    grade("--exercise", metavar="NAME", help="what they are hand-ins of, also file.py:name (default: what each says)")
    grade("--hints", type=_number(int, 0, 3), metavar="N", help="level of the feedback in the students' results.json "
        "(default: the exercise's)")  # fmt: skip
    grade("--output", metavar="DIR", default="results/grades", help="folder for class.html, mistakes.png, grades.json "
        "and students/*/results.json (default: results/grades)")  # fmt: skip
    return command
