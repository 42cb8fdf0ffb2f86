"""Linear → softmax → NLL over a vocabulary, without an array of all logits.

Definition (x: one row, V classes, κ the softcap, ζ the z-loss, ω the class weights, ε the smoothing):
    a_c = Σ_j W_cj x_j + b_c                              Linear
    z_c = κ tanh(a_c / κ), or a_c without a softcap       Logits
    l   = Σ_c q_c (Z − z_c) + ζ Z²,  Z = log Σ_k exp(z_k)
    q_c = α [c = t] + β_c,  α = (1 − ε) ω_t,  β_c = ω_c ε/V: the target. Without options l is −log softmax(a)_t.

Derivation (the notes', of the layers in turn; dl stands for the upstream gradient, p = softmax(z)):
    z_c affects l directly, and through Z with ∂Z/∂z_c = p_c:
        dz_c = dl ((Σ_k q_k + 2ζ Z) p_c − q_c)            for q = e(t), ζ = 0: dl (p − e(t))
        da_c = dz_c (1 − tanh²(a_c / κ))
    and on through Linear, with n for the rows:
        dx_nj = Σ_c da_nc W_cj;   dW_cj = Σ_n da_nc x_nj;   db_c = Σ_n da_nc
    The target affects only l:
        dα_n = dl_n (Z_n − z_nt);   dβ_c = Σ_n dl_n (Z_n − z_nc)
    Rows do not affect each other, so the da of a block of rows needs only their Z. And Z needs only m = max z and
    Σ exp(z − m) of the classes so far, which each further block of classes updates (derived here).

Residuals:
    "fast": the gradient itself. The sum of the rows' losses has one upstream gradient, so the forward rule forms dx,
    dW, … for an upstream gradient of 1, block of rows by block of rows, while their logits are at hand. The backward
    rule multiplies them by the upstream gradient. That saves the fourth matrix product.
    "lean", and reduction "none": the arguments, with α, and two more numbers a row, Z and Z − z_t. The logits are
    recomputed.
    Both rules are plain JAX, so a second derivative differentiates the forward rule's formulas too.

Conventions:
    Labels, weights, smoothing and the mean are those of cross entropy: a label that is out of range and not
    `ignore_index` makes its row's loss NaN, its row of dx, and all of dW and db, to which every row adds; the gradient
    of the class weights leaves it out. The z-loss is a part of each row's loss: 0 in ignored rows, not weighted by
    class, and divided in the mean by the same number as the loss. Sums run in at least float32. The logits of
    low-precision arguments are float32; only da is rounded, as a factor of the products.
    With `axis_name` each device has a part of the classes: the rule returns the device's share of the loss, and the
    sum of the shares gives each the same upstream gradient.

Source:
    Taura, Neural Networks Basics, "Linear (Back Propagation 1)", "(Back Propagation 2)" and "NLL softmax (Back
    propagation)"; Larochelle, Neural networks, "Gradient computation". Blocks, softcap, z-loss and the classes over
    several devices are derived here.
"""

import functools
from typing import Any

import jax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jaxnn.losses import _linear_cross_entropy_blocks as _blocks
from jaxnn.losses import _linear_cross_entropy_inputs as _inputs
from jaxnn.losses._linear_cross_entropy_definition import definition
from jaxnn.losses._linear_cross_entropy_inputs import Inputs, Options
from jaxnn.losses._reduction import reduce
from jaxnn.rules import sharding
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import Type, cotangent
from jaxnn.rules.sharding import AxisName, on_any_mesh, rows_sharding

# "fast": the gradient for dl = 1, and the arguments' types. "lean": the arguments, Z, and Z − z_t.
Residuals = tuple[tuple[Array | None, ...], list[Type | None]] | tuple[Inputs, Array, Array]


