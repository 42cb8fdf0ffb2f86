import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pocketnet import activations
from pocketnet.testing import normal, positive, steps
from pocketnet.training import sgd_step


def test_relu_of_numbers_with_zeros():
    x = steps(4, 5)
    np.testing.assert_array_equal(activations.relu(x), np.maximum(x, 0))
    assert jax.grad(lambda x: jnp.sum(activations.relu(x)))(x).shape == x.shape


def test_gelu_in_a_scan_over_batches():
    @jax.jit
    def loss(scale, batches):
        total = lambda s, xs: (s + jnp.sum(jax.vmap(lambda x: activations.gelu(scale * x))(xs)), None)  # noqa: E731
        return jax.lax.scan(total, jnp.zeros(()), batches)[0]

    value, slope = jax.value_and_grad(loss)(jnp.float32(1.5), normal(3, 4, 6))
    assert np.isfinite(value) and slope > 0
    np.testing.assert_allclose(
        loss(jnp.float32(1.0), normal(3, 4, 6)), jnp.sum(jax.nn.gelu(normal(3, 4, 6))), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_softplus_keeps_the_dtype(dtype):
    x = normal(3, 4, dtype=dtype) * 4
    y, pull = jax.vjp(activations.softplus, x)
    assert y.dtype == pull(y)[0].dtype == dtype
    np.testing.assert_allclose(y.astype("float32"), np.log1p(np.exp(x.astype("float32"))), rtol=2e-3)


def test_swish_learns():
    x = normal(6, 3)
    loss = lambda p: jnp.mean((activations.swish(x @ p["w"], p["beta"]) - 1) ** 2)  # noqa: E731
    params = {"w": normal(3, 3, seed=1), "beta": jnp.float32(1.0)}
    after, before = sgd_step(loss, params)
    assert loss(after) < before


def test_swish_with_beta_1_is_silu():
    x = normal(5)
    np.testing.assert_allclose(activations.swish(x, jnp.float32(1.0)), jax.nn.silu(x), rtol=1e-5)


def test_leaky_relu():
    leaky = activations.make_leaky_relu(0.2)
    x = normal(5)
    np.testing.assert_allclose(leaky(x), np.where(x > 0, x, 0.2 * x), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(leaky(x) ** 2))(x)).all()


def test_cube():
    cube = activations.make_power(3)
    x = positive(4)
    np.testing.assert_allclose(cube(x), x**3, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(cube(x)))(x), 3 * x**2, rtol=1e-5)
