"""Max-pool: each window of pixels is replaced by its largest pixel.

Definition (i', j': position in the window, S stride, P padding with −∞):
    y_s,c,i,j = max over i', j' of x_s,c,S·i+i'−P,S·j+j'−P

Derivation (derived here: the notes define max-pool and no derivative; dy stands for ∂L/∂y):
    Where one pixel of the window is the largest, y moves with it and with no other, so ∂y/∂x is 1 at it and else 0.
    x_h,w directly affects the y of each window that holds it, and the chain rule sums over those:
        dx_h,w = Σ over windows (i, j) that hold (h, w) of dy_i,j where (h, w) is the maximum of (i, j), else 0
    Let r = (h+P) mod S. Row h is the row r + aS of the window ⌊(h+P)/S⌋ − a, for every a ≥ 0 with r + aS < K, if there
    is such a window. With the usual S = K that is one window. Each pixel looks up its windows: no scatter is needed.

Residuals:
    the position i'·KW + j' of each maximum: one byte an output (int32 for windows of 256 pixels or more), not x.

Conventions:
    Of equal maxima the first in row-major order gets the gradient; a window with NaN has the value NaN, and its last
    NaN gets the gradient; both as in PyTorch (autodiff of `reduce_window` agrees on ties and drops NaNs' gradients).
    If all of a window is −∞, its maximum is its first pixel that is not padding.

Source:
    Taura, Neural Networks Basics: "Component functions" (maxpool of 2x2 patches).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxnn.layers import _max_pool2d_tiles as _tiles
from jaxnn.layers import _max_pool2d_windows as _windows
from jaxnn.layers._max_pool2d_windows import Geometry, Pair, checked
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype
from jaxnn.rules.sharding import on_any_mesh, sharding_of


def _definition(
    x: ArrayLike,
    window: int | Pair = 2,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    layout: str = "NCHW",
) -> Array:
    x, geometry = checked(x, window, stride, padding, layout)
    dimensions, strides, pads = [1] * x.ndim, [1] * x.ndim, [(0, 0)] * x.ndim
    for axis, k, s, p in zip(geometry.axes, geometry.window, geometry.stride, geometry.padding, strict=True):
        dimensions[axis], strides[axis], pads[axis] = k, s, (p, p)
    y: Array = lax.reduce_window(x, -jnp.inf, lax.max, tuple(dimensions), tuple(strides), pads)
    return y


def _sharding_of_y(given: dict[str, Any]) -> tuple[Any, ...]:
    """Batch and channels are sharded like x's; no image is sharded."""
    x = sharding_of(given["x"])
    return (*x[:-2], None, None) if given["layout"] == "NCHW" else (*x[:-3], None, None, *x[-1:])


