"""Convolution (in the notes' sense: cross-correlation): y = W * x + b.

Definition (s: sample, ic, oc: input and output channels, i', j': position in the filter):
    y_s,oc,i,j = Σ_ic,i',j' w_oc,ic,i',j' x_s,ic,i+i',j+j' + b_oc
With stride S, dilation D and padding P, x is first surrounded by zeros and its index becomes S·i + D·i' − P (likewise
for j); with G groups, ic runs over the C/G channels of oc's group only.

Derivation (the chain rule over every y that the variable affects; dy stands for ∂L/∂y):
    x at (h, w) affects y at (i, j) through every filter position with h = S·i + D·i' − P:
        dx_s,ic,h,w = Σ_oc,i',j' dy_s,oc,i,j w_oc,ic,i',j'   over those (i, j)
    Read along h, i' runs against i: it is again a convolution, of dy spread S apart (zeros between), with the filter
    turned round in both axes and its channel axes exchanged, padded so that every x is reached.
    w at (i', j') affects y at every s, i, j:
        dw_oc,ic,i',j' = Σ_s,i,j dy_s,oc,i,j x_s,ic,S·i+D·i'−P,S·j+D·j'−P
    which is a matrix product, dyᵀ times the patches of x, contracted over (s, i, j).
    b affects all of its channel:
        db_oc = Σ_s,i,j dy_s,oc,i,j

Residuals:
    x and w, the factors of the products: both are inputs, so nothing new is stored. Patches are formed when needed.

Conventions:
    "SAME" is XLA's: ⌈H/S⌉ outputs, the odd row of padding below and to the right.

Source:
    Taura, Neural Networks Basics: "Convolution (multiple channels version)", "Convolution (Back propagation 1)" and
    "(Back propagation 2)". Stride, dilation, padding and groups are derived here in the same manner.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype, cotangent, resolve_precision, type_of, vary_with
from jaxnn.rules.sharding import on_any_mesh, sharding_of

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Padding = int | Pair | Pads | str


class _Geometry(NamedTuple):
    """The static half of a convolution."""

    stride: Pair
    pads: Pads
    dilation: Pair
    groups: int
    layout: str
    precision: Any


def _definition(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    *,
    stride: int | Pair = 1,
    padding: Padding = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    precision: Any = None,
) -> Array:
    x, w, b, geometry = _checked(x, w, b, stride, padding, dilation, groups, layout, precision)
    y = lax.conv_general_dilated(
        x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]),
        w,
        geometry.stride,
        geometry.pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(geometry.layout, "OIHW" if geometry.layout == "NCHW" else "HWIO", geometry.layout),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )
    y = y if b is None else y + lax.broadcast_in_dim(b, y.shape, (geometry.layout.index("C"),))
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _cut_out(given: dict[str, Any]) -> tuple[Any, ...]:
    """The batch is cut as x's, the channels as the filters, and no image is."""
    x, w = sharding_of(given["x"]), sharding_of(given["w"])
    return (*x[:-3], *w[:1], None, None) if given["layout"] == "NCHW" else (*x[:-3], None, None, *w[-1:])


