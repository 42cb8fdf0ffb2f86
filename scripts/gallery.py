"""The gallery of the README: figures and tables of the experiments, from their committed results.

    python scripts/gallery.py [--take FOLDER]

With --take, the results.json of each experiment below FOLDER (what `python experiments/run_all.py` wrote) becomes the
committed one, experiments/gallery/<name>.json. Then the figures are drawn from these and the README's section, between
its two markers, is written from them. Nothing in the gallery is written by hand.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "experiments" / "gallery"
README = ROOT / "README.md"
BEGIN, END = "<!-- gallery: written by scripts/gallery.py -->\n", "<!-- end of the gallery -->\n"
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


def markdown(text: str) -> str:
    """Return a text that a cell of a table shows as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def command(name: str, options: dict[str, Any]) -> str:
    """Return the command that runs an experiment with these options; a switch has no value."""
    said = (f"--{key.replace('_', '-')} {value}".removesuffix(" True") for key, value in options.items())
    return " ".join([f"python experiments/{name}.py", *said])


def section(name: str) -> str:
    """Return the README's part about one experiment."""
    import _experiment as experiment
    import run_all

    results, module = results_of(name), importlib.import_module(name)
    lines = [f"#### {run_all.title_of(name)}", "", summary(module), ""]
    for figure in figures_of(name):
        lines += [
            f"![{module.CAPTIONS[figure]}](experiments/gallery/{figure}.png)",
            "",
            f"*{module.CAPTIONS[figure]}*",
            "",
        ]
    claims = results["claims"]
    lines += [f"<details><summary>{len(claims)} claims, all of which hold</summary>", ""]
    lines += ["| claim | measured | holds if |", "|---|---|---|"]
    for claim in claims:
        measured, bound = experiment.shown(claim["measured"]), experiment.shown(claim["bound"])
        lines.append(f"| {markdown(claim['claim'])} | {measured} | {claim['relation']} {bound} |")
    run = results["run"]
    lines += ["", f"`{command(name, run['options'])}`: {results['seconds']:.0f} s; jax {run['jax']}, "
              f"Python {run['python']}, {run['device']}, {run['cores']} cores.", "", "</details>", ""]  # fmt: skip
    return "\n".join(lines) + "\n"


def gallery() -> str:
    """Return the text between the markers."""
    return "".join(section(name) for name in names())


def figures_of(name: str) -> list[str]:
    """Return the names of an experiment's committed figures."""
    return sorted(p.stem for p in GALLERY.glob("*.png") if p.stem == name or p.stem.startswith(f"{name}_"))


def readme(text: str) -> str:
    """Return the README with its gallery written anew."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit("README.md must have each of the gallery's two markers once")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{gallery()}{END}{after}"


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
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
