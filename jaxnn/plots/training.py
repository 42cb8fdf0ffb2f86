"""Learning curves, confusion matrix and filters of one run, each drawn to a file that appears whole or not at all."""

import contextlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from jaxnn.files import write_whole

FilePath = str | os.PathLike[str]
Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Box = tuple[float, float, float, float]  # left, bottom, width, height

DPI = 144
POINTS = 72  # an inch
PANEL = (3.5, 2.7)  # the curves' axes, inches
INK, GREY, PALE = "#222222", "#666666", "#e4e4e4"
SERIES = {"train": "#0072b2", "validation": "#d55e00"}  # Okabe and Ito's blue and vermilion
MISTAKES = LinearSegmentedColormap.from_list("mistakes", ["#ffffff", "#fdd0a2", "#f16913", "#7f2704"])
STYLE = {
    "figure.dpi": DPI,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a title or in a class name is a dollar
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
}


def curves(path: FilePath, rows: Rows, title: str) -> None:
    """Draw loss and accuracy against the epoch, for the training and the validation set.

    The loss has a logarithmic axis where it spans more than a factor of 10. A value that is None or not finite leaves
    a gap.

    Args:
        path: the picture to write; its suffix names the format, and without one it is a PNG
        rows: the rows of metrics.jsonl, of which those with an "epoch" count: "train_loss", "train_accuracy",
            "validation_loss" and "validation_accuracy", accuracies as shares from 0 to 1
        title: what was trained, in one line

    Raises:
        ValueError: when no row has an epoch, or one that has lacks a value
    """
    with _style():
        _write(path, _curves_figure(rows, title))


def confusion(path: FilePath, counts: ArrayLike, classes: Sequence[str], title: str) -> None:
    """Draw a confusion matrix in which the mistakes stand out: they alone are coloured, by their share of their row.

    Args:
        path: the picture to write; its suffix names the format, and without one it is a PNG
        counts: how many samples of each true class (row) were predicted as each class (column), integers (C, C)
        classes: the C names
        title: what was tested, in one line; the accuracy is written after it

    Raises:
        ValueError: when `counts` is not a square matrix of integers ≥ 0, holds no sample, or does not fit `classes`
    """
    table = _checked_counts(counts)
    if len(classes) != len(table):
        raise ValueError(f"`classes` ({len(classes)} names) must name each of the {len(table)} rows of `counts`")
    with _style():
        _write(path, _confusion_figure(table, classes, title))


def filters(path: FilePath, weights: ArrayLike, title: str, labels: Sequence[str] | None = None) -> None:
    """Draw weights as small images, all on one colour scale: red above 0, white at 0, blue below.

    The scale ends at the 99.5th percentile of |weight|, so that one large weight does not bleach all others; the ends
    of the colour bar are pointed where weights lie beyond. A weight that is not finite is grey.

    Args:
        path: the picture to write; its suffix names the format, and without one it is a PNG
        weights: the images, floats (count, height, width)
        title: whose weights these are, in one line
        labels: what to write under each image, or None

    Raises:
        ValueError: when `weights` is not a non-empty stack of images of real numbers, or does not fit `labels`
    """
    images = _checked_images(weights)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"`labels` ({len(labels)} labels) must have one for each of the {len(images)} `weights`")
    with _style():
        _write(path, _filters_figure(images, title, labels))


# ------------------------------------------------------------------------------------------- shared


def _style() -> contextlib.AbstractContextManager[None]:
    """Draw in this module's style, whatever the user's matplotlibrc says, and restore theirs afterwards."""
    return matplotlib.style.context(["default", STYLE])


def _write(path: FilePath, figure: Figure) -> None:
    """Save a figure: at every moment `path` is whole or as it was."""
    picture = io.BytesIO()
    figure.savefig(
        picture,
        format=Path(path).suffix.removeprefix(".") or "png",
        dpi=DPI,
        facecolor="white",
        bbox_inches="tight",
        pad_inches=0.15,
    )
    write_whole(path, picture.getvalue())


