"""The functions of jaxnn that change speed or memory and not the result, and what the rules do without them.

Dropout's `_keep` changes which elements are dropped, and not how many on average.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax


class Optimisation(NamedTuple):
    """A function of jaxnn that changes speed or memory, and what replaces it when it is off."""

    work: str  # the component to measure it on
    module: str
    name: str
    instead: str  # what replaces it, in words
    without: Callable[..., Any]  # and as a function of the optimisation and its arguments

    def off(self) -> Any:
        """Return a context: what is traced in it does without the optimisation."""
        module = importlib.import_module(self.module)
        return mock.patch.object(module, self.name, functools.partial(self.without, getattr(module, self.name)))


def optimisations(gpu: bool) -> list[Optimisation]:
    """Return those that the device has."""
    cpu, loss = "jaxnn.layers._conv2d_cpu", "jaxnn.losses._linear_cross_entropy_inputs"
    convolutions = "jaxnn.layers._conv2d_convolutions"

    def by_convolution(_: Any, *args: Any) -> Any:
        return importlib.import_module(convolutions).weight_gradient_by_convolution(*args)

    def batched_products(_: Any, *args: Any) -> Any:
        return importlib.import_module(cpu)._by_patches(*args[:4])

    def random_bits(_: Any, threshold: int, shape: tuple[int, ...], key: Any) -> Any:
        return jax.random.bits(key, shape) >= threshold

    def times_rows(factor: float) -> Callable[..., Any]:
        def sizes(kept: Any, *args: Any) -> Any:
            return tuple(each._replace(rows=min(args[4], int(each.rows * factor))) for each in kept(*args))

        return sizes

    def transposed(_: Any, x: Any, given: str, wanted: str) -> Any:
        return x.transpose([given.index(axis) for axis in wanted])

    def chosen(_: Any, a: Any, b: Any) -> Any:
        return jax.numpy.where((b > a) | (b != b), b, a)

    def compared(kept: Any, *args: Any) -> Any:
        with mock.patch.object(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args)):
            return kept(*args)

    usual, never = ", NHWC, batch 64", lambda *_: False
    on_cpu = [
        Optimisation("conv2d NHWC", cpu, "weight_gradient_by_products", "a convolution", by_convolution),
        Optimisation("conv2d NHWC", cpu, "_splits_taps", "patches", never),
        Optimisation("conv2d NHWC", cpu, "_samples_in", "all samples at once", lambda *_: 1 << 30),
        Optimisation("conv2d NCHW", convolutions, "in_layout", "one transposition of four axes", transposed),
        Optimisation(
            f"5x5 of the speedrun, 12x12x32 to 64{usual}", cpu, "meets_many_zeros", "dx as a convolution", never
        ),
        *(
            Optimisation(f"{shape}{usual}", cpu, "faster_form", "XLA's convolution", lambda *_: None)
            for shape in ("1x1, 14x14x64 to 128", "3x3 in 4 groups, 28x28x64 to 64", "3x3 depthwise, 28x28x64")
        ),
        Optimisation(
            f"3x3 depthwise, 28x28x64{usual}",
            "jaxnn.layers._conv2d_depthwise",
            "weight_gradient",
            "a product of patches for each group",
            batched_products,
        ),
    ]
    windows = "jaxnn.layers._max_pool2d_windows"
    on_cpu.append(Optimisation("max_pool2d NCHW", windows, "_larger", "a choice by `jnp.where`", chosen))
    softmax = "jaxnn.layers.softmax"
    on_cpu.append(Optimisation("softmax", softmax, "stored", "sums and dx in one kernel", lambda _, sums: sums))
    targets = "jaxnn.losses._cross_entropy_targets"
    on_cpu.append(Optimisation("cross_entropy", targets, "gradient", "a comparison of every class", compared))
    if jax.__version_info__ < (0, 11):
        on_cpu.append(Optimisation("conv2d NHWC", cpu, "rows_more", "no extra rows", lambda *_: 0))
    return [
        *([] if gpu else on_cpu),
        *(Optimisation(f"max_pool2d {layout}", "jaxnn.layers.max_pool2d", "_computed_once", "positions found again",
                       lambda _, position: position) for layout in ("NHWC", "NCHW")),
        Optimisation("dropout", "jaxnn.layers.dropout", "_keep", "threefry", random_bits),
        Optimisation("linear_cross_entropy fast", loss, "_block_sizes", "half the rows", times_rows(0.5)),
        Optimisation("linear_cross_entropy fast", loss, "_block_sizes", "four times the rows", times_rows(4)),
    ]  # fmt: skip
