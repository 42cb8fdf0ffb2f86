"""Tables, pictures and sections of the READMEs from what `bench.py` measured."""

import collections
import hashlib
import itertools
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from residuals import shown as in_bytes
from sections import ROOT, rewrite, table

SPEED, README, ROOT_README = ROOT / "scripts" / "speed", ROOT / "scripts" / "README.md", ROOT / "README.md"
SIDES = {"jaxnn": "jaxnn", "jax": "JAX", "torch": "PyTorch"}
MEASURED = {"memory": "peak memory", "compile": "compile time"}  # by group; all others: run time
FIGURES = {"of JAX": "jaxnn / JAX", "of PyTorch": "jaxnn / PyTorch", "memory of JAX": "memory, jaxnn / JAX",
           "of products": "jaxnn / products"}  # fmt: skip
HEAD = [
    "work", "measured", *SIDES.values(), "jaxnn / JAX", "jaxnn / PyTorch", "temporary memory, jaxnn / JAX",
    "residuals, jaxnn / JAX", "compile time, jaxnn / JAX", "rate, of the ceiling", "target",
]  # fmt: skip
CONVOLUTIONS_HEAD = [
    "convolution", *SIDES.values(), "its products alone", "jaxnn / JAX", "jaxnn / PyTorch", "jaxnn / products",
    "target",
]  # fmt: skip
SWITCH_HEAD = ["optimisation", "run time, on", "run time, off", "on / off", "temporary memory, on / off"]
SUMMARY_HEAD = ["work", "measured", "jaxnn", "fastest JAX", "PyTorch", "jaxnn / JAX"]  # and one for each other version
SUMMARISED = ("convnet", "memory", "compile", "components")
# Rows that the summary leaves out, because another row's rule does nearly the same.
LIKE_OTHERS = ("conv2d NCHW", "max_pool2d NCHW", "max_pool2d_with_indices", "nll", "l2_penalty")
RATES = {"bytes_per_second": ("copy", "GB/s"), "flop_per_second": ("matrix product", "Gflop/s")}
# What each picture shows: groups, or the names of rows.
QUICK = ("linear", "conv2d NHWC", "max_pool2d NHWC", "relu", "dropout", "cross_entropy", "linear_cross_entropy fast")
PICTURES = {
    "quick": ("training step, batch 64", "convnet's gradient, batch 1024", "convnet's step, batch 64", *QUICK),
    "training": ("convnet", "memory", "compile"),
    "components": ("components",),
    "convolutions": ("convolutions",),
    "optimisations": ("optimisations",),
}
TITLES = {
    "training": "Training the convnet",
    "components": "Every component, forward and backward",
    "convolutions": "Convolutions of several shapes, forward and backward",
    "optimisations": "Optimisations, on and off",
}
ALT = {
    "quick": "Time and memory of ten pieces of work, relative to JAX and PyTorch",
    "training": "Run time, memory and compile time of the convnet's training, relative to JAX and PyTorch",
    "components": "Run time of each component, relative to JAX and PyTorch",
    "convolutions": "Run time of convolutions, relative to JAX, PyTorch and their matrix products alone",
    "optimisations": "Run time with each optimisation on, relative to off",
}
Row = dict[str, Any]
Results = dict[str, Any]


def targets(gpu: bool) -> dict[str, dict[str, float]]:
    """Return upper bounds of figures, by the row's name; a component without one has 1.05 of JAX."""
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


# Texts ----------------------------------------------------------------------------------------------------------------


def in_time(seconds: float) -> str:
    """Return a time as text with its unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def name_of(r: Row) -> str:
    """Return a row's name, with the arithmetic where that is not float32."""
    return str(r["name"]) + ("" if r["mode"] == "float32" else f", {r['mode']}")


def winners(r: Row) -> dict[str, dict[str, Any]]:
    """Return the best variant of each side."""
    return {v["side"]: v for v in r["variants"] if v["name"] == r["best"].get(v["side"])}


