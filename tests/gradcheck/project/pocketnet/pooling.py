"""Maxima."""

import functools

import jax
import jax.numpy as jnp


@jax.custom_vjp
def global_max(x):
    """The largest number of each row."""
    return jnp.max(x, -1)


def _global_max_fwd(x):
    y = jnp.max(x, -1)
    return y, x == y[..., None]


global_max.defvjp(_global_max_fwd, lambda mask, g: (jnp.where(mask, g[..., None], 0),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x, window):
    """The largest of each window along the last axis; of equal ones the first gets the gradient."""
    return jnp.max(x.reshape(*x.shape[:-1], -1, window), -1)


def _max_pool_fwd(x, window):
    windows = x.reshape(*x.shape[:-1], -1, window)
    return jnp.max(windows, -1), jnp.argmax(windows, -1)


def _max_pool_bwd(window, index, g):
    return ((jax.nn.one_hot(index, window, dtype=g.dtype) * g[..., None]).reshape(*g.shape[:-1], -1),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
