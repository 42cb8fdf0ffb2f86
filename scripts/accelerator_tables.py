"""What `accelerators.py` found, for people: tables on the terminal, a picture, and the section of scripts/README.md."""

import collections
import hashlib
import json
import sys
from typing import Any

from residuals import shown as in_bytes
from sections import ROOT, rewrite, table
from speed_tables import in_time

FOLDER, README = ROOT / "scripts" / "accelerators", ROOT / "scripts" / "README.md"
ORDER = ("tpu:v5e", "tpu:v6e", "tpu:v5p", "cuda:h100", "cuda:b200")
TITLES = {"tpu:v5e": "TPU v5e", "tpu:v6e": "TPU v6e", "tpu:v5p": "TPU v5p", "cuda:h100": "H100", "cuda:b200": "B200"}
HEAD = [
    "work", "dtype", "bytes moved", "best plain JAX", "jaxnn / JAX", "with on-chip memory, jaxnn / JAX",
    "temporaries, jaxnn / JAX", "products, jaxnn / JAX", "kernels, jaxnn / JAX", "bound, jaxnn / JAX",
    "compile time, jaxnn / JAX", "largest kernel",
]  # fmt: skip
SCALE_HEAD = [
    "work", "dtype", "program", "chips", "collectives", "in a loop", "their bytes / the least", "memory of a chip",
    "temporaries", "bytes moved", "compile time",
]  # fmt: skip
FAILS = "does not compile"
Row = dict[str, Any]
Results = dict[str, Any]


def best_of(row: Row, side: str) -> Row | None:
    """Return the side's program that moves least; None where none compiles."""
    found = [p for p in row["programs"] if p["side"] == side and "error" not in p]
    return min(found, key=lambda p: p["main_bytes"], default=None)


def ratio_of(row: Row, key: str) -> str:
    """Return ours / the best plain JAX's; "" where one of them does not compile."""
    ours, theirs = best_of(row, "jaxnn"), best_of(row, "jax")
    if ours is None or theirs is None:
        return ""
    if not theirs[key]:
        return "1" if not ours[key] else f"{in_bytes(ours[key])} / 0 B"
    return f"{ours[key] / theirs[key]:.3g}"


def cells(row: Row) -> list[str]:
    """Return the texts of work on one chip, in the order of HEAD."""
    ours, theirs = best_of(row, "jaxnn"), best_of(row, "jax")

    def pair(key: str, show: Any) -> str:
        return " / ".join(show(p[key]) if p else FAILS for p in (ours, theirs) if key in (p or row | {key: 0}))

    name, _, nbytes = ours["largest"][0] if ours and ours["largest"] else ("", "", 0)
    times = [f"ran in {in_time(p['seconds'])}" for p in (ours, theirs) if p and "seconds" in p]
    return [
        row["name"], row["dtype"], in_bytes(ours["main_bytes"]) if ours else FAILS,
        f"{in_bytes(theirs['main_bytes'])} ({theirs['name']})" if theirs else f"{FAILS}: {cause_of(row)}",
        ratio_of(row, "main_bytes"), ratio_of(row, "bytes"), pair("temporary_bytes", in_bytes),
        pair("flops", lambda n: f"{n / 1e9:.3g} G"), pair("launches", str),
        "; ".join([pair("bound", in_time), " / ".join(times)]).removesuffix("; "),
        pair("compile_seconds", in_time), f"{name}: {in_bytes(nbytes)}",
    ]  # fmt: skip


def cause_of(row: Row) -> str:
    """Return why the plain programs do not compile, where it is the memory."""
    errors = [p["error"] for p in row["programs"] if p["side"] == "jax"]
    return "out of memory" if all("memory" in e for e in errors) else errors[0][:80]


def scale_cells(row: Row) -> list[list[str]]:
    """Return the texts of work on many chips, in the order of SCALE_HEAD: a line for each program."""
    chips = f"{row['devices']} {row.get('chip', '')}".strip()
    return [
        [row["name"], row["dtype"], p["name"], chips, *[FAILS] * (len(SCALE_HEAD) - 4)]
        if "error" in p else
        [row["name"], row["dtype"], p["name"], chips, *collectives_of(p, row.get("least")),
         in_bytes(p["memory"]), in_bytes(p["temporary_bytes"]), in_bytes(p["main_bytes"]),
         in_time(p["compile_seconds"])]
        for p in row["programs"]
    ]  # fmt: skip


def collectives_of(program: Row, least: int | None) -> list[str]:
    """Return a program's collectives, how many of them run in a loop, and their bytes relative to the least."""
    found = program["collectives"]
    kinds: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    for c in found:
        kinds[c["kind"]] += c["times"]
        total[c["kind"]] += c["times"] * c["bytes"]
    said = ", ".join(f"{count} {kind} of {in_bytes(total[kind])} in all" if count > 1 else
                     f"1 {kind} of {in_bytes(total[kind])}" for kind, count in kinds.items())  # fmt: skip
    loops = str(sum(c["times"] for c in found if c["in_loop"]))
    return [said or "none", loops, f"{sum(total.values()) / least:.4f}" if least else ""]


