"""Max-pool on a TPU, for windows that tile the image: each axis of pixels is split in two, (tile, pixel of the tile).

On a TPU a slice with a step copies the image, and so does a pixel's look-up of its window. In the split image a tile
has axes of its own: the forward pass is one reduction over them, and the backward pass is one comparison with each
pixel's place in its tile. Figures: `python scripts/accelerators.py components --only max_pool2d`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxnn.layers._max_pool2d_windows import Geometry, position_dtype
from jaxnn.rules.cotangents import accumulation_dtype


def are_windows_of(geometry: Geometry) -> bool:
    """Whether the windows are tiles: without overlap, gap or padding."""
    return geometry.stride == geometry.window and geometry.padding == (0, 0)


def largest(geometry: Geometry, x: Array) -> tuple[Array, Array]:
    """Return each tile's maximum and its position i'·KW + j'."""
    tiles, axes = _tiles(geometry, x.astype(accumulation_dtype(x.dtype)))
    y, position = _reduced(geometry, axes, tiles)
    return y.astype(x.dtype), position.astype(position_dtype(geometry))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _reduced(geometry: Geometry, axes: tuple[int, int], tiles: Array) -> tuple[Array, Array]:
    """Return the maximum of each tile and its place, both as floating-point numbers."""
    dtype = position_dtype(geometry)
    place = jnp.broadcast_to(_place(geometry, tiles.ndim, axes, dtype), tiles.shape)
    start = jnp.asarray(-jnp.inf, tiles.dtype), jnp.asarray(np.iinfo(dtype).max, dtype)
    y, position = lax.reduce((tiles, place), start, _larger, axes)
    return y, position.astype(tiles.dtype)  # which has a tangent; XLA drops this conversion and the one back


@_reduced.defjvp
def _reduced_jvp(geometry: Geometry, axes: tuple[int, int], primals: Any, tangents: Any) -> Any:
    """y moves with its maximum: JAX does not differentiate a reduction of two arrays of which one is constant."""
    y, position = _reduced(geometry, axes, *primals)
    (dx,) = tangents
    of_maximum = jnp.expand_dims(position, axes) == _place(geometry, dx.ndim, axes, position.dtype)
    dy = jnp.sum(jnp.where(of_maximum, dx, jnp.zeros((), dx.dtype)), axes)
    return (y, position), (dy, 0 * position)


def _larger(a: Any, b: Any) -> tuple[Array, Array]:
    """Return the larger of two pixels with its place: of equals the first, a NaN before a number, of NaNs the last."""
    (x, i), (y, j) = a, b
    take = (y > x) | ((y == x) & (j < i)) | ((y != y) & ((x == x) | (j > i)))
    return jnp.where(take, y, x), jnp.where(take, j, i)


def gradient(geometry: Geometry, position: Array, dy: Array) -> Array:
    """Return dx: a tile's dy at its maximum, 0 at its other pixels and at those of no tile."""
    shape = list(dy.shape)
    for axis, k in zip(geometry.axes, geometry.window, strict=True):
        shape[axis] *= k
    axes = _axes(geometry, dy.ndim)
    of_maximum = jnp.expand_dims(position, axes) == _place(geometry, dy.ndim + 2, axes, position.dtype)
    dx = jnp.where(of_maximum, jnp.expand_dims(dy, axes), jnp.zeros((), dy.dtype))
    # Else XLA would undo the split before the comparison, which would then read copies of dy and of the position.
    dx = lax.optimization_barrier(dx).reshape(shape)  # type: ignore[no-untyped-call]
    rest = [(0, 0, 0)] * dy.ndim
    for axis, size in zip(geometry.axes, geometry.size, strict=True):
        rest[axis] = (0, size - shape[axis], 0)
    return lax.pad(dx, jnp.zeros((), dx.dtype), rest)


def _tiles(geometry: Geometry, x: Array) -> tuple[Array, tuple[int, int]]:
    """Split each axis of pixels in two, (tile, pixel of the tile); return x and the two latter axes."""
    for axis, n, k in zip(geometry.axes, geometry.outputs, geometry.window, strict=True):
        x = lax.slice_in_dim(x, 0, n * k, axis=axis + x.ndim)
    shape = list(x.shape)
    height, width = (axis + x.ndim for axis in geometry.axes)
    shape[height : width + 1] = [geometry.outputs[0], geometry.window[0], geometry.outputs[1], geometry.window[1]]
    return x.reshape(shape), _axes(geometry, x.ndim)


def _axes(geometry: Geometry, ndim: int) -> tuple[int, int]:
    """Return the axes of a tile's pixels in an image with `ndim` axes, after the split."""
    height, width = (axis + ndim for axis in geometry.axes)
    return height + 1, width + 2


def _place(geometry: Geometry, ndim: int, axes: tuple[int, int], dtype: Any) -> Array:
    """Return the place i'·KW + j' of each pixel of a tile, along its two axes."""
    shape = [1] * ndim
    for axis, k in zip(axes, geometry.window, strict=True):
        shape[axis] = k
    row, column = (lax.broadcasted_iota(dtype, shape, axis) for axis in axes)
    return row * jnp.asarray(geometry.window[1], dtype) + column
