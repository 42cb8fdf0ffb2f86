"""Numerically safe functions."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def logaddexp(x, y):
    """log(exp(x) + exp(y))."""
    largest = jnp.maximum(x, y)
    return largest + jnp.log(jnp.exp(x - largest) + jnp.exp(y - largest))


@logaddexp.defjvp
def _logaddexp_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    share = jax.nn.sigmoid(x - y)
    return logaddexp(x, y), share * dx + share * dy


@jax.custom_gradient
def reciprocal(x):
    """1 / x."""
    y = 1 / x
    return y, lambda g: (-g * y,)


def harmonic_until(x, largest):
    """Add reciprocals of x, x + 1, ... until the sum exceeds a number."""
    step = lambda s: (s[0] + jnp.sum(reciprocal(x + s[1])), s[1] + 1)  # noqa: E731
    return lax.while_loop(lambda s: s[0] < largest, step, (jnp.zeros(()), jnp.zeros(())))[0]


@jax.custom_vjp
def safe_norm(x):
    """The length of x; its gradient at 0 is 0."""
    square = jnp.sum(x * x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _safe_norm_bwd(residuals, g):
    x, y = residuals
    return (g * x / jnp.where(y > 0, y, 1),)


safe_norm.defvjp(lambda x: (safe_norm(x), (x, safe_norm(x))), _safe_norm_bwd)


@jax.custom_vjp
def safe_log(x):
    """log x, and 0 where x is not positive."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), 0)


safe_log.defvjp(lambda x: (safe_log(x), x), lambda x, g: (jnp.where(x > 0, g / jnp.where(x > 0, x, 1), 0),))


@jax.custom_vjp
def round_through(x):
    """Round; the gradient passes through."""
    return x + lax.stop_gradient(jnp.round(x) - x)


round_through.defvjp(lambda x: (round_through(x), None), lambda _, g: (g,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _cumulative(x, axis):
    return jnp.cumsum(x, axis)


def _cumulative_bwd(axis, _, g):
    return (jnp.flip(jnp.cumsum(jnp.flip(g, axis), axis), axis),)


_cumulative.defvjp(lambda x, axis: (jnp.cumsum(x, axis), None), _cumulative_bwd)
cumulative_rows = functools.partial(_cumulative, axis=0)


@jax.custom_batching.custom_vmap
def _times(g, w):
    return g * w


@_times.def_vmap
def _times_batched(size, batched, g, w):
    return g * (w[:1] if batched[1] else w), True


@jax.custom_vjp
def gain(x, w):
    """x w, with one fused product for a batch in the backward pass."""
    return x * w


gain.defvjp(lambda x, w: (x * w, (x, w)), lambda r, g: (_times(g, r[1]), g * r[0]))
