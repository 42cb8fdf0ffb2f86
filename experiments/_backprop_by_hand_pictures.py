"""The pictures of `backprop_by_hand.py`, from its results alone."""

import _experiment as experiment
import numpy as np
from _backprop_by_hand_network import CLASSES, CNN, NUDGES
from matplotlib.figure import Figure

CAPTIONS = {
    "backprop_by_hand_jacobians": (
        "The chain of Jacobians from ℓ to x, drawn to scale, and the row vector that each one passes on."
    ),
    "backprop_by_hand_nudge": (
        "A nudged pixel, followed to the loss. The error of the prediction falls with Δx², unless a consumer is "
        "forgotten."
    ),
    "backprop_by_hand_upstream": "A digit on its way forward, and below it the gradient on its way back.",
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw the upstream gradients of one digit, the nudge, and the Jacobians."""
    return {
        "backprop_by_hand_upstream": draw_upstream(results["digit"]),
        "backprop_by_hand_nudge": draw_nudge(results["nudge"], results["residual"]),
        "backprop_by_hand_jacobians": draw_jacobians(results["jacobians"]),
    }


def side_by_side(maps):
    """Return a layer's maps in two rows, with gaps (NaN) between them."""
    framed = [np.pad(np.kron(each, np.ones((6, 6))), 1, constant_values=np.nan) for each in np.asarray(maps)]
    half = len(framed) // 2
    return np.vstack([np.hstack(framed[:half]), np.hstack(framed[half:])]) if half else np.asarray(maps[0])


def draw_upstream(digit):
    """Draw h_k above and |∂ℓ/∂h_k| below, layer by layer."""
    columns = {name: f"{name} = {formula(layer, inputs)}" for name, layer, inputs in CNN}
    columns = {"x": f"x, a {digit['class']}", **columns}
    figure, axes = experiment.panels(2, len(columns), width=1.75, height=1.95)
    for row, which in enumerate(("values", "upstream")):
        for axis, (name, title) in zip(axes[row], columns.items(), strict=True):
            array = np.asarray(digit[which][name])
            array = array if row == 0 else np.abs(array)
            if array.ndim == 3:
                axis.set_facecolor(experiment.GREY)  # seen in the gaps
                limit = np.max(np.abs(array)) if array.min() < 0 else None
                experiment.picture(axis, side_by_side(array), limit=limit)
            elif array.ndim == 1:
                colours = [experiment.VERMILION if j == digit["class"] else experiment.BLUE for j in range(CLASSES)]
                axis.barh(range(CLASSES), array, color=colours)
                axis.set(yticks=range(CLASSES), ylim=(CLASSES - 0.4, -0.6))
                axis.tick_params(labelsize=7)
                axis.locator_params(axis="x", nbins=4)
                axis.grid(visible=False)
            else:
                axis.text(0.5, 0.5, f"{array:.3f}" if row == 0 else "1", ha="center", va="center", fontsize=16)
                axis.set_axis_off()
            axis.set_title(title if row == 0 else f"|∂ℓ/∂{name}|", fontsize=9, loc="center")
    y, x = divmod(digit["pixel"], len(digit["values"]["x"][0]))
    axes[0, 0].plot(
        x, y, "s", markersize=12, markeredgewidth=2, markerfacecolor="none", markeredgecolor=experiment.VERMILION
    )
    axes[0, 0].set_ylabel("forward: h →")
    axes[1, 0].set_ylabel("← backward: |upstream|")
    return figure


def formula(layer, inputs):
    """Return how a layer is written."""
    if layer in ("W * x", "Wx"):
        return layer.replace("W", inputs[1]).replace("x", inputs[0])
    return f"{layer}({', '.join(inputs)})"


def draw_nudge(nudged, residual):
    """Draw predicted and measured changes and what remains, over the size of the nudge."""
    figure, ((change, remainder, consumers),) = experiment.panels(1, 3, width=4.5, height=3.9)
    shown = {"x₁": experiment.GREEN, "x₄": experiment.SKY, "y": experiment.BLUE, "ℓ": experiment.VERMILION}
    for name, colour in shown.items():
        change.loglog(NUDGES, nudged["predicted"][name], color=colour, linewidth=1, label=f"|Δ{name}|")
        change.loglog(NUDGES[::4], nudged["measured"][name][::4], "o", color=colour, markersize=4)
        remainder.loglog(NUDGES, nudged["remainder"][name], color=colour, label=name)
    for (name, each), power in zip(residual["remainder"].items(), residual["slopes"], strict=True):
        consumers.loglog(NUDGES, each, label=f"{name}: slope {power:.2f}")
    for axes, kink in ((remainder, nudged["kink"]), (consumers, residual["kink"])):
        axes.set(ylim=(1e-18, 1e3))
        if kink:
            axes.axvline(kink, 0.2, color=experiment.GREY, linewidth=0.8, linestyle="--")  # not through the legend
            axes.annotate("first kink", (kink, 1e3), xytext=(-3, -12), textcoords="offset points", ha="right")
    for axes, place in ((change, "upper left"), (remainder, "upper left"), (consumers, "lower left")):
        axes.legend(loc=place)
    change.set(title="The nudge arrives: lines predicted, dots measured", xlabel="Δx, of one pixel")
    remainder.set(title=f"Measured less predicted (ℓ: slope {nudged['slope']:.2f})", xlabel="Δx, of one pixel")
    consumers.set(title="Two consumers: |Δℓ − (∂ℓ/∂x) Δx|", xlabel="Δx, of one pixel")
    return figure


def draw_jacobians(chain):
    """Draw the matrices to scale, and below each the row vector that it passes on."""
    names = [name for name, *_ in reversed(CNN)] + ["x"]
    gap, foot, unit = 32, 58, 0.023  # elements, elements, inches an element
    shapes = [matrix["shape"] for matrix in chain["matrices"]]
    width = sum(n for _, n in shapes) + gap * len(shapes)
    height = foot + max(m for m, _ in shapes) + 28
    figure = Figure(figsize=(width * unit, height * unit))
    left = gap / 2
    for i, ((m, n), matrix, row) in enumerate(zip(shapes, chain["matrices"], chain["rows"], strict=True)):
        dense = np.zeros(m * n)
        dense[matrix["places"]] = matrix["values"]
        for array, bottom, tall in ((dense.reshape(m, n), foot, m), (np.array([row]), 26, 8)):
            axes = figure.add_axes((left / width, bottom / height, n / width, tall / height))
            experiment.picture(axes, array, limit=np.max(np.abs(array)))
            axes.set_aspect("auto")
            axes.spines[:].set(color=experiment.GREY)
        centre = {"x": (left + n / 2) / width, "ha": "center"}
        figure.text(y=(foot + m + 4) / height, s=f"∂{names[i]}/∂{names[i + 1]}\n{m}×{n}", **centre)
        figure.text(y=22 / height, s=f"∂ℓ/∂{names[i + 1]}\n1×{n}", va="top", **centre)
        left += n + gap
    left, right = chain["multiplications"]
    lines = (
        "Above: the Jacobians, to scale, rows outputs and columns inputs (blue −, white 0, red +).",
        "Below each: the row vector that comes out of it, the gradient on its way to x.",
        f"From the left, row × matrix: {left:,} multiplications. From the right, matrix × matrix: {right:,}.",
    )
    figure.text(gap / 2 / width, 0.95, "∂ℓ/∂x, a product of Jacobians", fontsize=13, va="top")
    figure.text(gap / 2 / width, 0.87, "\n".join(lines), linespacing=1.6, va="top", color=experiment.GREY)
    return figure
