"""`jaxnn compare`: custom rules beside automatic gradients, for the library's functions and for one's own."""

import importlib
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxnn import components, gradcheck
from jaxnn.cli.terminal import CommandError
from jaxnn.components import TableLine


class Case(NamedTuple):
    """A function with example arguments and options of `gradcheck.check`."""

    name: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def of_line(line: TableLine) -> Case:
    """Return a line of the table of components, at a size where time and memory mean something."""
    args = line.example(components.SMALL)
    positional = len(args) - len(line.keywords)
    kwargs = dict(zip(line.keywords, args[positional:], strict=True)) | line.options
    # A definition that draws other random numbers is no reference: that rule is compared with its own body.
    reference = None if line.is_random else line.f.definition
    return Case(line.name, line.f, args[:positional], {"kwargs": kwargs, "reference": reference})


def find(names: list[str]) -> list[Case]:
    """Return the cases of the given names: a component, `module:function` or `file.py:function`; all for none."""
    if not names:
        return list(map(of_line, components.COMPONENTS))
    found: list[Case] = []
    for name in names:
        lines = [line for line in components.COMPONENTS if name in (line.name, line.f.__name__)]
        if ":" in name:
            found += _own(name)
        elif lines:
            found += map(of_line, lines)
        else:
            known = ", ".join(dict.fromkeys(line.f.__name__ for line in components.COMPONENTS))
            raise CommandError(f"{name!r} must be one of {known}, or module:function, or file.py:function")
    return found


def _own(name: str) -> list[Case]:
    """Call the user's function, which returns a function and its example arguments, or a list of such cases."""
    where, _, attribute = name.rpartition(":")
    make = getattr(_module(where, name), attribute, None)
    if not callable(make):
        raise CommandError(f"{name!r} must name a function without arguments; {where!r} has no function {attribute!r}")
    try:
        made = make()
    except (Exception, SystemExit) as error:
        raise CommandError(f"{name!r} must return a function and its arguments, but raises {_line(error)}") from error
    several = isinstance(made, list)
    cases = [_case(name if not several else f"{name}[{i}]", one) for i, one in enumerate(made if several else [made])]
    if not cases:
        raise CommandError(f"{name!r} must return a case, (function, (argument, ...)), or a list of them; it is empty")
    return cases


def _case(name: str, made: Any) -> Case:
    shaped = isinstance(made, tuple) and len(made) in (2, 3) and callable(made[0]) and isinstance(made[1], tuple)
    if not shaped or not isinstance(made[2] if len(made) == 3 else {}, dict):
        found = type(made).__name__
        if isinstance(made, tuple):
            found = f"({', '.join(type(each).__name__ for each in made)})"
        raise CommandError(
            f"{name!r} must return (function, (argument, ...)), or with a third element, a dict of options of "
            f"gradcheck.check; it returns {found}"
        )
    return Case(name, *made)


def _module(where: str, name: str) -> Any:
    try:
        if not where.endswith(".py"):
            sys.path.insert(0, "")
            return importlib.import_module(where)
        path = Path(where).expanduser()
        if not path.is_file():
            raise CommandError(f"{where!r} must be a Python file; there is none")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None  # the name ends in .py
        sys.path.insert(0, str(path.resolve().parent))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        raise CommandError(f"{name!r} must be importable, but raises {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def run(cases: list[Case], level: str, seed: int) -> Iterator[tuple[Case, gradcheck.Report]]:
    """Check the cases one by one."""
    for case in cases:
        try:
            yield case, gradcheck.check(case.f, *case.args, level=level, seed=seed, **case.options)
        except (TypeError, ValueError) as error:
            raise CommandError(f"{case.name}: {' '.join(str(error).split())}") from error


def entry(case: Case, report: gradcheck.Report) -> dict[str, Any]:
    """Return a report as a dictionary, with the name of its case."""
    return {**report.to_dict(), "name": case.name}


HEAD = ("function", "verdict", "vs automatic", "vs numeric", "residuals", "temporaries", "time")


def table(found: list[tuple[Case, gradcheck.Report]]) -> str:
    """Return the table of verdicts, errors and custom / automatic ratios."""
    rows = [HEAD, *(_table_row(case, report) for case, report in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    aligned = [[cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
               for row in rows]  # fmt: skip
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def _table_row(case: Case, report: gradcheck.Report) -> tuple[str, ...]:
    errors = [f"{report.errors[k]:.1e}" if k in report.errors else "–" for k in ("automatic", "numeric")]
    keys = ("residual_bytes", "temporary_bytes", "milliseconds")
    return case.name, "ok" if report.ok else "FAIL", *errors, *(_ratio(report.costs, key) for key in keys)


def _ratio(costs: dict[str, dict[str, float]], key: str) -> str:
    ours, theirs = (costs.get(kind, {}).get(key) for kind in ("custom", "automatic"))
    if ours is None or theirs is None:
        return "–"
    return f"{ours / theirs:.2f}" if theirs else ("1.00" if not ours else f"{ours:,.0f} B / 0")


def versions() -> dict[str, str]:
    """Return the versions and the device, on which the figures depend."""
    return {"python": platform.python_version(), "jax": jax.__version__, "device": jax.devices()[0].device_kind}


def to_json(found: list[tuple[Case, gradcheck.Report]]) -> str:
    """Return all results as JSON."""
    return json.dumps({"versions": versions(), "functions": [entry(*one) for one in found]}, indent=1)
