"""What the experiments share: options, progress, claims, tables, figures, and a folder of results.

An experiment is a module that ends with `main(__doc__, add_options, measure, draw)`:

    add_options(parser)               adds its own options
    measure(options) -> Results       runs it, and returns numbers only: what JSON can hold
    draw(results) -> {name: Figure}   its pictures, from these numbers alone
    CAPTIONS                          a sentence under each picture in the gallery

The folder gets `results.json`, `<name>.png` for each picture, and what `measure` writes there; every file written is
named at the end. The exit code is 0 if every claim holds, 1 if one does not or something failed (in one line), 2 for
wrong usage, 130 after Ctrl-C.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxnn.cli.terminal import one_line
from jaxnn.errors import JaxnnError

T = TypeVar("T")
Results = dict[str, Any]
Draw = Callable[[Results], dict[str, Figure]]
INK, GREY, PALE = "#222222", "#666666", "#e4e4e4"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)  # Okabe and Ito's, distinct to every eye
STYLE = {
    "figure.dpi": 110,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


# ------------------------------------------------------------------------------------------ claims and tables


def at_most(claim: str, measured: float, bound: float) -> Results:
    """Return the claim that a number is at most its bound; NaN is not."""
    return _claim(claim, measured, "≤", bound, measured <= bound)


def at_least(claim: str, measured: float, bound: float) -> Results:
    """Return the claim that a number is at least its bound; NaN is not."""
    return _claim(claim, measured, "≥", bound, measured >= bound)


def _claim(claim: str, measured: Any, relation: str, bound: Any, holds: Any) -> Results:
    return {
        "claim": claim,
        "measured": float(measured),
        "relation": relation,
        "bound": float(bound),
        "holds": bool(holds),
    }


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Results:
    """Return a table of texts and numbers."""
    return {"title": title, "columns": list(columns), "rows": [[_plain(cell) for cell in row] for row in rows]}


def numbers(values: Any, digits: int = 6) -> Any:
    """Return an array as (nested lists of) numbers of that many significant digits, to keep results.json small."""
    return [numbers(v, digits) for v in values] if np.ndim(values) else float(f"{float(values):.{digits}g}")


def _plain(cell: Any) -> Any:
    return cell if isinstance(cell, str) else int(cell) if isinstance(cell, int | np.integer) else numbers(cell, 5)


# ------------------------------------------------------------------------------------------ figures


def panels(rows: int, columns: int, *, width: float = 4.6, height: float = 3.4, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of rows × columns axes, each of this size in inches, and the axes (a 2-D array)."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def picture(axes: Axes, image: Any, *, limit: float | None = None, title: str = "") -> None:
    """Show a matrix: from blue to red with 0 white where there is a `limit`, else in grey."""
    array = np.asarray(image)
    colours = {"cmap": "Greys"} if limit is None else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    axes.imshow(array, interpolation="nearest", **colours)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8, loc="center")
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=PALE)


def digest(results: Results) -> str:
    """Return a hash of the numbers; each picture carries it as "Source"."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


def save_figures(folder: Path, results: Results, draw: Draw) -> None:
    """Draw and save each picture, as a PNG with a hash of what it was drawn from."""
    with matplotlib.rc_context(STYLE):
        figures = draw(results)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", metadata={"Source": digest(results)})


# ------------------------------------------------------------------------------------------ running


def options_of(doc: str, name: str, add: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    """Return the parser: the experiment's own options, and those that all have."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")

    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"{name}.py", description=doc, formatter_class=raw)
    add(parser)
    parser.add_argument("--seed", type=natural, default=0, help="seed of everything random (default 0)")
    parser.add_argument("--output", type=Path, default=Path("results") / name, help="folder (default %(default)s)")
    return parser


def natural(text: str) -> int:
    """Parse a whole number from 0."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 2147483647")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    if not natural(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return int(text)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, with a bar on a terminal."""
    console = Console(stderr=True)
    yield from track(items, what, total=total, console=console, disable=not console.is_terminal, transient=True)


def main(
    doc: str,
    add: Callable[[argparse.ArgumentParser], None],
    measure: Callable[[argparse.Namespace], Results],
    draw: Draw,
    argv: Sequence[str] | None = None,
) -> int:
    """Run an experiment from the command line and return its exit code."""
    name = Path(sys.modules[measure.__module__].__file__ or "experiment").stem
    options = options_of(doc, name, add).parse_args(argv)
    try:
        if reason := unwritable(options.output):  # found before the work, not after it
            raise ValueError(reason)
        before, start = versions_of(options.output), time.perf_counter()
        results = measure(options)
        results |= {"experiment": name, "seconds": round(time.perf_counter() - start, 1), "run": run_of(options)}
        (options.output / "results.json").write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")
        save_figures(options.output, results, draw)
    except KeyboardInterrupt:
        print(f"{name}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except Exception as error:
        text = one_line(error)
        if not isinstance(error, ValueError | OSError | JaxnnError):  # a mistake in the script, whose place helps
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"
        print(f"{name}: error: {text}", file=sys.stderr)
        return 1
    show(results)
    print(f"{results['seconds']} s", *written(options.output, before), sep="\nwrote ")
    return 0 if all(claim["holds"] for claim in results["claims"]) else 1


def versions_of(folder: Path) -> dict[Path, int]:
    """Return the files of a folder, each with the time at which it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def written(folder: Path, before: dict[Path, int]) -> list[Path]:
    """Return the files that are new in a folder, or newer than `before`."""
    return sorted(path for path, time in versions_of(folder).items() if before.get(path) != time)


def unwritable(folder: Path) -> str:
    """Make the folder; return why it cannot be written in, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"--output {folder} cannot be written ({error.strerror}): name another folder"


def shown(number: float) -> str:
    """Return a number as texts show it."""
    return f"{number:.3g}"


def run_of(options: argparse.Namespace) -> Results:
    """Return the options, the versions and the hardware."""
    given = {
        key: value
        for key, value in vars(options).items()
        if key not in ("output", "data_dir") and value is not False and isinstance(value, str | int | float)
    }
    device = jax.devices()[0]
    machine = {"device": device.device_kind, "cores": os.cpu_count()}
    return {"options": given, "jax": jax.__version__, "python": platform.python_version(), **machine}


def show(results: Results) -> None:
    """Print the tables, and each claim with what was measured."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for each in results["tables"]:
        print(each["title"])
        printed = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for i, column in enumerate(each["columns"]):
            text = any(isinstance(row[i], str) for row in each["rows"])
            printed.add_column(column, justify="left" if text else "right")
        for row in each["rows"]:
            printed.add_row(*(cell if isinstance(cell, str) else f"{cell:.5g}" for cell in row))
        console.print(printed, "")
    for claim in results["claims"]:
        holds = "holds" if claim["holds"] else "FAILS"
        print(f"{holds}  {claim['claim']}: {shown(claim['measured'])} {claim['relation']} {shown(claim['bound'])}")
