"""The command `jaxnn`: parse the options, run the command, turn errors into one line and an exit code.

Exit codes: 0 done; 1 an error, in one line; 2 wrong usage, in one line; 129, 130 or 143 stopped by the closing of the
terminal, Ctrl-C or SIGTERM. Those of `compare` are in compare.py: there 1 says that a rule is wrong.
"""

import argparse
import io
import sys
from collections.abc import Sequence

from jaxnn.cli import options as command_options
from jaxnn.cli import train
from jaxnn.cli.terminal import CommandError, one_line, print_error, print_line
from jaxnn.errors import JaxnnError

_FAILURE = {"compare": 2}  # the exit code of an error; 1 for other commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show λ gets \u03bb
            stream.reconfigure(errors="backslashreplace")
    try:
        options = command_options.parser().parse_args(given)
        options.given = given
        commands = {"train": train.run, "compare": _compare, "predict": _predict, "exercise": _exercise}
        return commands[options.command](options)
    except KeyboardInterrupt:
        print_error("jaxnn: stopped by Ctrl-C")
        return 130
    except Exception as error:
        if "--debug" in given:
            raise
        line = one_line(error)
        if not isinstance(error, JaxnnError):
            line = f"{type(error).__name__}: {line} (--debug shows the traceback)"
        print_error(f"jaxnn: error: {line}")
        return error.code if isinstance(error, CommandError) else _FAILURE.get(given[0], 1)


# The modules of these commands are slow to import: `--help` and wrong usage do without them.


def _predict(options: argparse.Namespace) -> int:
    from jaxnn.cli import cluster, predict
    from jaxnn.cli.images import read_image

    cluster.require_devices()
    trained = predict.read_trained(options.parameters)
    images = (read_image(path, invert=options.invert) for path in options.images)
    show = predict.to_json if options.json else predict.table
    print_line(show(options.images, trained, predict.predict(trained, images)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from jaxnn.cli import compare, packages

    return compare.run(options) if options.package is None else packages.run(options)


def _exercise(options: argparse.Namespace) -> int:
    from jaxnn.cli import exercise

    return exercise.run(options)
