"""What `accelerators.py` found, for people: tables on the terminal, pictures, and the section of scripts/README.md."""

import json
import sys
from typing import Any

from residuals import shown as in_bytes
from sections import ROOT, rewrite, table
from speed_tables import in_time

FOLDER, README = ROOT / "scripts" / "accelerators", ROOT / "scripts" / "README.md"
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


HEAD = [
    "work", "dtype", "bytes moved", "best plain JAX", "jaxnn / JAX", "all memories, jaxnn / JAX", "temporaries, jaxnn / JAX",
    "products, jaxnn / JAX", "kernels, jaxnn / JAX", "bound, jaxnn / JAX", "compile time, jaxnn / JAX", "largest kernel",
]  # fmt: skip


def cells(row: Row) -> list[str]:
    """Return a row's texts, in the order of HEAD."""
    ours, theirs = best_of(row, "jaxnn"), best_of(row, "jax")
    if ours is None:
        return [row["name"], row["dtype"], *[""] * (len(HEAD) - 3), row["programs"][0]["error"][:80]]

    def pair(key: str, show: Any) -> str:
        return " / ".join(show(p[key]) if p else "does not compile" for p in (ours, theirs))

    name, source, nbytes = ours["largest"][0] if ours["largest"] else ("", "", 0)
    return [
        row["name"], row["dtype"], in_bytes(ours["main_bytes"]),
        f"{in_bytes(theirs['main_bytes'])} ({theirs['name']})" if theirs else "does not compile",
        ratio_of(row, "main_bytes"), ratio_of(row, "bytes"), pair("temporary_bytes", in_bytes),
        pair("flops", lambda n: f"{n / 1e9:.3g} G"), pair("launches", str), pair("bound", in_time),
        pair("compile_seconds", in_time), f"{name}: {in_bytes(nbytes)}",
    ]  # fmt: skip


def print_table(results: Results) -> None:
    """Print a table for each group."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 240)
    for group in dict.fromkeys(r["group"] for r in results["rows"]):
        printed = Table(*HEAD, title=f"{results['target']}: {group}", title_justify="left")
        for row in (r for r in results["rows"] if r["group"] == group):
            printed.add_row(*cells(row))
        console.print(printed)


def keep(results: Results) -> None:
    """Write the results; rows that were there and not compiled now stay."""
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{results['target'].replace(':', '-')}.json"
    new = {key_of(row): row for row in results["rows"]}
    old = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = {**{key_of(row): row for row in old}, **new}
    text = json.dumps({**results, "rows": list(rows.values())}, ensure_ascii=False, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def key_of(row: Row) -> tuple[str, str, str]:
    """Return what tells a row from the others."""
    return row["group"], row["name"], row["dtype"]


def write() -> None:
    """Write the section of scripts/README.md, and its pictures."""
    raise NotImplementedError