def _percent(share: float, digits: int) -> str:
    """Write a share as a percentage that says 100 only where nothing is missing."""
    if math.isnan(share):
        return "nan"
    text = f"{100 * share:.{digits}f}%"
    return f">{100 - 10.0**-digits:.{digits}f}%" if share < 1 and text.startswith("100") else text


def _heading(axes: Axes, text: str, above: float) -> None:
    """Write the figure's title, flush left with `axes` and `above` points over them."""
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, above),
        textcoords="offset points",
        fontsize=13,
        annotation_clip=False,
    )


def _axes_in_inches(figure: Figure, box: Box) -> Axes:
    """Add axes at a place given in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))


def _colour_bar(figure: Figure, box: Box, colours: ScalarMappable, label: str, extend: str = "neither") -> None:
    """Add a slim colour bar at a place given in inches."""
    ticks = MaxNLocator(nbins=max(2, min(6, int(box[3] / 0.4))), steps=[1, 2, 5, 10])
    bar = figure.colorbar(colours, cax=_axes_in_inches(figure, box), ticks=ticks, extend=extend)
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=9, width=0.8, length=3)
    bar.set_label(label, fontsize=9)


# ------------------------------------------------------------------------------------------- curves


def _curves_figure(rows: Rows, title: str) -> Figure:
    """Return the two panels."""
    kept = [row for row in rows if "epoch" in row]
    if not kept:
        raise ValueError(f"`rows` ({len(rows)} rows) must hold at least one with an 'epoch'")
    figure = Figure(figsize=(11.5, 4.0))
    loss = _axes_in_inches(figure, (0.6, 0.6, *PANEL))
    accuracy = _axes_in_inches(figure, (6.3, 0.6, *PANEL))
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
    shares = {name: _percent(values[-1] / 100, 2) for name, values in accuracies.items()}
    _end_labels(accuracy, last, accuracies, shares)
    _heading(loss, title, 30)
    return figure


def _column(rows: Rows, key: str) -> Floats:
    """Return one metric of all rows, with NaN for null and infinities."""
    for number, row in enumerate(rows):
        if key not in row:
            raise ValueError(f"`rows` (row {number} with an epoch: keys {', '.join(row)}) must all have {key!r}")
    values = np.array([math.nan if row[key] is None else float(row[key]) for row in rows])
    return np.where(np.isfinite(values), values, math.nan)


def _lines(axes: Axes, epochs: Floats, values: Mapping[str, Floats]) -> None:
    """Draw both series, with a marker at each of few epochs and at the last of many."""
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
    """Name the vertical axis where it is read without turning one's head."""
    axes.set_title(text, loc="left", fontsize=10, pad=10)


def _scale_loss(axes: Axes, losses: Mapping[str, Floats]) -> bool:
    """Choose the axis of the loss; return whether it is logarithmic."""
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
    """Show at least two percentage points, lest noise look like a trend, and hardly anything above 100 or below 0."""
    low, high = _range(accuracies, (0.0, 100.0))
    half = max(2.0, 1.12 * (high - low)) / 2
    spare = 0.06 * half
    centre = min(max((low + high) / 2, half - spare), 100 + spare - half)
    axes.set_ylim(max(centre - half, -spare), min(centre + half, 100 + spare))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)


def _range(values: Mapping[str, Floats], otherwise: tuple[float, float]) -> tuple[float, float]:
    """Return the smallest and the largest finite value."""
    both = np.concatenate(list(values.values()))
    finite = both[np.isfinite(both)]
    return (float(finite.min()), float(finite.max())) if finite.size else otherwise


def _end_labels(axes: Axes, last: float, values: Mapping[str, Floats], texts: Mapping[str, str]) -> None:
    """Write each series' name and last value beside the end of its line, moved apart where they would touch."""
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
    """Return how far above the axes' foot a line ends, in points."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return PANEL[1] * POINTS / 2
    pixel = axes.transData.transform((axes.get_xlim()[1], finite[-1]))
    return float(axes.transAxes.inverted().transform(pixel)[1]) * PANEL[1] * POINTS


def _apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move two heights apart, by the same amount each, until they are `gap` from each other."""
    (lower, y0), (upper, y1) = sorted(heights.items(), key=lambda item: item[1])
    lack = max(0.0, gap - (y1 - y0)) / 2
    return {lower: y0 - lack, upper: y1 + lack}


