import jax
import jax.numpy as jnp
import numpy as np
from pocketnet import linear
from pocketnet.testing import normal
from pocketnet.training import sgd_step


def test_a_network_of_square_layers_learns():
    x, t = normal(5, 4), normal(5, 4, seed=1)
    loss = lambda ws: jnp.mean((linear.dense(jnp.tanh(linear.dense(x, ws[0])), ws[1]) - t) ** 2)  # noqa: E731
    after, before = sgd_step(loss, [normal(4, 4, seed=2), normal(4, 4, seed=3)])
    assert loss(after) < before


def test_linear():
    x, w, b = normal(5, 4), normal(3, 4, seed=1), normal(3, seed=2)
    np.testing.assert_allclose(linear.linear(x, w, b), np.asarray(x) @ np.asarray(w).T + np.asarray(b), rtol=1e-5)
    assert [g.shape for g in jax.grad(lambda *a: jnp.sum(linear.linear(*a)), (0, 1, 2))(x, w, b)] == [
        (5, 4),
        (3, 4),
        (3,),
    ]


def test_affine_learns():
    x, t = normal(5, 3), 2 * normal(5, 3) + 1
    loss = lambda layer: jnp.mean((layer(x) - t) ** 2)  # noqa: E731
    layer = linear.Affine(jnp.ones(3), jnp.zeros(3))
    after, before = sgd_step(loss, layer)
    assert isinstance(after, linear.Affine) and loss(after) < before


def test_block_learns():
    x, t = normal(6, 3), normal(6, 2, seed=1)
    params = {"w1": normal(3, 4, seed=2), "b1": jnp.zeros(4), "w2": normal(4, 2, seed=3)}
    loss = jax.jit(lambda p: jnp.mean((linear.block(p, x) - t) ** 2))
    after, before = sgd_step(loss, params)
    assert jax.tree.structure(after) == jax.tree.structure(params) and loss(after) < before


def test_lookup_of_a_row_twice():
    table, ids = normal(5, 3), jnp.array([1, 4, 1])
    np.testing.assert_array_equal(linear.lookup(table, ids), np.asarray(table)[np.asarray(ids)])
    g = jax.grad(lambda t: jnp.sum(linear.lookup(t, ids)))(table)
    np.testing.assert_array_equal(g[:, 0], [0, 2, 0, 0, 1])
