"""The static half of a convolution: its arguments checked, its padding in pixels."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxnn.rules import arguments
from jaxnn.rules.cotangents import resolve_precision

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Padding = int | Pair | Pads | str


class Geometry(NamedTuple):
    """The static half of a convolution."""

    stride: Pair
    pads: Pads
    dilation: Pair
    groups: int
    layout: str
    precision: Any


def checked(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None,
    stride: int | Pair,
    padding: Padding,
    dilation: int | Pair,
    groups: int,
    layout: str,
    precision: Any,
) -> tuple[Array, Array, Array | None, Geometry]:
    """Check the arguments of conv2d; return the arrays in their promoted dtype, and the geometry."""
    x, w = arguments.floating("x", x), arguments.floating("w", w)
    b = None if b is None else arguments.floating("b", b)
    layout = arguments.layout(layout)
    groups = arguments.integer("groups", groups, 1)
    image, filters = _sizes(x, w, layout)
    _check_channels(x, w, b, image, filters, groups, layout)
    stride, dilation = arguments.pair("stride", stride, 1), arguments.pair("dilation", dilation, 1)
    spans = dilation[0] * (filters["H"] - 1) + 1, dilation[1] * (filters["W"] - 1) + 1
    pads = _pads(padding, (image["H"], image["W"]), spans, stride)
    for axis, (before, after), span in zip("HW", pads, spans, strict=True):
        if filters[axis] < 1 or image[axis] + before + after < span:
            raise ValueError(
                f"{arguments.described('w', w)} must fit into the padded {arguments.described('x', x)}: along {axis} "
                f"it spans {span} of {image[axis] + before + after} pixels; add `padding` or lower `dilation`"
            )
    dtype = jnp.result_type(x, w) if b is None else jnp.result_type(x, w, b)
    geometry = Geometry(stride, pads, dilation, groups, layout, resolve_precision(precision))
    return x.astype(dtype), w.astype(dtype), None if b is None else b.astype(dtype), geometry


def _sizes(x: Array, w: Array, layout: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the sizes of the images' axes C, H, W, and of the filters' O, I, H, W."""
    axes = "OIHW" if layout == "NCHW" else "HWIO"
    if x.ndim < 3:
        raise ValueError(f"{arguments.described('x', x)} must end in the three axes {', '.join(layout[1:])}")
    if w.ndim != 4:
        raise ValueError(f"{arguments.described('w', w)} must have the four axes {', '.join(axes)}")
    return dict(zip(layout[1:], x.shape[-3:], strict=True)), dict(zip(axes, w.shape, strict=True))


def _check_channels(
    x: Array, w: Array, b: Array | None, image: dict[str, int], filters: dict[str, int], groups: int, layout: str
) -> None:
    if image["C"] % groups or filters["O"] % groups:
        raise ValueError(
            f"`groups` ({groups}) must divide the {image['C']} channels of {arguments.described('x', x)} "
            f"and the {filters['O']} of {arguments.described('w', w)}"
        )
    if filters["I"] != image["C"] // groups:
        raise ValueError(
            f"{arguments.described('w', w)} must have {image['C'] // groups} input channels to match "
            f"{arguments.described('x', x)} in {layout} with groups {groups}; in {layout} `w` is "
            f"({', '.join(filters)}): check `layout`"
        )
    if b is not None and b.shape != (filters["O"],):
        raise ValueError(
            f"{arguments.described('b', b)} must have shape ({filters['O']},), one bias a filter; "
            f"drop axes of size 1 with `b.reshape(-1)`"
        )


def _pads(padding: Padding, size: Pair, spans: Pair, stride: Pair) -> Pads:
    """Return the padding in pixels, of images and filters of these sizes."""
    if isinstance(padding, str):
        if padding.upper() == "VALID":
            return (0, 0), (0, 0)
        if padding.upper() == "SAME":
            totals = [max(0, (math.ceil(n / s) - 1) * s + r - n) for n, s, r in zip(size, stride, spans, strict=True)]
            return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
        raise ValueError(f"`padding` ({padding!r}) must be 'SAME', 'VALID' or a number of pixels")
    if isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) != 2 or any(not isinstance(p, (tuple, list)) for p in padding):
            raise ValueError(f"`padding` ({padding!r}) must be ((top, bottom), (left, right))")
        return arguments.pair("padding", padding[0], 0), arguments.pair("padding", padding[1], 0)
    height, width = arguments.pair("padding", padding, 0)
    return (height, height), (width, width)
