"""Max-pool: each window of pixels is replaced by its largest.

Definition (i', j': position in the window, S stride, P padding with −∞):
    y_s,c,i,j = max over i', j' of x_s,c,S·i+i'−P,S·j+j'−P

Derivation (derived here: the notes define max-pool and no derivative; dy stands for ∂L/∂y):
    Where one pixel of the window is the largest, y moves with it and with no other, so ∂y/∂x is 1 at it and else 0.
    x_h,w directly affects the y of each window that holds it, and the chain rule sums over those:
        dx_h,w = Σ over windows (i, j) that hold (h, w) of dy_i,j where (h, w) is the maximum of (i, j), else 0
    The windows that hold row h are i = ⌊(h+P)/S⌋ − a, where h is their row (h+P) mod S + a·S, for
    a = 0, 1, … < K/S: with the usual S = K each pixel asks one window "am I your maximum?". No scatter is needed.

Residuals:
    the position i'·KW + j' of each maximum: one byte an output (int32 for windows of more than 256 pixels). x is not
    kept.

Conventions:
    Of equal maxima the first in row-major order gets the gradient; a window with NaN has the value NaN, and its last
    NaN gets the gradient; both as in PyTorch (autodiff of `reduce_window` agrees on ties and drops NaNs' gradients).
    A window of −∞ alone points at its first pixel that is not padding.

Source:
    Taura, Neural Networks Basics: "Component functions" (maxpool of 2x2 patches).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype
from jaxnn.rules.sharding import on_any_mesh, sharding_of

Pair = tuple[int, int]


class _Geometry(NamedTuple):
    """The static half of a pooling."""

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


def _definition(
    x: ArrayLike,
    window: int | Pair = 2,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    layout: str = "NCHW",
) -> Array:
    x, geometry = _checked(x, window, stride, padding, layout)
    dimensions, strides, pads = [1] * x.ndim, [1] * x.ndim, [(0, 0)] * x.ndim
    for axis, k, s, p in zip(geometry.axes, geometry.window, geometry.stride, geometry.padding, strict=True):
        dimensions[axis], strides[axis], pads[axis] = k, s, (p, p)
    y: Array = lax.reduce_window(x, -jnp.inf, lax.max, tuple(dimensions), tuple(strides), pads)
    return y


def _cut_out(given: dict[str, Any]) -> tuple[Any, ...]:
    """Batch and channels are cut as x's, and no image is."""
    x = sharding_of(given["x"])
    return (*x[:-2], None, None) if given["layout"] == "NCHW" else (*x[:-3], None, None, *x[-1:])


@defined_by(_definition)
@on_any_mesh(_cut_out)
def max_pool2d(
    x: Float[ArrayLike, "*batch c h w"],
    window: int | Pair = 2,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    layout: str = "NCHW",
) -> Float[Array, "*batch c oh ow"]:
    """Replace each window of pixels by its largest.

    .. math:: y_{c,i,j} = \\max_{i',j'} x_{c,Si+i'-P,Sj+j'-P}

    Args:
        x: images, NCHW: shape (..., C, H, W), NHWC: (..., H, W, C); any number of leading axes, none included.
        window: size of the window in pixels, int or (height, width).
        stride: step of the window in pixels, int or (height, width); None takes `window`, so windows tile.
        padding: pixels of −∞ on each side, int or (height, width), at most half the window.
        layout: "NCHW" or "NHWC"; NHWC is the faster one.

    Returns:
        y, shape (..., C, OH, OW) or (..., OH, OW, C), of x's dtype; OH = ⌊(H + 2 padding − window) / stride⌋ + 1:
        a rest at the lower or right edge that fills no window is left out.

    Raises:
        TypeError: `x` is not of a floating-point dtype, or an option not a static int.
        ValueError: the shapes or options do not match.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[[1.0, 3.0], [4.0, 4.0]]])
        >>> max_pool2d(x)
        Array([[[4.]]], dtype=float32)
        >>> jax.grad(lambda x: max_pool2d(x).sum())(x)
        Array([[[0., 0.],
                [1., 0.]]], dtype=float32)

    References:
        Taura, Neural Networks Basics, "Component functions".
    """
    x, geometry = _checked(x, window, stride, padding, layout)
    return _max_pool2d(geometry, x)[0]


