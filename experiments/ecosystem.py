"""The checker over the custom derivative rules of other libraries: a table of verdicts, each with its command.

    python experiments/ecosystem.py
    python experiments/ecosystem.py --only ott.math.utils.norm
    python experiments/ecosystem.py --list

Every custom_vjp and custom_jvp of the installed libraries is found, also behind public functions, and checked through a
public function with the arguments of `_ecosystem_examples.py`. A rule that no example reaches has a row that says so. A
FAIL is confirmed by a second calculation without the checker (`_ecosystem_confirmations.py`), or marked unconfirmed.

It needs a virtual environment of its own: pip install -e . 'jax==0.10.2' matplotlib rich mpmath scipy optax flax
equinox lineax diffrax optimistix chex distrax rlax dm-haiku numpyro blackjax ott-jax penzai flashbax jaxopt e3nn-jax
tokamax jax-cce tfp-nightly flatbuffers. A library that is not installed has a row, too.
"""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # shard_map needs two, before JAX starts
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("EQX_ON_ERROR", "nan")  # equinox and what is built on it: NaN, and no exception, at bad points

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import logging
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.markup
import rich.progress
import rich.table
from _ecosystem_confirmations import CONFIRMED, DOCUMENTED
from _ecosystem_examples import EXAMPLES, SKIPPED, Example
from _ecosystem_rules import LIBRARIES, recording, short, versions

from jaxnn import gradcheck
from jaxnn.gradcheck.discovery import Rule, discover

OUT = Path("results/ecosystem")


SYMBOLS = {  # the worst first
    "FAIL": "#c62828",
    "INCONCLUSIVE": "#f9a825",
    "UNSUPPORTED": "#90a4ae",
    "NOTE": "#bbdefb",
    "PASS": "#66bb6a",
    "": "#ffffff",
}


@dataclasses.dataclass
class Verdict:
    """The outcome of an example."""

    example: Example
    version: str
    rules: dict[str, str] = dataclasses.field(default_factory=dict)
    report: gradcheck.Report | None = None
    crash: str = ""
    seconds: float = 0.0
    confirmed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return the kinds of the library's rules that were called."""
        return ", ".join(sorted(set(self.rules.values())))

    @property
    def word(self) -> str:
        """Return the verdict in a word, with the checks that failed or are undecided."""
        if self.crash:
            return "CRASH"
        checks = dict.fromkeys(row.check for row in self.report.failures or self.report.undecided)
        return {"right": "PASS", "wrong": "FAIL ", "unproven": "UNPROVEN "}[self.report.verdict] + ", ".join(checks)

    @property
    def remark(self) -> str:
        """Return what qualifies the verdict."""
        if self.crash:
            return ""
        statuses = [row.status for row in self.report.rows]
        counts = [f"{n} {s}" for s in ("UNSUPPORTED", "INCONCLUSIVE") if (n := statuses.count(s))]
        documented = [f"as documented: “{DOCUMENTED[self.example.name]}”"] if self.example.name in DOCUMENTED else []
        found = [*(documented if not self.report.ok else ()), *counts]
        return f" ({', '.join(found)})" if found else ""

    @property
    def notes(self) -> list[str]:
        """Return what is worth reading of the report, the failures first."""
        if self.crash:
            return [self.crash]
        rows = [row for row in self.report.rows if row.status in ("FAIL", "INCONCLUSIVE", "UNSUPPORTED")]
        rows.sort(key=lambda row: list(SYMBOLS).index(row.status))
        return [f"{row.status} {row.check} {row.path}: {row.message}" for row in rows]

    def statuses(self) -> dict[str, str]:
        """Return the worst status of each check."""
        found: dict[str, str] = {}
        for row in self.report.rows if self.report else ():
            found[row.check] = min(found.get(row.check, ""), row.status, key=list(SYMBOLS).index)
        return found

    def to_dict(self, command: str) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "function": self.example.title,
            "library": self.example.library,
            "version": self.version,
            "kind": self.kind,
            "rules": list(self.rules),
            "verdict": self.word,
            "confirmed": self.confirmed,
            "documented": DOCUMENTED.get(self.example.name, ""),
            "notes": self.notes,
            "repro": f"{command} --only {shlex.quote(self.example.title)}",
            "seconds": round(self.seconds, 1),
            "report": self.report.to_dict() if self.report else None,
        }


