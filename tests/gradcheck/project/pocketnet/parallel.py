"""Layers for shard_map, where each device has its own rows and all devices share the weights."""

import jax
import jax.numpy as jnp
from jax import lax


def _axes(cotangent, primal):
    """Name the mesh axes over which a cotangent varies and its primal does not."""
    of = lambda x: jax.typeof(x).manual_axis_type.varying  # noqa: E731
    return tuple(of(cotangent) - of(primal))


@jax.custom_vjp
def dense(x, w):
    """x w."""
    return x @ w


def _dense_bwd(residuals, g):
    x, w = residuals
    dw = x.T @ g
    axes = _axes(dw, w)
    return g @ w.T, lax.pmean(dw, axes) if axes else dw


dense.defvjp(lambda x, w: (x @ w, (x, w)), _dense_bwd)


@jax.custom_vjp
def scale(x, s):
    """x s, for a scale for each column."""
    return x * s


def _scale_bwd(residuals, g):
    x, s = residuals
    ds = jnp.sum(g * x, 0)
    axes = _axes(ds, s)
    return g * s, lax.psum(ds, axes) if axes else ds


scale.defvjp(lambda x, s: (x * s, (x, s)), _scale_bwd)