@defined_by(_definition)
@on_any_mesh(_sharding_of_y)
def max_pool2d(
    x: Float[ArrayLike, "*batch _ _ _"],
    window: int | Pair = 2,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    layout: str = "NCHW",
) -> Float[Array, "*batch _ _ _"]:
    """Replace each window of pixels by its largest.

    .. math:: y_{c,i,j} = \\max_{i',j'} x_{c,Si+i'-P,Sj+j'-P}

    Args:
        x: images, NCHW: shape (..., C, H, W), NHWC: (..., H, W, C); any number of leading axes, none included.
        window: size of the window in pixels, int or (height, width).
        stride: step of the window in pixels, int or (height, width); None takes `window`, so windows tile.
        padding: pixels of −∞ on each side, int or (height, width), at most half the window.
        layout: "NCHW" or "NHWC".

    Returns:
        y, shape (..., C, OH, OW) or (..., OH, OW, C), of x's dtype; OH = ⌊(H + 2 padding − window) / stride⌋ + 1:
        pixels at the lower or right edge that fill no window are left out.

    Raises:
        TypeError: `x` is not of a floating-point dtype, or an option has the wrong type.
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
    x, geometry = checked(x, window, stride, padding, layout)
    return _max_pool2d(geometry, x)[0]


def _definition_with_indices(
    x: ArrayLike,
    window: int | Pair = 2,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    x, geometry = checked(x, window, stride, padding, layout)
    y = _definition(x, window, stride=stride, padding=padding, layout=layout)
    return y, _windows.plane_indices(geometry, _windows.largest(geometry, x)[1])


@defined_by(_definition_with_indices)
@on_any_mesh(_sharding_of_y)
def max_pool2d_with_indices(
    x: Float[ArrayLike, "*batch _ _ _"],
    window: int | Pair = 2,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    layout: str = "NCHW",
) -> tuple[Float[Array, "*batch _ _ _"], Int[Array, "*batch _ _ _"]]:
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
    x, geometry = checked(x, window, stride, padding, layout)
    y, position = _max_pool2d(geometry, x)
    return y, _windows.plane_indices(geometry, position)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"y_{s,c,i,j} = \max_{i',j'} x_{s,c,Si+i'-P,Sj+j'-P}",
    x=(
        r"dx_{h,w} = \sum_{(i,j)} dy_{i,j}\,[(h,w)\text{ is the maximum of window }(i,j)]",
        "1 at the largest pixel of each window, else 0: a small change of any other pixel changes nothing. "
        "S and P are stride and padding.",
    ),
)
def _max_pool2d(geometry: Geometry, x: Array) -> tuple[Array, Array]:
    return _windows.largest(geometry, x)


def _max_pool2d_fwd(geometry: Geometry, x: Array) -> tuple[tuple[Array, Array], Array]:
    y, position = _for_platform(geometry, _tiles.largest, _windows.largest, x)
    return (y, position), _computed_once(position)


def _computed_once(position: Array) -> Array:
    """Return the position, kept in memory: else XLA would keep x, and find a window's maximum again for each pixel.

    The barrier alone does not prevent that on a GPU, nor on a CPU with jax 0.10, where XLA removes it before it fuses
    operations. There the remainder does: XLA does not repeat an operation that it considers expensive. The remainder
    changes no position, because each is less than the divisor.
    """
    largest = jnp.asarray(np.iinfo(position.dtype).max, position.dtype)
    kept: Array = lax.optimization_barrier(lax.rem(position, largest))  # type: ignore[no-untyped-call]
    return kept


def _max_pool2d_bwd(geometry: Geometry, position: Array, cotangents: tuple[Array, Any]) -> tuple[Array]:
    return (_for_platform(geometry, _tiles.gradient, _gradient, position, cotangents[0]),)


def _for_platform(geometry: Geometry, of_tiles: Any, general: Any, *operands: Array) -> Any:
    """Run the form for tiles on a TPU if the windows tile; otherwise run the general form."""
    if not _tiles.are_windows_of(geometry):
        return general(geometry, *operands)
    tpu, default = (functools.partial(form, geometry) for form in (of_tiles, general))
    return lax.platform_dependent(*operands, tpu=tpu, default=default)


def _gradient(geometry: Geometry, position: Array, dy: Array) -> Array:
    (kh, kw), (sh, sw) = geometry.window, geometry.stride
    shifts = [(a, b) for a in range(-(-kh // sh)) for b in range(-(-kw // sw))]
    # Where windows overlap, dx is a sum, in at least float32. If each pixel has one window, there is nothing to sum.
    dtype = accumulation_dtype(dy.dtype) if len(shifts) > 1 else dy.dtype
    dx = jnp.zeros((), dtype)
    for shift in shifts:
        row, column = (_windows.place_in_window(geometry, axis, shift[axis], dy.ndim) for axis in (0, 1))
        asked = _windows.to_pixels(geometry, position, shift).astype(jnp.int32)
        mine = (asked == row * kw + column) & (column < kw)
        dx = dx + jnp.where(mine, _windows.to_pixels(geometry, dy, shift).astype(dtype), jnp.zeros((), dtype))
    return dx.astype(dy.dtype)


_max_pool2d.defvjp(_max_pool2d_fwd, _max_pool2d_bwd)
