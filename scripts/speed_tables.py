"""What `bench.py` measured, for people: tables on the terminal, a picture, and the README's section."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from residuals import shown as in_bytes

ROOT = Path(__file__).resolve().parent.parent
README, SPEED = ROOT / "README.md", ROOT / "scripts" / "speed"
BEGIN, END = "<!-- speed: written by scripts/bench.py -->\n", "<!-- end of speed -->\n"
SIDES = {"jaxnn": "jaxnn", "jax": "JAX", "torch": "PyTorch"}
HEAD = (
    "work", *SIDES.values(), "of JAX", "of PyTorch", "temporaries", "residuals", "compile", "achieved", "target"
)  # fmt: skip
TRICK_HEAD = ("trick", "with", "without", "with / without", "temporaries")
RATES = {"bytes_per_second": ("copy", "GB/s"), "flop_per_second": ("matrix product", "Gflop/s")}
Row = dict[str, Any]


def targets(gpu: bool) -> dict[str, dict[str, float]]:
    """Return the bounds that figures have to keep, by the row's name; a component's is 1.05 of JAX where none is."""
    new = tuple(int(n) for n in jax.__version__.split(".")[:2]) >= (0, 11)
    if gpu:
        step, scan, pools, drop = {"of JAX": 0.7, "of PyTorch": 0.8}, {}, (0.5, 0.5), 1.05
        fast, lean = {"ms": 47.0, "MB": 4200.0}, {"ms": 60.0, "MB": 300.0}
    else:
        step, scan = {"of JAX": 0.6 if new else 0.4, "of PyTorch": 0.85}, {"of JAX": 0.05}
        pools, drop = (0.05, 0.12), 0.15
        fast = lean = {"of JAX": 1.0, "memory of JAX": 0.1}
    return {
        "convnet": step, "convnet in a plain scan": scan,
        "max_pool2d NHWC": {"of JAX": pools[0]}, "max_pool2d NCHW": {"of JAX": pools[1]}, "dropout": {"of JAX": drop},
        "linear_cross_entropy fast": fast, "linear_cross_entropy lean": lean,
        "memory": {"of JAX": 0.4}, "compile": {"of JAX": 1.1},
    }  # fmt: skip


def in_time(seconds: float) -> str:
    """Return a time for people."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def cells(r: Row, ceilings: dict[str, dict[str, float]]) -> list[str]:
    """Return a row's texts, in the order of HEAD; pairs are jaxnn's / JAX's, shares of the better library's ceiling."""
    ceiling = {key: max(c[key] for c in ceilings.values()) for key in RATES} if ceilings else {}
    winners = {v["side"]: v for v in r["variants"] if v["name"] == r["best"].get(v["side"])}
    amount = in_time if r["unit"] == "s" else in_bytes
    figures = {f["figure"]: f for f in r["figures"]}

    def pair(key: str, show: Callable[[float], str]) -> str:
        shown = [show(winners[s][key]) for s in ("jaxnn", "jax") if s in winners and key in winners[s]]
        return " / ".join(shown)

    def spread(key: str) -> str:
        f = figures.get(key)
        return f"{f['value']:.3g} [{f['low']:.3g}, {f['high']:.3g}]" if f else ""

    achieved = [
        f"{r[key] / 1e9:.3g} {unit} ({r[key] / ceiling[key]:.0%})"
        for key, (_, unit) in RATES.items() if r[key] and key in ceiling
    ]  # fmt: skip
    bounds = [f"{f['figure']} ≤ {f['limit']:g}: {'met' if f['met'] else 'NOT MET'}" for f in r["figures"] if "met" in f]
    return [
        r["name"] + ("" if r["mode"] == "float32" else f", {r['mode']}"),
        *(f"{amount(winners[s]['median'])} ({winners[s]['name']})" if s in winners else "" for s in SIDES),
        spread("of JAX"), spread("of PyTorch"), pair("temporary_bytes", in_bytes), pair("residual_bytes", in_bytes),
        pair("compile_seconds", in_time), ", ".join(achieved), "; ".join(bounds) if r["large"] else "below 50 µs",
    ]  # fmt: skip


def trick_cells(r: Row) -> list[str]:
    """Return a trick's texts, in the order of TRICK_HEAD."""
    f = next(f for f in r["figures"] if f["figure"] == "of without")
    with_it, without = ({v["side"]: v for v in r["variants"]}[side] for side in ("jaxnn", "without"))
    return [
        r["name"] + ("" if r["mode"] == "float32" else f", {r['mode']}"),
        *(in_time(v["median"]) for v in (with_it, without)), f"{f['value']:.3g} [{f['low']:.3g}, {f['high']:.3g}]",
        " / ".join(in_bytes(v["temporary_bytes"]) for v in (with_it, without)),
    ]  # fmt: skip


