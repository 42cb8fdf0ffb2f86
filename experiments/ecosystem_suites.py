"""The checker in the test suites of other libraries: pytest --gradcheck over the parts that reach their own rules.

    python experiments/ecosystem_suites.py
    python experiments/ecosystem_suites.py --only optax --only flax
    python experiments/ecosystem_suites.py --list

Each suite runs three times: without the plugin, with it, and without it again. The first run fills the caches. The
column `recording` is the extra time of the second run without its checks, in percent of the third. The table has a line
for each library. Wrong and unproven rules are listed below it. `_suites.py` says which tests these are and where they
come from; they are fetched into --cache.

It needs an environment of its own with what --list names: pip install -e . pytest rich NAME==VERSION ...
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import rich.console
import rich.table
from _suites import SUITES, Suite, pytest_command

OUT = Path("results/ecosystem_suites")
CACHE = Path("data/suites")
LONGEST = 1200  # seconds for one run


def measured(suite: Suite, cache: Path, *options: str) -> tuple[float, str]:
    """Run a suite; return the seconds, and what pytest counted, "12 passed, 1 skipped"."""
    command, folder = pytest_command(suite, cache, "-p", "no:cacheprovider", *options)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True, capture_output=True,
            timeout=LONGEST,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return time.perf_counter() - started, f"did not finish within {LONGEST} s"
    seconds = time.perf_counter() - started
    counted = re.findall(r"\d+ (?:passed|failed|skipped|errors?|xfailed)", done.stdout)
    return seconds, ", ".join(counted) or (done.stderr or done.stdout).strip().splitlines()[-1][:120]


def row(suite: Suite, cache: Path, out: Path) -> dict[str, Any]:
    """Run a suite with and without the plugin; return the line of the table, and the rules that are not right."""
    found = (out / f"{suite.distribution}.json").resolve()
    found.unlink(missing_ok=True)
    options = ("--gradcheck", f"--gradcheck-packages={suite.package}", f"--gradcheck-report={found}")
    _, before = measured(suite, cache)
    with_plugin, counted = measured(suite, cache, *options)
    without, after = measured(suite, cache)
    report = json.loads(found.read_text()) if found.exists() else {"rules": [], "seconds": 0.0}
    signatures = [s for rule in report["rules"] for s in rule["signatures"]]
    verdicts = [s["verdict"] for s in signatures]
    return {
        "library": f"{suite.distribution} {suite.version}",
        "rules": len(report["rules"]),
        "signatures": len(signatures),
        **{word: verdicts.count(word) for word in ("right", "wrong", "unproven", "not checked")},
        "checks": report["seconds"],
        "suite": without,
        "recording": with_plugin - report["seconds"] - without,
        "same outcome": counted == before == after,
        "outcome": counted,
        "outcome without": after,
        "of": [rule for rule in report["rules"] if rule["verdict"] != "right"],
    }


def main() -> None:
    """Run the suites, print the table and what is wrong, and write both to a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = [suite.distribution for suite in SUITES]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="one library; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the suites, and run nothing")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the suites (default %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of results.json (default %(default)s)")
    options = parser.parse_args()
    console = rich.console.Console()
    if options.list:
        for suite in SUITES:
            needs = " ".join([f"{suite.distribution}=={suite.version}", *suite.needs])
            console.print(f"{needs}: {suite.source}: {' '.join(suite.arguments)}", soft_wrap=True, highlight=False)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for suite in SUITES:
        if options.only and suite.distribution not in options.only:
            continue
        console.print(f"{suite.distribution} {suite.version} ...", highlight=False)
        try:
            rows.append(row(suite, options.cache, options.out))
        except RuntimeError as error:
            console.print(str(error), soft_wrap=True, highlight=False)
    show(console, rows)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    content = {
        "command": ["python", *sys.argv],
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **versions,
        "rows": rows,
    }
    (options.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"{options.out}/results.json", highlight=False)


def show(console: rich.console.Console, rows: list[dict[str, Any]]) -> None:
    """Print the table, and the rules that are not right."""
    columns = ("library", "rules", "signatures", "right", "wrong", "unproven", "not checked")
    table = rich.table.Table(*columns, "checks s", "suite s", "recording", "tests", box=None, pad_edge=False)
    for r in rows:
        share = f"{100 * r['recording'] / r['suite']:+.0f} %"
        tests = r["outcome"] if r["same outcome"] else f"{r['outcome']} (without: {r['outcome without']})"
        table.add_row(*(str(r[c]) for c in columns), f"{r['checks']:.0f}", f"{r['suite']:.0f}", share, tests)
    console.print(table)
    for r in rows:
        for rule in r["of"]:
            for s in rule["signatures"]:
                if s["verdict"] in ("wrong", "unproven"):
                    why = "; ".join(f"{x['check']} {x['path']}: {x['message']}" for x in s["rows"][:2])
                    text = f"{s['verdict']}: {rule['name']} at {s['arguments']}: {why} (by {s['tests'][0]})"
                    console.print(text, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
