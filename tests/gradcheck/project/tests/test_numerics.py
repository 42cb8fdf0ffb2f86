import jax
import jax.numpy as jnp
import numpy as np
from pocketnet import numerics, solvers
from pocketnet.testing import normal, positive


def test_logaddexp_on_one_branch():
    @jax.jit
    def f(x, y):
        return jax.lax.cond(x[0] > 9, lambda x, y: x + y, numerics.logaddexp, x, y)

    x, y = normal(4), normal(4, seed=1)
    np.testing.assert_allclose(f(x, y), np.logaddexp(x, y), rtol=1e-5)
    dx = jax.grad(lambda x, y: jnp.sum(f(x, y)))(x, y)
    np.testing.assert_allclose(dx, jax.nn.sigmoid(x - y), rtol=1e-5)


def test_harmonic_until():
    assert numerics.harmonic_until(jnp.ones(1), 1.4) == 1.5
    assert numerics.harmonic_until(jnp.full(1, 2.0), 0.4) == 0.5


def test_safe_norm_at_0():
    np.testing.assert_array_equal(jax.grad(numerics.safe_norm)(jnp.zeros(3)), np.zeros(3))
    np.testing.assert_allclose(numerics.safe_norm(normal(3)), np.linalg.norm(normal(3)), rtol=1e-6)


def test_safe_log_of_what_has_none():
    x = jnp.array([-1.0, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(numerics.safe_log(x), [0, 0, np.log(0.5), np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(numerics.safe_log(x)))(x), [0, 0, 2, 0.5])


def test_round_through():
    x = 3 * normal(5)
    np.testing.assert_allclose(numerics.round_through(x), np.round(x), atol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(numerics.round_through(x)))(x), np.ones(5))


def test_cumulative_rows_of_a_partial():
    x = normal(4, 2)
    np.testing.assert_allclose(numerics.cumulative_rows(x), np.cumsum(x, 0), rtol=1e-5)


def test_gain_for_a_batch():
    x, w = normal(3, 4), positive(3, 4)
    f = jax.vmap(lambda x, w: jnp.sum(numerics.gain(x, w) ** 2))
    np.testing.assert_allclose(f(x, w), np.sum((x * w) ** 2, -1), rtol=1e-5)
    assert jax.grad(lambda x: jnp.sum(f(x, w)))(x).shape == (3, 4)


def test_newton_root():
    a = positive(4)
    np.testing.assert_allclose(solvers.newton_root(a), np.sqrt(a), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda a: jnp.sum(solvers.newton_root(a)))(a), 0.5 / np.sqrt(a), rtol=1e-5)