def examined(example: Example, version: str, seed: int) -> Verdict:
    """Check one example; an error of the checker is a verdict too."""
    verdict = Verdict(example, version)
    jax.clear_caches()  # what is compiled already is not traced again, and its rules would not be seen
    started = time.perf_counter()
    with recording() as called:
        try:
            f, args = example.function(), example.arguments(seed)
            verdict.report = gradcheck.check(f, *args, kwargs=dict(example.kwargs), seed=seed, **example.options)
        except Exception as error:
            verdict.crash = f"{type(error).__name__}: {error}".splitlines()[0]
    verdict.seconds = time.perf_counter() - started
    verdict.rules = {name: kind for name, kind in sorted(called.items()) if name.startswith(example.library + ".")}
    if verdict.report and not verdict.report.ok:
        confirm(verdict)
    return verdict


def confirm(verdict: Verdict) -> None:
    """Compute what failed a second time, without the checker."""
    calculations = CONFIRMED.get(verdict.example.title, {})
    found = {checks: calculation() for checks, calculation in calculations.items()}
    for check in dict.fromkeys(row.check for row in verdict.report.failures):
        verdict.confirmed[check] = next((text for checks, text in found.items() if check in checks), "")


def chosen(only: str | None) -> list[Example]:
    """Return the examples of a function, of one by its title, or of a library."""
    found = [e for e in EXAMPLES if not only or only in (e.title, short(e.name), e.name, e.library)]
    if not found:
        raise SystemExit(f"--only {only!r} must be a function, an example or a library; --list shows the functions")
    return found


def unreached(rules: list[Rule], verdicts: list[Verdict]) -> dict[Rule, str]:
    """Return the rules that no example has reached, each with the reason."""
    called = {name for verdict in verdicts for name in verdict.rules}
    missing = [rule for rule in rules if not rule.is_reached(called)]
    reasons = {rule: [why for prefix, why in SKIPPED.items() if rule.name.startswith(prefix)] for rule in missing}
    return {rule: (reasons[rule] or ["no example arguments"])[0] for rule in missing}


