"""The form of jaxnn.max_pool2d for a TPU: it runs on any platform, and equals the general form bit by bit."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.layers import _max_pool2d_tiles as tiles
from jaxnn.layers import _max_pool2d_windows as windows

max_pool2d = importlib.import_module("jaxnn.layers.max_pool2d")


def image(shape, dtype, kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    if kind == "ties":
        x = rng.integers(0, 2, shape) * 1.0
    elif kind == "not finite":
        x = np.where(rng.random(shape) < 0.7, rng.choice([-np.inf, np.inf, np.nan], shape), x)
    elif kind == "all -inf":
        x = np.full(shape, -np.inf)
    elif kind == "the last":
        x = np.arange(np.prod(shape)).reshape(shape) // 4.0
    return jnp.asarray(x, dtype)


@pytest.mark.one_in(10)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize(("window", "kind"), [
    *itertools.product([(2, 2), (3, 2), (1, 4)], ["random", "ties", "not finite", "all -inf"]),
    *(((17, 16), kind) for kind in ("ties", "all -inf", "the last")),  # more positions than a byte holds
])  # fmt: skip
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_it_equals_the_general_form(layout, window, dtype, kind):
    size = (2 * window[0] + 1, 3 * window[1])  # a row of pixels is left out
    with jax.enable_x64(dtype == "float64"):
        x = image((2, 3, *size) if layout == "NCHW" else (2, *size, 3), dtype, kind)
        geometry = windows.checked(x, window, None, 0, layout)[1]
        assert tiles.are_windows_of(geometry)
        y, position = windows.largest(geometry, x)
        found, at = jax.jit(tiles.largest, static_argnums=0)(geometry, x)
        np.testing.assert_array_equal(np.asarray(found, np.float64), np.asarray(y, np.float64))
        np.testing.assert_array_equal(at, position)
        assert (found.dtype, at.dtype) == (y.dtype, position.dtype)
        dy = image(y.shape, dtype, "random")
        dx = jax.jit(tiles.gradient, static_argnums=0)(geometry, position, dy)
        expected = max_pool2d._gradient(geometry, position, dy)
        assert dx.dtype == expected.dtype
        np.testing.assert_array_equal(dx, expected)


def test_the_larger_of_two_pixels_is_the_same_in_either_order():
    """A TPU reduces in any order: of equals the first is taken, a NaN before a number, of NaNs the last."""
    values = (-np.inf, 0.0, 1.0, np.inf, np.nan)
    for x, y in itertools.product(values, values):
        first, last = (jnp.float32(x), jnp.uint8(3)), (jnp.float32(y), jnp.uint8(7))
        if np.isnan(x) or np.isnan(y):  # noqa: SIM108
            expected = last if np.isnan(y) else first
        else:
            expected = last if y > x else first
        for a, b in ((first, last), (last, first)):
            np.testing.assert_array_equal(tiles._larger(a, b), expected)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (3, 0), (2, 1)])
def test_windows_that_do_not_tile_keep_the_general_form(stride, padding):
    x = jnp.zeros((1, 8, 8))
    assert not tiles.are_windows_of(windows.checked(x, 2, stride, padding, "NCHW")[1])


def test_only_a_tpu_gets_this_form():
    def gradient(x):
        return jax.grad(lambda x: max_pool2d.max_pool2d(x).sum())(x)

    def text(platform):
        return jax.jit(gradient).trace(jnp.zeros((1, 8, 8))).lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.reduce" in text("tpu") and "stablehlo.reduce" not in text("cpu") + text("cuda")
