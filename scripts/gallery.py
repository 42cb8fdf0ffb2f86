"""The gallery in experiments/README.md: figures and claims of the experiments, from their committed results.

    python scripts/gallery.py [--take FOLDER]

The committed results lie in experiments/gallery/NAME.json. With --take, those that `python experiments/run_all.py`
wrote below FOLDER replace them. Then the figures are drawn, and the README's section is written, from the committed
results.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from sections import ROOT, rewrite, table

GALLERY = ROOT / "experiments" / "gallery"
README = ROOT / "experiments" / "README.md"
sys.path.insert(0, str(ROOT / "experiments"))


def names() -> list[str]:
    """Return the experiments that have committed results, in the order in which they are run."""
    order = importlib.import_module("run_all").EXPERIMENTS
    return [name for name in order if (GALLERY / f"{name}.json").exists()]


def results_of(name: str) -> dict[str, Any]:
    """Return an experiment's committed results."""
    return dict(json.loads((GALLERY / f"{name}.json").read_text(encoding="utf-8")))


def summary(module: Any) -> str:
    """Return the first paragraph of the docstring: what the experiment claims."""
    return " ".join((module.__doc__ or "").split("\n\n")[0].split())


def command(name: str, options: dict[str, Any]) -> str:
    """Return the command that runs an experiment with these options; a switch has no value."""
    said = (f"--{key.replace('_', '-')} {value}".removesuffix(" True") for key, value in options.items())
    return " ".join([f"python experiments/{name}.py", *said])


def section(name: str) -> str:
    """Return the README's part about one experiment."""
    import _experiment as experiment
    import run_all

    results, module = results_of(name), importlib.import_module(name)
    lines = [f"### {run_all.title_of(name)}", "", summary(module), ""]
    for figure in figures_of(name):
        lines += [f"![{module.CAPTIONS[figure]}](gallery/{figure}.png)", "", f"*{module.CAPTIONS[figure]}*", ""]
    claims = [
        [c["claim"], experiment.shown(c["measured"]), f"{c['relation']} {experiment.shown(c['bound'])}"]
        for c in results["claims"]
    ]
    lines += [f"<details><summary>{len(claims)} claims, all of which hold</summary>", ""]
    lines += table(["claim", "measured", "holds if"], claims)
    run = results["run"]
    lines += ["", f"`{command(name, run['options'])}`: {results['seconds']:.0f} s; jax {run['jax']}, "
              f"Python {run['python']}, {run['device']}, {run['cores']} cores.", "", "</details>", ""]  # fmt: skip
    return "\n".join(lines) + "\n"


def gallery() -> str:
    """Return the gallery's section."""
    return "".join(section(name) for name in names())


def figures_of(name: str) -> list[str]:
    """Return the names of an experiment's committed figures."""
    return sorted(p.stem for p in GALLERY.glob("*.png") if p.stem == name or p.stem.startswith(f"{name}_"))


def taken_from(path: Path) -> dict[str, Any]:
    """Return an experiment's results, which must all hold."""
    if not path.exists():
        sys.exit(f"{path} does not exist: run experiments/run_all.py")
    results = dict(json.loads(path.read_text(encoding="utf-8")))
    if failed := [claim["claim"] for claim in results["claims"] if not claim["holds"]]:
        sys.exit(f"{path}: does not hold: {'; '.join(failed)}")
    return results


def main() -> int:
    """Take results if asked, draw the figures and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=Path, metavar="FOLDER", help="copy the results below this folder first")
    options = parser.parse_args()
    import _experiment as experiment
    import run_all

    GALLERY.mkdir(exist_ok=True)
    if options.take:
        taken = {name: taken_from(options.take / name / "results.json") for name in run_all.EXPERIMENTS}
        for name, results in taken.items():
            (GALLERY / f"{name}.json").write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")
    for old in GALLERY.glob("*.png"):
        old.unlink()
    for name in names():
        experiment.save_figures(GALLERY, results_of(name), importlib.import_module(name).draw)
    rewrite(README, "gallery", gallery())
    return 0


if __name__ == "__main__":
    sys.exit(main())