def texts(results: dict[str, Any], rows: list[Row]) -> list[list[str]]:
    """Return the lines of a group's table, its head first."""
    if {r["group"] for r in rows} == {"tricks"}:
        return [list(TRICK_HEAD), *map(trick_cells, rows)]
    return [list(HEAD), *(cells(r, results["ceilings"][r["mode"]]) for r in rows)]


def caption(results: dict[str, Any]) -> str:
    """Return where the figures come from."""
    m = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    limits = "; ".join(
        f"{mode}: {what} " + ", ".join(f"{c[key] / 1e9:.3g} {unit} ({library})" for library, c in libraries.items())
        for mode, libraries in results["ceilings"].items() for key, (what, unit) in RATES.items()
    )  # fmt: skip
    return (
        f"`{results['command']}`, {m['date'][:10]}; {m['device']}, {m['cores']} cores of {m['cpu']}, load "
        f"{m['load']:.1f} at the start; {versions}. Ceilings: {limits}."
    )


def print_table(results: dict[str, Any]) -> None:
    """Print a table a group."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    for group in dict.fromkeys(r["group"] for r in results["rows"]):
        rows = [r for r in results["rows"] if r["group"] == group]
        head, *lines = texts(results, rows)
        table = Table(*head, title=group, title_justify="left")
        for r, line in zip(rows, lines, strict=True):
            table.add_row(*line, style=None if all(f.get("met", True) for f in r["figures"]) else "red")
        console.print(table)
    console.print(caption(results))


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the ratios with their quartiles and bounds."""
    import matplotlib.ticker
    from matplotlib.figure import Figure

    rows = results["rows"][::-1]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 1.2 + 0.24 * len(rows)), dpi=110, layout="constrained")
        axes = figure.subplots()
        series = ("of JAX", "#0072b2", "o"), ("of PyTorch", "#d55e00", "s"), ("of without", "#009e73", "^")
        for key, colour, marker in series:
            found = [(y, f) for y, r in enumerate(rows) for f in r["figures"] if f["figure"] == key]
            if not found:
                continue
            axes.hlines(
                [y for y, _ in found], [f["low"] for _, f in found], [f["high"] for _, f in found], color=colour
            )
            axes.plot([f["value"] for _, f in found], [y for y, _ in found], marker, color=colour, ms=4, label=key)
            bounds = [(f["limit"], y) for y, f in found if "limit" in f]
            axes.plot(*zip(*bounds, strict=True), "|", color=colour, ms=11) if bounds else None
        axes.axvline(1, color="#666666", lw=0.8)
        axes.set(xscale="log", xlabel="share of the time or memory; a bar is a target", ylim=(-1, len(rows)))
        axes.set_yticks(range(len(rows)), [cells(r, {})[0].replace("`", "") for r in rows])
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.legend(frameon=False, loc="lower left")
        figure.savefig(path)


def section() -> str:
    """Return the README's section, from the committed results; nothing without any."""
    files = sorted(SPEED.glob("*.json"))
    lines = [
        "", "## Speed", "",
        "Written by `python scripts/bench.py --readme` from committed results. “JAX” is the fastest of several",
        "idiomatic programs without jaxnn, “PyTorch” its fastest form. Ratios are medians of the rounds' own, with",
        "their quartiles; pairs are jaxnn's / JAX's.", "",
    ]  # fmt: skip
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        picture = file.with_suffix(".png")
        lines += (
            [f"![Time and memory of jaxnn, relative.](scripts/speed/{picture.name})", ""] if picture.exists() else []
        )
        folded = {"components": "Every component", "tricks": "What is there for speed or memory alone"}
        lines += [caption(results), "", *table(results, [r for r in results["rows"] if r["group"] not in folded])]
        for group, title in folded.items():
            if rows := [r for r in results["rows"] if r["group"] == group]:
                lines += [f"<details><summary>{title}</summary>", "", *table(results, rows), "</details>", ""]
    return "\n".join(lines) + "\n" if files else ""


def table(results: dict[str, Any], rows: list[Row]) -> list[str]:
    """Return rows as the lines of a table in Markdown."""
    lines = texts(results, rows)
    head, *rest = (f"| {' | '.join(t.replace('|', chr(92) + '|') for t in line)} |" for line in lines)
    return [head, "|" + "---|" * len(lines[0]), *rest, ""]


def readme(text: str) -> str:
    """Return the README with its section written anew."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit("README.md must have each of the two markers of the section on speed once")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{section()}{END}{rest.partition(END)[2]}"