def main() -> None:
    """Discover, check, confirm, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", metavar="NAME", help="a function, an example (its name in the table) or a library")
    parser.add_argument("--seed", type=int, default=0, help="seed of the arguments and of the checker (default 0)")
    parser.add_argument("--list", action="store_true", help="print the rules that are found, and check nothing")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder of results.json and verdicts.png (default %(default)s)"
    )
    options, command = parser.parse_args(), sys.argv
    sys.argv = command[:1]  # tokamax reads the command line, too, and refuses other options than its own
    warnings.simplefilter("ignore")  # of the libraries
    logging.disable(logging.CRITICAL)
    jax.config.update("jax_softmax_custom_jvp", True)  # the rule of jax.nn.softmax is behind this flag
    console = rich.console.Console()
    examples, installed = chosen(options.only), versions()
    rules, unimported = [], {}
    for library in LIBRARIES if options.list or not options.only else ():
        if installed[library]:
            found, failed = discover(library)
            rules += found
            unimported |= failed
    if options.list:
        listed(console, rules, unimported, installed)
        return
    verdicts = []
    for example in rich.progress.track(examples, console=console, disable=not console.is_terminal, transient=True):
        if example.is_in(installed[example.library]):
            verdicts.append(examined(example, installed[example.library], options.seed))
    missing = {} if options.only else unreached(rules, verdicts)
    shown(console, verdicts, missing, rules, installed)
    if not options.only:
        written(options.out, command, verdicts, missing, unimported, installed)
        console.print(f"{options.out}/results.json, {drawn(options.out, verdicts)}")


def listed(
    console: rich.console.Console, rules: list[Rule], unimported: dict[str, str], installed: dict[str, str]
) -> None:
    """Print what was discovered."""
    for library, version in installed.items():
        own = [rule for rule in rules if rule.library == library]
        console.print(f"[bold]{short(library)}[/bold] {version or 'is not installed'}: {len(own)} rules")
        for rule in own:
            where = rule.public or ("made when it is called" if rule.made_by_call else "behind public functions")
            console.print(f"  {rule.kind:<15} {short(rule.name)}  ({short(where)})", soft_wrap=True, highlight=False)
    for module, why in unimported.items():
        console.print(f"not imported: {module}: {why}", soft_wrap=True, highlight=False)


def shown(
    console: rich.console.Console, verdicts: list[Verdict], missing: dict[Rule, str], rules: list[Rule],
    installed: dict[str, str],
) -> None:  # fmt: skip
    """Print the table, and below it what failed."""
    table = rich.table.Table("library", "function", "kind", "verdict", box=None, pad_edge=False)
    for v in verdicts:
        color = "green" if v.word == "PASS" else "magenta" if v.word == "CRASH" else "red"
        table.add_row(
            f"{short(v.example.library)} {v.version}", v.example.title, v.kind, f"[{color}]{v.word}{v.remark}"
        )
    for rule, why in missing.items():
        table.add_row(f"{short(rule.library)} {installed[rule.library]}", short(rule.name), rule.kind, why)
    for library in installed if rules else ():
        if not any(rule.library == library for rule in rules):
            version = installed[library]
            table.add_row(f"{short(library)} {version}", "", "", "no custom rules" if version else "not installed")
    console.print(table)
    say = functools.partial(console.print, soft_wrap=True, markup=False, highlight=False)
    for v in (v for v in verdicts if v.word != "PASS"):
        say(f"\n{v.example.title}: {v.word}{v.remark}")
        for note in v.notes[:8]:
            say(f"  {note}")
        for text in dict.fromkeys(v.confirmed.values()):
            checks = ", ".join(check for check, found in v.confirmed.items() if found == text)
            say(f"  {checks}: {'confirmed: ' + text if text else 'not confirmed, counted as a bug of the checker'}")
    counts = [sum(v.word.startswith(word) for v in verdicts) for word in ("PASS", "FAIL", "UNPROVEN", "CRASH")]
    unconfirmed = sum(not text for v in verdicts for text in v.confirmed.values())
    say(
        f"\n{len(verdicts)} examples: {counts[0]} PASS, {counts[1]} FAIL ({unconfirmed} failed checks not confirmed), "
        f"{counts[2]} UNPROVEN, {counts[3]} CRASH"
        + (f"; {len(missing)} of {len(rules)} rules not checked" if rules else "")
    )


def written(
    out: Path, command: list[str], verdicts: list[Verdict], missing: dict[Rule, str], unimported: dict[str, str],
    installed: dict[str, str],
) -> None:  # fmt: skip
    """Write results.json."""
    script = f"python {Path(command[0]).as_posix()}"
    content = {
        "command": shlex.join(["python", *command]),
        "python": sys.version.split()[0],
        "versions": installed | {"jaxlib": importlib.metadata.version("jaxlib"), "numpy": np.__version__},
        "verdicts": [v.to_dict(script) for v in verdicts],
        "not checked": [dataclasses.asdict(rule) | {"why": why} for rule, why in missing.items()],
        "not imported": unimported,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(content, indent=1, default=str) + "\n")


def drawn(out: Path, verdicts: list[Verdict]) -> Path:
    """Draw the statuses, functions by checks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.patches
    import matplotlib.pyplot as plt

    ran = [v for v in verdicts if v.report]
    checks = list(dict.fromkeys(row.check for v in ran for row in v.report.rows))
    worst = [list(SYMBOLS).index(v.statuses().get(check, "")) for v in ran for check in checks]
    figure, axes = plt.subplots(figsize=(9, 2 + 0.17 * len(ran)), layout="constrained")
    colors = matplotlib.colors.ListedColormap(list(SYMBOLS.values()))
    image = np.reshape(worst, (len(ran), len(checks)))
    axes.pcolormesh(image, cmap=colors, vmin=-0.5, vmax=len(SYMBOLS) - 0.5, edgecolors="white", linewidth=0.5)
    axes.set_xticks(np.arange(len(checks)) + 0.5, checks, rotation=60, ha="left", fontsize=8)
    axes.set_yticks(np.arange(len(ran)) + 0.5, [v.example.title for v in ran], fontsize=6)
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.tick_params(length=0)
    patches = [matplotlib.patches.Patch(color=color, label=status) for status, color in SYMBOLS.items() if status]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    path = out / "verdicts.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