# ---------------------------------------------------------------------------------------- confusion


def _checked_counts(counts: ArrayLike) -> Counts:
    """Return the counts as a square matrix of integers ≥ 0, not all of them 0."""
    table = np.asarray(counts)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"`counts` (shape {table.shape}) must be square")
    if not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"`counts` (dtype {table.dtype}) must hold integers")
    if table.size and table.min() < 0:
        raise ValueError(f"`counts` (smallest {table.min()}) must be at least 0")
    if not table.any():
        raise ValueError(f"`counts` (shape {table.shape}, sum 0) must count at least one sample")
    return table.astype(np.int64)


def _confusion_figure(counts: Counts, classes: Sequence[str], title: str) -> Figure:
    """Return the matrix, with the recall of each class at its right."""
    size = len(counts)
    cell = min(1.2, max(2 / size, min(0.62, 12 / size)))  # inches
    side = cell * size
    figure = Figure(figsize=(side + 3, side + 2))
    axes = _axes_in_inches(figure, (1, 1, side, side))
    totals = counts.sum(1, keepdims=True)
    shares = 100 * counts / np.maximum(totals, 1)
    mistakes = np.ma.masked_array(shares, np.eye(size, dtype=bool))
    largest = float(np.max(mistakes.filled(0)))
    norm = Normalize(0, max(largest, 1.0))
    axes.imshow(mistakes, cmap=MISTAKES.with_extremes(bad=PALE), norm=norm, interpolation="nearest")
    font = max(3.0, min(10.0, cell * POINTS / 3, 1.3 * cell * POINTS / len(str(counts.max()))))
    _cells(axes, counts, mistakes, norm, font)
    _class_axes(axes, classes, cell)
    recalls = np.diagonal(shares) / 100
    _recalls(axes, [_percent(r, 1) if n else "–" for r, n in zip(recalls, totals[:, 0], strict=True)], font)
    if largest:
        height = min(side, 3.0)
        box = (1 + side + 0.35 + 5.6 * max(font, 7) / POINTS, 1 + side - height, 0.14, height)
        _colour_bar(figure, box, ScalarMappable(norm, MISTAKES), "Mistakes, % of the true class")
    correct, total = int(np.trace(counts)), int(counts.sum())
    _heading(axes, f"{title}: accuracy {_percent(correct / total, 2)} ({correct:,} of {total:,})", 26)
    return figure


def _cells(axes: Axes, counts: Counts, mistakes: np.ma.MaskedArray[Any, Any], norm: Normalize, font: float) -> None:
    """Print the counts, in white on the dark cells, and leave zeros blank."""
    for row, column in np.argwhere(counts):
        dark = row != column and norm(mistakes[row, column]) > 0.72
        colour = "white" if dark else GREY if row == column else INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center_baseline", color=colour, fontsize=font)


def _class_axes(axes: Axes, classes: Sequence[str], cell: float) -> None:
    """Name the classes on both axes, slanted below where the names are long, and rule the cells."""
    size = len(classes)
    font = max(4.0, min(10.0, cell * POINTS / 1.7))
    slanted = max(len(str(name)) for name in classes) * 0.62 * font > 0.9 * cell * POINTS
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(size), [str(name) for name in classes], fontsize=font, **slant)
    axes.set_yticks(range(size), [str(name) for name in classes], fontsize=font)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PALE, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set(color=PALE, linewidth=0.6)
    axes.set_xlabel("Predicted class", labelpad=8)
    axes.set_ylabel("True class", labelpad=8)


def _recalls(axes: Axes, texts: Sequence[str], font: float) -> None:
    """Write a column of recalls at the right of the matrix."""
    size, font = len(texts), max(font, 4)
    right = 5.4 * max(font, 7)  # points, where the column ends
    for row, text in [(-0.5, "Recall"), *enumerate(texts)]:
        head = text == "Recall"
        axes.annotate(
            text,
            (size - 0.5, row),
            xytext=(right, 5 if head else 0),
            textcoords="offset points",
            ha="right",
            va="bottom" if head else "center_baseline",
            color=GREY if head else INK,
            fontsize=max(font, 7) if head else font,
            annotation_clip=False,
        )


