"""Binary cross entropy of logits: the loss of the notes' tasks with 0/1 targets.

Definition (x: logit, t: target in [0, 1], σ(x) = 1 / (1 + e^−x)):
    l = −t log σ(x) − (1 − t) log σ(−x)

Derivation (derived here; it is NLL∘softmax with two classes and logits (0, x); dl stands for the upstream gradient):
    ∂ log σ(x)/∂x = σ(−x) and ∂ log σ(−x)/∂x = −σ(x), so
        dx = dl ((1 − t) σ(x) − t σ(−x))          (= dl (σ(x) − t), without its cancellation at σ(x) ≈ t)
        dt = dl (log σ(−x) − log σ(x)) = −dl x
    With |x|, and t' for the target probability of the answer that x's sign predicts (t if x ≥ 0, else 1 − t), both need
    one exponential, of a number that is not positive:
        l = (1 − t') |x| + log(1 + e^−|x|);    dx = ± dl ((1 − t') − t' e^−|x|) / (1 + e^−|x|)

Residuals:
    x and t, which are inputs.

Conventions:
    0 · ∞ = 0: the loss of a certain and right answer is 0. An integer target other than 0 and 1 makes its loss and
    gradient NaN. Losses are at least float32.

Source:
    Taura, Neural Networks Basics, "What is machine learning?" names the task; the loss and its derivative are derived
    here.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxnn.losses._reduction import reduce
from jaxnn.rules import arguments
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype, cotangent, type_of
from jaxnn.rules.sharding import on_any_mesh, rows_sharding
from jaxnn.rules.softmax_sums import zero_safe_product

Residuals = tuple[Array, Array]  # x and t


def _definition(logits: ArrayLike, targets: ArrayLike, *, reduction: str = "mean") -> Array:
    x, t = _checked(logits, targets, reduction)
    x, t = _widened(x, t)
    l = jax.nn.softplus(x) - x * t
    if reduction == "none":
        return l
    return jnp.sum(l) if reduction == "sum" else jnp.mean(l)


@defined_by(_definition)
@on_any_mesh(rows_sharding("logits"))
def binary_cross_entropy(
    logits: Float[ArrayLike, "*shape"], targets: ArrayLike, *, reduction: str = "mean"
) -> Float[Array, "..."]:
    """Cross entropy of yes/no answers, from logits.

    .. math:: l = -t \\log \\sigma(x) - (1 - t) \\log \\sigma(-x)

    Args:
        logits: any shape and floating dtype.
        targets: of logits' shape: probabilities of "yes", floating, which get a gradient too; or 0 and 1, integer or
            boolean.
        reduction: "mean", "sum" or "none".

    Returns:
        The loss in nats, at least float32: a scalar, or of logits' shape with "none".

    Raises:
        TypeError: `logits` is not floating, or `targets` not floating, integer or boolean.
        ValueError: the shapes differ, or `reduction` is not one of its choices.

    Example:
        >>> import jax
        >>> jax.value_and_grad(binary_cross_entropy)(0.0, 1)
        (Array(0.6931472, dtype=float32), Array(-0.5, dtype=float32))

    References:
        Derived here; see the module's docstring.
    """
    x, t = _checked(logits, targets, reduction)
    l = _binary_cross_entropy(x, t)
    return reduce(l, jnp.ones_like(l), reduction)


@jax.custom_vjp
@with_formulas(
    r"l = -t \log \sigma(x) - (1 - t) \log \sigma(-x)",
    x=(r"dx = dl\,\bigl((1 - t)\,\sigma(x) - t\,\sigma(-x)\bigr)", "Prediction less truth, σ(x) − t."),
    t=(r"dt = -dl\,x", "The larger the logit, the more a 'yes' lowers the loss."),
)
def _binary_cross_entropy(x: Array, t: Array) -> Array:
    return _binary_cross_entropy_fwd(x, t)[0]


def _binary_cross_entropy_fwd(x: Array, t: Array) -> tuple[Array, Residuals]:
    wide_x, wide_t = _widened(x, t)
    size, _, wrong = _sides(wide_x, wide_t)
    return zero_safe_product(wrong, size) + jnp.log1p(jnp.exp(-size)), (x, t)


def _binary_cross_entropy_bwd(residuals: Residuals, dl: Array) -> tuple[Array, Array]:
    x, t = residuals
    wide_x, wide_t = _widened(x, t)
    size, right, wrong = _sides(wide_x, wide_t)
    small = jnp.exp(-size)  # σ(|x|) = 1 / (1 + e^−|x|), σ(−|x|) = e^−|x| / (1 + e^−|x|)
    away = (wrong - right * small) / (1 + small)
    dx = dl * jnp.where(wide_x >= 0, away, -away)
    return cotangent(dx, type_of(x)), cotangent(-dl * wide_x, type_of(t))


_binary_cross_entropy.defvjp(_binary_cross_entropy_fwd, _binary_cross_entropy_bwd)


def _widened(x: Array, t: Array) -> tuple[Array, Array]:
    dtype = max(accumulation_dtype(x.dtype), accumulation_dtype(t.dtype), key=lambda dtype: dtype.itemsize)
    return x.astype(dtype), t.astype(dtype)


def _sides(x: Array, t: Array) -> tuple[Array, Array, Array]:
    """Return |x|, and the target probability of the answer that x's sign predicts, and of the other."""
    # Not abs, whose derivative at 0 is 0: the second derivative of the loss there is 1/4.
    size = jnp.where(x >= 0, x, -x)
    return size, jnp.where(x >= 0, t, 1 - t), jnp.where(x >= 0, 1 - t, t)


def _checked(logits: ArrayLike, targets: ArrayLike, reduction: str) -> tuple[Array, Array]:
    arguments.one_of("reduction", reduction, arguments.REDUCTIONS)
    x, t = arguments.floating("logits", logits), arguments.array("targets", targets)
    arguments.same_shape("targets", t, "logits", x)
    if jnp.issubdtype(t.dtype, jnp.floating):
        return x, t
    if not (jnp.issubdtype(t.dtype, jnp.integer) or t.dtype == jnp.bool_):
        raise TypeError(f"`targets` (dtype {t.dtype}) must be floating, integer or boolean")
    answers = t.astype(accumulation_dtype(x.dtype))
    return x, jnp.where((answers == 0) | (answers == 1), answers, jnp.nan)
