"""Softmax over the last axis, as attention uses it."""

import jax
import jax.numpy as jnp


def _softmax_vjp(p, g):
    return p * (g - jnp.sum(p * g, -1, keepdims=True))


@jax.custom_vjp
def attention_weights(scores):
    """Softmax of the scores; the weights are kept for the backward pass in half the memory."""
    return jax.nn.softmax(scores)


def _weights_fwd(scores):
    p = jax.nn.softmax(scores)
    return p, p.astype(jnp.bfloat16)


attention_weights.defvjp(_weights_fwd, lambda p, g: (_softmax_vjp(p.astype(g.dtype), g),))


def attention(q, k, v):
    """Attention of the queries to the keys."""
    return attention_weights(q @ k.T / q.shape[-1] ** 0.5) @ v


@jax.custom_vjp
def sharp_softmax(x):
    """Softmax, for scores of any size."""
    return jax.nn.softmax(x)


sharp_softmax.defvjp(lambda x: (jax.nn.softmax(x),) * 2, lambda p, g: (_softmax_vjp(p, g),))


@jax.custom_vjp
def masked_softmax(scores, mask=None):
    """Softmax over the places where the mask is true; 0 elsewhere."""
    return jax.nn.softmax(scores, where=mask)


def _masked_fwd(scores, mask):
    p = jax.nn.softmax(scores, where=mask)
    return p, p


masked_softmax.defvjp(_masked_fwd, lambda p, g: (_softmax_vjp(p, g), None))
