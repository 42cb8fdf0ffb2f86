"""Gradient descent."""

import jax


def sgd_step(loss, params, rate=0.1):
    """Return the parameters after a step, and the loss before it."""
    value, gradients = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - rate * g, params, gradients), value
