"""Dropout."""

import functools

import jax
import jax.numpy as jnp


def _mask(key, shape, rate):
    return jax.random.bernoulli(key, 1 - rate, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(key, x, rate):
    """Set numbers to 0 at random; the mask is drawn again in the backward pass."""
    return jnp.where(_mask(key, x.shape, rate), x / (1 - rate), 0)


def _dropout_bwd(rate, key, g):
    key, _ = jax.random.split(key)
    return None, jnp.where(_mask(key, g.shape, rate), g / (1 - rate), 0)


dropout.defvjp(lambda key, x, rate: (dropout(key, x, rate), key), _dropout_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def drop_rows(key, x, rate):
    """Set whole rows to 0 at random; the mask is drawn again in the backward pass."""
    return jnp.where(_mask(key, (len(x), 1), rate), x / (1 - rate), 0)


def _drop_rows_bwd(rate, key, g):
    return None, jnp.where(_mask(key, (len(g), 1), rate), g / (1 - rate), 0)


drop_rows.defvjp(lambda key, x, rate: (drop_rows(key, x, rate), key), _drop_rows_bwd)