def texts(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table of rows of one group."""
    if rows[0]["group"] == "scale":
        return SCALE_HEAD, [line for row in rows for line in scale_cells(row)]
    return HEAD, [cells(row) for row in rows]


def print_table(results: Results) -> None:
    """Print a table for each group."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 240)
    for group in dict.fromkeys(r["group"] for r in results["rows"]):
        head, lines = texts([r for r in results["rows"] if r["group"] == group])
        printed = Table(*head, title=f"{results['target']}: {group}", title_justify="left")
        for line in lines:
            printed.add_row(*line)
        console.print(printed)
    console.print(made_by(results))


def keep(results: Results) -> None:
    """Write the results; rows that were there and were not compiled now stay."""
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{results['target'].replace(':', '-')}.json"
    old = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = {key_of(row): row for row in [*old, *results["rows"]]}
    text = json.dumps({**results, "rows": list(rows.values())}, ensure_ascii=False, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def key_of(row: Row) -> tuple[str, str, str, int]:
    """Return what tells a row from the others."""
    return row["group"], row["name"], row["dtype"], row.get("devices", 1)


# The section of the README -------------------------------------------------------------------------------------------


def committed() -> list[Results]:
    """Return the committed results, in the order of ORDER."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in FOLDER.glob("*.json")]
    return sorted(found, key=lambda results: ORDER.index(results["target"]))


def made_by(results: Results) -> str:
    """Return the versions and the date of results."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"`python scripts/accelerators.py --targets {results['target']}`, {results['date'][:10]}; {versions}."


def summary(every: list[Results]) -> list[str]:
    """Return the lines of the table that compares the targets: bytes moved, jaxnn / best plain JAX."""
    rows = {key_of(r): {} for results in every for r in results["rows"] if r["group"] != "scale"}
    for results in every:
        for r in results["rows"]:
            if r["group"] != "scale":
                both = ratio_of(r, "main_bytes"), ratio_of(r, "bytes")
                rows[key_of(r)][results["target"]] = both[0] if both[0] == both[1] else f"{both[0]} ({both[1]})"
    names = dict.fromkeys(key[:2] for key in rows)
    head = ["work", *(f"{TITLES[results['target']]}: float32 / bfloat16" for results in every)]
    lines = []
    for group, name in names:
        values = [
            " / ".join(rows.get((group, name, dtype, 1), {}).get(results["target"], "") or "–"
                       for dtype in ("float32", "bfloat16")) for results in every
        ]  # fmt: skip
        lines.append([name if group in ("components", "vocabulary") else f"{group}: {name}", *values])
    return table(head, lines)


def section() -> str:
    """Return the section: the picture, the comparison of the targets, and the full tables."""
    every = committed()
    lines = ["![Bytes moved by each piece of work, relative to plain JAX.](accelerators/bytes.png)", ""]
    lines += ["### Bytes moved, jaxnn / best plain JAX", "", *summary(every), ""]
    scale = [r | {"chip": TITLES[e["target"]]} for e in every for r in e["rows"] if r["group"] == "scale"]
    if scale:
        lines += ["### Many chips", "", *table(*texts(scale)), ""]
    lines += ["### Every figure", ""]
    for results in every:
        rows = [r for r in results["rows"] if r["group"] != "scale"]
        lines += [f"<details><summary>{TITLES[results['target']]}: {len(rows)} rows</summary>", ""]
        lines += [*table(*texts(rows)), "", made_by(results), "", "</details>", ""]
    return "\n".join(lines)


def digest(every: list[Results]) -> str:
    """Return a hash of what the picture shows; the picture carries it as "Source"."""
    return hashlib.sha256(json.dumps(summary(every)).encode()).hexdigest()


def draw(every: list[Results]) -> None:
    """Draw the ratios of bytes moved: a panel for each target, a filled mark for float32, a hollow one for bfloat16."""
    import matplotlib
    import matplotlib.ticker
    from matplotlib.figure import Figure

    shown = [[r for r in results["rows"] if r["group"] != "scale"] for results in every]
    names = list(dict.fromkeys((r["group"], r["name"]) for rows in shown for r in rows))[::-1]
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        size = (3.2 + 1.9 * len(every), 1.0 + 0.2 * len(names))
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        panels = figure.subplots(1, len(every), sharex=True, sharey=True, squeeze=False)[0]
        for axes, results, rows in zip(panels, every, shown, strict=True):
            for r in rows:
                ours, theirs = best_of(r, "jaxnn"), best_of(r, "jax")
                if ours and theirs:
                    filled, y = r["dtype"] == "float32", names.index((r["group"], r["name"]))
                    axes.plot(ours["main_bytes"] / theirs["main_bytes"], y + 0.15 * (1 if filled else -1), "o",
                              color="#0072b2", markersize=4, fillstyle="full" if filled else "none",
                              label=r["dtype"])  # fmt: skip
            axes.axvline(1, color="#666666", linewidth=0.8)
            axes.set(xscale="log", title=TITLES[results["target"]])
            axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        panels[0].set_yticks(range(len(names)), [n if g in ("components", "vocabulary") else f"{g}: {n}"
                                                 for g, n in names])  # fmt: skip
        panels[0].set_ylim(-0.7, len(names) - 0.3)
        handles = {h.get_label(): h for axes in panels for h in axes.get_legend_handles_labels()[0]}
        figure.supxlabel("bytes moved, jaxnn / best plain JAX; smaller is better", fontsize=8)
        figure.legend(handles.values(), handles, loc="outside lower right", ncols=2, frameon=False)
        figure.savefig(FOLDER / "bytes.png", metadata={"Source": digest(every)})


def write() -> None:
    """Draw the picture, and write the section of scripts/README.md."""
    draw(committed())
    rewrite(README, "accelerators", section())
