"""The confusion matrix of a classifier."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from jaxnn.plots.picture import (
    GREY,
    INK,
    PALE,
    POINTS,
    FilePath,
    axes_in_inches,
    colour_bar,
    heading,
    percent,
    style,
    write,
)

Counts = NDArray[np.int64]

MISTAKES = LinearSegmentedColormap.from_list("mistakes", ["#ffffff", "#fdd0a2", "#f16913", "#7f2704"])


def confusion(path: FilePath, counts: ArrayLike, classes: Sequence[str], title: str) -> None:
    """Draw a confusion matrix that emphasises mistakes: only they are coloured, by their share of the row.

    Args:
        path: the picture file; its suffix gives the format (default: PNG)
        counts: the number of samples of each true class (row) and predicted class (column), integers (C, C)
        classes: the names of the C classes
        title: what was tested, in one line; the accuracy is appended

    Raises:
        ValueError: `counts` is not a square matrix of integers ≥ 0, counts no sample, or does not match `classes`
    """
    table = _checked_counts(counts)
    if len(classes) != len(table):
        raise ValueError(f"`classes` ({len(classes)} names) must name each of the {len(table)} rows of `counts`")
    with style():
        write(path, _confusion_figure(table, classes, title))


def _checked_counts(counts: ArrayLike) -> Counts:
    """Return the counts, after checking that they are a square matrix of integers ≥ 0, not all 0."""
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
    """Return the figure: the matrix, with the recall of each class to the right."""
    size = len(counts)
    cell = min(1.2, max(2 / size, min(0.62, 12 / size)))  # inches
    side = cell * size
    figure = Figure(figsize=(side + 3, side + 2))
    axes = axes_in_inches(figure, (1, 1, side, side))
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
    _recalls(axes, [percent(r, 1) if n else "–" for r, n in zip(recalls, totals[:, 0], strict=True)], font)
    if largest:
        height = min(side, 3.0)
        box = (1 + side + 0.35 + 5.6 * max(font, 7) / POINTS, 1 + side - height, 0.14, height)
        colour_bar(figure, box, ScalarMappable(norm, MISTAKES), "Mistakes, % of the true class")
    correct, total = int(np.trace(counts)), int(counts.sum())
    heading(axes, f"{title}: accuracy {percent(correct / total, 2)} ({correct:,} of {total:,})", 26)
    return figure


def _cells(axes: Axes, counts: Counts, mistakes: np.ma.MaskedArray[Any, Any], norm: Normalize, font: float) -> None:
    """Write the counts, in white on dark cells; zeros are left blank."""
    for row, column in np.argwhere(counts):
        dark = row != column and norm(mistakes[row, column]) > 0.72
        colour = "white" if dark else GREY if row == column else INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center_baseline", color=colour, fontsize=font)


def _class_axes(axes: Axes, classes: Sequence[str], cell: float) -> None:
    """Write the class names on both axes, slanted below if they are long, and draw lines between the cells."""
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
    """Write the column of recalls to the right of the matrix."""
    size, font = len(texts), max(font, 4)
    right = 5.4 * max(font, 7)  # the right edge of the column, in points
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
