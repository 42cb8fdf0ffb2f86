"""A convolution on XLA's CPU backend: gradients by matrix products, and how to avoid slow kernels.

Computed as a convolution, the weight's gradient has a filter as large as dy. XLA's CPU backend is slower at this than
at the same sum as matrix products, most of all inside a scan (`python scripts/bench.py convnet`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.layers import _conv2d_depthwise as _depthwise
from jaxnn.layers._conv2d_geometry import Geometry, Pads, Pair
from jaxnn.rules.cotangents import accumulation_dtype, type_of, vary_with

# Bytes of the patches of one block of samples, found by trial: they stay in the cache between their writing and the
# product. The patches of all samples at once cost more in page faults than the product does.
_BLOCK_BYTES = 4 << 20
# The longest reach D (KW − 1), in columns, for which `_by_rows_and_columns` is used. At the ends of a row XLA compiles
# KW · reach slices of pairs of columns, so a longer filter would compile slowly.
_LONGEST_REACH = 8
# The most elements of the product of these pairs at one end of a row: 4 MB in float32, as `_BLOCK_BYTES`. Every block
# of samples computes it once.
_MOST_OF_PAIRS = 1 << 20
# The most groups that are convolved one by one: more would compile slowly.
_MOST_GROUPS = 32
# The most taps of a filter that is applied tap by tap, for the same reason.
_MOST_TAPS = 64


def faster_form(
    convolve: Callable[..., Array], geometry: Geometry, x: Array, w: Array, stride: Pair, pads: Pads, spread: Pair
) -> Callable[[Array, Array], Array] | None:
    """Return a function of x and w that is faster on a CPU than `convolve(x, w, groups, pads)`, or None."""
    of_one_channel = min(w.shape[2], w.shape[3] // geometry.groups) == 1
    if geometry.groups > 1 and of_one_channel and w.shape[0] * w.shape[1] <= _MOST_TAPS:
        return functools.partial(_depthwise.correlate, geometry, stride, pads, spread)
    if 1 < geometry.groups <= _MOST_GROUPS:
        return functools.partial(_by_groups, geometry.groups, convolve)
    if w.shape[:2] == stride == spread == (1, 1) and pads == ((0, 0), (0, 0)) and geometry.groups == 1:
        return functools.partial(_by_product, geometry)
    if more := rows_more(geometry, x, w, stride, pads, spread):
        return functools.partial(_with_more_rows, more, convolve, pads)
    return None


def _by_groups(groups: int, convolve: Callable[..., Array], x: Array, w: Array) -> Array:
    """Convolve each group alone: the backend's kernel for groups is slower."""
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(w, groups, axis=-1), strict=True)
    return jnp.concatenate([convolve(*part, groups=1) for part in parts], axis=-1)


def _by_product(geometry: Geometry, x: Array, w: Array) -> Array:
    """y_s,i,j,oc = Σ_ic w_ic,oc x_s,i,j,ic: a filter of one pixel is a matrix."""
    rows, dtype = x.reshape(math.prod(x.shape[:3]), x.shape[3]), accumulation_dtype(x.dtype)
    y = lax.dot(rows, w[0, 0], precision=geometry.precision, preferred_element_type=dtype)
    return y.reshape(*x.shape[:3], w.shape[-1]).astype(x.dtype)


def _with_more_rows(more: int, convolve: Callable[..., Array], pads: Pads, x: Array, w: Array) -> Array:
    """Convolve with extra rows of zeros below, whose outputs are dropped."""
    (top, bottom), columns = pads
    y = convolve(x, w, pads=((top, bottom + more), columns))
    return lax.slice_in_dim(y, 0, y.shape[1] - more, axis=1)


