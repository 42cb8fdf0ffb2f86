"""The last step of every loss: from one loss a row to "mean", "sum" or "none".

Definition (l_n: the rows' losses, d_n: each row's weight in the mean, 1 or that of its label):
    "sum": L = Σ_n l_n        "mean": L = Σ_n l_n / D, D = Σ_n d_n

Derivation (derived here, by the quotient rule; dL stands for the upstream gradient):
    "sum":  dl_n = dL
    "mean": dl_n = dL / D,  dd_n = −dL L / D

Residuals:
    D and L, two numbers.

Conventions:
    With nothing to average D is 0: the mean is NaN and its gradient 0, as in PyTorch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnn.rules.component import with_formulas
from jaxnn.rules.cotangents import Type, cotangent, type_of

Residuals = tuple[Array, Array, Type, Type]  # L, D, and the types of l and d


def reduce(l: Float[Array, "..."], d: Float[Array, "*rows"], reduction: str) -> Float[Array, "..."]:
    """Reduce the rows' losses, or what a rule has summed already; `d` counts in the mean only."""
    if reduction == "none":
        return l
    return jnp.sum(l) if reduction == "sum" else _mean(l, d)


@jax.custom_vjp
@with_formulas(
    r"L = \frac{1}{D} \sum_n l_n, \quad D = \sum_n d_n",
    l=(r"dl_n = \frac{dL}{D}", "Each row's loss changes the mean by its share, 1/D."),
    d=(r"dd_n = -\frac{dL\,L}{D}", "A larger weight of one row lowers the part of all others in the mean."),
)
def _mean(l: Array, d: Array) -> Array:
    return _mean_fwd(l, d)[0]


def _mean_fwd(l: Array, d: Array) -> tuple[Array, Residuals]:
    total = jnp.sum(d)
    mean = jnp.sum(l) / total
    return mean, (mean, total, type_of(l), type_of(d))


def _mean_bwd(residuals: Residuals, dy: Array) -> tuple[Array, Array]:
    mean, total, l, d = residuals
    zero = jnp.zeros((), dy.dtype)
    dl = jnp.where(total == 0, zero, dy / total)
    dd = jnp.where(total == 0, zero, -dy * mean / total)
    return cotangent(jnp.broadcast_to(dl, l.aval.shape), l), cotangent(jnp.broadcast_to(dd, d.aval.shape), d)


_mean.defvjp(_mean_fwd, _mean_bwd)
