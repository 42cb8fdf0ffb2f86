"""The weights of a layer, as small images."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from jaxnn.plots.picture import DPI, POINTS, Box, FilePath, Floats, axes_in_inches, colour_bar, heading, style, write


def filters(path: FilePath, weights: ArrayLike, title: str, labels: Sequence[str] | None = None) -> None:
    """Draw weights as small images with one colour scale: red above 0, white at 0, blue below.

    The scale ends at the 99.5th percentile of |weight|, so that one large weight does not make all others pale. The
    ends of the colour bar are pointed if weights lie beyond them. A weight that is not finite is grey.

    Args:
        path: the picture file; its suffix gives the format (default: PNG)
        weights: the images, floats (count, height, width)
        title: what the weights belong to, in one line
        labels: the text under each image, or None

    Raises:
        ValueError: `weights` is not a non-empty stack of images of real numbers, or does not match `labels`
    """
    images = _checked_images(weights)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"`labels` ({len(labels)} labels) must have one for each of the {len(images)} `weights`")
    with style():
        write(path, _filters_figure(images, title, labels))


def _checked_images(weights: ArrayLike) -> Floats:
    """Return the weights as a non-empty stack of float64 images."""
    images = np.asarray(weights)
    if images.ndim != 3 or 0 in images.shape:
        raise ValueError(f"`weights` (shape {images.shape}) must be (count, height, width), each at least 1")
    try:
        # The dtype's kind would not do: NumPy does not treat bfloat16 as a float.
        return images.astype(np.float64, casting="same_kind")
    except TypeError:
        raise ValueError(f"`weights` (dtype {images.dtype}) must hold real numbers") from None


def _filters_figure(images: Floats, title: str, labels: Sequence[str] | None) -> Figure:
    """Return the figure: the images in a grid, with one colour bar."""
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
    axes = axes_in_inches(figure, (0.5, 0.5, wide, tall))
    axes.set(xlim=(0, wide), ylim=(tall, 0), autoscale_on=False)
    axes.set_axis_off()
    norm, cmap, extend = _diverging(images)
    for number, image in enumerate(images):
        left, top = (number % columns) * (across + gap), (number // columns) * (down + foot + gap)
        _tile(axes, image, (left, top, across, down), norm, cmap)
        if labels:
            axes.text(left + across / 2, top + down + foot / 4, str(labels[number]), ha="center", va="top", size=font)
    bar = min(tall, max(1.2, min(tall - foot, 3.0)))
    colour_bar(figure, (0.5 + wide + 0.3, 0.5 + tall - bar, 0.14, bar), ScalarMappable(norm, cmap), "Weight", extend)
    heading(axes, title, 12)
    return figure


def _columns(count: int) -> int:
    """Return the number of columns that leaves the fewest gaps, in a grid at most about four times as wide as high."""
    root = math.sqrt(count)
    choices = range(math.ceil(root), math.ceil(2 * root) + 1)
    return min(choices, key=lambda columns: (-count % columns, abs(columns - 1.5 * root)))


def _pixel(width: int, height: int, side: float) -> float:
    """Return the size of one weight in inches: whole pixels, if there is room, so that all weights look the same."""
    dots = side * DPI / max(width, height)
    return (math.floor(dots) if dots >= 1 else dots) / DPI


def _diverging(images: Floats) -> tuple[Normalize, Colormap, str]:
    """Return a scale that is symmetric about 0, its colours, and which ends of its bar are pointed."""
    finite = images[np.isfinite(images)]
    limit = float(np.percentile(np.abs(finite), 99.5, method="higher")) if finite.size else 0.0
    beyond = (bool((finite < -limit).any()), bool((finite > limit).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    limit = limit or 1.0
    return Normalize(-limit, limit), colormaps["RdBu_r"].with_extremes(bad="#bbbbbb"), extend


def _tile(axes: Axes, image: Floats, box: Box, norm: Normalize, cmap: Colormap) -> None:
    """Draw one image, with a frame, because weights near 0 are as white as the page."""
    left, top, width, height = box
    axes.imshow(
        image,
        cmap=cmap,
        norm=norm,
        interpolation="nearest",
        extent=(left, left + width, top + height, top),
    )
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="#999999", linewidth=0.5, clip_on=False))