def rows_more(geometry: Geometry, x: Array, w: Array, stride: Pair, pads: Pads, spread: Pair) -> int:
    """Return how many rows of zeros below the images make a convolution faster on the CPU backend of jax 0.10.

    That backend is slow where it uses a kernel of YNNPACK: for many channels, and padding of at most the filter's reach
    on both axes. Extra rows need more padding than that, so the backend uses its own kernel. It never uses YNNPACK's
    in float64, and with vertical strides extra rows do not avoid it.
    """
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, w.shape[:2], strict=True)]
    # Rough limits below which no rows are added: 512 pairs of channels, and 8 rows of outputs without the padding.
    large = w.shape[2] * w.shape[3] >= 512 and x.shape[1] - reach[0] >= 8 and x.dtype.itemsize <= 4
    plain = geometry.groups == 1 and stride[0] == 1 and spread == (1, 1)
    by_ynnpack = jax.__version_info__ < (0, 11) and all(sum(p) <= r for p, r in zip(pads, reach, strict=True))
    return reach[0] + 1 - sum(pads[0]) if by_ynnpack and large and plain else 0


def meets_many_zeros(geometry: Geometry, x_shape: tuple[int, ...], dy_shape: tuple[int, ...]) -> bool:
    """Tell whether at least half of the products in the input's gradient, as a convolution, are by zeros around dy."""
    plain = geometry.groups == 1 and geometry.stride == (1, 1)
    return plain and 0 < 2 * dy_shape[1] * dy_shape[2] <= x_shape[1] * x_shape[2]


