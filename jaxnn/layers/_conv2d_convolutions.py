"""The sums of conv2d's derivation, y, dx and dw, as XLA's convolutions or in a faster form for a CPU.

Images are (s, i, j, channel) here and filters (i', j', ic, oc), whatever the layout of the arguments.
"""

import functools
from typing import Any

from jax import Array, lax

from jaxnn.layers import _conv2d_cpu as _cpu
from jaxnn.layers._conv2d_geometry import Geometry, Pads, Pair

_LAYOUTS = ("NHWC", "HWIO", "NHWC")


def in_layout(x: Array, given: str, wanted: str) -> Array:
    """Return images in another layout; off the CPU by one transpose, which XLA fuses or runs as a copy."""
    if given == wanted:
        return x

    def by_matrices(x: Array) -> Array:  # XLA's CPU backend needs two passes to transpose four axes
        size = {axis: x.shape[i] for i, axis in enumerate(given)}
        pixels, channels = size["H"] * size["W"], size["C"]
        x = x.reshape(size["N"], *((channels, pixels) if given == "NCHW" else (pixels, channels)))
        return x.swapaxes(1, 2).reshape([size[axis] for axis in wanted])

    order = [given.index(axis) for axis in wanted]
    y: Array = lax.platform_dependent(x, cpu=by_matrices, default=lambda x: x.transpose(order))
    return y


def outputs_last(geometry: Geometry, w: Array) -> Array:
    """Return filters of the arguments' layout as (i', j', ic, oc)."""
    return w if geometry.layout == "NHWC" else w.transpose(2, 3, 1, 0)


def filters_as_given(geometry: Geometry, w: Array) -> Array:
    """Return filters (i', j', ic, oc) in the arguments' layout."""
    return w if geometry.layout == "NHWC" else w.transpose(3, 2, 0, 1)


def correlate(geometry: Geometry, x: Array, w: Array) -> Array:
    """y_s,i,j,oc = Σ_ic,i',j' w_i',j',ic,oc x_s,Si+Di'−P,Sj+Dj'−P,ic."""
    return _convolve(geometry, x, w, geometry.stride, geometry.pads)


def input_gradient(geometry: Geometry, x_shape: tuple[int, ...], w: Array, dy: Array) -> Array:
    """dx_s,h,w,ic = Σ_oc,i',j' dy_s,i,j,oc w_i',j',ic,oc, as a convolution of the spread dy, filter reversed."""

    def by_convolution(w: Array, dy: Array) -> Array:
        rows, columns = [
            (reach - before, size - spread + before)
            for before, size, spread, reach in _spans(geometry, x_shape, w.shape, dy.shape)
        ]
        turned = _exchange_channels(lax.rev(w, (0, 1)), geometry.groups)
        return _convolve(geometry, dy, turned, (1, 1), (rows, columns), geometry.stride)

    if not _cpu.meets_many_zeros(geometry, x_shape, dy.shape):
        return by_convolution(w, dy)
    by_products = functools.partial(_cpu.input_gradient_by_products, geometry, x_shape)
    dx: Array = lax.platform_dependent(w, dy, cpu=by_products, default=by_convolution)
    return dx


def weight_gradient_by_convolution(geometry: Geometry, w_shape: tuple[int, ...], x: Array, dy: Array) -> Array:
    """dw_i',j',ic,oc = Σ_s,i,j dy_s,i,j,oc x_s,Si+Di'−P,Sj+Dj'−P,ic, as a convolution that slides dy over x.

    Samples take the place of the channels; stride and dilation change places.
    """
    pads = [
        (before, spread + reach - size - before)
        for before, size, spread, reach in _spans(geometry, x.shape, w_shape, dy.shape)
    ]
    return lax.conv_general_dilated(
        x,
        dy,
        geometry.dilation,
        pads,
        rhs_dilation=geometry.stride,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _convolve(geometry: Geometry, x: Array, w: Array, stride: Pair, pads: Pads, spread: Pair = (1, 1)) -> Array:
    """Slide the filters over the images, whose pixels lie `spread` apart; on a CPU in the fastest form."""

    def as_given(x: Array, w: Array, groups: int = geometry.groups, pads: Pads = pads) -> Array:
        return lax.conv_general_dilated(
            x,
            w,
            stride,
            pads,
            lhs_dilation=spread,
            rhs_dilation=geometry.dilation,
            dimension_numbers=_LAYOUTS,
            feature_group_count=groups,
            precision=geometry.precision,
        )

    on_cpu = _cpu.faster_form(as_given, geometry, x, w, stride, pads, spread)
    if on_cpu is None:
        return as_given(x, w)
    y: Array = lax.platform_dependent(x, w, cpu=on_cpu, default=as_given)
    return y


def _spans(geometry: Geometry, x: tuple[int, ...], w: tuple[int, ...], dy: tuple[int, ...]) -> list[Any]:
    """Per axis, in pixels of x: padding before, size of x, size of dy spread S apart, reach D (K − 1) of the filter."""
    return [
        (
            geometry.pads[axis][0],
            x[1 + axis],
            geometry.stride[axis] * (dy[1 + axis] - 1) + 1,
            geometry.dilation[axis] * (w[axis] - 1),
        )
        for axis in (0, 1)
    ]


def _exchange_channels(w: Array, groups: int) -> Array:
    """Exchange the channel axes within each group: (C/G, O) → (O/G, C)."""
    kh, kw, inputs, outputs = w.shape
    w = w.reshape(kh, kw, inputs, groups, outputs // groups).transpose(0, 1, 4, 3, 2)
    return w.reshape(kh, kw, outputs // groups, groups * inputs)
