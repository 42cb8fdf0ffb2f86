"""Layers with a matrix, or with a scale and a shift."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.custom_vjp
def dense(x, w):
    """x wᵀ, for x (N, I) and w (O, I)."""
    return x @ w.T


dense.defvjp(lambda x, w: (x @ w.T, (x, w)), lambda r, g: (g @ r[1].T, g.T @ r[0]))


@jax.custom_vjp
def linear(x, w, b):
    """x wᵀ + b, for x (N, I), w (O, I) and b (O,)."""
    return x @ w.T + b


linear.defvjp(lambda x, w, b: (linear(x, w, b), (x, w)), lambda r, g: (g @ r[1], g.T @ r[0], jnp.sum(g, 0)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    """A scale and a shift for each feature."""

    scale: jax.Array
    shift: jax.Array

    def __call__(self, x):
        """Return scale x + shift, for x (N, C)."""
        return Affine.apply(self, x)

    @jax.custom_vjp
    def apply(self, x):
        """Return scale x + shift."""
        return self.scale * x + self.shift

    def apply_fwd(self, x):
        """Return the output and the residuals."""
        return Affine.apply(self, x), (self.scale, x)

    def apply_bwd(residuals, g):
        """Return the cotangents of the layer and of x."""
        scale, x = residuals
        return Affine(jnp.sum(g * x, 0), g[0]), g * scale

    apply.defvjp(apply_fwd, apply_bwd)


@jax.custom_vjp
def block(params, x):
    """w2 tanh(w1 x + b1), for rows x."""
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]


def _block_fwd(params, x):
    h = jnp.tanh(x @ params["w1"] + params["b1"])
    return h @ params["w2"], (params, x, h)


def _block_bwd(residuals, g):
    params, x, h = residuals
    d = g @ params["w2"].T * (1 - h * h)
    return {"w1": x.T @ d, "b1": None, "w2": h.T @ g}, d @ params["w1"].T


block.defvjp(_block_fwd, _block_bwd)


@jax.custom_vjp
def lookup(table, ids):
    """The rows of a table, by their numbers."""
    return table[ids]


def _lookup_bwd(residuals, g):
    ids, like = residuals
    return jnp.zeros_like(like).at[ids].add(g), None


lookup.defvjp(lambda table, ids: (table[ids], (ids, table)), _lookup_bwd)
