"""A depthwise convolution on XLA's CPU backend: a group has one input or one output channel.

Then each tap is an elementwise product, and XLA fuses all taps into one loop. The backend's own convolution of many
groups is many times slower (`python scripts/bench.py optimisations`).
"""

import functools

import jax.numpy as jnp
from jax import Array, lax

from jaxnn.layers._conv2d_geometry import Geometry, Pads, Pair
from jaxnn.rules.cotangents import accumulation_dtype, type_of, vary_with


def correlate(geometry: Geometry, stride: Pair, pads: Pads, spread: Pair, x: Array, w: Array) -> Array:
    """y_s,i,j,g,o = Σ_i',j',c w_i',j',c,g,o x_s,Si+Di'−P,Sj+Dj'−P,g,c, where either c or o is one channel of group g.

    The pixels of x lie `spread` apart, as those of dy do for the input's gradient.
    """
    (kh, kw, inputs, outputs), dtype, groups = w.shape, accumulation_dtype(x.dtype), geometry.groups
    rest = [(before, after, apart - 1) for (before, after), apart in zip(pads, spread, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *rest, (0, 0, 0)])
    # One channel c of every group at a time, so that the groups g are neighbours in memory.
    channels = jnp.moveaxis(x.reshape(*x.shape[:3], groups, inputs, 1), -2, 0)
    channels = lax.optimization_barrier(channels) if inputs > 1 else channels  # type: ignore[no-untyped-call]
    weights = w.reshape(kh * kw, inputs, 1, 1, 1, groups, outputs // groups).swapaxes(0, 1).astype(dtype)
    products = [
        pixels.astype(dtype) * weight
        for of_x, of_w in zip(channels, weights, strict=True)
        for pixels, weight in zip(_shifted(geometry, (kh, kw), stride, of_x), of_w, strict=True)
    ]
    y: Array = functools.reduce(jnp.add, products)
    return y.reshape(*y.shape[:3], outputs).astype(x.dtype)


def weight_gradient(geometry: Geometry, w_shape: tuple[int, ...], x: Array, dy: Array, rows: int) -> Array:
    """dw_i',j',g,o = Σ_s,i,j dy_s,i,j,g,o x_s,Si+Di'−P,Sj+Dj'−P,g, in blocks of `rows` rows i; `rows` divides OH.

    Each tap has one array of sums, to which every block adds its products. At the end that array is summed over rows
    and columns.
    """
    kh, kw, _, outputs = w_shape
    dtype, groups, blocks = accumulation_dtype(x.dtype), geometry.groups, dy.shape[1] // rows
    x = jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))[..., None]
    dy = dy.reshape(*dy.shape[:3], groups, outputs // groups)
    sizes = (1, rows, *dy.shape[2:])
    of_x_sizes = (1, geometry.stride[0] * (rows - 1) + geometry.dilation[0] * (kh - 1) + 1, *x.shape[2:])
    zero = vary_with(jnp.zeros(sizes, dtype), type_of(x), type_of(dy))

    def add_block(block: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        sample, first = block // blocks, block % blocks * rows
        of_dy = lax.dynamic_slice(dy, (sample, first, 0, 0, 0), sizes).astype(dtype)
        of_x = lax.dynamic_slice(x, (sample, geometry.stride[0] * first, 0, 0, 0), of_x_sizes).astype(dtype)
        taps = _shifted(geometry, (kh, kw), geometry.stride, of_x)
        return tuple(total + pixels * of_dy for total, pixels in zip(sums, taps, strict=True))

    sums = lax.fori_loop(0, dy.shape[0] * blocks, add_block, (zero,) * (kh * kw))
    # The backend sums leading axes one number at a time; a product with ones is vectorised.
    ones = jnp.ones((1, rows * dy.shape[2]), dtype)
    dw = [lax.dot(ones, each.reshape(ones.size, outputs), precision=lax.Precision.HIGHEST) for each in sums]
    return jnp.stack(dw).reshape(w_shape).astype(x.dtype)


def _shifted(geometry: Geometry, window: Pair, stride: Pair, x: Array) -> list[Array]:
    """Return, for each tap i', j' of the window, the pixels Si+Di', Sj+Dj' of the padded x that it multiplies."""
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, window, strict=True)]
    last = [n - 1 - r for n, r in zip(x.shape[1:3], reach, strict=True)]
    return [
        x[:, i : i + last[0] + 1 : stride[0], j : j + last[1] + 1 : stride[1]]
        for i in range(0, reach[0] + 1, geometry.dilation[0])
        for j in range(0, reach[1] + 1, geometry.dilation[1])
    ]
