"""Losses."""

import functools

import jax
import jax.numpy as jnp


def _smooth(labels, classes, smoothing):
    return (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(logits, labels, smoothing=0.1):
    """The mean cross entropy in float32, with label smoothing."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.sum(_smooth(labels, logits.shape[-1], smoothing) * log_p, -1))


def _cross_entropy_fwd(logits, labels, smoothing):
    return cross_entropy(logits, labels, smoothing), (logits, labels)


def _cross_entropy_bwd(smoothing, residuals, g):
    logits, labels = residuals
    p = jax.nn.softmax(logits.astype(jnp.float32))
    if logits.dtype == jnp.bfloat16:  # without a second array of this size
        d = p.at[jnp.arange(len(labels)), labels].add(-1)
    else:
        d = p - _smooth(labels, logits.shape[-1], smoothing)
    return (g * d / len(labels)).astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def squared_error(y, t, reduction):
    """The squared error, its "mean" or its "sum"."""
    return (jnp.mean if reduction == "mean" else jnp.sum)((y - t) ** 2)


def _squared_error_bwd(reduction, d, g):
    dy = 2 * g * d / d.size
    return dy, -dy


squared_error.defvjp(lambda y, t, reduction: (squared_error(y, t, reduction), y - t), _squared_error_bwd)


@jax.custom_jvp
def logsumexp(x):
    """log Σ exp(x), over the last axis."""
    return jax.nn.logsumexp(x, -1)


@logsumexp.defjvp
def _logsumexp_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = logsumexp(x)
    return y, jnp.sum(jnp.exp(x - y[..., None]) * dx, -1)


@jax.custom_gradient
def log_cosh(x):
    """log cosh x, a smooth absolute value."""
    return jnp.logaddexp(x, -x) - jnp.log(2.0), lambda g: (g * jnp.tanh(x),)