@defined_by(_definition)
@on_any_mesh(_cut_out)
def conv2d(
    x: Float[ArrayLike, "*batch c h w"],
    w: Float[ArrayLike, "o i kh kw"],
    b: Float[ArrayLike, " o"] | None = None,
    *,
    stride: int | Pair = 1,
    padding: Padding = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    precision: Any = None,
) -> Float[Array, "*batch o oh ow"]:
    """Slide filters over images and take the inner product at each position.

    .. math:: y_{oc,i,j} = \\sum_{ic,i',j'} w_{oc,ic,i',j'} x_{ic,Si+Di'-P,Sj+Dj'-P} + b_{oc}

    Args:
        x: images, NCHW: shape (..., C, H, W), NHWC: (..., H, W, C); any number of leading axes, none included.
        w: filters, NCHW: shape (O, C/groups, KH, KW), NHWC: (KH, KW, C/groups, O).
        b: bias, shape (O,), or None.
        stride: step of the filter in pixels, int or (height, width).
        padding: zeros around the image in pixels: int, (height, width), ((top, bottom), (left, right)), "SAME" or
            "VALID".
        dilation: distance between the filter's taps in pixels, int or (height, width).
        groups: number of groups the channels are split into; output channels see their own group only.
        layout: "NCHW" or "NHWC"; NHWC is the faster one on CPU and GPU.
        precision: as in `jax.lax.conv_general_dilated`; None takes `jax.default_matmul_precision` as it is at this
            call, and the backward pass keeps it.

    Returns:
        y, shape (..., O, OH, OW) or (..., OH, OW, O), of the arguments' promoted dtype;
        OH = ⌊(H + top + bottom − dilation (KH − 1) − 1) / stride⌋ + 1.

    Raises:
        TypeError: an argument is not of a floating-point dtype, or an option not a static int.
        ValueError: the shapes or options do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(9.0).reshape(1, 3, 3)
        >>> conv2d(x, jnp.ones((1, 1, 2, 2)))
        Array([[[ 8., 12.],
                [20., 24.]]], dtype=float32)

    References:
        Taura, Neural Networks Basics, "Convolution (multiple channels version)".
    """
    x, w, b, geometry = _checked(x, w, b, stride, padding, dilation, groups, layout, precision)
    y = _conv2d(geometry, x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]), w, b)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"y_{s,oc,i,j} = \sum_{ic,i',j'} w_{oc,ic,i',j'}\,x_{s,ic,Si+Di'-P,Sj+Dj'-P} \;(+\,b_{oc})",
    x=(
        r"dx_{s,ic,h,w} = \sum_{oc,i',j'} dy_{s,oc,i,j}\,w_{oc,ic,i',j'}, \quad h = Si+Di'-P, w = Sj+Dj'-P",
        "An output moves with each pixel under its filter by the weight that lies on the pixel, and with no other. "
        "S, D and P are stride, dilation and padding.",
    ),
    w=(
        r"dw_{oc,ic,i',j'} = \sum_{s,i,j} dy_{s,oc,i,j}\,x_{s,ic,Si+Di'-P,Sj+Dj'-P}",
        "A weight lies on another pixel for each output, and moves the output by that pixel. "
        "S, D and P are stride, dilation and padding.",
    ),
    b=(
        r"db_{oc} = \sum_{s,i,j} dy_{s,oc,i,j}",
        "Every output of a channel moves with the channel's bias, one for one.",
    ),
)
def _conv2d(geometry: _Geometry, x: Array, w: Array, b: Array | None) -> Array:
    return _conv2d_fwd(geometry, x, w, b)[0]


def _conv2d_fwd(geometry: _Geometry, x: Array, w: Array, b: Array | None) -> tuple[Array, Any]:
    y = _correlate(geometry, _in_layout(x, geometry.layout, "NHWC"), _outputs_last(geometry, w))
    y = y if b is None else y + jnp.broadcast_to(b, y.shape)
    return _in_layout(y, "NHWC", geometry.layout), (x, w, None if b is None else type_of(b))


def _conv2d_bwd(geometry: _Geometry, residuals: Any, dy: Array) -> tuple[Array, Array, Array | None]:
    x, w, b = residuals
    given = type_of(x), type_of(w)
    x, dy = (_in_layout(z, geometry.layout, "NHWC") for z in (x, dy))
    w = _outputs_last(geometry, w)
    dx = _in_layout(_input_gradient(geometry, x.shape, w, dy), "NHWC", geometry.layout)
    # On CPU the weight's gradient as a convolution has a filter of the size of the image, which XLA runs slower than
    # the same sum as matrix products: inside a scan by two orders of magnitude, on its slow path.
    dw = lax.platform_dependent(
        x,
        dy,
        cpu=lambda x, dy: _weight_gradient_by_products(geometry, w.shape, x, dy),
        default=lambda x, dy: _weight_gradient_by_convolution(geometry, w.shape, x, dy),
    )
    db = None if b is None else cotangent(jnp.sum(dy.astype(accumulation_dtype(dy.dtype)), axis=(0, 1, 2)), b)
    return cotangent(dx, given[0]), cotangent(_filters_as_given(geometry, dw), given[1]), db


_conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)


# The rule works on images (s, i, j, channel) and filters (i', j', ic, oc) whatever the layout given. Only these take
# the CPU backend's fast path inside a scan, where NCHW is many times slower.


def _in_layout(x: Array, given: str, wanted: str) -> Array:
    """Return images in another layout, by transposing matrices: of four axes XLA's CPU backend takes two passes."""
    if given == wanted:
        return x
    size = {axis: x.shape[i] for i, axis in enumerate(given)}
    pixels, channels = size["H"] * size["W"], size["C"]
    x = x.reshape(size["N"], *((channels, pixels) if given == "NCHW" else (pixels, channels)))
    return x.swapaxes(1, 2).reshape([size[axis] for axis in wanted])


def _outputs_last(geometry: _Geometry, w: Array) -> Array:
    return w if geometry.layout == "NHWC" else w.transpose(2, 3, 1, 0)


def _filters_as_given(geometry: _Geometry, w: Array) -> Array:
    return w if geometry.layout == "NHWC" else w.transpose(3, 2, 0, 1)


_LAYOUTS = ("NHWC", "HWIO", "NHWC")


def _correlate(geometry: _Geometry, x: Array, w: Array) -> Array:
    """y_s,i,j,oc = Σ_ic,i',j' w_i',j',ic,oc x_s,Si+Di'−P,Sj+Dj'−P,ic."""
    return _convolve(geometry, x, w, geometry.stride, geometry.pads)


def _input_gradient(geometry: _Geometry, x_shape: tuple[int, ...], w: Array, dy: Array) -> Array:
    """dx_s,h,w,ic = Σ_oc,i',j' dy_s,i,j,oc w_i',j',ic,oc, as a convolution of the spread dy with the turned filter."""
    rows, columns = [
        (reach - before, size - spread + before)
        for before, size, spread, reach in _spans(geometry, x_shape, w.shape, dy.shape)
    ]
    turned = _exchange_channels(lax.rev(w, (0, 1)), geometry.groups)
    return _convolve(geometry, dy, turned, (1, 1), (rows, columns), geometry.stride)


def _convolve(geometry: _Geometry, x: Array, w: Array, stride: Pair, pads: Pads, spread: Pair = (1, 1)) -> Array:
    """Slide the filters over the images, whose pixels lie `spread` apart."""

    def with_more_rows(more: int, x: Array, w: Array) -> Array:
        (top, bottom), columns = pads
        y = lax.conv_general_dilated(
            x,
            w,
            stride,
            ((top, bottom + more), columns),
            lhs_dilation=spread,
            rhs_dilation=geometry.dilation,
            dimension_numbers=_LAYOUTS,
            feature_group_count=geometry.groups,
            precision=geometry.precision,
        )
        return lax.slice_in_dim(y, 0, y.shape[1] - more, axis=1)

    as_given, more = functools.partial(with_more_rows, 0), _rows_more(geometry, x, w, stride, pads, spread)
    if more == 0:
        return as_given(x, w)
    y: Array = lax.platform_dependent(x, w, cpu=functools.partial(with_more_rows, more), default=as_given)
    return y