def amount(r: Row, side: str, *, named: bool) -> str:
    """Return a side's figure, with its variant's name; "" for a side that was not measured."""
    if (best := winners(r).get(side)) is None:
        return ""
    shown = in_time(best["median"]) if r["unit"] == "s" else in_bytes(best["median"])
    return f"{shown} ({best['name']})" if named else shown


def ratio(r: Row, figure: str, *, spread: bool = True) -> str:
    """Return a ratio, with its quartiles; "" where there is none."""
    f = next((f for f in r["figures"] if f["figure"] == figure), None)
    return "" if f is None else f"{f['value']:.3g}" + (f" [{f['low']:.3g}, {f['high']:.3g}]" if spread else "")


def cells(r: Row, ceilings: dict[str, dict[str, float]]) -> list[str]:
    """Return a row's texts, in the order of HEAD; a rate's share is that of the better library's ceiling."""
    ceiling = {key: max(c[key] for c in ceilings.values()) for key in RATES} if ceilings else {}
    best = winners(r)

    def pair(key: str, show: Callable[[float], str]) -> str:
        return " / ".join(show(best[side][key]) for side in ("jaxnn", "jax") if key in best.get(side, {}))

    rates = [
        f"{r[key] / 1e9:.3g} {unit} ({r[key] / ceiling[key]:.0%})"
        for key, (_, unit) in RATES.items() if r[key] and key in ceiling
    ]  # fmt: skip
    return [
        name_of(r), MEASURED.get(r["group"], "run time"), *(amount(r, side, named=True) for side in SIDES),
        ratio(r, "of JAX"), ratio(r, "of PyTorch"), pair("temporary_bytes", in_bytes), pair("residual_bytes", in_bytes),
        pair("compile_seconds", in_time), ", ".join(rates), target(r),
    ]  # fmt: skip


def target(r: Row) -> str:
    """Return the bounds of a row's figures, and whether they are met."""
    bounds = [
        f"{FIGURES.get(f['figure'], f['figure'])} ≤ {f['limit']:g}: {'met' if f['met'] else 'NOT MET'}"
        for f in r["figures"] if "met" in f
    ]  # fmt: skip
    return "; ".join(bounds) if r["large"] else "below 50 µs"


def convolution_cells(r: Row) -> list[str]:
    """Return a convolution's texts, in the order of CONVOLUTIONS_HEAD."""
    return [
        name_of(r), *(amount(r, side, named=True) for side in SIDES), amount(r, "products", named=False),
        *(ratio(r, figure) for figure in ("of JAX", "of PyTorch", "of products")), target(r),
    ]  # fmt: skip


def switch_cells(r: Row) -> list[str]:
    """Return an optimisation's texts, in the order of SWITCH_HEAD."""
    on, off = ({v["side"]: v for v in r["variants"]}[side] for side in ("jaxnn", "off"))
    return [
        name_of(r), in_time(on["median"]), in_time(off["median"]), ratio(r, "of off"),
        " / ".join(in_bytes(v["temporary_bytes"]) for v in (on, off)),
    ]  # fmt: skip


