"""Operations of the matrix products and convolutions of a compiled program: two for each product of two numbers."""

import json
import math
import re

import numpy as np

from jaxnn.accelerators.hlo import Computation, Instruction, UnknownProgram


def flops_of(inside: Computation, i: Instruction) -> float:
    """Return the operations of one instruction; NaN of a library's kernel that is not known, 0 of all others."""
    if i.opcode in ("dot", "scaled-dot"):
        left = inside.instructions[i.operands[0]].arrays[0].dims
        contracted = [left[int(d)] for d in i.attribute("lhs_contracting_dims").split(",") if d]
        return 2.0 * math.prod(i.arrays[0].dims) * math.prod(contracted)
    if i.opcode == "convolution":
        x, w = (inside.instructions[name].arrays[0].dims for name in i.operands)
        return _convolution(i, x, w, i.arrays[0].dims)
    return _library(inside, i) if i.opcode == "custom-call" else 0.0


def _library(inside: Computation, i: Instruction) -> float:
    """Return the operations of a kernel of cuBLAS or cuDNN."""
    kind, y = i.attribute("custom_call_target"), i.arrays[0].dims
    if kind.startswith("__cublas$"):
        left = inside.instructions[i.operands[0]].arrays[0].dims
        contracted = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', i.attributes)
        if contracted is None:
            raise UnknownProgram(f"the product {i.name} of the compiled program is not understood")
        return 2.0 * math.prod(y) * math.prod(left[int(d)] for d in json.loads(contracted[1]))
    if kind.startswith("__cudnn$conv"):
        x, w = (inside.instructions[name].arrays[0].dims for name in i.operands[:2])
        # The labels and the window are those of the convolution forward, y = x * w.
        roles = {"BackwardInput": (y, w, x), "BackwardFilter": (x, y, w)}
        return _convolution(i, *roles.get(kind.removeprefix("__cudnn$conv"), (x, w, y)))
    return math.nan


def _convolution(i: Instruction, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> float:
    """Return the operations of a convolution, without those on the zeros of its padding and its dilation."""
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", i.attribute("dim_labels"))
    if labels is None:
        raise UnknownProgram(f"the convolution {i.name} of the compiled program is not understood")
    of_x, of_w, of_y = labels.groups()
    fields = dict(field.split("=") for field in i.attribute("window").split())
    products = float(y[of_y.index("b")] * y[of_y.index("f")] * w[of_w.index("i")])
    for axis in range(sum(c.isdigit() for c in of_x)):
        window = {key: value.split("x")[axis] for key, value in fields.items()}
        products *= _pairs(
            x[of_x.index(str(axis))], w[of_w.index(str(axis))], y[of_y.index(str(axis))],
            int(window.get("stride", 1)), int(window.get("pad", "0_0").split("_")[0]),
            int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1)),
        )  # fmt: skip
    return 2.0 * products


def _pairs(x: int, w: int, y: int, stride: int, before: int, spread: int, dilation: int) -> int:
    """Return how many pairs of an output and a weight along one axis meet a number of x."""
    at = np.arange(y)[:, None] * stride + np.arange(w) * dilation - before
    return int(np.sum((at >= 0) & (at <= (x - 1) * spread) & (at % spread == 0)))
