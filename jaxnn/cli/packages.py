"""`jaxnn compare --package`: the rules that an installed package defines, what a run found, and which can be checked.

The arguments of another library's rule are unknown. The command tries float32 arrays of a few shapes, and checks a rule
at the first ones that it accepts. Others need a test that calls them: `pytest --gradcheck` records its arguments.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.cli import compare, isolated
from jaxnn.cli.cases import Case
from jaxnn.cli.compare import CODES, USAGE
from jaxnn.cli.isolated import Result
from jaxnn.cli.terminal import CommandError, print_line
from jaxnn.gradcheck.discovery import Rule, definition, discover
from jaxnn.gradcheck.report import RIGHT
from jaxnn.tracing import kinds
from jaxnn.tracing.functions import is_array, is_inexact

Shape = tuple[int, ...]
NEEDS = "needs arguments"
NOT_JUDGED = "not judged"
LIMIT = 120.0  # seconds for one rule: at invented arguments it may never end
HOW = """\
To check what is not judged, run the tests of the package, or of a project that uses it:
  pytest --gradcheck --gradcheck-packages={0} --gradcheck-report=report.json
  jaxnn compare --package {0} --report report.json
or write a function that returns [(rule, (argument, ...)), ...]:
  jaxnn compare file.py:function"""


# ----------------------------------------------------------------- in the process that imports the package


@functools.cache
def _rules(package: str) -> dict[str, Rule]:
    sys.path.insert(0, "")
    return {rule.name: rule for rule in discover(package)[0]}


def find(name: str, package: str) -> list[Case]:
    """Return the case of a rule, at arguments that it takes."""
    rule = _rules(package)[name].rule
    args = None if rule is None else arguments_for(rule, package)
    if args is None:
        raise CommandError(NEEDS)
    return [Case(f"{name} ({', '.join(_short(x) for x in args)})", rule, tuple(args))]


def arguments_for(rule: Any, package: str) -> Sequence[Any] | None:
    """Return float32 arrays that a rule takes, and for which it returns finite numbers; None if none are found.

    Its backward pass must take them too: else a function that broadcasts would be called with shapes that it is not
    meant for, and its rule would be blamed.
    """
    count = _arguments_without_default(definition(rule, package), tuple(getattr(rule, "nondiff_argnums", ())))
    if not count:
        return None
    same: list[Shape] = [(4,), (3, 4), (4, 4)]
    others: list[Shape] = [(4,), ()]
    shapes = [[shape] * count for shape in same]
    shapes += [[(3, 4)] + [shape] * (count - 1) for shape in others]
    shapes += [[(3 + i, 4 + i) for i in range(count)]]
    for chosen, draw in itertools.product(shapes, (_normal, _positive)):
        args = [draw(shape, seed) for seed, shape in enumerate(chosen)]
        if _takes(rule, args, draw is _positive):
            return args
    return None


def _arguments_without_default(f: Any, static: tuple[int, ...]) -> int:
    """Return how many positional arguments a function needs; 0 if it needs others, too."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        return 0
    needed = [(i, p) for i, p in enumerate(parameters) if p.default is p.empty]
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(needed) if all(p.kind in plain and i not in static for i, p in needed) else 0


def _takes(rule: Any, args: list[Any], are_positive: bool) -> bool:
    """Whether a rule returns finite floating-point arrays for these arguments, and cotangents."""
    try:
        jax.eval_shape(lambda *args: _cotangents(rule, args), *args)
        # An iteration may never end outside of its domain.
        if not are_positive and any(map(kinds.iterates_until, kinds.equations(jax.make_jaxpr(rule)(*args)))):
            return False
        outputs = jax.tree.leaves(rule(*args))
    except Exception:  # whatever a function says of arguments that it was not written for
        return False
    arrays = [y for y in outputs if is_array(y) and is_inexact(y)]
    return bool(arrays) and all(bool(jnp.isfinite(y).all()) for y in arrays)


def _cotangents(rule: Any, args: Sequence[Any]) -> Any:
    y, pull = jax.vjp(rule, *args)
    return pull(jax.tree.map(_ones, y))


def _ones(y: Any) -> Any:
    return jnp.ones_like(y) if is_inexact(y) else np.zeros(np.shape(y), jax.dtypes.float0)


