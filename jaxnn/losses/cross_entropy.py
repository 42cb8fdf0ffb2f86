"""Cross entropy of logits: the notes' fused NLL∘softmax.

Definition (x: logits of one row, p = softmax(x), q: the target, e(t) for class t):
    l = −Σ_c q_c log p_c = Σ_c q_c (log Σ_k exp(x_k) − x_c)
    With q = e(t) it is l = −log p_t = −x_t + log Σ_k exp(x_k). Label smoothing ε and class weights ω change q only:
    q_c = ω_c u_c, with u_c = (1 − ε) T_c + ε/C and T = e(t), or the probabilities given.

Derivation (the notes', for q = e(t); dl stands for the upstream gradient):
    x_c affects l through p_t, in two cases:
        c = t:  ∂l/∂x_t = (−1/p_t) (1 − p_t) p_t = −1 + p_t
        c ≠ t:  ∂l/∂x_c = (−1/p_t) (−p_c p_t)    =      p_c        so  dx = dl (p − e(t))
    For any q (derived here): the same for each class of the sum, times q_c,
        dx_c = Σ_t q_t dl (p_c − e(t)_c) = dl (p_c Σ_t q_t − q_c)
        dq_c = −dl log p_c;   dT_c = (1 − ε) ω_c dq_c;   dω_c = Σ over rows of u_c dq_c

Residuals:
    x and the targets, which are inputs, and one number a row, Σ exp(x − max x). p is recomputed from them.

Conventions:
    A label outside [0, C) that is not `ignore_index` makes its row's loss and gradient NaN and no other row's
    (the gradient of the weights leaves it out); ignored rows are 0 in both. 0 · log 0 = 0. Losses are at
    least float32. The mean divides by the sum of the labels' weights, or by the number of rows if the targets are
    probabilities, as in PyTorch.
    With `axis_name` each device has a part of the classes, and the rule returns the sum Σ_c over that part.

Source:
    Taura, Neural Networks Basics, "NLL softmax (Back propagation)"; Larochelle, Neural networks, "Gradient
    computation", loss gradient at output pre-activation (−(e(y) − f(x))); *Multi-class classification and
    backpropagation*, "Gradient Descent: Conclusion". Smoothing, weights and probability targets are derived here.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jaxnn.losses import _cross_entropy_targets as _targets
from jaxnn.losses._cross_entropy_targets import Options, checked
from jaxnn.losses._reduction import reduce
from jaxnn.rules import sharding
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import cotangent, type_of
from jaxnn.rules.sharding import AxisName, on_any_mesh, rows_sharding
from jaxnn.rules.softmax_sums import shifted, softmax_times, summed, zero_safe_product

Residuals = tuple[Array, Array, Array, Array | None]  # x, Σ exp(x − max x), targets and weight


def _definition(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    axis_name: AxisName | None = None,
) -> Array:
    rows, options = checked(logits, targets, axis, weight, ignore_index, label_smoothing, reduction, axis_name)
    from_largest = shifted(options.axes, rows.x)
    log_p = from_largest - jnp.log(summed(options.axes, jnp.exp(from_largest)))
    q = _targets.weighted(rows.weight, _targets.smoothed(options, rows.labels, log_p))
    l = sharding.all_reduce(axis_name, lax.psum, jnp.sum(zero_safe_product(q, -log_p), -1))
    l = _targets.by_label(options, rows.labels, options.classes(log_p), l)
    if reduction == "none":
        return l
    return jnp.sum(l) if reduction == "sum" else jnp.sum(l) / jnp.sum(_targets.counts(options, rows, l))


@defined_by(_definition)
@on_any_mesh(rows_sharding("logits"))
def cross_entropy(
    logits: Float[ArrayLike, "*shape"],
    targets: Integer[ArrayLike, "..."] | Float[ArrayLike, "*shape"],
    *,
    axis: int = -1,
    weight: Float[ArrayLike, " classes"] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    axis_name: AxisName | None = None,
) -> Float[Array, "..."]:
    """Cross entropy between logits and labels: softmax and negative log-likelihood in one.

    .. math:: l = -x_t + \\log \\sum_k \\exp(x_k), \\quad \\partial l / \\partial x = p - e(t)

    Args:
        logits: any shape with a class axis of size C, any floating dtype.
        targets: class ids, integers, of logits' shape without the class axis; or probabilities, floating, of logits'
            shape, which get a gradient too.
        axis: the class axis.
        weight: weight of each class, shape (C,), or None for 1 each; it gets a gradient too.
        ignore_index: the label of rows to leave out, or None.
        label_smoothing: ε in [0, 1]: the target becomes (1 − ε) target + ε/C.
        reduction: "mean", "sum" or "none"; as in `torch.nn.functional.cross_entropy`, the mean divides by the sum of
            the labels' weights, or by the number of rows if targets are probabilities.
        axis_name: the mesh axis over which the classes are sharded, inside `shard_map` or `pmap`: logits, weight and
            targets that are probabilities hold this device's part of them, in order; class ids count all classes.

    Returns:
        The loss in nats, at least float32: a scalar, or of logits' shape without the class axis with "none".

    Raises:
        TypeError: `logits` or `weight` is not floating, or `targets` neither integer nor floating.
        ValueError: the shapes do not match, an option is not one of its choices, or `axis_name` is no mesh axis in
            scope.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> jax.grad(cross_entropy)(jnp.array([0.0, 0.0]), 1)
        Array([ 0.5, -0.5], dtype=float32)

    References:
        Taura, Neural Networks Basics, "NLL softmax (Back propagation)"; Szegedy et al. 2016, arXiv:1512.00567 (label
        smoothing).
    """
    rows, options = checked(logits, targets, axis, weight, ignore_index, label_smoothing, reduction, axis_name)
    l = sharding.all_reduce(axis_name, lax.psum, _cross_entropy(options, rows.x, rows.labels, rows.weight))
    return reduce(l, _targets.counts(options, rows, l), reduction)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"l = -\sum_c q_c \log p_c, \quad p = \operatorname{softmax}(x)",
    x=(
        r"dx_c = dl \left(p_c \sum_t q_t - q_c\right), \quad dx = dl\,(p - e(t))\text{ for a class } t",
        "Prediction less truth: the loss falls as the true class's logit grows, and rises with every other one.",
    ),
    targets=(
        r"dT_c = -dl\,(1 - \varepsilon)\,\omega_c \log p_c",
        "More target probability on a class adds −log of its predicted probability to the loss.",
    ),
    weight=(r"d\omega_c = -\sum_n dl_n\,u_{nc} \log p_{nc}", "A class's weight multiplies what the class costs."),
)
def _cross_entropy(options: Options, x: Array, targets: Array, weight: Array | None) -> Array:
    return _cross_entropy_fwd(options, x, targets, weight)[0]


def _cross_entropy_fwd(options: Options, x: Array, targets: Array, weight: Array | None) -> tuple[Array, Residuals]:
    from_largest = shifted(options.axes, x)
    total = summed(options.axes, jnp.exp(from_largest))
    # −Σ q log p, with log p in the order that XLA recognises on a GPU; 0 − 0 is not −0.
    l = 0 - _targets.expected(options, targets, weight, from_largest - jnp.log(total))
    return _targets.by_label(options, targets, options.classes(x), l), (x, total, targets, weight)


def _cross_entropy_bwd(options: Options, residuals: Residuals, dl: Array) -> tuple[Array, Array | None, Array | None]:
    x, total, targets, weight = residuals
    from_largest, dl = shifted(options.axes, x), dl[..., None]
    q_here = _targets.expected(options, targets, weight, jnp.ones_like(from_largest))[..., None]
    all_q = sharding.all_reduce(options.axis_name, lax.psum, q_here)
    p = softmax_times(options.axes, x, from_largest, total, None, all_q)  # p_c Σ_t q_t
    # dx_c = dl (p_c Σ_t q_t − q_c)
    dx = _targets.gradient(options, targets, weight, p, q_here, dl)

    floating = jnp.issubdtype(targets.dtype, jnp.floating)
    minus_log_p = jnp.log(total) - from_largest
    # dT_c = −dl (1 − ε) ω_c log p_c
    dt = (1 - options.label_smoothing) * dl * _targets.weighted(weight, minus_log_p) if floating else None
    dweight = None
    if weight is not None:
        # dω_c = −Σ_n dl_n u_nc log p_nc
        u = _targets.smoothed(options, targets, from_largest)
        du = dl * zero_safe_product(u, minus_log_p)
        du = _targets.by_label(options, targets, options.classes(x), du, bad=0.0)
        dweight = cotangent(jnp.sum(du, tuple(range(du.ndim - 1))), type_of(weight))
    return cotangent(dx, type_of(x)), None if dt is None else cotangent(dt, type_of(targets)), dweight


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)
