import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pocketnet import losses
from pocketnet.testing import normal
from pocketnet.training import sgd_step

LABELS = jnp.array([2, 0, 1, 2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_classifier_learns(dtype):
    x = normal(4, 5, dtype=dtype)
    loss = jax.jit(lambda w: losses.cross_entropy(x @ w, LABELS))
    after, before = jax.jit(functools.partial(sgd_step, loss))(normal(5, 3, seed=1, dtype=dtype))
    assert after.dtype == dtype and loss(after) < before


def test_squared_error():
    y, t = normal(4, 2), normal(4, 2, seed=1)
    np.testing.assert_allclose(losses.squared_error(y, t, "mean"), np.mean((y - t) ** 2), rtol=1e-5)
    np.testing.assert_allclose(losses.squared_error(y, t, "sum"), np.sum((y - t) ** 2), rtol=1e-5)
    for reduction in ("mean", "sum"):
        loss = lambda y: losses.squared_error(y, t, reduction)  # noqa: E731, B023
        after, before = sgd_step(loss, y)
        assert loss(after) < before


def test_logsumexp_under_vmap_and_grad():
    x = normal(3, 2, 5)
    y, g = jax.vmap(jax.value_and_grad(lambda x: jnp.sum(losses.logsumexp(x))))(x)
    assert y.shape == (3,)
    np.testing.assert_allclose(jnp.sum(g, -1), np.ones((3, 2)), rtol=1e-5)


def test_log_cosh():
    x = normal(6)
    np.testing.assert_allclose(losses.log_cosh(x), np.log(np.cosh(x)), rtol=1e-4, atol=1e-6)
    assert losses.log_cosh(after := x - jax.grad(lambda x: jnp.sum(losses.log_cosh(x)))(x)).shape == after.shape
