"""Run every experiment and `jaxnn compare --html`, and write one page with all figures, tables and claims.

An experiment that fails does not stop the others; the exit code is then 1.
"""

import argparse
import html
import json
import subprocess
import sys
import time
from pathlib import Path

import _experiment as experiment

HERE = Path(__file__).parent
EXPERIMENTS = (
    "polynomial_regression",
    "softmax_regression",
    "deep_sgd",
    "digit_cnn",
    "loss_functions",
    "backprop_by_hand",
    "backprop_in_action",
    "output_layer_at_scale",
    "speedrun",
)
STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #8c8c8c }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 3rem 0 0.5rem } p { max-width: 45rem } .quiet { color: var(--quiet) }
img { max-width: 100%; background: white; border-radius: 6px; padding: 6px; box-sizing: border-box }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 0.9rem; margin: 0.8rem 0 }
td, th { border-bottom: 1px solid var(--line); padding: 0.25rem 0.9rem 0.25rem 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums } .fails { color: #d55e00; font-weight: 600 }
"""


def commands(output: Path, seed: int) -> dict[str, list[str]]:
    """Return the command of each experiment, and of the comparison."""
    runs = {
        name: [sys.executable, str(HERE / f"{name}.py"), "--seed", str(seed), "--output", str(output / name)]
        for name in EXPERIMENTS
    }
    compare = "import sys; from jaxnn.cli import main; sys.exit(main())"
    return runs | {"compare": [sys.executable, "-c", compare, "compare", "--html", str(output / "compare.html")]}


def title_of(name: str) -> str:
    """Return an experiment's name as a title."""
    words = {"sgd": "SGD", "cnn": "CNN"}
    return " ".join(words.get(word, word) for word in name.capitalize().split("_"))


def cells(row: list[object], tag: str = "td") -> str:
    """Return a row of an HTML table."""
    texts = [(f"{cell:.5g}" if isinstance(cell, float) else str(cell), isinstance(cell, str)) for cell in row]
    return "<tr>" + "".join(
        f"<{tag}{'' if text else ' class=number'}>{html.escape(cell)}</{tag}>" for cell, text in texts
    )


def table(columns: list[str], rows: list[list[object]]) -> str:
    """Return an HTML table."""
    return f"<div class=wide><table>{cells(list(columns), 'th')}{''.join(map(cells, rows))}</table></div>"


def section(name: str, folder: Path, seconds: float, code: int) -> str:
    """Return the part of the page about one experiment: what it found, or that it failed."""
    head = f"<h2 id={name}>{title_of(name)}</h2>" + (f"<p class=fails>failed with exit code {code}" if code else "")
    if not (folder / "results.json").exists():
        return head
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    claims = [
        [
            "holds" if c["holds"] else "FAILS",
            c["claim"],
            experiment.shown(c["measured"]),
            f"{c['relation']} {experiment.shown(c['bound'])}",
        ]
        for c in results["claims"]
    ]
    parts = [head, f"<p class=quiet>{seconds:.0f} s, <a href={name}/results.json>results.json</a>"]
    parts += [f"<p><a href={name}/{page.name}>{page.name}</a>" for page in sorted(folder.glob("*.html"))]
    parts += [
        f"<p><a href={name}/{image.name}><img src={name}/{image.name} alt={title_of(image.stem)!r}></a>"
        for image in sorted(folder.glob("*.png"))
    ]
    parts.append(table(["", "claim", "measured", "bound"], claims))
    for each in results["tables"]:
        parts += [f"<p>{html.escape(each['title'])}", table(each["columns"], each["rows"])]
    return "\n".join(parts)


def main() -> int:
    """Read the options, and run all."""
    parser = experiment.options_of(__doc__ or "", "run_all", lambda parser: None)
    parser.set_defaults(output=Path("results"))
    options: argparse.Namespace = parser.parse_args()
    try:
        return run(options)
    except KeyboardInterrupt:
        print("run_all: stopped by Ctrl-C", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Run all, in order, and write the page."""
    if reason := experiment.unwritable(options.output):
        print(f"run_all: error: {reason}", file=sys.stderr)
        return 1
    sections, codes = [], {}
    for name, command in commands(options.output, options.seed).items():
        print(f"\n=== {name}", flush=True)
        folder = options.output / name
        for old in [folder / "results.json", *folder.glob(f"{name}*.png"), *options.output.glob("compare.html")]:
            old.unlink(missing_ok=True)  # files of an earlier run must not look like results of this one
        start = time.perf_counter()
        codes[name] = subprocess.run(command).returncode
        if name != "compare":
            sections.append(section(name, folder, time.perf_counter() - start, codes[name]))
    links = "".join(f"<li><a href=#{name}>{title_of(name)}</a>" for name in EXPERIMENTS)
    page, failed = options.output / "index.html", " (failed)" if codes["compare"] else ""
    page.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>jaxnn: the experiments</title><style>{STYLE}</style><h1>The experiments</h1><ul>{links}"
        f"<li><a href=compare.html>Rules against autodiff: jaxnn compare</a>{failed}</ul>" + "\n".join(sections),
        encoding="utf-8",
    )
    pages = [path for path in (page, options.output / "compare.html") if path.exists()]
    failures = (f"{name} failed with exit code {code}" for name, code in codes.items() if code)
    print("", *(f"wrote {path}" for path in pages), *failures, sep="\n")
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
