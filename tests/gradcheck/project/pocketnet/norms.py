"""Normalisations over the last axis."""

import jax
import jax.numpy as jnp
from jax import lax
from ruleskit import with_rule


def _mean(x):
    return jnp.mean(x, -1, keepdims=True)


@jax.custom_vjp
def layer_norm(x):
    """Mean 0 and variance 1."""
    x = x - _mean(x)
    return x * lax.rsqrt(_mean(x * x) + 1e-5)


def _layer_norm_fwd(x):
    x = x - _mean(x)
    r = lax.rsqrt(_mean(x * x) + 1e-5)
    return x * r, (x * r, r)


def _layer_norm_bwd(residuals, g):
    y, r = residuals
    return (r * (g - y * _mean(g * y)),)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


@jax.custom_vjp
def rms_norm(x, w):
    """Root mean square 1, times a weight for each feature; half precision is computed in float32."""
    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt(_mean(wide * wide) + 1e-6)).astype(x.dtype) * w


def _rms_norm_fwd(x, w):
    return rms_norm(x, w), (x, w)


def _rms_norm_bwd(residuals, g):
    x, w = residuals
    wide = x.astype(jnp.float32)
    r = lax.rsqrt(_mean(wide * wide) + 1e-6)
    y = wide * r
    if x.dtype == jnp.float32:  # no conversions
        return r * (g * w - y * _mean(g * y)), jnp.sum(g * y, 0)
    g, scaled = g.astype(jnp.float32), (g * w).astype(jnp.float32)
    return (r * (scaled - y * _mean(scaled * y))).astype(x.dtype), jnp.sum(g * y, 0).astype(w.dtype)


rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


def _unit_fwd(x):
    size = jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))
    return x / size, (x / size, size)


def _unit_bwd(residuals, g):
    y, size = residuals
    return ((g - y * jnp.sum(g * y, -1, keepdims=True)) / size,)


@with_rule(_unit_fwd, _unit_bwd)
def unit_length(x):
    """Length 1."""
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))
