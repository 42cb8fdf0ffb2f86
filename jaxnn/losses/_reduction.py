"""The last step of every loss: from one loss a row to "mean", "sum" or "none".

Definition (l_n: the rows' losses, d_n: what each row counts for in the mean, 1 or its label's weight):
    "sum": L = Σ_n l_n        "mean": L = Σ_n l_n / D, D = Σ_n d_n

Derivation (derived here, by the rule of the quotient; dL stands for the upstream gradient):
    "sum":  dl_n = dL
    "mean": dl_n = dL / D,  dd_n = −dL L / D

Residuals:
    D and L, two numbers.

Conventions:
    With nothing to average, D = 0: the mean is NaN and its gradient 0, as in PyTorch.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnn.rules.component import with_formulas
from jaxnn.rules.cotangents import cotangent, type_of


def reduce(l: Float[Array, "*rows"], d: Float[Array, "*rows"], reduction: str) -> Array:
    """Reduce the rows' losses; `d` counts in the mean only."""
    if reduction == "none":
        return l
    return jnp.sum(l) if reduction == "sum" else _mean(l, d)


@jax.custom_vjp
@with_formulas(
    r"L = \frac{1}{D} \sum_n l_n, \quad D = \sum_n d_n",
    l=(r"dl_n = \frac{dL}{D}", "Each row's loss moves the mean by its share, 1/D."),
    d=(r"dd_n = -\frac{dL\,L}{D}", "A row that counts for more lowers the mean of all the others."),
)
def _mean(l: Array, d: Array) -> Array:
    return _mean_fwd(l, d)[0]


def _mean_fwd(l: Array, d: Array) -> tuple[Array, Any]:
    total = jnp.sum(d)
    mean = jnp.sum(l) / total
    return mean, (mean, total, type_of(l), type_of(d))


def _mean_bwd(residuals: Any, dy: Array) -> tuple[Array, Array]:
    mean, total, l, d = residuals
    zero = jnp.zeros((), dy.dtype)
    dl = jnp.where(total == 0, zero, dy / total)
    dd = jnp.where(total == 0, zero, -dy * mean / total)
    return cotangent(jnp.broadcast_to(dl, l.aval.shape), l), cotangent(jnp.broadcast_to(dd, d.aval.shape), d)


_mean.defvjp(_mean_fwd, _mean_bwd)