def input_gradient_by_products(geometry: Geometry, x_shape: tuple[int, ...], w: Array, dy: Array) -> Array:
    """dx_s,h,w,ic = Σ_i',j' Σ_oc dy_s,i,j,oc w_i',j',ic,oc, where h = i + Di' − P, w = j + Dj' − P.

    One matrix product for a block of samples has all sums over oc, and no zeros around dy. Then each tap's part is
    added at the tap's offset.
    """
    (samples, oh, ow, outputs), (kh, kw, inputs, _) = dy.shape, w.shape
    block = _largest_divisor(samples, _samples_in(_BLOCK_BYTES, (oh, ow, kh, kw, inputs), dy.dtype))
    taps = w.reshape(kh * kw * inputs, outputs)
    product = functools.partial(
        lax.dot_general, precision=geometry.precision, preferred_element_type=accumulation_dtype(dy.dtype)
    )

    def of_block(dy: Array) -> Array:
        parts = product(dy, taps, (((3,), (1,)), ((), ())))
        rows = _added_along(geometry, 0, x_shape, parts.reshape(block, oh, ow, kh, kw * inputs))
        # The barrier keeps XLA from fusing both sums: it would compute each sum over rows again for every column.
        rows = lax.optimization_barrier(rows)  # type: ignore[no-untyped-call]
        return _added_along(geometry, 1, x_shape, rows.reshape(*rows.shape[:3], kw, inputs)).astype(dy.dtype)

    if block == samples:
        return of_block(dy)
    dx: Array = lax.map(of_block, dy.reshape(samples // block, block, oh, ow, outputs))
    return dx.reshape(x_shape)


def _added_along(geometry: Geometry, axis: int, x_shape: tuple[int, ...], parts: Array) -> Array:
    """Return Σ_t of parts_s,i,j,t, each moved by D t − P pixels along the height (0) or the width (1), within x."""
    along, size, zero = 1 + axis, x_shape[1 + axis], jnp.zeros((), parts.dtype)

    def moved(tap: int) -> Array:
        part = parts[:, :, :, tap]
        start = geometry.dilation[axis] * tap - geometry.pads[axis][0]
        rest = [(0, 0, 0)] * part.ndim
        rest[along] = (start, size - part.shape[along] - start, 0)
        return lax.pad(part, zero, rest)

    return functools.reduce(jnp.add, map(moved, range(parts.shape[3])))


def weight_gradient_by_products(geometry: Geometry, w_shape: tuple[int, ...], x: Array, dy: Array) -> Array:
    """dw_i',j',ic,oc = Σ_s,i,j dy_s,i,j,oc x_s,Si+Di'−P,Sj+Dj'−P,ic, as matrix products of blocks of samples.

    A depthwise filter's gradient has sums of products of elements instead.
    """
    (kh, kw, inputs, outputs), (samples, oh, ow, _) = w_shape, dy.shape
    if geometry.groups > 1 and inputs == 1 and kh * kw <= _MOST_TAPS and samples > 0:
        fit = _samples_in(_BLOCK_BYTES, (kh, kw, ow, outputs), jnp.dtype(accumulation_dtype(x.dtype)))
        rows = _largest_divisor(oh, fit)
        return _depthwise.weight_gradient(geometry, w_shape, x, dy, rows)
    if 1 < geometry.groups <= _MOST_GROUPS:
        of_group, shape = geometry._replace(groups=1), (*w_shape[:3], w_shape[3] // geometry.groups)
        parts = zip(*(jnp.split(z, geometry.groups, axis=-1) for z in (x, dy)), strict=True)
        return jnp.concatenate([weight_gradient_by_products(of_group, shape, *part) for part in parts], axis=-1)
    of_block = _by_rows_and_columns if _splits_taps(geometry, w_shape, ow) else _by_patches
    block = _largest_divisor(samples, _samples_in(_BLOCK_BYTES, (oh, ow, kh, kw, x.shape[-1]), x.dtype))

    def add_block(i: Array, dw: Array) -> Array:  # by index: for a scan over blocks XLA would copy x
        of_images = (lax.dynamic_slice_in_dim(z, i * block, block) for z in (x, dy))
        return dw + of_block(geometry, w_shape, *of_images)

    if block == samples:
        dw = of_block(geometry, w_shape, x, dy)
    else:
        zero = vary_with(jnp.zeros(w_shape, accumulation_dtype(x.dtype)), type_of(x), type_of(dy))
        dw = lax.fori_loop(0, samples // block, add_block, zero)
    return dw.astype(x.dtype)


def _samples_in(size: int, sample: tuple[int, ...], dtype: Any) -> int:
    """Return how many samples of this shape fit in `size` bytes."""
    bytes_each: int = math.prod(sample) * dtype.itemsize
    return size // max(1, bytes_each)


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit` (and at least 1)."""
    if number <= limit:
        return number
    return next(d for d in range(max(1, limit), 0, -1) if number % d == 0)


def _by_patches(geometry: Geometry, w_shape: tuple[int, ...], x: Array, dy: Array) -> Array:
    """Multiply the patches of x, those pixels that the filter covers for one output, by dy."""
    (kh, kw, _, _), (oh, ow) = w_shape, dy.shape[1:3]
    patches = _patches(geometry, (kh, kw), (oh, ow), _padded(geometry, x))
    return _product(geometry, patches, dy[:, :, :, None]).reshape(w_shape)


def _by_rows_and_columns(geometry: Geometry, w_shape: tuple[int, ...], x: Array, dy: Array) -> Array:
    """Multiply columns k = j + Dj' of the padded x, as patches of all i', by dy at j = k − Dj', for all j' together.

    Inner columns, reach ≤ k < OW with reach = D (KW − 1), are multiplied for every j', in one product for all. The
    first `reach` columns of x are multiplied by the first `reach` columns of dy, and the last by the last. Each end is
    one product of all pairs (k, j), because one product compiles faster than KW products. Tap j' sums the pairs with
    k − j = Dj'; the others are not used.
    """
    (kh, kw, inputs, outputs), (samples, oh, ow, _) = w_shape, dy.shape
    shifts = [geometry.dilation[1] * j for j in range(kw)]
    reach, x = shifts[-1], _padded(geometry, x)

    def by_rows(x: Array) -> Array:
        return _patches(geometry, (kh, 1), (oh, x.shape[2]), x)

    def pairs(x: Array, dy: Array) -> Array:
        """[k, i', j, ic, oc] = Σ_s,i x_s,Si+Di',k,ic dy_s,i,j,oc, of the columns given."""
        of_rows = _product(geometry, by_rows(x).reshape(samples, oh, 1, reach * kh, inputs), dy[:, :, None])
        return of_rows.reshape(reach, kh, reach, inputs, outputs)

    columns = jnp.stack([dy[:, :, reach - shift : ow - shift] for shift in shifts], axis=3)
    inner = _product(geometry, by_rows(x[:, :, reach:ow]), columns)
    left = pairs(x[:, :, :reach], dy[:, :, :reach])
    right = pairs(x[:, :, ow:], dy[:, :, ow - reach :])
    # At the left end k − Dj' counts from dy's first column; at the right end it is negative, and counts from the last.
    outer = [sum((left if k >= shift else right)[k, :, k - shift] for k in range(reach)) for shift in shifts]
    return inner + jnp.stack(outer, axis=1)


def _splits_taps(geometry: Geometry, w_shape: tuple[int, ...], ow: int) -> bool:
    """Tell whether `_by_rows_and_columns` forms the weight's gradient, and not `_by_patches`.

    It does if it copies no more than `_by_patches` (its matrices are also closer to square, which is faster) and if the
    products at both ends stay small. It needs horizontal stride 1 and one group.
    """
    kh, kw, inputs, outputs = w_shape
    reach = geometry.dilation[1] * (kw - 1)
    copies_less = kh * inputs + kw * outputs <= kh * kw * inputs
    few_pairs = 2 * reach**2 <= kw * ow and reach**2 * kh * inputs * outputs <= _MOST_OF_PAIRS
    plain = geometry.stride[1] == 1 and geometry.groups == 1
    return plain and copies_less and few_pairs and 0 < reach <= _LONGEST_REACH


def _padded(geometry: Geometry, x: Array) -> Array:
    return jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))


def _patches(geometry: Geometry, window: Pair, outputs: Pair, x: Array) -> Array:
    """Return x_s,Si+Di',Sj+Dj',ic as (s, i, j, taps, ic): one slice for each column j', then for each row i'."""
    # XLA compiles every slice, and these are KH + KW, not KH · KW.
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    rows = [slice(i * dh, i * dh + sh * (outputs[0] - 1) + 1, sh) for i in range(window[0])]
    columns = [slice(j * dw, j * dw + sw * (outputs[1] - 1) + 1, sw) for j in range(window[1])]
    x = jnp.stack([x[:, :, column] for column in columns], axis=3)
    x = jnp.stack([x[:, row] for row in rows], axis=3)
    return x.reshape(*x.shape[:3], len(rows) * len(columns), x.shape[-1])


def _product(geometry: Geometry, x: Array, dy: Array) -> Array:
    """Return Σ_s,i,j x_s,i,j,l,ic dy_s,i,j,r,oc as (l, r, ic, oc), where ic is of oc's group."""
    groups, (left, inputs), (right, outputs) = geometry.groups, x.shape[3:], dy.shape[3:]
    product = functools.partial(
        lax.dot_general, precision=geometry.precision, preferred_element_type=accumulation_dtype(x.dtype)
    )
    pixels, of_group = math.prod(x.shape[:3]), inputs // groups
    if groups == 1:  # without a batch axis: with one of size 1 XLA is far slower
        x, dy = x.reshape(pixels, left * inputs), dy.reshape(pixels, right * outputs)
        return product(x, dy, (((0,), (0,)), ((), ()))).reshape(left, inputs, right, outputs).transpose(0, 2, 1, 3)
    x, dy = x.reshape(pixels, left, groups, of_group), dy.reshape(pixels, right, groups, outputs // groups)
    dw = product(x, dy, (((0,), (0,)), ((2,), (2,))))
    return dw.transpose(1, 3, 2, 0, 4).reshape(left, right, of_group, outputs)
