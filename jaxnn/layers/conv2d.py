"""Convolution (in the notes' sense: cross-correlation): y = W * x + b.

Definition (s: sample, ic, oc: input and output channels, i', j': position in the filter):
    y_s,oc,i,j = Σ_ic,i',j' w_oc,ic,i',j' x_s,ic,i+i',j+j' + b_oc
With stride S, dilation D and padding P, x is first surrounded by zeros and its index becomes S·i + D·i' − P (likewise
for j); with G groups, ic runs over the C/G channels of oc's group only.

Derivation (the chain rule over every y that the variable affects; dy stands for ∂L/∂y):
    x at (h, w) affects y at (i, j) through every filter position with h = S·i + D·i' − P:
        dx_s,ic,h,w = Σ_oc,i',j' dy_s,oc,i,j w_oc,ic,i',j'   over those (i, j)
    As h grows with i, i' falls: it is again a convolution, of dy with S − 1 zeros between its pixels, with the filter
    reversed along both axes and its channel axes exchanged, padded so that it reaches every x.
    w at (i', j') affects y at every s, i, j:
        dw_oc,ic,i',j' = Σ_s,i,j dy_s,oc,i,j x_s,ic,S·i+D·i'−P,S·j+D·j'−P
    which is a matrix product, dyᵀ times the patches of x, contracted over (s, i, j).
    b affects all of its channel:
        db_oc = Σ_s,i,j dy_s,oc,i,j

Residuals:
    x and w, the factors of the products: both are inputs, so nothing new is stored.

Conventions:
    "SAME" is XLA's: ⌈H/S⌉ outputs; an odd row or column of padding lies below or to the right. On a CPU the rule
    transposes NCHW to NHWC and back, so NHWC is the faster layout on a CPU (scripts/README.md).

Source:
    Taura, Neural Networks Basics: "Convolution (multiple channels version)", "Convolution (Back propagation 1)" and
    "(Back propagation 2)". Stride, dilation, padding and groups are derived here in the same manner.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxnn.layers import _conv2d_convolutions as _convolutions
from jaxnn.layers import _conv2d_cpu as _cpu
from jaxnn.layers._conv2d_geometry import Geometry, Padding, Pair, checked
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import Type, accumulation_dtype, cotangent, type_of
from jaxnn.rules.sharding import on_any_mesh, sharding_of

Residuals = tuple[Array, Array, Type | None]  # x, w, and the type of b


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
    x, w, b, geometry = checked(x, w, b, stride, padding, dilation, groups, layout, precision)
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


def _sharding_of_y(given: dict[str, Any]) -> tuple[Any, ...]:
    """The batch is sharded like x's, the channels like the filters; no image is sharded."""
    x, w = sharding_of(given["x"]), sharding_of(given["w"])
    return (*x[:-3], *w[:1], None, None) if given["layout"] == "NCHW" else (*x[:-3], None, None, *w[-1:])


@defined_by(_definition)
@on_any_mesh(_sharding_of_y)
def conv2d(
    x: Float[ArrayLike, "*batch _ _ _"],
    w: Float[ArrayLike, "_ _ _ _"],
    b: Float[ArrayLike, " outputs"] | None = None,
    *,
    stride: int | Pair = 1,
    padding: Padding = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    precision: Any = None,
) -> Float[Array, "*batch _ _ _"]:
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
        layout: "NCHW" or "NHWC". The rule works in NHWC and transposes NCHW, so NHWC is faster on a CPU; no GPU was
            measured.
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
    x, w, b, geometry = checked(x, w, b, stride, padding, dilation, groups, layout, precision)
    y = _conv2d(geometry, x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]), w, b)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"y_{s,oc,i,j} = \sum_{ic,i',j'} w_{oc,ic,i',j'}\,x_{s,ic,Si+Di'-P,Sj+Dj'-P} \;(+\,b_{oc})",
    x=(
        r"dx_{s,ic,h,w} = \sum_{oc,i',j'} dy_{s,oc,i,j}\,w_{oc,ic,i',j'}, \quad h = Si+Di'-P, w = Sj+Dj'-P",
        "An output changes with each pixel under its filter, by the weight on that pixel, and with no other pixel. "
        "S, D and P are stride, dilation and padding.",
    ),
    w=(
        r"dw_{oc,ic,i',j'} = \sum_{s,i,j} dy_{s,oc,i,j}\,x_{s,ic,Si+Di'-P,Sj+Dj'-P}",
        "For each output a weight lies on another pixel; the output changes with the weight by that pixel. "
        "S, D and P are stride, dilation and padding.",
    ),
    b=(
        r"db_{oc} = \sum_{s,i,j} dy_{s,oc,i,j}",
        "Every output of a channel changes with the channel's bias, one for one.",
    ),
)
def _conv2d(geometry: Geometry, x: Array, w: Array, b: Array | None) -> Array:
    return _conv2d_fwd(geometry, x, w, b)[0]


def _conv2d_fwd(geometry: Geometry, x: Array, w: Array, b: Array | None) -> tuple[Array, Residuals]:
    y = _convolutions.correlate(
        geometry, _convolutions.in_layout(x, geometry.layout, "NHWC"), _convolutions.outputs_last(geometry, w)
    )
    y = y if b is None else y + jnp.broadcast_to(b, y.shape)
    return _convolutions.in_layout(y, "NHWC", geometry.layout), (x, w, None if b is None else type_of(b))


def _conv2d_bwd(geometry: Geometry, residuals: Residuals, dy: Array) -> tuple[Array, Array, Array | None]:
    x, w, b = residuals
    given = type_of(x), type_of(w)
    x, dy = (_convolutions.in_layout(z, geometry.layout, "NHWC") for z in (x, dy))
    w = _convolutions.outputs_last(geometry, w)
    dx = _convolutions.in_layout(_convolutions.input_gradient(geometry, x.shape, w, dy), "NHWC", geometry.layout)
    # As a convolution dw has a filter of the size of the image: XLA's CPU backend is slow at that (`_conv2d_cpu`).
    dw = lax.platform_dependent(
        x,
        dy,
        cpu=lambda x, dy: _cpu.weight_gradient_by_products(geometry, w.shape, x, dy),
        default=lambda x, dy: _convolutions.weight_gradient_by_convolution(geometry, w.shape, x, dy),
    )
    db = None if b is None else cotangent(jnp.sum(dy.astype(accumulation_dtype(dy.dtype)), axis=(0, 1, 2)), b)
    return cotangent(dx, given[0]), cotangent(_convolutions.filters_as_given(geometry, dw), given[1]), db


_conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)
