"""The group `convolutions`: value and gradients of several shapes, beside their matrix products alone."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from bench_components import compared
from bench_timing import Variant, dtype_of, jax_run
from convolutions import SHAPES, Shape, work_of
from libraries import on_gpu
from speed_tables import Row

BATCH_SIZES = (1, 64, 1024)
PRODUCTS = "products"


def products(shape: Shape, batch: int, mode: str) -> list[Variant]:
    """Return the three matrix products of value and gradients, with their factors at hand: the floor of the rule.

    dx has two forms, dy · wᵀ and patches of dy times w; each is a variant, and the faster one counts.
    """
    if shape.groups > 1:
        return []
    rng, pixels, taps = np.random.default_rng(0), batch * shape.outputs**2, shape.window**2
    sizes = ((pixels, taps * shape.inputs), (taps * shape.inputs, shape.filters), (pixels, shape.filters),
             (pixels, taps * shape.filters), (taps * shape.filters, shape.inputs))  # fmt: skip
    patches, w, dy, patches_of_dy, turned = (
        jnp.asarray(rng.standard_normal(size, np.float32), dtype_of(mode)) for size in sizes
    )
    by_rows = jax.jit(lambda patches, w, dy: (patches @ w, dy @ w.T, patches.T @ dy))
    by_patches = jax.jit(lambda patches, w, dy, of_dy, turned: (patches @ w, of_dy @ turned, patches.T @ dy))
    calls = {"dy wᵀ": lambda: by_rows(patches, w, dy),
             "patches of dy": lambda: by_patches(patches, w, dy, patches_of_dy, turned)}  # fmt: skip
    return [Variant(PRODUCTS, name, jax_run(call)).calibrated() for name, call in calls.items()]


def convolutions(mode: str, rounds: int) -> Iterator[Row]:
    """Measure each shape: in NHWC for every batch size, in NCHW for batch 64.

    Shapes with groups skip batch 1024, where JAX's derivative is too slow.
    """
    limits = {} if on_gpu() else {"of JAX": 1.0, f"of {PRODUCTS}": 1.15}
    for shape in SHAPES:
        for batch in BATCH_SIZES if shape.groups == 1 else BATCH_SIZES[:-1]:
            for layout in ("NHWC", "NCHW") if batch == BATCH_SIZES[len(BATCH_SIZES) // 2] else ("NHWC",):
                floor = functools.partial(products, shape, batch, mode)
                yield compared("convolutions", work_of(shape, layout, batch), mode, rounds, limits, floor=floor)
