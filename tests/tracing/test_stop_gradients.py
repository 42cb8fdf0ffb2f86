"""Which arguments a function's author holds constant, wherever the stop_gradient is written."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxnn.tracing.stop_gradients import stopped_inputs

X = jnp.array([0.5, -1.0])
stop = lax.stop_gradient


def in_a_loop(x, y):
    return lax.scan(lambda c, v: (c + stop(v), c * v), jnp.zeros(()), x)[1] + y


def with_a_rule(x, y):
    f = jax.custom_vjp(lambda x, y: stop(x) * y)
    f.defvjp(lambda x, y: (f(x, y), None), lambda _, g: (g, g))
    return f(x, y)


STOPPED = {
    "plainly": lambda x, y: stop(x) + y,
    "by tree.map": lambda x, y: jax.tree.map(stop, {"a": x})["a"] + y,
    "by vmap": lambda x, y: jax.vmap(stop)(x) + y,
    "by map": lambda x, y: lax.map(stop, x) + y,
    "by jit": lambda x, y: jax.jit(stop)(x) + y,
    "in a branch": lambda x, y: lax.cond(True, stop, jnp.sin, x) + y,
    "in remat": lambda x, y: jax.checkpoint(lambda x, y: stop(x) + y)(x, y),
    "in a loop": in_a_loop,
    "in a rule's definition": with_a_rule,
    "on the way": lambda x, y: jnp.sin(stop(jnp.exp(x))) + y,
}
NOT_STOPPED = {
    "of a result that is not used": lambda x, y: (stop(x), x + y)[1],
    "in a call whose result is not used": lambda x, y: jax.jit(lambda x, y: (stop(x), y))(x, y)[1] + x,
    "of JAX's own softmax": lambda x, y: jax.nn.softmax(x) + jax.nn.logsumexp(y),
    "of JAX's own solver": lambda x, y: jnp.linalg.solve(jnp.diag(x), y),
}


@pytest.mark.parametrize("name", STOPPED)
def test_the_argument_that_is_held_constant_is_found(name):
    assert stopped_inputs(jax.make_jaxpr(STOPPED[name])(X, X)) == {0}


@pytest.mark.parametrize("name", NOT_STOPPED)
def test_none_is_held_constant(name):
    assert stopped_inputs(jax.make_jaxpr(NOT_STOPPED[name])(X, X)) == set()
