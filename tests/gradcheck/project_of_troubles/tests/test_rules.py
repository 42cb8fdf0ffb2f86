"""Rules that cannot be called again, or whose backward pass does not return: the forward passes are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oddities import rules

X = np.array([0.5, -0.25, 0.75], "float32")


def test_a_generator_as_an_argument():
    noise = rules.Noise(0, 2)
    first, second = rules.noisy(noise, jnp.asarray(X)), jax.grad(lambda x: jnp.sum(rules.noisy(noise, x)))(X)
    assert first.shape == second.shape
    with pytest.raises((StopIteration, RuntimeError)):
        rules.noisy(noise, jnp.asarray(X))


def test_a_generator_in_a_closure():
    noisy = rules.make_noisy(0, 1)
    np.testing.assert_allclose(noisy(jnp.ones(3)), np.full(3, np.random.default_rng(0).standard_normal(1)), rtol=1e-6)


def test_a_tracer_in_a_closure():
    slope = jax.jit(lambda w, x: jax.grad(lambda x: jnp.sum(rules.scaled_by(jnp.exp(w))(x)))(x))
    np.testing.assert_allclose(slope(jnp.float32(0), jnp.asarray(X)), np.ones(3))


def test_a_donated_argument_of_a_rule():
    step = jax.jit(lambda x: x + rules.doubled(x), donate_argnums=0)
    x = jnp.asarray(X)
    np.testing.assert_allclose(step(x), 3 * X)
    assert x.is_deleted()


def test_a_deleted_argument_of_a_rule():
    x = jnp.asarray(X)
    y = rules.doubled(x)
    x.delete()
    np.testing.assert_allclose(y, 2 * X)


FORWARD = {
    rules.unfinished: np.exp, rules.endless: np.cos, rules.spinning: lambda x: x + 1, rules.looping: lambda x: x - 1,
    rules.leaving: np.tanh, rules.aborting: np.tan, rules.stopping: np.sinh,
}  # fmt: skip


@pytest.mark.parametrize("rule", FORWARD, ids=["raises", "hangs", "spins", "loops", "exits", "aborts", "stops"])
def test_a_forward_pass(rule):
    np.testing.assert_allclose(rule(jnp.asarray(X)), FORWARD[rule](X), rtol=1e-5)


def test_a_wrong_rule_after_all_of_them():
    np.testing.assert_allclose(rules.square(jnp.asarray(X)), X * X)
    assert jax.grad(lambda x: jnp.sum(rules.square(x)))(X).shape == (3,)


def test_the_unfinished_rule_says_so():
    with pytest.raises(NotImplementedError, match="not written yet"):
        jax.grad(lambda x: jnp.sum(rules.unfinished(x)))(X)