def _definition_with_indices(
    x: ArrayLike,
    window: int | Pair = 2,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    x, geometry = _checked(x, window, stride, padding, layout)
    y = _definition(x, window, stride=stride, padding=padding, layout=layout)
    return y, _plane_indices(geometry, _largest(geometry, x)[1])


@defined_by(_definition_with_indices)
@on_any_mesh(_cut_out)
def max_pool2d_with_indices(
    x: Float[ArrayLike, "*batch c h w"],
    window: int | Pair = 2,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    layout: str = "NCHW",
) -> tuple[Float[Array, "*batch c oh ow"], Int[Array, "*batch c oh ow"]]:
    """Pool as `max_pool2d`, and tell which pixel each maximum is.

    Args:
        x: as in `max_pool2d`.
        window: as in `max_pool2d`.
        stride: as in `max_pool2d`.
        padding: as in `max_pool2d`.
        layout: as in `max_pool2d`.

    Returns:
        y, and the int32 indices h·W + w of the maxima in the plane without padding, as
        `torch.nn.functional.max_pool2d_with_indices` gives them; both of y's shape.

    Raises:
        TypeError: as `max_pool2d`.
        ValueError: as `max_pool2d`.

    Example:
        >>> import jax.numpy as jnp
        >>> y, indices = max_pool2d_with_indices(jnp.array([[[1.0, 3.0], [4.0, 4.0]]]))
        >>> print(indices)
        [[[2]]]

    References:
        Taura, Neural Networks Basics, "Component functions".
    """
    x, geometry = _checked(x, window, stride, padding, layout)
    y, position = _max_pool2d(geometry, x)
    return y, _plane_indices(geometry, position)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"y_{s,c,i,j} = \max_{i',j'} x_{s,c,Si+i'-P,Sj+j'-P}",
    x=(
        r"dx_{h,w} = \sum_{(i,j)} dy_{i,j}\,[(h,w)\text{ is the maximum of window }(i,j)]",
        "1 at the largest pixel of each window, else 0: the others could move a little and nothing would follow. "
        "S and P are stride and padding.",
    ),
)
def _max_pool2d(geometry: _Geometry, x: Array) -> tuple[Array, Array]:
    return _largest(geometry, x)


def _max_pool2d_fwd(geometry: _Geometry, x: Array) -> tuple[tuple[Array, Array], Array]:
    y, position = _largest(geometry, x)
    # Else XLA would rather keep x, and find each window's position again for each of its pixels.
    return (y, position), lax.optimization_barrier(position)  # type: ignore[no-untyped-call]


