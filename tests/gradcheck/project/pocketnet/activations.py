"""Activation functions."""

import math

import jax
import jax.numpy as jnp
from ruleskit import with_rule

C, K = math.sqrt(2 / math.pi), 0.044715


@jax.custom_vjp
def relu(x):
    """max(x, 0)."""
    return jnp.maximum(x, 0)


relu.defvjp(lambda x: (relu(x), x > 0), lambda mask, g: (jnp.where(mask, g, 0),))


@jax.custom_vjp
def gelu(x):
    """The tanh approximation of GELU."""
    return 0.5 * x * (1 + jnp.tanh(C * (x + K * x**3)))


def _gelu_fwd(x):
    return gelu(x), x


def _gelu_bwd(x, g):
    t = jnp.tanh(C * (x + K * x**3))
    return (g * 0.5 * (1 + t + x * (1 - t * t) * C * (1 + K * x * x)),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)


@jax.custom_vjp
def softplus(x):
    """log(1 + exp(x))."""
    return jnp.logaddexp(x, 0)


softplus.defvjp(lambda x: (softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))


def _swish_fwd(x, beta):
    s = jax.nn.sigmoid(beta * x)
    return x * s, (x, beta, s)


def _swish_bwd(residuals, g):
    x, beta, s = residuals
    slope = x * s * (1 - s)
    return g * (s + beta * slope), -jnp.sum(g * x * slope)


@with_rule(_swish_fwd, _swish_bwd)
def swish(x, beta):
    """x sigmoid(beta x), with a learned beta."""
    return x * jax.nn.sigmoid(beta * x)


def make_leaky_relu(slope):
    """Return a leaky ReLU of this slope for negative numbers."""

    @jax.custom_vjp
    def leaky_relu(x):
        return jnp.where(x > 0, x, slope * x)

    def fwd(x):
        return leaky_relu(x), x

    def bwd(x, g):
        return (jnp.where(x > 0, g, 0.0),)

    leaky_relu.defvjp(fwd, bwd)
    return leaky_relu


def make_power(n):
    """Return the n-th power."""

    @jax.custom_vjp
    def power(x):
        return x**n

    power.defvjp(lambda x: (power(x), x), lambda x, g: (n * g * x ** (n - 1),))
    return power
