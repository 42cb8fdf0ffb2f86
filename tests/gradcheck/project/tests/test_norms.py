import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pocketnet import norms
from pocketnet.testing import normal
from pocketnet.training import sgd_step


def test_layer_norm_has_mean_0_and_variance_1():
    y = norms.layer_norm(normal(4, 6) * 3 + 1)
    np.testing.assert_allclose(jnp.mean(y, -1), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(jnp.var(y, -1), np.ones(4), rtol=1e-3)


def test_a_checkpointed_block_with_layer_norm_learns():
    x, t = normal(4, 6), normal(4, 6, seed=1)
    layer = jax.checkpoint(lambda w: norms.layer_norm(x @ w) @ w)
    loss = jax.jit(lambda w: jnp.mean((layer(w) - t) ** 2))
    after, before = sgd_step(loss, normal(6, 6, seed=2), 0.02)
    assert loss(after) < before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rms_norm(dtype):
    x, w = normal(4, 8, dtype=dtype), normal(8, seed=1, dtype=dtype)
    loss = lambda w: jnp.sum(norms.rms_norm(x, w).astype("float32") ** 2)  # noqa: E731
    dx, dw = jax.grad(lambda *a: jnp.sum(norms.rms_norm(*a)), (0, 1))(x, w)
    assert dx.dtype == dw.dtype == dtype and np.isfinite(dx.astype("float32")).all()
    after, before = sgd_step(loss, w, 0.01)
    assert loss(after) < before


@pytest.mark.parametrize("rows", [0, 3])
def test_unit_length(rows):
    y, pull = jax.vjp(norms.unit_length, normal(rows, 4))
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), np.ones(rows), rtol=1e-5)
    np.testing.assert_allclose(pull(y)[0], np.zeros((rows, 4)), atol=1e-6)