def _max_pool2d_bwd(geometry: _Geometry, position: Array, cotangents: tuple[Array, Any]) -> tuple[Array]:
    dy, _ = cotangents
    (kh, kw), (sh, sw) = geometry.window, geometry.stride
    shifts = [(a, b) for a in range(-(-kh // sh)) for b in range(-(-kw // sw))]
    # Overlapping windows add up, in at least float32; with one window a pixel there is nothing to add.
    dtype = accumulation_dtype(dy.dtype) if len(shifts) > 1 else dy.dtype
    dx = jnp.zeros((), dtype)
    for shift in shifts:
        row, column = (_place_in_window(geometry, axis, shift[axis], dy.ndim) for axis in (0, 1))
        asked = _to_pixels(geometry, position, shift).astype(jnp.int32)
        mine = (asked == row * kw + column) & (column < kw)
        dx = dx + jnp.where(mine, _to_pixels(geometry, dy, shift).astype(dtype), jnp.zeros((), dtype))
    return (dx.astype(dy.dtype),)


_max_pool2d.defvjp(_max_pool2d_fwd, _max_pool2d_bwd)


def _largest(geometry: _Geometry, x: Array) -> tuple[Array, Array]:
    """Return each window's maximum and its position i'·KW + j', first along the rows, then down the columns."""
    kh, kw = geometry.window
    dtype = jnp.uint8 if kh * kw <= 256 else jnp.int32
    row, column = (_first_pixel(geometry, axis, x.ndim).astype(dtype) for axis in (0, 1))
    largest, at = _largest_along(geometry, 1, x, jnp.zeros(x.shape, dtype), column, 1)
    return _largest_along(geometry, 0, largest, at, row * kw + column, kw)


def _largest_along(
    geometry: _Geometry, axis: int, x: Array, position: Array, start: Array, step: int
) -> tuple[Array, Array]:
    """Run along one axis of the windows, keeping the largest pixel so far and its position, a `step` more each pixel.

    The first is the window's first; where that is padding, it counts as at `start`.
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
        # Strictly larger: the first of equals stays. NaN compares false, and is always taken: the last NaN stays.
        take = (pixel > largest) | (pixel != pixel)
        largest, at = jnp.where(take, pixel, largest), jnp.where(take, its_position, at)
    return largest, at


def _along(geometry: _Geometry, axis: int, values: Array, ndim: int) -> Array:
    """Lay a vector along the height (0) or the width (1) of an array with `ndim` axes."""
    shape = [1] * ndim
    shape[geometry.axes[axis]] = values.size
    return values.reshape(shape)


def _first_pixel(geometry: _Geometry, axis: int, ndim: int) -> Array:
    """Return, for each window, the first place along an axis that is not padding."""
    starts = geometry.stride[axis] * jnp.arange(geometry.outputs[axis], dtype=jnp.int32)
    return _along(geometry, axis, jnp.maximum(0, geometry.padding[axis] - starts), ndim)


def _place_in_window(geometry: _Geometry, axis: int, shift: int, ndim: int) -> Array:
    """Return each pixel's place along an axis in the window `shift` before the last that starts at or before it."""
    pixel = jnp.arange(geometry.size[axis], dtype=jnp.int32) + geometry.padding[axis]
    return _along(geometry, axis, pixel % geometry.stride[axis] + shift * geometry.stride[axis], ndim)


def _to_pixels(geometry: _Geometry, z: Array, shift: Pair) -> Array:
    """Give each pixel the z of the window `shift` before the last that starts at or before it, or 0."""
    for axis in (0, 1):
        s, p, size = geometry.stride[axis], geometry.padding[axis], geometry.size[axis]
        at = geometry.axes[axis] + z.ndim
        missing = -(-(p + size) // s) - geometry.outputs[axis] - shift[axis]
        pads = [(shift[axis], missing, 0) if i == at else (0, 0, 0) for i in range(z.ndim)]
        z = jnp.repeat(lax.pad(z, jnp.zeros((), z.dtype), pads), s, axis=at)
        z = lax.slice_in_dim(z, p, p + size, axis=at)
    return z


def _plane_indices(geometry: _Geometry, position: Array) -> Array:
    """Turn positions in the windows into indices h·W + w in the plane without padding."""
    place = position.astype(jnp.int32)
    h, w = place // geometry.window[1], place % geometry.window[1]
    start = [
        _along(geometry, axis, s * jnp.arange(n, dtype=jnp.int32) - p, position.ndim)
        for axis, (s, n, p) in enumerate(zip(geometry.stride, geometry.outputs, geometry.padding, strict=True))
    ]
    return (h + start[0]) * geometry.size[1] + w + start[1]


def _checked(
    x: ArrayLike, window: int | Pair, stride: int | Pair | None, padding: int | Pair, layout: str
) -> tuple[Array, _Geometry]:
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
    geometry = _Geometry(window, stride, padding, (size[0], size[1]), layout)
    if min(*geometry.outputs, *geometry.size) < 1:
        raise ValueError(
            f"`window` ({window}) must fit into the padded {arguments.described('x', x)} in {layout}; "
            f"use a smaller window"
        )
    return x, geometry
