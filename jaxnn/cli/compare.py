"""`jaxnn compare`: custom rules beside automatic gradients, for the library's functions and for one's own."""

import argparse
import ast
import itertools
import json
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxnn.cli import cases, cluster, isolated
from jaxnn.cli.isolated import Asked, Result
from jaxnn.cli.terminal import CommandError, print_error, print_line
from jaxnn.gradcheck.report import RIGHT, UNPROVEN, WRONG
from jaxnn.plots.comparison import page

NOT_RUN = "could not be run"
CODES = {WRONG: 1, NOT_RUN: isolated.NOT_RUN, UNPROVEN: 3, RIGHT: 0}  # the exit code is that of the first that occurs
USAGE = isolated.USAGE


def run(options: argparse.Namespace) -> int:
    """Check the named rules, print what was found, and return the exit code."""
    if options.report is not None:
        raise CommandError("--report must be given with --package, whose rules it is about", USAGE)
    names = options.names or cases.names()
    for name in names:
        _check_name(name)
    path = page_path(options)
    found = list(_results(names, options))
    print_line(to_json(found) if options.json else "\n\n".join([table(found), *filter(None, map(block, found))]))
    if path is not None:
        write_page(path, options, found)
    return exit_code(set(map(verdict_of, found)))


def page_path(options: argparse.Namespace) -> Path | None:
    """Return where the page is to be written; None if it is not asked for."""
    path = None if options.html is None else Path(options.html).expanduser()
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise CommandError(f"cannot write --html {str(path)!r}: choose a file in a folder that exists", USAGE)
    return path


def exit_code(verdicts: set[str]) -> int:
    """Return the code of the worst verdict."""
    return next((code for verdict, code in CODES.items() if verdict in verdicts), 0)


def _results(names: list[str], options: argparse.Namespace) -> Iterator[Result]:
    """Check the cases; consecutive ones of one file, or of the library, share a process."""
    groups = itertools.groupby(names, lambda name: name.rpartition(":")[0])
    run = (isolated.run(list(group), asked(options), options.debug) for _, group in groups)
    return shown(itertools.chain.from_iterable(run))


def asked(options: argparse.Namespace) -> Asked:
    """Return what the command asks of `gradcheck.check`."""
    return Asked(options.level, options.seed, options.target)


def shown(results: Iterable[Result]) -> Iterator[Result]:
    """Show on a terminal which result came last."""
    on_terminal = sys.stderr.isatty()
    for count, result in enumerate(results, 1):
        if on_terminal:
            print(f"\r\x1b[K{count} {result.name}", end="", file=sys.stderr, flush=True)
        yield result
    if on_terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _check_name(name: str) -> None:
    """Refuse what names no function."""
    where, _, function = name.rpartition(":")
    if (where and function) or cases.lines(name):
        return
    file = where or name
    if file.endswith(".py"):
        functions = _functions(Path(file).expanduser())
        hint = f"give {' or '.join(f'{file}:{each}' for each in functions)}" if functions else f"such as {file}:case"
        raise CommandError(f"{name!r} must name a function of the file, without arguments: {hint}", USAGE)
    known = ", ".join(cases.names())
    raise CommandError(f"{name!r} must be one of {known}, or module:function, or file.py:function", USAGE)


def _functions(path: Path) -> list[str]:
    """Return the functions of a file that can be called without an argument, without running it."""
    try:
        statements = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    functions = [each for each in statements if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")]
    return [each.name for each in functions if _takes_nothing(each.args)]


def _takes_nothing(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    return positional <= len(arguments.defaults) and None not in arguments.kw_defaults


def verdict_of(result: Result) -> str:
    """Return the verdict of a case, also of one that could not be run."""
    return NOT_RUN if result.report is None else result.report.verdict


def entry(result: Result, seed: int = 0) -> dict[str, Any]:
    """Return a result as a dictionary: the report, with the name of its case and the error, None if it ran."""
    if result.report is not None:
        return {**result.report.to_dict(), "error": None}
    rest = {"rows": [], "repro": "", "seed": seed, "seconds": 0.0, "costs": {}, "sweep": [], "errors": {}}
    return {"name": result.name, "ok": False, "verdict": NOT_RUN, "error": result.error, **rest}


HEAD = ("function", "verdict", "vs automatic", "vs numeric", "residuals", "temporaries", "time")


def table(found: list[Result]) -> str:
    """Return the table of verdicts, errors and custom / automatic ratios; for a case that did not run, the cause."""
    rows = [HEAD, *map(_table_row, found)]
    widths = [max(len(row[i]) for row in rows if i < 2 or len(row) == len(HEAD)) for i in range(len(HEAD))]
    lines = []
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=False)]
        lines.append("  ".join(names + (numbers if len(row) == len(HEAD) else [*row[2:]])).rstrip())
    return "\n".join(lines)


def _table_row(result: Result) -> tuple[str, ...]:
    report = result.report
    if report is None:
        return result.name, NOT_RUN, result.error
    errors = [f"{report.errors[k]:.1e}" if k in report.errors else "–" for k in ("automatic", "numeric")]
    keys = ("residual_bytes", "temporary_bytes", "milliseconds")
    return result.name, report.verdict, *errors, *(_ratio(report.costs, key) for key in keys)


def _ratio(costs: dict[str, dict[str, float]], key: str) -> str:
    ours, theirs = (costs.get(kind, {}).get(key) for kind in ("custom", "automatic"))
    if ours is None or theirs is None:
        return "–"
    return f"{ours / theirs:.2f}" if theirs else ("1.00" if not ours else f"{ours:,.0f} B / 0")


def block(result: Result) -> str:
    """Return the lines about a rule that is not right."""
    return "" if result.report is None or result.report.ok else result.report.failed_lines()


def versions() -> dict[str, str]:
    """Return the versions and the device, on which the figures depend."""
    cluster.require_devices()
    return {"python": platform.python_version(), "jax": jax.__version__, "device": jax.devices()[0].device_kind}


def to_json(found: list[Result]) -> str:
    """Return all results as JSON."""
    return json.dumps({"versions": versions(), "functions": list(map(entry, found))}, indent=1)


def write_page(path: Path, options: argparse.Namespace, found: list[Result]) -> None:
    """Write the page, and say where."""
    title = "jaxnn compare: custom rules beside automatic gradients"
    command = " ".join(["jaxnn compare", *options.names, *asked(options).arguments()])
    text = page(list(map(entry, found)), title, command, versions())
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = f"cannot write --html {str(path)!r} ({error.strerror})"
        raise CommandError(f"{reason}; choose another file", USAGE) from error
    (print_error if options.json else print_line)(f"{'' if options.json else chr(10)}page: {path}")