@defined_by(definition)
@on_any_mesh(rows_sharding("targets"))
def linear_cross_entropy(
    x: Float[ArrayLike, "*rows inputs"],
    w: Float[ArrayLike, "classes inputs"],
    targets: Integer[ArrayLike, "*rows"],
    *,
    b: Float[ArrayLike, " classes"] | None = None,
    weight: Float[ArrayLike, " classes"] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    reduction: str = "mean",
    memory: str = "fast",
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName | None = None,
) -> Float[Array, "..."]:
    """Cross entropy of a linear layer's outputs, block by block: a language model's last layer and its loss in one.

    .. math:: l = -z_t + \\log \\sum_k \\exp(z_k), \\quad z = W x + b, \\quad \\partial l / \\partial z = p - e(t)

    It is `cross_entropy(linear(x, w, b), targets)` without an array of all logits.

    Args:
        x: input, shape (..., D), any floating dtype.
        w: weights, shape (V, D), one row a class, as `linear` has them.
        targets: class ids, integers, shape (...).
        b: bias, shape (V,), or None.
        weight: weight of each class, shape (V,), or None for 1 each; it gets a gradient too.
        ignore_index: the label of rows to leave out, or None.
        label_smoothing: ε in [0, 1]: the target becomes (1 − ε) e(t) + ε/V.
        z_loss: ζ ≥ 0: each row's loss is greater by ζ (log Σ_k exp(z_k))², which no class weight multiplies.
        logit_softcap: κ > 0: the logits become κ tanh(z / κ); None leaves them.
        reduction: "mean" (divides by the sum of the labels' weights), "sum" or "none".
        memory: "fast" forms the gradient in the forward pass, by blocks of rows: three matrix products, and a float32
            array of w's shape for its gradient. "lean" keeps three numbers a row and recomputes the logits in the
            backward pass, by blocks of the vocabulary: four products. Reduction "none" is always lean.
        block_size: rows ("fast") or classes ("lean") in a block; None fits it to the shapes and the device.
        precision: as in `jax.lax.dot_general`; None takes `jax.default_matmul_precision` as it is at this call, and
            the backward pass keeps it.
        axis_name: the mesh axis over which the classes are sharded, inside `shard_map` or `pmap`: `w`, `b` and `weight`
            are then this device's part, as many classes on each and in the devices' order; targets are ids of the
            whole vocabulary. With `check_vma=False` differentiate outside `shard_map` (a JAX rule).

    Returns:
        The loss in nats, at least float32: a scalar, or of targets' shape with "none".

    Raises:
        TypeError: `x`, `w`, `b` or `weight` is not floating, `targets` not integer, or an option of a wrong kind.
        ValueError: the shapes do not match, or an option is not one of its choices.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> x, w = jnp.array([[1.0, 2.0]]), jnp.zeros((4, 2))
        >>> jax.grad(linear_cross_entropy, 1)(x, w, jnp.array([3]))
        Array([[ 0.25,  0.5 ],
               [ 0.25,  0.5 ],
               [ 0.25,  0.5 ],
               [-0.75, -1.5 ]], dtype=float32)

    References:
        Taura, Neural Networks Basics, "Linear (a.k.a. Fully Connected Layer)" and "NLL softmax (Back propagation)";
        Wijmans et al. 2024, arXiv:2411.09009 (blocks of the vocabulary); Chowdhery et al. 2022, arXiv:2204.02311
        (z-loss); Gemma Team 2024, arXiv:2408.00118 (softcap).
    """
    given = _inputs.prepare(
        x, w, targets, b, weight, ignore_index, label_smoothing, z_loss, logit_softcap, reduction, memory, block_size,
        precision, axis_name,
    )  # fmt: skip
    inputs, options, d = given
    l = sharding.all_reduce(axis_name, lax.psum, _linear_cross_entropy(options, *inputs))
    return reduce(l.reshape(d.shape) if reduction == "none" else l, d, reduction)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@with_formulas(
    r"l = \sum_c q_c \left(Z - z_c\right) + \zeta Z^2, \quad Z = \log \sum_k e^{z_k}, \quad z = Wx + b",
    x=(
        r"dx_{nj} = \sum_c da_{nc}\,W_{cj}, \quad da_n = dl_n\,(p_n - e(t_n))\text{ for } q = e(t)",
        "Prediction less truth, class by class, times the weights.",
    ),
    w=(
        r"dW_{cj} = \sum_n da_{nc}\,x_{nj}, \quad da_n = dl_n\,(p_n - e(t_n))\text{ for } q = e(t)",
        "Each row pulls its class's weights towards itself, and pushes every other class's away.",
    ),
    b=(r"db_c = \sum_n da_{nc}, \quad da_n = dl_n\,(p_n - e(t_n))", "A class's bias changes its logit one for one."),
    alpha=(r"d\alpha_n = dl_n \left(Z_n - z_{nt}\right)", "The weight of a row's label multiplies what it costs."),
    beta=(r"d\beta_c = \sum_n dl_n \left(Z_n - z_{nc}\right)", "A class's part in all targets multiplies its −log p."),
)
def _linear_cross_entropy(
    options: Options, x: Array, w: Array, b: Array | None, alpha: Array, beta: Array | None, labels: Array
) -> Array:
    inputs = Inputs(x, w, b, alpha, beta, labels)
    loops = _blocks.by_rows if options.forms_gradient else _blocks.by_classes
    l = _blocks.on_its_platform(loops, options, inputs)[0]
    return _blocks.share(options, inputs, l)


def _linear_cross_entropy_fwd(
    options: Options, x: Array, w: Array, b: Array | None, alpha: Array, beta: Array | None, labels: Array
) -> tuple[Array, Residuals]:
    inputs = Inputs(x, w, b, alpha, beta, labels)
    if options.forms_gradient:
        forming = functools.partial(_blocks.by_rows, forms_gradient=True)
        l, gradient = _blocks.on_its_platform(forming, options, inputs)
        return _blocks.share(options, inputs, l), (gradient, _inputs.types(inputs))
    l, log_total, gap = _blocks.on_its_platform(_blocks.by_classes, options, inputs)
    return _blocks.share(options, inputs, l), (inputs, log_total, gap)


def _linear_cross_entropy_bwd(options: Options, residuals: Any, dl: Array) -> tuple[Array | None, ...]:
    if options.forms_gradient:
        gradient, types = residuals
        gradient = (None if g is None else dl * g for g in gradient)
    else:
        inputs, log_total, gap = residuals
        gradient = _blocks.on_its_platform(_blocks.gradient_by_classes, options, inputs, log_total, gap, dl)
        types = _inputs.types(inputs)
    return *(None if g is None else cotangent(g, t) for g, t in zip(gradient, types, strict=True)), None


_linear_cross_entropy.defvjp(_linear_cross_entropy_fwd, _linear_cross_entropy_bwd)
