"""The plain definition of linear_cross_entropy: all logits at once, in the notation of that file's docstring."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxnn.losses import _labels
from jaxnn.losses import _linear_cross_entropy_inputs as _inputs
from jaxnn.rules import sharding
from jaxnn.rules.cotangents import accumulation_dtype
from jaxnn.rules.sharding import AxisName
from jaxnn.rules.softmax_sums import zero_safe_product


def definition(
    x: ArrayLike,
    w: ArrayLike,
    targets: ArrayLike,
    *,
    b: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    reduction: str = "mean",
    memory: str = "fast",
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName | None = None,
) -> Array:
    """Return the loss, differentiated by JAX itself."""
    given = _inputs.prepare(
        x, w, targets, b, weight, ignore_index, label_smoothing, z_loss, logit_softcap, reduction, memory, block_size,
        precision, axis_name,
    )  # fmt: skip
    (x, w, b, alpha, beta, labels), options, d = given
    accumulator = accumulation_dtype(x.dtype)
    z = jnp.matmul(x.astype(accumulator), w.T.astype(accumulator), precision=precision)
    z = z if b is None else z + jnp.broadcast_to(b.astype(accumulator), z.shape)
    z = z if logit_softcap is None else logit_softcap * jnp.tanh(z / logit_softcap)
    largest = sharding.all_reduce(axis_name, lax.pmax, lax.stop_gradient(jnp.max(z, -1, initial=-jnp.inf)))
    log_total = largest + jnp.log(sharding.all_reduce(axis_name, lax.psum, jnp.sum(jnp.exp(z - largest[:, None]), -1)))
    is_label = _labels.one_hot(_labels.local_labels(labels, len(w), axis_name), len(w))
    q = jnp.where(is_label, alpha[:, None], jnp.zeros((), alpha.dtype))
    q = q if beta is None else q + jnp.broadcast_to(beta, q.shape)
    l = (
        sharding.all_reduce(axis_name, lax.psum, jnp.sum(zero_safe_product(q, log_total[:, None] - z), -1))
        + z_loss * log_total**2
    )
    l = jnp.where(_labels.is_label(labels, len(w) * sharding.axis_size(axis_name)), l, jnp.nan)
    l = jnp.where(_labels.is_ignored(labels, options.ignore_index), jnp.zeros((), l.dtype), l)
    if reduction == "none":
        return l.reshape(d.shape)
    return jnp.sum(l) if reduction == "sum" else jnp.sum(l) / jnp.sum(d)
