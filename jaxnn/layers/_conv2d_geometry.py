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
    x, w = arguments.floating("x", x), arguments.floating("w", w)
    b = None if b is None else arguments.floating("b", b)
    layout = arguments.layout(layout)
    groups = arguments.integer("groups", groups, 1)
    filters = "OIHW" if layout == "NCHW" else "HWIO"
    if x.ndim < 3:
        raise ValueError(f"{arguments.described('x', x)} must end in the three axes {', '.join(layout[1:])}")
    if w.ndim != 4:
        raise ValueError(f"{arguments.described('w', w)} must have the four axes {', '.join(filters)}")
    size = dict(zip(layout[1:], x.shape[-3:], strict=True))
    filter_size = dict(zip(filters, w.shape, strict=True))
    if size["C"] % groups or filter_size["O"] % groups:
        raise ValueError(
            f"`groups` ({groups}) must divide the {size['C']} channels of {arguments.described('x', x)} "
            f"and the {filter_size['O']} of {arguments.described('w', w)}"
        )
    if filter_size["I"] != size["C"] // groups:
        raise ValueError(
            f"{arguments.described('w', w)} must have {size['C'] // groups} input channels to match "
            f"{arguments.described('x', x)} in {layout} with groups {groups}; `w` is {filters} there: check `layout`"
        )
    if b is not None and b.shape != (filter_size["O"],):
        raise ValueError(
            f"{arguments.described('b', b)} must have shape ({filter_size['O']},), one bias a filter; "
            f"drop axes of size 1 with `b.reshape(-1)`"
        )
    geometry = Geometry(
        stride=arguments.pair("stride", stride, 1),
        pads=((0, 0), (0, 0)),
        dilation=arguments.pair("dilation", dilation, 1),
        groups=groups,
        layout=layout,
        precision=resolve_precision(precision),
    )
    reach = tuple(d * (filter_size[a] - 1) + 1 for d, a in zip(geometry.dilation, "HW", strict=True))
    pads = _pads(padding, (size["H"], size["W"]), reach, geometry.stride)
    for axis, (before, after), extent in zip("HW", pads, reach, strict=True):
        if filter_size[axis] < 1 or size[axis] + before + after < extent:
            raise ValueError(
                f"{arguments.described('w', w)} must fit into the padded {arguments.described('x', x)}: "
                f"along {axis} it spans {extent} of {size[axis] + before + after} pixels; add `padding` or lower "
                f"`dilation`"
            )
    dtype = jnp.result_type(x, w) if b is None else jnp.result_type(x, w, b)
    b = None if b is None else b.astype(dtype)
    return x.astype(dtype), w.astype(dtype), b, geometry._replace(pads=pads)


def _pads(padding: Padding, size: Pair, reach: tuple[int, ...], stride: Pair) -> Pads:
    if isinstance(padding, str):
        if padding.upper() == "VALID":
            return (0, 0), (0, 0)
        if padding.upper() == "SAME":
            totals = [max(0, (math.ceil(n / s) - 1) * s + r - n) for n, s, r in zip(size, stride, reach, strict=True)]
            return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
        raise ValueError(f"`padding` ({padding!r}) must be 'SAME', 'VALID' or a number of pixels")
    if isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) != 2 or any(not isinstance(p, (tuple, list)) for p in padding):
            raise ValueError(f"`padding` ({padding!r}) must be ((top, bottom), (left, right))")
        return arguments.pair("padding", padding[0], 0), arguments.pair("padding", padding[1], 0)
    height, width = arguments.pair("padding", padding, 0)
    return (height, height), (width, width)
