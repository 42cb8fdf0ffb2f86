"""How often a class made each mistake: a figure for slides."""

import textwrap
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxnn.plots.picture import GREY, FilePath, axes_in_inches, heading, style, write

BAR, WIDTH, LABELS = 0.42, 4.2, 46  # inches for a bar, and for the longest; characters in a line of a label
MOST = 12  # bars; those of rarer mistakes are left out


def mistakes(path: FilePath, counts: Mapping[str, int], hand_ins: int, title: str) -> None:
    """Draw how many hand-ins have each mistake, the most frequent on top.

    Args:
        path: the picture file; its suffix gives the format (default: PNG)
        counts: the number of hand-ins with each mistake, the most frequent first
        hand_ins: the number of all hand-ins
        title: what was graded, in one line
    """
    with style():
        write(path, _figure(counts, hand_ins, title))


def _figure(counts: Mapping[str, int], hand_ins: int, title: str) -> Figure:
    shown = list(counts.items())[:MOST] or [("no mistake", 0)]
    height = BAR * len(shown)
    figure = Figure(figsize=(10.0, height + 1.4))
    axes = axes_in_inches(figure, (4.0, 0.6, WIDTH, height))
    labels = ["\n".join(textwrap.wrap(label, LABELS)) for label, _ in shown]
    values = [count for _, count in shown]
    bars = axes.barh(range(len(shown)), values, height=0.6, color="#0072b2")
    axes.bar_label(bars, padding=4, color=GREY)
    axes.set_yticks(range(len(shown)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1, *values) * 1.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"hand-ins with this mistake, of {hand_ins}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    more = len(counts) - len(shown)
    heading(axes, title + (f" ({more} rarer mistakes are left out)" if more > 0 else ""), 14)
    return figure
