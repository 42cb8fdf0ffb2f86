"""The command `jaxnn`: parse the options, run the command, turn errors into one line and an exit code.

Exit codes: 0 done; 1 an error, in one line; 2 wrong usage, in one line; 129, 130 or 143 stopped by the closing of the
terminal, Ctrl-C or SIGTERM.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxnn.cli import options as command_options
from jaxnn.cli import train
from jaxnn.cli.terminal import CommandError, one_line, print_error, print_line
from jaxnn.errors import JaxnnError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show λ gets \u03bb
            stream.reconfigure(errors="backslashreplace")
    try:
        options = command_options.parser().parse_args(given)
        options.given = given
        return {"train": train.run, "compare": _compare, "predict": _predict}[options.command](options)
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
        return error.code if isinstance(error, CommandError) else 1


# The modules of these two commands are slow to import: `--help` and wrong usage do without them.


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
    import jax

    from jaxnn.cli import compare

    with contextlib.suppress(RuntimeError):  # JAX has started already: then the check of shard_map says so
        jax.config.update("jax_num_cpu_devices", 2)  # type: ignore[no-untyped-call]
    try:
        cases, results = compare.find(options.names), []
        for case, report in compare.run(cases, options.level, options.seed):
            results.append((case, report))
            if sys.stderr.isatty():
                print(f"\r\x1b[K{len(results)}/{len(cases)} {case.name}", end="", file=sys.stderr, flush=True)
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if options.html is not None:
        _write_page(options, results)
    print_line(compare.to_json(results) if options.json else compare.table(results))
    failed = [report for _, report in results if not report.ok]
    if failed and not options.json:
        print_line("\n" + "\n\n".join(report.failed_lines() for report in failed))
    return 1 if failed else 0


def _write_page(options: argparse.Namespace, results: list[Any]) -> None:
    from jaxnn.cli import compare
    from jaxnn.plots.comparison import page

    title = "jaxnn compare: custom rules beside automatic gradients"
    command = " ".join(["jaxnn compare", *options.names, f"--level {options.level} --seed {options.seed}"])
    path = Path(options.html).expanduser()
    text = page([compare.entry(*one) for one in results], title, command, compare.versions())
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write --html {str(path)!r} ({error.strerror}); choose another file") from error
