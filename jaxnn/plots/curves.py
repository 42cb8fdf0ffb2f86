"""The learning curves of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from jaxnn.plots.picture import PALE, POINTS, FilePath, Floats, axes_in_inches, heading, percent, style, write

Rows = Sequence[Mapping[str, Any]]

PANEL = (3.5, 2.7)  # size of each pair of axes, in inches
SERIES = {"train": "#0072b2", "validation": "#d55e00"}  # Okabe and Ito's blue and vermilion


def curves(path: FilePath, rows: Rows, title: str) -> None:
    """Draw loss and accuracy over the epochs, for the training and the validation split.

    The axis of the loss is logarithmic if the loss spans more than a factor of 10. A value that is None or not finite
    leaves a gap.

    Args:
        path: the picture file; its suffix gives the format (default: PNG)
        rows: the metrics of each epoch: "epoch", "train_loss", "train_accuracy", "validation_loss" and
            "validation_accuracy", accuracies from 0 to 1; rows without an "epoch" are left out
        title: what was trained, in one line

    Raises:
        ValueError: no row has an epoch, or a row with an epoch lacks a value
    """
    with style():
        write(path, _curves_figure(rows, title))


def _curves_figure(rows: Rows, title: str) -> Figure:
    """Return the two panels."""
    kept = [row for row in rows if "epoch" in row]
    if not kept:
        raise ValueError(f"`rows` ({len(rows)} rows) must hold at least one with an 'epoch'")
    figure = Figure(figsize=(11.5, 4.0))
    loss = axes_in_inches(figure, (0.6, 0.6, *PANEL))
    accuracy = axes_in_inches(figure, (6.3, 0.6, *PANEL))
    epochs = _column(kept, "epoch")
    losses = {name: _column(kept, f"{name}_loss") for name in SERIES}
    accuracies = {name: 100 * _column(kept, f"{name}_accuracy") for name in SERIES}
    for axes, values in ((loss, losses), (accuracy, accuracies)):
        _lines(axes, epochs, values)
    logarithmic = _scale_loss(loss, losses)
    _scale_accuracy(accuracy, accuracies)
    _panel_title(loss, "Loss (log scale)" if logarithmic else "Loss")
    _panel_title(accuracy, "Accuracy (%)")
    last = float(epochs[-1])
    _end_labels(loss, last, losses, {name: f"{values[-1]:.3g}" for name, values in losses.items()})
    shares = {name: percent(values[-1] / 100, 2) for name, values in accuracies.items()}
    _end_labels(accuracy, last, accuracies, shares)
    heading(loss, title, 30)
    return figure


def _column(rows: Rows, key: str) -> Floats:
    """Return one metric of all rows; None and infinities become NaN."""
    for number, row in enumerate(rows):
        if key not in row:
            raise ValueError(f"`rows` (row {number} with an epoch: keys {', '.join(row)}) must all have {key!r}")
    values = np.array([math.nan if row[key] is None else float(row[key]) for row in rows])
    return np.where(np.isfinite(values), values, math.nan)


def _lines(axes: Axes, epochs: Floats, values: Mapping[str, Floats]) -> None:
    """Draw both series, with a marker at every epoch, or at the last one if there are many."""
    few = len(epochs) <= 25
    for name, colour in SERIES.items():
        axes.plot(
            epochs,
            values[name],
            color=colour,
            linewidth=1.8,
            marker="o" if name == "train" else "s",
            markersize=4.5,
            markevery=None if few else [len(epochs) - 1],
            clip_on=False,
            zorder=3,
            label=name,
        )
    first, last = float(np.min(epochs)), float(np.max(epochs))
    pad = min(0.5, 0.02 * (last - first)) or 0.5
    axes.set_xlim(first - pad, last + pad)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("Epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(y=0.06)


def _panel_title(axes: Axes, text: str) -> None:
    """Write the name of the vertical axis above it, where it is horizontal."""
    axes.set_title(text, loc="left", fontsize=10, pad=10)


def _scale_loss(axes: Axes, losses: Mapping[str, Floats]) -> bool:
    """Choose the scale of the loss; return whether it is logarithmic."""
    low, high = _range(losses, (0.0, 1.0))
    if low > 0 and high > 10 * low:
        axes.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        return True
    axes.ticklabel_format(axis="y", useOffset=False)
    if low >= 0 and (low < high / 2 or low == high):
        axes.set_ylim(0, 1.06 * high or 1.0)
    return False


def _scale_accuracy(axes: Axes, accuracies: Mapping[str, Floats]) -> None:
    """Show at least two percentage points, so that noise does not look like a trend, and little beyond 0 and 100."""
    low, high = _range(accuracies, (0.0, 100.0))
    half = max(2.0, 1.12 * (high - low)) / 2
    spare = 0.06 * half
    centre = min(max((low + high) / 2, half - spare), 100 + spare - half)
    axes.set_ylim(max(centre - half, -spare), min(centre + half, 100 + spare))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)


def _range(values: Mapping[str, Floats], default: tuple[float, float]) -> tuple[float, float]:
    """Return the smallest and the largest finite value, `default` if there is none."""
    both = np.concatenate(list(values.values()))
    finite = both[np.isfinite(both)]
    return (float(finite.min()), float(finite.max())) if finite.size else default


def _end_labels(axes: Axes, last: float, values: Mapping[str, Floats], texts: Mapping[str, str]) -> None:
    """Write each series' name and last value beside the end of its line, without overlap."""
    heights = _apart({name: _end_height(axes, values[name]) for name in SERIES}, gap=16)
    for name, colour in SERIES.items():
        axes.annotate(
            f"{name} {texts[name]}",
            (last, 0),
            xycoords=("data", "axes fraction"),
            xytext=(11, heights[name]),
            textcoords="offset points",
            color=colour,
            va="center_baseline",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            annotation_clip=False,
        )


def _end_height(axes: Axes, values: Floats) -> float:
    """Return the height of a line's end above the bottom of the axes, in points."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return PANEL[1] * POINTS / 2
    pixel = axes.transData.transform((axes.get_xlim()[1], finite[-1]))
    return float(axes.transAxes.inverted().transform(pixel)[1]) * PANEL[1] * POINTS


def _apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move two heights apart, each by the same amount, until they differ by `gap`."""
    (lower, y0), (upper, y1) = sorted(heights.items(), key=lambda item: item[1])
    lack = max(0.0, gap - (y1 - y0)) / 2
    return {lower: y0 - lack, upper: y1 + lack}