def _normal(shape: Shape, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _positive(shape: Shape, seed: int) -> jax.Array:
    """Return numbers between 0 and 1, where roots, logarithms and the like are defined."""
    return jnp.asarray(np.random.default_rng(seed).uniform(0.1, 0.9, shape), jnp.float32)


def _short(x: jax.Array) -> str:
    return f"f32[{','.join(map(str, x.shape))}]"


# --------------------------------------------------------------------------- in the process of the command


def run(options: argparse.Namespace) -> int:
    """List a package's rules, check those that can be checked, print what was found, and return the exit code."""
    _require(options.package)
    path = compare.page_path(options)
    reported = {} if options.report is None else read_report(Path(options.report).expanduser())
    rules, failed = isolated.listed(options.package)
    chosen = _chosen(rules, options)
    alone = [rule.name for rule in chosen if _is_tried(rule) and not _of(rule, reported)]
    results = isolated.run(alone, compare.asked(options), options.debug, options.package, LIMIT)
    found = [result for result in compare.shown(results) if result.error != NEEDS]
    rows = list(_rows(chosen, reported, found))
    show = _json if options.json else _text
    print_line(show(options.package, rows, found, failed))
    if path is not None:
        compare.write_page(path, options, found)
    return compare.exit_code({row["verdict"] for row in rows})


def _require(package: str) -> None:
    """Raise an error, without an import, if no installed package has this name."""
    top = package.split(".")[0]
    with contextlib.suppress(ValueError):  # the name is empty, or that of a module without a specification
        # The folder in which the command runs comes first, as for `python -m`.
        if PathFinder.find_spec(top, ["", *sys.path]) or importlib.util.find_spec(top):
            return
    names = [name for name, owners in importlib.metadata.packages_distributions().items() if package in owners]
    hint = f"; the distribution {package} is imported as {' or '.join(names)}" if names else ""
    raise CommandError(f"--package {package!r} must be the name by which an installed package is imported{hint}", USAGE)


def _chosen(rules: list[Rule], options: argparse.Namespace) -> list[Rule]:
    known = {rule.name for rule in rules}
    for name in options.names:
        if name not in known:
            text = f"{name!r} must be a rule of {options.package}, by the name that `--package` lists"
            raise CommandError(text, USAGE)
    return [rule for rule in rules if not options.names or rule.name in options.names]


def _is_tried(rule: Rule) -> bool:
    """Whether there is an object to call: a HiPrim, and a rule that a call makes, need more than arguments."""
    return not rule.made_by_call and rule.kind != "HiPrim"


def read_report(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rules that a run reached, by name."""
    try:
        rules = json.loads(path.read_text(encoding="utf-8"))["rules"]
        by_name = {str(rule["name"]): rule for rule in rules}
        assert all(isinstance(rule["signatures"], list) and rule["verdict"] in KNOWN for rule in rules)
    except OSError as error:
        raise CommandError(f"cannot read --report {str(path)!r} ({error.strerror})", USAGE) from None
    except (ValueError, KeyError, TypeError, AssertionError):
        text = f"--report {str(path)!r} must be a file that `pytest --gradcheck-report FILE.json` wrote"
        raise CommandError(text, USAGE) from None
    return by_name


KNOWN = (*CODES, "not checked")  # the verdicts of a report


def _of(rule: Rule, reported: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a run says of a rule, or of the rules that its call makes."""
    return [entry for name, entry in reported.items() if rule.is_reached({name})]


def _rows(rules: list[Rule], reported: dict[str, dict[str, Any]], found: list[Result]) -> Iterator[dict[str, Any]]:
    """Yield what is known of each rule."""
    results = {result.name.split(" (")[0]: result for result in found}
    for rule in rules:
        row: dict[str, Any] = {"name": rule.name, "kind": rule.kind, "file": rule.file, "line": rule.line}
        entries, result = _of(rule, reported), results.get(rule.name)
        if entries:
            signatures = [s for entry in entries for s in entry["signatures"]]
            verdicts = {entry["verdict"] for entry in entries}
            verdict = next((v for v in CODES if v in verdicts), NOT_JUDGED)
            how = f"reached by the run, {len(signatures)} signature{'s' * (len(signatures) != 1)}"
            if bad := [s["arguments"] for s in signatures if s["verdict"] == verdict != RIGHT]:
                how += f"; {verdict} at {' and '.join(bad)}"
            differentiated = any(entry.get("differentiated", True) for entry in entries)
            how += "" if differentiated else "; never differentiated by a test"
        elif result is not None:
            verdict = compare.verdict_of(result)
            how = result.error or f"at {result.name.split(' ', 1)[1]}"
        else:
            verdict, how = NOT_JUDGED, "made when it is called; needs a test" if rule.made_by_call else NEEDS
        yield row | {"verdict": verdict, "how": how, "reached": bool(entries) if reported else None}


def _text(package: str, rows: list[dict[str, Any]], found: list[Result], failed: dict[str, str]) -> str:
    counts = Counter(row["verdict"] for row in rows)
    summary = ", ".join(f"{counts[v]} {v}" for v in (*CODES, NOT_JUDGED) if counts[v])
    lines = [f"{package}: {len(rows)} rules" + (f": {summary}" if rows else "")]
    table = [(row["name"], row["kind"], _where(package, row), row["verdict"], row["how"]) for row in rows]
    widths = [max((len(line[i]) for line in table), default=0) for i in range(4)]
    lines += ["  ".join([*map(str.ljust, line, widths), line[4]]).rstrip() for line in table]
    lines += [f"not imported: {module}: {why}" for module, why in failed.items()]
    blocks = [compare.table(found), *filter(None, map(compare.block, found))] if found else []
    hint = [HOW.format(package)] if counts[NOT_JUDGED] else []
    return "\n\n".join(["\n".join(lines), *blocks, *hint])


def _where(package: str, row: dict[str, Any]) -> str:
    """Return the file from the package's folder on, and the line."""
    parts = Path(row["file"]).parts
    top = package.split(".")[0]
    start = len(parts) - 1 - parts[::-1].index(top) if top in parts else max(len(parts) - 1, 0)
    return f"{'/'.join(parts[start:])}:{row['line']}" if parts else ""


def _json(package: str, rows: list[dict[str, Any]], found: list[Result], failed: dict[str, str]) -> str:
    functions = list(map(compare.entry, found))
    whole = {"versions": compare.versions(), "package": package, "rules": rows, "not_imported": failed}
    return json.dumps(whole | {"functions": functions}, indent=1)