def texts(results: Results, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table of rows."""
    if {r["group"] for r in rows} == {"optimisations"}:
        return SWITCH_HEAD, [switch_cells(r) for r in rows]
    if {r["group"] for r in rows} == {"convolutions"}:
        return CONVOLUTIONS_HEAD, [convolution_cells(r) for r in rows]
    return HEAD, [cells(r, results["ceilings"][r["mode"]]) for r in rows]


def machine(results: Results) -> str:
    """Return the command, date, hardware and versions of results."""
    m = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    hardware = f"{m['device']}, {m['cores']} cores of {m['cpu']}, load {m['load']:.1f} at the start"
    return f"`{results['command']}`, {m['date'][:10]}; {hardware}; {versions}."


def processor(results: Results) -> str:
    """Return a short name of the processor."""
    return str(results["machine"]["cpu"]).replace("(R)", "").replace(" Processor", "")


def ceilings_of(results: Results) -> str:
    """Return the rates of a copy and of a matrix product, to which the tables' rates compare."""
    return "Ceilings: " + "; ".join(
        f"{mode}: {what} " + ", ".join(f"{c[key] / 1e9:.3g} {unit} ({library})" for library, c in libraries.items())
        for mode, libraries in results["ceilings"].items() for key, (what, unit) in RATES.items()
    ) + "."  # fmt: skip


def print_table(results: Results) -> None:
    """Print a table for each group; a row that misses a target is red."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    for group in dict.fromkeys(r["group"] for r in results["rows"]):
        rows = [r for r in results["rows"] if r["group"] == group]
        head, lines = texts(results, rows)
        printed = Table(*head, title=group, title_justify="left")
        for r, line in zip(rows, lines, strict=True):
            printed.add_row(*line, style=None if all(f.get("met", True) for f in r["figures"]) else "red")
        console.print(printed)
    console.print(machine(results), ceilings_of(results))


# Pictures -------------------------------------------------------------------------------------------------------------

SERIES = {"of JAX": ("#0072b2", "o"), "of PyTorch": ("#d55e00", "s"), "of off": ("#009e73", "^"),
          "of products": ("#999999", "D")}  # fmt: skip
BY_EXAMPLE = ", per example"


def draw(committed: list[Results], chosen: tuple[str, ...], path: Path) -> None:
    """Draw the ratios of these groups or rows, with quartiles and targets: a line of panels for each processor."""
    committed = holding(chosen, committed)
    by_processor: dict[str, list[Results]] = {}
    for results in committed:
        by_processor.setdefault(processor(results), []).append(results)
    lines, columns = len(by_processor), max(map(len, by_processor.values()))
    import matplotlib
    from matplotlib.figure import Figure

    rows = rows_of(chosen, committed)
    names = list(dict.fromkeys(label(r) for each in rows for r in each))[::-1]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        size = (3.4 + 3.6 * columns, 0.6 + (0.7 + 0.26 * len(names)) * lines)
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for line, of_one in zip(panels, by_processor.values(), strict=True):
            for axes, results in itertools.zip_longest(line, of_one):
                if results is None:
                    axes.set_visible(False)
                    continue
                draw_panel(axes, names, rows[committed.index(results)])
                title = f"{processor(results)}, jax {results['machine']['versions']['jax']}"
                axes.set_title(textwrap.fill(title, 24), fontsize=9)
        panels[0, 0].set_yticks(range(len(names)), names)
        panels[0, 0].set_ylim(-0.7, len(names) - 0.3)
        handles = {h.get_label(): h for axes in panels.flat for h in axes.get_legend_handles_labels()[0]}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Source": digest(rows)})


def rows_of(chosen: tuple[str, ...], committed: list[Results] | None = None) -> list[list[Row]]:
    """Return the rows of these groups, or of these names, for each of the results that have some."""
    every = committed_results() if committed is None else committed
    rows = [[r for r in results["rows"] if r["group"] in chosen or r["name"] in chosen] for results in every]
    return [each for each in rows if each]


def holding(chosen: tuple[str, ...], committed: list[Results]) -> list[Results]:
    """Return the results that have rows of these groups, or of these names."""
    return [results for results in committed if rows_of(chosen, [results])]


def digest(rows: list[list[Row]]) -> str:
    """Return a hash of what a picture shows; the picture carries it as "Source"."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def label(r: Row) -> str:
    """Return the name of a row's line in the picture; single examples share the batch's line."""
    measured = MEASURED.get(r["group"])
    return name_of(r).replace(BY_EXAMPLE, "").replace("`", "") + (f" ({measured})" if measured else "")


def draw_panel(axes: Any, names: list[str], rows: list[Row]) -> None:
    """Draw one panel: a filled mark for a batch, a hollow one for single examples, a bar for a target."""
    import matplotlib.ticker

    for r in rows:
        single, y = BY_EXAMPLE in r["name"], names.index(label(r))
        for figure in (f for f in r["figures"] if f["figure"] in SERIES):
            colour, marker = SERIES[figure["figure"]]
            named = "on / off" if figure["figure"] == "of off" else FIGURES[figure["figure"]]
            y_mark = y - 0.2 * single
            axes.hlines(y_mark, figure["low"], figure["high"], color=colour, linewidth=1)
            axes.plot(figure["value"], y_mark, marker, color=colour, markersize=4,
                      fillstyle="none" if single else "full", label=named + BY_EXAMPLE * single)  # fmt: skip
            if "limit" in figure and not single:
                axes.plot(figure["limit"], y, "|", color=colour, markersize=11, label="target")
    axes.axvline(1, color="#666666", linewidth=0.8)
    axes.set(xscale="log", xlabel="ratio; smaller is better")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))


