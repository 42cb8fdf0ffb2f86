"""What `jaxnn compare` checks: the library's functions, and functions of one's own with example arguments."""

import dataclasses
import importlib
import importlib.util
import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxnn import components, gradcheck
from jaxnn.cli.isolated import Asked
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


def lines(name: str) -> list[TableLine]:
    """Return the lines of the table of components that have a name."""
    return [line for line in components.COMPONENTS if name in (line.name, line.f.__name__)]


def names() -> list[str]:
    """Return the names of all components."""
    return list(dict.fromkeys(line.f.__name__ for line in components.COMPONENTS))


def find(name: str) -> list[Case]:
    """Return the cases of a name: a component, `module:function` or `file.py:function`."""
    return _own(name) if ":" in name else list(map(of_line, lines(name)))


def check(case: Case, name: str, asked: Asked, package: str = "") -> gradcheck.Report:
    """Check a case; its report names the case, and the command that gives it again."""
    report = gradcheck.check(case.f, *case.args, **{**asked._asdict(), **case.options})
    of_package = ["--package", package] if package else []
    again = shlex.join(["jaxnn", "compare", name, *of_package, *asked.arguments()])
    return dataclasses.replace(report, name=case.name, repro=again)


def _own(name: str) -> list[Case]:
    """Call the user's function, which returns a function and its example arguments, or a list of such cases."""
    where, _, attribute = name.rpartition(":")
    module = _module(where)
    make = getattr(module, attribute, None)
    if not callable(make):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        has = f"it has {', '.join(own)}" if own else "it has none"
        raise CommandError(f"there is no function {attribute!r} in {where}: {has}")
    made = make()
    several = isinstance(made, list)
    found = [_case(name if not several else f"{name}[{i}]", one) for i, one in enumerate(made if several else [made])]
    if not found:
        raise CommandError("must return a case, (function, (argument, ...)), or a list of them; it is empty")
    return found


def _case(name: str, made: Any) -> Case:
    shaped = isinstance(made, tuple) and len(made) in (2, 3) and callable(made[0]) and isinstance(made[1], tuple)
    if not shaped or not isinstance(made[2] if len(made) == 3 else {}, dict):
        found = type(made).__name__
        if isinstance(made, tuple):
            found = f"({', '.join(type(each).__name__ for each in made)})"
        raise CommandError(
            "must return (function, (argument, ...)), or with a third element, a dict of options of gradcheck.check; "
            f"it returns {found}"
        )
    return Case(name, *made)


def _module(where: str) -> Any:
    """Import a module, or a file, with the modules beside it."""
    if not where.endswith(".py"):
        sys.path.insert(0, "")
        return importlib.import_module(where)
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise CommandError(f"there is no file {where!r}")
    if (loaded := sys.modules.get(path.stem)) is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    # As for a script, its own folder comes first. If a module of this name is loaded, the file gets another name.
    sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_of_user"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
