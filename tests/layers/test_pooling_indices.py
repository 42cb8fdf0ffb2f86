"""The indices of max-pooling, against the loops and PyTorch; which pixel moves y; what its gradient reads."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxnn


@pytest.mark.one_in(4)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("window, stride, padding", [(2, None, 0), (3, 1, 1), ((3, 2), (2, 3), (1, 0)), (4, 3, 2)])
def test_pooling_indices_are_torchs(window, stride, padding, layout):
    rng = np.random.default_rng(0)
    x = rng.choice([np.nan, -np.inf, -1.0, 0.0, 1.0], (2, 3, 7, 9), p=[0.05, 0.25, 0.2, 0.3, 0.2]).astype(np.float32)
    ours = np.moveaxis(x, 1, -1) if layout == "NHWC" else x
    options = {"stride": stride, "padding": padding}
    y, indices = jaxnn.max_pool2d_with_indices(jnp.asarray(ours), window, layout=layout, **options)
    oracle_y, oracle_indices = oracles.max_pool2d(ours, window, layout=layout, **options)
    np.testing.assert_array_equal(y, oracle_y)
    np.testing.assert_array_equal(indices, oracle_indices)
    assert indices.dtype == jnp.int32
    _, definition_indices = jaxnn.max_pool2d_with_indices.definition(
        jnp.asarray(ours), window, layout=layout, **options
    )
    np.testing.assert_array_equal(indices, definition_indices)
    torch = pytest.importorskip("torch")
    torch_y, torch_indices = torch.nn.functional.max_pool2d_with_indices(torch.tensor(x), window, **options)
    back = (lambda a: np.moveaxis(np.asarray(a), -1, 1)) if layout == "NHWC" else np.asarray
    np.testing.assert_array_equal(back(y), torch_y.numpy())
    np.testing.assert_array_equal(back(indices), torch_indices.numpy())


def test_indices_are_int32_in_64_bit_mode():
    with jax.enable_x64(True):
        _, indices = jaxnn.max_pool2d_with_indices(jnp.ones((1, 4, 4)))
        assert indices.dtype == jnp.int32


def test_the_last_of_256_pixels_has_a_gradient():
    """Its position is 255, the largest number of one byte."""
    x = jnp.arange(256.0).reshape(1, 16, 16)
    gradient = jax.grad(lambda x: jaxnn.max_pool2d(x, 16).sum())(x)
    np.testing.assert_array_equal(gradient.ravel(), np.arange(256) == 255)


@pytest.mark.parametrize("x", [[[1.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]], [[np.nan, 0.0], [np.nan, 1.0]]])
def test_y_moves_with_the_pixel_that_gets_the_gradient(x):
    """Forward mode through the forward rule: of equal pixels the first alone, of NaNs the last."""
    x, t = jnp.asarray([x]), jnp.asarray([[[1.0, 2.0], [4.0, 8.0]]])
    gradient = jax.grad(lambda x: jaxnn.max_pool2d(x).sum())(x)
    _, dy = jax.jvp(lambda x: jax.vjp(jaxnn.max_pool2d, x)[0], (x,), (t,))
    assert dy == jnp.vdot(gradient, t)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_gradient_on_a_cpu_reads_positions_and_not_the_images(layout):
    def both(x, dy):
        y, vjp = jax.vjp(lambda x: jaxnn.max_pool2d(x, layout=layout), x)
        return y, vjp(dy)

    x = jnp.zeros((2, 8, 8, 8))
    dy = jax.eval_shape(lambda x: jaxnn.max_pool2d(x, layout=layout), x)
    program = jax.jit(both).lower(x, dy).compile().as_text()
    loops = re.findall(r"^%\S*fused\S* \((.*)\) -> f32\[2,8,8,8\]", program, re.M)
    assert loops
    assert not [operands for operands in loops if "f32[2,8,8,8]" in operands]