# READMEs --------------------------------------------------------------------------------------------------------------


def committed_results() -> list[Results]:
    """Return the committed results, in the order of their files' names."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(SPEED.glob("*.json"))]


def section() -> str:
    """Return the section of scripts/README.md: the full tables, and a picture for each kind of work."""
    committed = committed_results()
    lines = []
    for picture, title in TITLES.items():
        lines += [f"### {title}", "", f"![{ALT[picture]}.](speed/{picture}.png)", ""]
        for results in committed:
            if rows := [r for r in results["rows"] if r["group"] in PICTURES[picture]]:
                count = f"{processor(results)}, jax {results['machine']['versions']['jax']}: {len(rows)} rows"
                lines += [f"<details><summary>{count}</summary>", "", *table(*texts(results, rows)), ""]
                lines += [machine(results), ceilings_of(results), "", "</details>", ""]
    return "\n".join(lines)


def summary() -> str:
    """Return the root README's table of at most 20 rows: the training step, its memory and compile time, components.

    The figures are those measured beside PyTorch, on the processor with most results (of several, the one measured
    last); of other versions of JAX the table has the ratio to JAX.
    """
    every = holding(SUMMARISED, committed_results())
    count = collections.Counter(map(processor, every))
    chosen = max(every, key=lambda results: (count[processor(results)], results["machine"]["date"]))
    committed = [results for results in every if processor(results) == processor(chosen)]
    with_torch = [results for results in committed if "torch" in results["machine"]["versions"]]
    results = (with_torch or committed)[0]
    others = [other for other in committed if other is not results]
    rows = [
        r for r in results["rows"]
        if r["group"] in SUMMARISED and r["name"] not in LIKE_OTHERS
        and not any(part in r["name"] for part in (BY_EXAMPLE, "alone", "plain scan"))
    ]  # fmt: skip
    lines = [
        [name_of(r), MEASURED.get(r["group"], "run time"), *(amount(r, side, named=False) for side in SIDES),
         ratio(r, "of JAX", spread=False), *(same_ratio(r, other) for other in others),
         ratio(r, "of PyTorch", spread=False)]
        for r in rows
    ]  # fmt: skip
    versions = [".".join(other["machine"]["versions"]["jax"].split(".")[:2]) for other in others]
    head = [*SUMMARY_HEAD, *(f"jaxnn / JAX on jax {version}" for version in versions), "jaxnn / PyTorch"]
    written = [machine(results), *(f"On jax {v}: {machine(other)}" for v, other in zip(versions, others, strict=True))]
    text = textwrap.wrap(" ".join(written), 120, break_on_hyphens=False)
    picture = f"![{ALT['quick']}.](scripts/speed/quick.png)"
    return "\n".join([picture, "", *table(head, lines), "", *text])


def same_ratio(r: Row, other: Results) -> str:
    """Return the ratio to JAX that other results have for the same work; "" if they do not have it."""
    found = [o for o in other["rows"] if all(o[key] == r[key] for key in ("group", "name", "mode"))]
    return ratio(found[0], "of JAX", spread=False) if found else ""


def write() -> None:
    """Draw the pictures, and write the sections of both READMEs."""
    committed = committed_results()
    for picture, chosen in PICTURES.items():
        draw(committed, chosen, SPEED / f"{picture}.png")
    rewrite(README, "speed", section())
    rewrite(ROOT_README, "speed", summary())