def _rows_more(geometry: _Geometry, x: Array, w: Array, stride: Pair, pads: Pads, spread: Pair) -> int:
    """Return how many rows of outputs more, from zeros, make a convolution faster on the CPU backend of jax 0.10.

    It is slow where it takes a kernel of YNNPACK: for many channels, and on both axes padding of no more than the
    filter's reach. In float64 it is not, and by vertical strides more rows do not leave the kernel.
    """
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, w.shape[:2], strict=True)]
    large = w.shape[2] * w.shape[3] >= 512 and x.shape[1] - reach[0] >= 8 and x.dtype.itemsize <= 4
    plain = geometry.groups == 1 and stride[0] == 1 and spread == (1, 1)
    by_ynnpack = jax.__version_info__ < (0, 11) and all(sum(p) <= r for p, r in zip(pads, reach, strict=True))
    return reach[0] + 1 - sum(pads[0]) if by_ynnpack and large and plain else 0


def _spans(geometry: _Geometry, x: tuple[int, ...], w: tuple[int, ...], dy: tuple[int, ...]) -> list[Any]:
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


def _weight_gradient_by_convolution(geometry: _Geometry, w_shape: tuple[int, ...], x: Array, dy: Array) -> Array:
    """dw_i',j',ic,oc = Σ_s,i,j dy_s,i,j,oc x_s,Si+Di'−P,Sj+Dj'−P,ic, as a convolution that slides dy over x.

    The sum over samples takes the place of the sum over channels, stride and dilation change places.
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


def _weight_gradient_by_products(geometry: _Geometry, w_shape: tuple[int, ...], x: Array, dy: Array) -> Array:
    """dw_i',j',ic,oc = Σ_s,i,j dy_s,i,j,oc x_s,Si+Di'−P,Sj+Dj'−P,ic, as matrix products of blocks of samples.

    A block's patches fit in the cache: taken all at once they cost more in page faults than the product does.
    """
    (kh, kw, _, _), (samples, oh, ow, _) = w_shape, dy.shape
    of_block = _by_rows_and_columns if _splits_taps(geometry, w_shape, ow) else _by_patches
    block = _largest_divisor(samples, _samples_in(_BLOCK_BYTES, (oh, ow, kh, kw, x.shape[-1]), x.dtype))

    def add_block(i: Array, dw: Array) -> Array:  # by index: of blocks for a scan XLA would make a copy
        of_images = (lax.dynamic_slice_in_dim(z, i * block, block) for z in (x, dy))
        return dw + of_block(geometry, w_shape, *of_images)

    if block == samples:
        dw = of_block(geometry, w_shape, x, dy)
    else:
        zero = vary_with(jnp.zeros(w_shape, accumulation_dtype(x.dtype)), type_of(x), type_of(dy))
        dw = lax.fori_loop(0, samples // block, add_block, zero)
    return dw.astype(x.dtype)


_BLOCK_BYTES = 4 << 20  # of a block's patches, found by trial


def _samples_in(size: int, sample: tuple[int, ...], dtype: Any) -> int:
    """Return how many samples of this shape fit in so many bytes."""
    bytes_each: int = math.prod(sample) * dtype.itemsize
    return size // max(1, bytes_each)


def _by_patches(geometry: _Geometry, w_shape: tuple[int, ...], x: Array, dy: Array) -> Array:
    """Multiply the patches of x, one under the filter at each output, by dy."""
    (kh, kw, _, _), (oh, ow) = w_shape, dy.shape[1:3]
    patches = _patches(geometry, (kh, kw), (oh, ow), _padded(geometry, x))
    return _product(geometry, patches, dy[:, :, :, None]).reshape(w_shape)


def _by_rows_and_columns(geometry: _Geometry, w_shape: tuple[int, ...], x: Array, dy: Array) -> Array:
    """Multiply patches of single columns k = j + Dj' of the padded x, with all i', by the dy at j = k − Dj' of all j'.

    All j' meet the inner columns k, from reach = D (KW − 1) up to the number dy has, in one product. At either end,
    `reach` columns k are multiplied by the `reach` columns of dy next to them, all pairs in one product, as one
    compiles faster than KW do: tap j' takes the pairs with k − j = Dj', and some pairs are not used.
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
    # The left end's column j = k − Dj' counts from dy's first; the right end's is negative and counts from its last.
    outer = [sum((left if k >= shift else right)[k, :, k - shift] for k in range(reach)) for shift in shifts]
    return inner + jnp.stack(outer, axis=1)


