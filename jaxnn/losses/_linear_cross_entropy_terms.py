"""The terms of linear_cross_entropy's derivation, for a block of rows and classes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxnn.losses import _labels
from jaxnn.losses._linear_cross_entropy_inputs import Options
from jaxnn.rules import sharding
from jaxnn.rules.cotangents import accumulation_dtype
from jaxnn.rules.softmax_sums import zero_safe_product


class Block(NamedTuple):
    """Some rows and some classes."""

    x: Float[Array, "rows inputs"]
    alpha: Float[Array, " rows"]
    labels: Int[Array, " rows"]  # counted from the first of these classes; out of range for other classes
    counted: Bool[Array, " rows"]  # neither ignored nor in an earlier block
    bad: Bool[Array, " rows"]  # out of range and not `ignore_index`
    w: Float[Array, "classes inputs"]
    b: Float[Array, " classes"] | None
    beta: Float[Array, " classes"] | None  # 0 for classes of an earlier block
    fresh: Bool[Array, " classes"] | None  # in no earlier block; None if all are
    beta_sum: Float[Array, ""] | None  # over all classes


class Statistics(NamedTuple):
    """What a row's loss needs of its logits."""

    largest: Float[Array, " rows"]
    total: Float[Array, " rows"]  # Σ exp(z − largest)
    at_label: Float[Array, " rows"]
    smoothed: Float[Array, " rows"] | None  # Σ β z


def matrix_product(options: Options, a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    contracted = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(
        a, b, contracted, precision=options.precision, preferred_element_type=accumulation_dtype(a.dtype)
    )


def linear(options: Options, block: Block) -> Array:
    """a = W x + b, in at least float32."""
    a = matrix_product(options, block.x, block.w, 1, 1)
    return a if block.b is None else a + jnp.broadcast_to(block.b.astype(a.dtype), a.shape)


def logits(options: Options, block: Block, a: Array) -> tuple[Array, Array | None]:
    """z = κ tanh(a / κ), −∞ for classes of an earlier block, and its derivative 4 σ(2a/κ) σ(−2a/κ); None for 1."""
    z, slope = a, None
    if options.softcap is not None:
        capped = a / options.softcap
        z, slope = options.softcap * jnp.tanh(capped), 4 * lax.logistic(2 * capped) * lax.logistic(-2 * capped)
    return z if block.fresh is None else jnp.where(block.fresh[None, :], z, -jnp.inf), slope


def of_block(block: Block, z: Array) -> Statistics:
    largest = lax.stop_gradient(jnp.max(z, 1))
    total = jnp.sum(jnp.exp(z - _finite(largest)[:, None]), 1)
    smoothed = None if block.beta is None else jnp.sum(zero_safe_product(block.beta[None, :], z), 1)
    is_here, zero = _labels.is_label(block.labels, z.shape[1]), jnp.zeros((), z.dtype)
    return Statistics(largest, total, jnp.where(is_here, _labels.at_label(z, block.labels), zero), smoothed)


def merged(s: Statistics, t: Statistics) -> Statistics:
    """Return the statistics of two blocks of classes together."""
    largest = jnp.maximum(s.largest, t.largest)
    shift = _finite(largest)
    total = s.total * jnp.exp(s.largest - shift) + t.total * jnp.exp(t.largest - shift)
    sums = jax.tree.map(jnp.add, (s.at_label, s.smoothed), (t.at_label, t.smoothed))
    return Statistics(largest, total, *sums)


def of_all_devices(options: Options, s: Statistics) -> Statistics:
    """Return the statistics of the classes of all devices together."""
    largest = sharding.all_reduce(options.axis_name, lax.pmax, s.largest)
    sums = (s.total * jnp.exp(s.largest - _finite(largest)), s.at_label, s.smoothed)
    return Statistics(largest, *sharding.all_reduce(options.axis_name, lax.psum, sums))


def _finite(largest: Array) -> Array:
    return jnp.where(largest == -jnp.inf, jnp.zeros((), largest.dtype), largest)


def losses(options: Options, block: Block, s: Statistics) -> tuple[Array, Array, Array]:
    """Return each row's loss l = α (Z − z_t) + Σ β (Z − z) + ζ Z², its Z, and its Z − z_t (0 for no label)."""
    log_sum = jnp.log(s.total)
    gap, log_total = (s.largest - s.at_label) + log_sum, s.largest + log_sum
    l = zero_safe_product(block.alpha, gap) + options.z_loss * log_total**2
    if s.smoothed is not None and block.beta_sum is not None:
        l = l + (block.beta_sum * s.largest - s.smoothed) + block.beta_sum * log_sum
    zero = jnp.zeros((), l.dtype)
    l = jnp.where(block.counted, jnp.where(block.bad, jnp.nan, l), zero)
    return l, log_total, jnp.where(block.counted & ~block.bad, gap, zero)


def da(options: Options, block: Block, z: Array, slope: Array | None, log_total: Array, dl: Array) -> Array:
    """da = dl ((α + Σ β + 2ζ Z) p − α e(t) − β) ∂z/∂a: NaN in bad rows, 0 in those that do not count."""
    p = jnp.exp(z - log_total[:, None])
    q_sum = block.alpha if block.beta_sum is None else block.alpha + block.beta_sum
    is_label = _labels.one_hot(block.labels, z.shape[1])
    target = jnp.where(is_label, block.alpha[:, None], jnp.zeros((), z.dtype))
    dz = (q_sum + 2 * options.z_loss * log_total)[:, None] * p - target
    dz = dz if block.beta is None else dz - jnp.broadcast_to(block.beta, dz.shape)
    da = jnp.where(block.bad, jnp.nan, dl)[:, None] * (dz if slope is None else dz * slope)
    return jnp.where(block.counted[:, None], da, jnp.zeros((), da.dtype))


def dbeta(block: Block, z: Array, log_total: Array, dl: Array) -> Array:
    """dβ_c = Σ_n dl_n (Z_n − z_nc), over the rows with a class."""
    counts = (block.counted & ~block.bad)[:, None]
    counts = counts if block.fresh is None else counts & block.fresh[None, :]
    # Masked before the product: an infinite z of a masked class would make the derivative by dl NaN.
    return jnp.sum(dl[:, None] * jnp.where(counts, log_total[:, None] - z, jnp.zeros((), z.dtype)), 0)
