"""The windows of a pooling: arguments checked, the largest pixel of each window, and the windows of each pixel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxnn.rules import arguments

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """The static arguments of a pooling, and the size of its images."""

    window: Pair
    stride: Pair
    padding: Pair
    size: Pair  # of x, in pixels
    layout: str

    @property
    def axes(self) -> Pair:
        """The axes of height and width, counted from the back."""
        return (-2, -1) if self.layout == "NCHW" else (-3, -2)

    @property
    def outputs(self) -> Pair:
        height, width = (
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(self.size, self.padding, self.window, self.stride, strict=True)
        )
        return height, width


def position_dtype(geometry: Geometry) -> Any:
    """Return the dtype of positions. Each is less than its largest number, by which `_computed_once` divides."""
    return jnp.uint8 if geometry.window[0] * geometry.window[1] < 256 else jnp.int32


def largest(geometry: Geometry, x: Array) -> tuple[Array, Array]:
    """Return each window's maximum and its position i'·KW + j'.

    First the maximum of each row of a window is found, then the maximum of these.
    """
    kw, dtype = geometry.window[1], position_dtype(geometry)
    row, column = (_first_pixel(geometry, axis, x.ndim).astype(dtype) for axis in (0, 1))
    largest, at = _largest_along(geometry, 1, x, jnp.zeros(x.shape, dtype), column, 1)
    return _largest_along(geometry, 0, largest, at, row * kw + column, kw)


def _largest_along(
    geometry: Geometry, axis: int, x: Array, position: Array, start: Array, step: int
) -> tuple[Array, Array]:
    """Go along one axis of the windows; keep the largest pixel so far, and its position.

    The position grows by `step` from pixel to pixel. It begins at the window's first pixel; if that is padding, the
    position is `start`.
    """
    k, s, p, n = (v[axis] for v in (geometry.window, geometry.stride, geometry.padding, geometry.outputs))
    along = geometry.axes[axis] + x.ndim
    pads = [(p, p) if i == along else (0, 0) for i in range(x.ndim)]
    x, position = jnp.pad(x, pads, constant_values=-jnp.inf), jnp.pad(position, pads)

    def pixels(offset: int) -> tuple[Array, Array]:
        pixel, at = (lax.slice_in_dim(z, offset, offset + s * (n - 1) + 1, s, along) for z in (x, position))
        return pixel, at + jnp.asarray(offset * step, at.dtype)

    largest, at = pixels(0)
    if p:
        at = jnp.where(_first_pixel(geometry, axis, x.ndim) > 0, start, at)
    for offset in range(1, k):
        pixel, its_position = pixels(offset)
        # Strictly larger, so the first of equals stays. A NaN is always taken, so the last NaN stays.
        take = (pixel > largest) | (pixel != pixel)
        largest, at = _larger(largest, pixel), jnp.where(take, its_position, at)
    return largest, at


@jax.custom_jvp
def _larger(a: Array, b: Array) -> Array:
    """Return the larger of two numbers.

    A choice by `jnp.where` is slower on a CPU without AVX-512
    (`XLA_FLAGS=--xla_cpu_max_isa=AVX2 python scripts/bench.py optimisations`).
    """
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the tangent of the number whose position is kept; of equals `jnp.maximum` would take half of each."""
    a, b = primals
    return _larger(a, b), jnp.where((b > a) | (b != b), tangents[1], tangents[0])


def place_in_window(geometry: Geometry, axis: int, shift: int, ndim: int) -> Array:
    """Return each pixel's position along an axis in one of its windows.

    That window is `shift` windows before the last one that starts at or before the pixel.
    """
    pixel = jnp.arange(geometry.size[axis], dtype=jnp.int32) + geometry.padding[axis]
    return _along(geometry, axis, pixel % geometry.stride[axis] + shift * geometry.stride[axis], ndim)


def to_pixels(geometry: Geometry, z: Array, shift: Pair) -> Array:
    """Give each pixel the z of one of its windows, or 0 if there is none.

    That window is `shift` windows before the last one that starts at or before the pixel.
    """
    for axis in (0, 1):
        s, p, size = geometry.stride[axis], geometry.padding[axis], geometry.size[axis]
        at = geometry.axes[axis] + z.ndim
        missing = -(-(p + size) // s) - geometry.outputs[axis] - shift[axis]
        pads = [(shift[axis], missing, 0) if i == at else (0, 0, 0) for i in range(z.ndim)]
        z = jnp.repeat(lax.pad(z, jnp.zeros((), z.dtype), pads), s, axis=at)
        z = lax.slice_in_dim(z, p, p + size, axis=at)
    return z


def plane_indices(geometry: Geometry, position: Array) -> Array:
    """Turn positions in the windows into indices h·W + w in the plane without padding."""
    place = position.astype(jnp.int32)
    h, w = place // geometry.window[1], place % geometry.window[1]
    start = [
        _along(geometry, axis, s * jnp.arange(n, dtype=jnp.int32) - p, position.ndim)
        for axis, (s, n, p) in enumerate(zip(geometry.stride, geometry.outputs, geometry.padding, strict=True))
    ]
    return (h + start[0]) * geometry.size[1] + w + start[1]


def _first_pixel(geometry: Geometry, axis: int, ndim: int) -> Array:
    """Return, for each window, the first position along an axis that is not padding."""
    starts = geometry.stride[axis] * jnp.arange(geometry.outputs[axis], dtype=jnp.int32)
    return _along(geometry, axis, jnp.maximum(0, geometry.padding[axis] - starts), ndim)


def _along(geometry: Geometry, axis: int, values: Array, ndim: int) -> Array:
    """Reshape a vector to lie along the height (0) or the width (1) of an array with `ndim` axes."""
    shape = [1] * ndim
    shape[geometry.axes[axis]] = values.size
    return values.reshape(shape)


def checked(
    x: ArrayLike, window: int | Pair, stride: int | Pair | None, padding: int | Pair, layout: str
) -> tuple[Array, Geometry]:
    x = arguments.floating("x", x)
    layout = arguments.layout(layout)
    if x.ndim < 3:
        raise ValueError(f"{arguments.described('x', x)} must end in the three axes {', '.join(layout[1:])}")
    window = arguments.pair("window", window, 1)
    stride = window if stride is None else arguments.pair("stride", stride, 1)
    if isinstance(padding, str):
        raise TypeError(f"`padding` ({padding!r}) must be an int or a pair of ints, at most half of `window`")
    padding = arguments.pair("padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, window, strict=True)):
        raise ValueError(f"`padding` ({padding}) must be at most half of `window` ({window})")
    size = x.shape[-2:] if layout == "NCHW" else x.shape[-3:-1]
    geometry = Geometry(window, stride, padding, (size[0], size[1]), layout)
    if min(*geometry.outputs, *geometry.size) < 1:
        raise ValueError(
            f"`window` ({window}) must fit into the padded {arguments.described('x', x)} in {layout}; "
            f"use a smaller window"
        )
    return x, geometry
