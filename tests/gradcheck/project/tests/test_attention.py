import jax
import jax.numpy as jnp
import numpy as np
from pocketnet import attention
from pocketnet.testing import normal
from pocketnet.training import sgd_step


def test_attention_under_jit_learns():
    x, t = normal(5, 4), normal(5, 4, seed=1)
    loss = lambda p: jnp.mean((attention.attention(x @ p["q"], x @ p["k"], x @ p["v"]) - t) ** 2)  # noqa: E731
    params = {name: normal(4, 4, seed=i + 2) for i, name in enumerate("qkv")}
    after, before = jax.jit(lambda p: sgd_step(loss, p))(params)
    assert loss(after) < before


def test_saturated_softmax():
    x = jnp.array([[1e4, -1e4, 0.0], [50.0, 50.0, -50.0]])
    y, pull = jax.vjp(attention.sharp_softmax, x)
    np.testing.assert_allclose(y, [[1, 0, 0], [0.5, 0.5, 0]], atol=1e-6)
    assert np.isfinite(pull(y)[0]).all()


def test_masked_softmax():
    scores, mask = normal(3, 4), jnp.array([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0]], bool)
    y = attention.masked_softmax(scores, mask=mask)
    np.testing.assert_array_equal(y > 0, mask)
    g = jax.grad(lambda s: attention.masked_softmax(s, mask=mask)[0, 0])(scores)
    assert (g[1:] == 0).all() and g[0, 2] == 0
