"""Convolutions of several shapes, for the benchmark."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax import lax
from libraries import In, torch_ways
from workloads import Work, each

import jaxnn


class Shape(NamedTuple):
    """One convolution: x has size × size pixels, a filter window × window taps."""

    name: str
    size: int
    inputs: int
    filters: int
    window: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def outputs(self) -> int:
        """The pixels of y along one axis."""
        return (self.size + 2 * self.padding - self.window) // self.stride + 1


SHAPES = (
    Shape("3x3 of the convnet, 26x26x32 to 64", 26, 32, 64, 3),
    Shape("5x5 of the speedrun, 12x12x32 to 64", 12, 32, 64, 5),
    Shape("1x1, 14x14x64 to 128", 14, 64, 128, 1),
    Shape("3x3 by strides of 2, 28x28x32 to 64", 28, 32, 64, 3, stride=2, padding=1),
    Shape("3x3 in 4 groups, 28x28x64 to 64", 28, 64, 64, 3, padding=1, groups=4),
    Shape("3x3 depthwise, 28x28x64", 28, 64, 64, 3, padding=1, groups=64),
)


def work_of(shape: Shape, layout: str, batch: int) -> Work:
    """Return the convolution in jaxnn, and in JAX and PyTorch."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, shape.size, shape.size, shape.inputs), np.float32)
    w = rng.standard_normal((shape.window, shape.window, shape.inputs // shape.groups, shape.filters), np.float32)
    options = {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups}
    ways = {
        f"lax.conv {each_layout}": In(each_layout, lax_conv(shape, each_layout)) for each_layout in ("NHWC", "NCHW")
    }
    flops = 6.0 * batch * shape.outputs**2 * w.size
    in_torch = torch_ways(lambda F, x, w: F.conv2d(x, w, **options), images=True)
    name = f"{shape.name}, {layout}, batch {batch}"
    return Work(name, (x, w), In(layout, functools.partial(jaxnn.conv2d, layout=layout, **options)), ways,
                {name: way for name, way in in_torch.items() if "compile" not in name}, flops=flops)  # fmt: skip


def lax_conv(shape: Shape, layout: str) -> Callable[..., Any]:
    """Return the convolution in `layout`, without jaxnn."""
    filters = "OIHW" if layout == "NCHW" else "HWIO"
    pads = ((shape.padding, shape.padding),) * 2

    def conv(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(x, w, (shape.stride,) * 2, pads, dimension_numbers=(layout, filters, layout),
                                        feature_group_count=shape.groups)  # fmt: skip

    return each(conv)


def in_the_middle() -> Iterator[Work]:
    """Yield every shape in NHWC, in batches of 64."""
    return (work_of(shape, "NHWC", 64) for shape in SHAPES)
