"""Pooling, dropout, recurrence, primitives and several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from pocketnet import noise, parallel, pooling, primitives, recurrent
from pocketnet.testing import normal, positive, steps
from pocketnet.training import sgd_step


def test_global_max_of_counts():
    x = steps(4, 9)
    np.testing.assert_array_equal(pooling.global_max(x), np.max(x, -1))
    loss = lambda x: jnp.sum(pooling.global_max(x))  # noqa: E731
    after, before = sgd_step(loss, x)
    assert loss(after) < before


def test_max_pool_of_counts():
    x = steps(3, 8, seed=1)
    np.testing.assert_array_equal(pooling.max_pool(x, 4), np.max(np.reshape(x, (3, 2, 4)), -1))
    g = jax.grad(lambda x: jnp.sum(pooling.max_pool(x, 4)))(x)
    assert jnp.sum(g) == 6


def test_a_recurrent_network_learns():
    params = {"w": normal(2, 3), "u": 0.5 * normal(3, 3, seed=1)}
    xs, t = normal(4, 5, 2, seed=2), 0.5 * normal(4, 3, seed=3)

    def loss(params):
        return jnp.mean((jax.vmap(recurrent.run, (None, 0))(params, xs) - t) ** 2)

    slopes = jax.jit(jax.grad(loss))(params)
    assert jax.tree.all(jax.tree.map(lambda g: bool(jnp.isfinite(g).all()), slopes))


def test_smoothing_of_sequences():
    xs = normal(3, 6, 2)
    smooth = jax.jit(jax.vmap(recurrent.smooth, (None, 0)))
    np.testing.assert_allclose(smooth(jnp.zeros(2), xs), xs)
    g = jax.grad(lambda a: jnp.sum(smooth(a, xs) ** 2))(jnp.full(2, 0.5))
    assert np.isfinite(g).all()


@pytest.mark.parametrize("drop", [noise.dropout, noise.drop_rows])
def test_dropout_keeps_the_mean(drop):
    y, pull = jax.vjp(lambda x: drop(jax.random.key(3), x, 0.25), jnp.ones((400, 2)))
    assert abs(jnp.mean(y) - 1) < 0.1 and set(np.unique(y)) == {0.0, np.float32(4 / 3)}
    assert set(np.unique(pull(jnp.ones_like(y))[0])) == {0.0, np.float32(4 / 3)}


def test_primitives():
    x, a = normal(4), normal(4, seed=1)
    np.testing.assert_allclose(primitives.softplus(x), np.logaddexp(x, 0), rtol=1e-5)
    np.testing.assert_allclose(primitives.blend(x, a), x * a + np.sin(a), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(primitives.square)(x), x * x, rtol=1e-5)
    assert jax.grad(lambda x: jnp.sum(primitives.softplus(x)))(x).shape == (4,)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(primitives.square(x)))(x), 2 * x, rtol=1e-5)


def test_blend_learns():
    a, t = positive(4), positive(4, seed=1)
    loss = jax.jit(lambda x: jnp.sum((primitives.blend(x, a) - t) ** 2))
    after, before = sgd_step(loss, normal(4), 0.02)
    assert loss(after) < before


def test_layers_on_two_devices_learn():
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    x, t = normal(6, 3), normal(6, 2, seed=1)

    def local(params, x, t):
        y = parallel.scale(parallel.dense(x, params["w"]), params["s"])
        return jax.lax.pmean(jnp.mean((y - t) ** 2), "rows")

    loss = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("rows"), P("rows")), out_specs=P()))
    after, before = sgd_step(lambda p: loss(p, x, t), {"w": normal(3, 2, seed=2), "s": jnp.ones(2)}, 0.05)
    assert loss(after, x, t) < before