# ------------------------------------------------------------------------------------------ filters


def _checked_images(weights: ArrayLike) -> Floats:
    """Return the weights as a non-empty stack of float64 images."""
    images = np.asarray(weights)
    if images.ndim != 3 or 0 in images.shape:
        raise ValueError(f"`weights` (shape {images.shape}) must be (count, height, width), each at least 1")
    try:
        # Not by the dtype's kind: NumPy does not know bfloat16 for a float.
        return images.astype(np.float64, casting="same_kind")
    except TypeError:
        raise ValueError(f"`weights` (dtype {images.dtype}) must hold real numbers") from None


def _filters_figure(images: Floats, title: str, labels: Sequence[str] | None) -> Figure:
    """Return the images in a grid, with one colour bar."""
    count, height, width = images.shape
    columns = _columns(count)
    rows = math.ceil(count / columns)
    pixel = _pixel(width, height, min(2.0, 11 / columns))
    across, down = pixel * width, pixel * height  # inches, as all lengths here
    gap = max(0.06, 0.08 * across)
    font = min(10.0, 1.6 * (across + gap) * POINTS / max(map(len, map(str, labels)), default=1)) if labels else 0.0
    foot = 1.7 * font / POINTS
    wide, tall = columns * (across + gap) - gap, rows * (down + foot + gap) - gap
    figure = Figure(figsize=(wide + 2, tall + 2))
    axes = _axes_in_inches(figure, (0.5, 0.5, wide, tall))
    axes.set(xlim=(0, wide), ylim=(tall, 0), autoscale_on=False)
    axes.set_axis_off()
    norm, cmap, extend = _diverging(images)
    for number, image in enumerate(images):
        left, top = (number % columns) * (across + gap), (number // columns) * (down + foot + gap)
        _tile(axes, image, (left, top, across, down), norm, cmap)
        if labels:
            axes.text(left + across / 2, top + down + foot / 4, str(labels[number]), ha="center", va="top", size=font)
    bar = min(tall, max(1.2, min(tall - foot, 3.0)))
    _colour_bar(figure, (0.5 + wide + 0.3, 0.5 + tall - bar, 0.14, bar), ScalarMappable(norm, cmap), "Weight", extend)
    _heading(axes, title, 12)
    return figure


def _columns(count: int) -> int:
    """Return the number of columns, in a grid up to about four times as wide as high, that leaves fewest gaps."""
    root = math.sqrt(count)
    choices = range(math.ceil(root), math.ceil(2 * root) + 1)
    return min(choices, key=lambda columns: (-count % columns, abs(columns - 1.5 * root)))


def _pixel(width: int, height: int, side: float) -> float:
    """Return the inches of one weight: whole pixels of the picture if there are enough, so that all look alike."""
    dots = side * DPI / max(width, height)
    return (math.floor(dots) if dots >= 1 else dots) / DPI


def _diverging(images: Floats) -> tuple[Normalize, Colormap, str]:
    """Return a scale about 0, its colours, and which ends of its bar are pointed."""
    finite = images[np.isfinite(images)]
    limit = float(np.percentile(np.abs(finite), 99.5, method="higher")) if finite.size else 0.0
    beyond = (bool((finite < -limit).any()), bool((finite > limit).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    limit = limit or 1.0
    return Normalize(-limit, limit), colormaps["RdBu_r"].with_extremes(bad="#bbbbbb"), extend


def _tile(axes: Axes, image: Floats, box: Box, norm: Normalize, cmap: Colormap) -> None:
    """Draw one image, framed because its weights near 0 are as white as the page."""
    left, top, width, height = box
    axes.imshow(
        image,
        cmap=cmap,
        norm=norm,
        interpolation="nearest",
        extent=(left, left + width, top + height, top),
    )
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="#999999", linewidth=0.5, clip_on=False))