_LONGEST_REACH = 8  # of a filter whose taps are split: each end has its square of pairs, to compile, too
_MOST_OF_PAIRS = 1 << 20  # numbers in the product of an end, which is formed for every block: they fit in the cache


def _splits_taps(geometry: _Geometry, w_shape: tuple[int, ...], ow: int) -> bool:
    """Tell which weight gradients are formed by rows and columns. These need outputs one pixel apart along a row.

    It copies less, or as much, and XLA runs products faster whose factors are nearer the same size. The pairs of
    columns at both ends have to be no more than all taps' columns, and their product no burden.
    """
    kh, kw, inputs, outputs = w_shape
    reach = geometry.dilation[1] * (kw - 1)
    copies_less = kh * inputs + kw * outputs <= kh * kw * inputs
    few_pairs = 2 * reach**2 <= kw * ow and reach**2 * kh * inputs * outputs <= _MOST_OF_PAIRS
    plain = geometry.stride[1] == 1 and geometry.groups == 1
    return plain and copies_less and few_pairs and 0 < reach <= _LONGEST_REACH


def _padded(geometry: _Geometry, x: Array) -> Array:
    return jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))


def _patches(geometry: _Geometry, window: Pair, outputs: Pair, x: Array) -> Array:
    """Return x_s,Si+Di',Sj+Dj',ic as (s, i, j, taps, ic), one slice a column j' and one a row i'."""
    # Fewer slices than taps, and XLA compiles each.
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    rows = [slice(i * dh, i * dh + sh * (outputs[0] - 1) + 1, sh) for i in range(window[0])]
    columns = [slice(j * dw, j * dw + sw * (outputs[1] - 1) + 1, sw) for j in range(window[1])]
    x = jnp.stack([x[:, :, column] for column in columns], axis=3)
    x = jnp.stack([x[:, row] for row in rows], axis=3)
    return x.reshape(*x.shape[:3], len(rows) * len(columns), x.shape[-1])


def _product(geometry: _Geometry, x: Array, dy: Array) -> Array:
    """Return Σ_s,i,j x_s,i,j,l,ic dy_s,i,j,r,oc as (l, r, ic, oc), where ic is of oc's group."""
    groups, (left, inputs), (right, outputs) = geometry.groups, x.shape[3:], dy.shape[3:]
    product = functools.partial(
        lax.dot_general, precision=geometry.precision, preferred_element_type=accumulation_dtype(x.dtype)
    )
    pixels, of_group = math.prod(x.shape[:3]), inputs // groups
    if groups == 1:  # a plain matrix product: XLA runs one with a batch axis of size 1 far slower
        x, dy = x.reshape(pixels, left * inputs), dy.reshape(pixels, right * outputs)
        return product(x, dy, (((0,), (0,)), ((), ()))).reshape(left, inputs, right, outputs).transpose(0, 2, 1, 3)
    x, dy = x.reshape(pixels, left, groups, of_group), dy.reshape(pixels, right, groups, outputs // groups)
    dw = product(x, dy, (((0,), (0,)), ((2,), (2,))))
    return dw.transpose(1, 3, 2, 0, 4).reshape(left, right, of_group, outputs)


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit` (and at least 1)."""
    if number <= limit:
        return number
    return next(d for d in range(max(1, limit), 0, -1) if number % d == 0)


def _checked(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None,
    stride: int | Pair,
    padding: Padding,
    dilation: int | Pair,
    groups: int,
    layout: str,
    precision: Any,
) -> tuple[Array, Array, Array | None, _Geometry]:
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
    geometry = _Geometry(
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
