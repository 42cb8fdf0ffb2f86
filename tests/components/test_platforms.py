"""A program for another platform is that platform's, also in an export: what differs is chosen where it is lowered."""

import collections
import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import pytest

import jaxnn

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
ROWS = jax.ShapeDtypeStruct((16, 40), jnp.float32)
LABELS = jax.ShapeDtypeStruct((16,), jnp.int32)
FILTERS = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)
WEIGHTS = jax.ShapeDtypeStruct((2**19, 40), jnp.float32)
PROGRAMS = {  # those with a form of their own for some platform
    "max_pool2d": (functools.partial(jaxnn.max_pool2d, layout="NHWC"), IMAGES),
    "conv2d": (functools.partial(jaxnn.conv2d, layout="NHWC"), IMAGES, FILTERS),
    "softmax": (jaxnn.softmax, ROWS),
    "log_softmax": (jaxnn.log_softmax, ROWS),
    "cross_entropy": (jaxnn.cross_entropy, ROWS, LABELS),
    "linear_cross_entropy": (jaxnn.linear_cross_entropy, ROWS, WEIGHTS, LABELS),
}


KEPT = "while|select_and_scatter|convolution|dot_general|gather|optimization_barrier|dynamic_slice|dynamic_update_slice"  # an export merges, or leaves out as dead, some others


def gradient(name):
    f, *args = PROGRAMS[name]
    argnums = tuple(i for i, a in enumerate(args) if a is not LABELS)
    return jax.jit(jax.grad(lambda *args: jnp.sum(f(*args)), argnums)), args


def operations(text, which=r"\w+"):
    """How often each operation occurs in a program's text."""
    return collections.Counter(re.findall(rf"stablehlo\.({which})\b", text))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_export_is_the_program_that_is_lowered_for_the_platform(name, platform):
    f, args = gradient(name)
    exported = jax.export.export(f, platforms=(platform,))(*args)
    lowered = f.trace(*args).lower(lowering_platforms=(platform,))
    assert operations(exported.mlir_module(), KEPT) == operations(lowered.as_text(), KEPT)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_platforms_programs_differ(name):
    f, args = gradient(name)
    found = [operations(f.trace(*args).lower(lowering_platforms=(p,)).as_text()) for p in ("cpu", "cuda", "tpu")]
    assert found[0] != found[1] or found[0] != found[2]


# Component, platform, and an operation that the gradient's program has only, or more often, on that platform.
FORMS = [
    ("max_pool2d", "tpu", "reduce"),  # the tiles, forward
    ("conv2d", "cpu", "dot_general"),
    ("softmax", "cuda", "minimum"),  # at most the largest
    ("softmax", "cpu", "clamp"),  # the sums are not fused with dx
    ("log_softmax", "cuda", "optimization_barrier"),  # the sums are computed again, so that one kernel suffices
    ("cross_entropy", "cpu", "gather"),  # elsewhere the label is found by comparison
    ("cross_entropy", "cpu", "scatter"),  # q is subtracted at the label
    ("linear_cross_entropy", "cpu", "while"),  # smaller blocks
]


@pytest.mark.parametrize("name, platform, operation", FORMS)
def test_each_form_is_on_its_platform(name, platform, operation):
    f, args = gradient(name)
    count = {
        p: operations(f.trace(*args).lower(lowering_platforms=(p,)).as_text())[operation]
        for p in ("cpu", "cuda", "tpu")
    }
    others = {n for p, n in count.items() if p != platform}
    assert len(others) == 1 and count[platform] > max(others)


def test_the_backward_pass_of_max_pool2d_is_a_tpus_own_on_a_tpu():
    f, args = gradient("max_pool2d")
    text = {p: f.trace(*args).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
    assert operations(text["tpu"])["pad"] == 1 < operations(text["cpu"])["pad"]
