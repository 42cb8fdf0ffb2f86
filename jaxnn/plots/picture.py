"""What all pictures share: the style, sizes in inches, and a file that is never incomplete."""

import contextlib
import io
import math
import os
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from jaxnn.files import write_whole

FilePath = str | os.PathLike[str]
Floats = NDArray[np.float64]
Box = tuple[float, float, float, float]  # left, bottom, width, height

DPI = 144
POINTS = 72  # per inch
INK, GREY, PALE = "#222222", "#666666", "#e4e4e4"
STYLE = {
    "figure.dpi": DPI,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a title or a class name is a dollar sign, not mathematics
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
}


def style() -> contextlib.AbstractContextManager[None]:
    """Use this module's style instead of the user's matplotlibrc, which is restored afterwards."""
    return matplotlib.style.context(["default", STYLE])


def write(path: FilePath, figure: Figure) -> None:
    """Save a figure; at every moment the file is either the old one or the complete new one."""
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


def percent(share: float, digits: int) -> str:
    """Write a share as a percentage; only a share of exactly 1 is written as 100%."""
    if math.isnan(share):
        return "nan"
    text = f"{100 * share:.{digits}f}%"
    return f">{100 - 10.0**-digits:.{digits}f}%" if share < 1 and text.startswith("100") else text


def heading(axes: Axes, text: str, above: float) -> None:
    """Write the figure's title, left-aligned with `axes` and `above` points above them."""
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, above),
        textcoords="offset points",
        fontsize=13,
        annotation_clip=False,
    )


def axes_in_inches(figure: Figure, box: Box) -> Axes:
    """Add axes at a place given in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))


def colour_bar(figure: Figure, box: Box, colours: ScalarMappable, label: str, extend: str = "neither") -> None:
    """Add a slim colour bar at a place given in inches."""
    ticks = MaxNLocator(nbins=max(2, min(6, int(box[3] / 0.4))), steps=[1, 2, 5, 10])
    bar = figure.colorbar(colours, cax=axes_in_inches(figure, box), ticks=ticks, extend=extend)
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=9, width=0.8, length=3)
    bar.set_label(label, fontsize=9)
