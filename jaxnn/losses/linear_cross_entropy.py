"""Linear → softmax → NLL over a vocabulary, without ever holding the logits of all rows and classes.

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
    The target affects l alone:
        dα_n = dl_n (Z_n − z_nt);   dβ_c = Σ_n dl_n (Z_n − z_nc)
    Rows do not affect each other, so any block of rows has its da as soon as their Z are known; and Z needs no more
    of the classes seen so far than m = max z and Σ exp(z − m), which a further block updates (derived here).

Residuals:
    "fast": the gradient itself, as the sum of the rows' losses has one upstream gradient for all of them: the forward
    rule forms dx, dW, … for an upstream gradient of 1, block of rows by block of rows while their logits are at hand,
    and the backward rule multiplies. That saves the fourth matrix product.
    "lean", and reduction "none": the arguments, α among them, and two more numbers a row, Z and Z − z_t. The logits
    are made again.
    Either rule is plain JAX, so that a second derivative goes through the forward rule's formulas too.

Conventions:
    Labels, weights, smoothing and the mean are those of cross entropy: a label outside [0, V) that is not
    `ignore_index` makes its row's loss NaN, its row of dx, and with it all of dW and db, to which every row adds; it
    has no part in the gradient of the class weights. The z-loss is a part of each row's loss: 0 in ignored rows, not
    weighted by class, and divided in the mean by what the loss is divided by. Sums run in at least float32; the
    logits of low-precision arguments are float32, and only da is rounded, to be a factor of the products.
    With `axis_name` each device has its own classes: what the rule returns is the device's share of the loss, and
    the sum of the shares hands the same upstream gradient back to each.

Source:
    Taura, Neural Networks Basics, "Linear (Back Propagation 1)", "(Back Propagation 2)" and "NLL softmax (Back
    propagation)"; Larochelle, Neural networks, "Gradient computation". Blocks, softcap, z-loss and the classes over
    several devices are derived here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxnn.losses import _labels
from jaxnn.losses._reduction import reduce
from jaxnn.rules import arguments, sharding
from jaxnn.rules.blocks import add_at, even, fitting, over_blocks
from jaxnn.rules.component import defined_by, with_formulas
from jaxnn.rules.cotangents import accumulation_dtype, cotangent, resolve_precision, type_of, vary_with
from jaxnn.rules.sharding import AxisName, on_any_mesh, rows_sharding
from jaxnn.rules.softmax_sums import zero_safe_product


class _Options(NamedTuple):
    """The static half of the loss."""

    z_loss: float
    softcap: float | None
    ignore_index: int | None
    forms_gradient: bool  # in the forward pass; the rule then returns the sum over the rows
    rows: int  # in a block of the forward pass that forms the gradient
    classes: int  # in a block of the vocabulary
    summed: int  # classes in a block of which Σ exp(z) is taken
    axis_name: AxisName | None
    precision: Any


class _Inputs(NamedTuple):
    """The arguments of the rule."""

    x: Float[Array, "rows inputs"]
    w: Float[Array, "classes inputs"]
    b: Float[Array, " classes"] | None
    alpha: Float[Array, " rows"]
    beta: Float[Array, " classes"] | None
    labels: Int[Array, " rows"]


def _definition(
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
    given = _arguments(
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


@defined_by(_definition)
@on_any_mesh(rows_sharding("targets"))
def linear_cross_entropy(
    x: Float[ArrayLike, "*rows inputs"],
    w: Float[ArrayLike, "classes inputs"],
    targets: Int[ArrayLike, "*rows"],
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

    It is `cross_entropy(linear(x, w, b), targets)` without the array of all logits.

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
            array of w's shape for its gradient. "lean" keeps three numbers a row and makes the logits again in the
            backward pass, by blocks of the vocabulary: four. Reduction "none" is always lean.
        block_size: rows ("fast") or classes ("lean") in a block; None fits it to the shapes and the device.
        precision: as in `jax.lax.dot_general`; None takes `jax.default_matmul_precision` as it is at this call, and
            the backward pass keeps it.
        axis_name: the mesh axis over which the classes are split, inside `shard_map` or `pmap`: `w`, `b` and `weight`
            are then the device's own, equally many on each and in the devices' order; targets are ids of the whole
            vocabulary. With `check_vma=False`, as ever in JAX then, the gradient of a loss that all devices return is
            to be taken outside of `shard_map`.

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
    given = _arguments(
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
        "Prediction less truth, class by class, on its way back through the weights.",
    ),
    w=(
        r"dW_{cj} = \sum_n da_{nc}\,x_{nj}, \quad da_n = dl_n\,(p_n - e(t_n))\text{ for } q = e(t)",
        "Each row pulls its class's weights towards itself, and pushes every other class's away.",
    ),
    b=(r"db_c = \sum_n da_{nc}, \quad da_n = dl_n\,(p_n - e(t_n))", "A class's bias moves its logit one for one."),
    alpha=(r"d\alpha_n = dl_n \left(Z_n - z_{nt}\right)", "The weight of a row's label multiplies what it costs."),
    beta=(r"d\beta_c = \sum_n dl_n \left(Z_n - z_{nc}\right)", "A class's part in all targets costs −log p of it."),
)
def _linear_cross_entropy(
    options: _Options, x: Array, w: Array, b: Array | None, alpha: Array, beta: Array | None, labels: Array
) -> Array:
    inputs = _Inputs(x, w, b, alpha, beta, labels)
    l = _by_rows(options, inputs)[0] if options.forms_gradient else _by_classes(options, inputs)[0]
    return _share(options, inputs, l)


def _linear_cross_entropy_fwd(
    options: _Options, x: Array, w: Array, b: Array | None, alpha: Array, beta: Array | None, labels: Array
) -> tuple[Array, Any]:
    inputs = _Inputs(x, w, b, alpha, beta, labels)
    if options.forms_gradient:
        l, gradient = _by_rows(options, inputs, forms_gradient=True)
        return _share(options, inputs, l), (gradient, _types(inputs))
    l, log_total, gap = _by_classes(options, inputs)
    return _share(options, inputs, l), (inputs, log_total, gap)


def _linear_cross_entropy_bwd(options: _Options, residuals: Any, dl: Array) -> tuple[Array | None, ...]:
    if options.forms_gradient:
        gradient, types = residuals
        gradient = (None if g is None else dl * g for g in gradient)
    else:
        inputs, log_total, gap = residuals
        gradient, types = _gradient_by_classes(options, inputs, log_total, gap, dl), _types(inputs)
    return *(None if g is None else cotangent(g, t) for g, t in zip(gradient, types, strict=True)), None


_linear_cross_entropy.defvjp(_linear_cross_entropy_fwd, _linear_cross_entropy_bwd)


class _Block(NamedTuple):
    """Some rows and some classes."""

    x: Float[Array, "rows inputs"]
    alpha: Float[Array, " rows"]
    labels: Int[Array, " rows"]  # counted from the first of these classes; any other number for any other class
    counted: Bool[Array, " rows"]  # neither left out nor part of an earlier block
    bad: Bool[Array, " rows"]  # with a label that is no class, and does not say to leave the row out
    w: Float[Array, "classes inputs"]
    b: Float[Array, " classes"] | None
    beta: Float[Array, " classes"] | None  # 0 for classes of an earlier block
    fresh: Bool[Array, " classes"] | None  # not of an earlier block; None if that is all of them
    beta_sum: Float[Array, ""] | None  # over all classes


class _Statistics(NamedTuple):
    """What a row's loss needs to know of its logits."""

    largest: Float[Array, " rows"]
    total: Float[Array, " rows"]  # Σ exp(z − largest)
    at_label: Float[Array, " rows"]
    smoothed: Float[Array, " rows"] | None  # Σ β z


Linear = Callable[[_Block, Array], Array]  # makes the a of a block of classes, which begins at the class given


def _by_rows(options: _Options, inputs: _Inputs, forms_gradient: bool = False) -> tuple[Array, Any]:
    """Return the sum of the rows' losses, and its gradient, block of rows by block of rows."""
    whole, varied = _whole(options, inputs), _varied(options, inputs)
    zeros = functools.partial(jnp.zeros, dtype=whole.alpha.dtype)

    def add_rows(carry: Any, start: Array, fresh: Array | None) -> Any:
        block = _some_rows(whole, start, options.rows, fresh)
        a = _linear(options, block)

        def linear(part: _Block, first: Array) -> Array:
            return lax.dynamic_slice_in_dim(a, first, len(part.w), 1)

        l, log_total, gap = map(varied, _losses(options, block, _statistics(options, block, linear, varied)))
        total, for_rows, for_classes = carry
        if forms_gradient:
            dx, for_classes = _gradient(options, block, linear, log_total, varied(jnp.ones_like(l)), for_classes)
            for_rows = add_at(start, for_rows, (dx, gap))
        return total + jnp.sum(l), for_rows, for_classes

    sums = jax.tree.map(lambda a: varied(zeros(a.shape)), ((inputs.x, inputs.alpha), (inputs.w, inputs.b, inputs.beta)))
    carry = (varied(zeros(())), *(sums if forms_gradient else (None, None)))
    total, for_rows, for_classes = over_blocks(len(inputs.x), options.rows, add_rows, carry)
    if not forms_gradient:
        return total, None
    (dx, dalpha), (dw, db, dbeta) = for_rows, for_classes
    return total, (dx, dw, db, dalpha / sharding.axis_size(options.axis_name), dbeta)


def _by_classes(options: _Options, inputs: _Inputs) -> tuple[Array, Array, Array]:
    """Return each row's loss, Z and Z − z_t, block of classes by block of classes."""
    whole, varied = _whole(options, inputs), _varied(options, inputs)
    statistics = _statistics(options, whole, lambda part, _: _linear(options, part), varied)
    l, log_total, gap = _losses(options, whole, statistics)
    return varied(l), varied(log_total), varied(gap)


def _gradient_by_classes(options: _Options, inputs: _Inputs, log_total: Array, gap: Array, dl: Array) -> Any:
    """Return the cotangents of the arguments, the logits made again block of classes by block of classes."""
    # No block adds to another's classes: what is summed over the rows has the type of its primal at once.
    for_classes = jax.tree.map(
        lambda a: vary_with(jnp.zeros(a.shape, a.dtype), type_of(a)), (inputs.w, inputs.b, inputs.beta)
    )
    dx, (dw, db, dbeta) = _gradient(
        options, _whole(options, inputs), lambda part, _: _linear(options, part), log_total, dl, for_classes
    )
    return dx, dw, db, dl * gap / sharding.axis_size(options.axis_name), dbeta


def _statistics(options: _Options, rows: _Block, linear: Linear, varied: Callable[[Array], Array]) -> _Statistics:
    """Return what these rows' losses need to know of their logits, block of classes by block of classes."""

    def add_classes(so_far: _Statistics, start: Array, fresh: Array | None) -> _Statistics:
        part = _some_classes(rows, start, options.summed, fresh)
        z, _ = _logits(options, part, linear(part, start))
        merged: _Statistics = jax.tree.map(varied, _merged(so_far, _of_block(part, z)))
        return merged

    nothing = jnp.zeros_like(rows.alpha)
    none_yet = _Statistics(nothing - jnp.inf, nothing, nothing, None if rows.beta is None else nothing)
    return _of_all_devices(
        options, over_blocks(len(rows.w), options.summed, add_classes, jax.tree.map(varied, none_yet))
    )


def _gradient(
    options: _Options,
    rows: _Block,
    linear: Linear,
    log_total: Array,
    dl: Array,
    for_classes: Any,
) -> tuple[Array, Any]:
    """Return dx of these rows, and the sums (dW, db, dβ) with what these rows add to them.

    In blocks of classes: on a CPU, which sums no product in place, what a block adds to dW then fits in the cache.
    """

    def add_classes(carry: Any, start: Array, fresh: Array | None) -> Any:
        dx, for_classes = carry
        part = _some_classes(rows, start, options.classes, fresh)
        z, slope = _logits(options, part, linear(part, start))
        da = _da(options, part, z, slope, log_total, dl)
        factor = da.astype(part.x.dtype)
        dw = _product(options, factor, part.x, 0, 0)
        db = None if part.b is None else jnp.sum(da, 0)
        dbeta = None if part.beta is None else _dbeta(part, z, log_total, dl)
        return dx + _product(options, factor, part.w, 1, 0), add_at(start, for_classes, (dw, db, dbeta))

    dx = vary_with(jnp.zeros(rows.x.shape, rows.alpha.dtype), type_of(dl))
    return over_blocks(len(rows.w), options.classes, add_classes, (dx, for_classes))


def _whole(options: _Options, inputs: _Inputs) -> _Block:
    """Return all rows and classes as one block."""
    x, w, b, alpha, beta, labels = inputs
    counted = ~_labels.is_ignored(labels, options.ignore_index)
    bad = counted & ~_labels.is_label(labels, len(w) * sharding.axis_size(options.axis_name))
    beta_sum = None if beta is None else sharding.all_reduce(options.axis_name, lax.psum, jnp.sum(beta))
    here = _labels.local_labels(labels, len(w), options.axis_name)
    return _Block(x, alpha, here, counted, bad, w, b, beta, None, beta_sum)


def _some_rows(block: _Block, start: Array, size: int, fresh: Array | None) -> _Block:
    rows = (block.x, block.alpha, block.labels, block.counted, block.bad)
    x, alpha, labels, counted, bad = (lax.dynamic_slice_in_dim(a, start, size) for a in rows)
    counted = counted if fresh is None else counted & fresh
    return block._replace(x=x, alpha=alpha, labels=labels, counted=counted, bad=bad)


def _some_classes(block: _Block, start: Array, size: int, fresh: Array | None) -> _Block:
    classes = (block.w, block.b, block.beta)
    w, b, beta = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), classes)
    labels = block.labels - start.astype(block.labels.dtype)
    if fresh is not None:
        labels = jnp.where(fresh[_labels.in_range(labels, size)], labels, jnp.full_like(labels, -1))
        beta = None if beta is None else jnp.where(fresh, beta, jnp.zeros_like(beta))
    return block._replace(labels=labels, w=w, b=b, beta=beta, fresh=fresh)


def _product(options: _Options, a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    contracted = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(
        a, b, contracted, precision=options.precision, preferred_element_type=accumulation_dtype(a.dtype)
    )


def _linear(options: _Options, block: _Block) -> Array:
    """a = W x + b, in at least float32."""
    a = _product(options, block.x, block.w, 1, 1)
    return a if block.b is None else a + jnp.broadcast_to(block.b.astype(a.dtype), a.shape)


def _logits(options: _Options, block: _Block, a: Array) -> tuple[Array, Array | None]:
    """z = κ tanh(a / κ), −∞ for classes of an earlier block, and its derivative 4 σ(2a/κ) σ(−2a/κ); None for 1."""
    z, slope = a, None
    if options.softcap is not None:
        capped = a / options.softcap
        z, slope = options.softcap * jnp.tanh(capped), 4 * lax.logistic(2 * capped) * lax.logistic(-2 * capped)
    return z if block.fresh is None else jnp.where(block.fresh[None, :], z, -jnp.inf), slope


def _of_block(block: _Block, z: Array) -> _Statistics:
    largest = lax.stop_gradient(jnp.max(z, 1))
    total = jnp.sum(jnp.exp(z - _finite(largest)[:, None]), 1)
    smoothed = None if block.beta is None else jnp.sum(zero_safe_product(block.beta[None, :], z), 1)
    is_here, zero = _labels.is_label(block.labels, z.shape[1]), jnp.zeros((), z.dtype)
    return _Statistics(largest, total, jnp.where(is_here, _labels.at_label(z, block.labels), zero), smoothed)


def _merged(s: _Statistics, t: _Statistics) -> _Statistics:
    """Return what is known of a row after two blocks of classes."""
    largest = jnp.maximum(s.largest, t.largest)
    shift = _finite(largest)
    total = s.total * jnp.exp(s.largest - shift) + t.total * jnp.exp(t.largest - shift)
    sums = jax.tree.map(jnp.add, (s.at_label, s.smoothed), (t.at_label, t.smoothed))
    return _Statistics(largest, total, *sums)


def _of_all_devices(options: _Options, s: _Statistics) -> _Statistics:
    """Return what is known of a row after the classes of all devices."""
    largest = sharding.all_reduce(options.axis_name, lax.pmax, s.largest)
    sums = (s.total * jnp.exp(s.largest - _finite(largest)), s.at_label, s.smoothed)
    return _Statistics(largest, *sharding.all_reduce(options.axis_name, lax.psum, sums))


def _finite(largest: Array) -> Array:
    return jnp.where(largest == -jnp.inf, jnp.zeros((), largest.dtype), largest)


def _losses(options: _Options, block: _Block, s: _Statistics) -> tuple[Array, Array, Array]:
    """Return each row's loss l = α (Z − z_t) + Σ β (Z − z) + ζ Z², its Z, and its Z − z_t (0 for no label)."""
    log_sum = jnp.log(s.total)
    gap, log_total = (s.largest - s.at_label) + log_sum, s.largest + log_sum
    l = zero_safe_product(block.alpha, gap) + options.z_loss * log_total**2
    if s.smoothed is not None and block.beta_sum is not None:
        l = l + (block.beta_sum * s.largest - s.smoothed) + block.beta_sum * log_sum
    zero = jnp.zeros((), l.dtype)
    l = jnp.where(block.counted, jnp.where(block.bad, jnp.nan, l), zero)
    return l, log_total, jnp.where(block.counted & ~block.bad, gap, zero)


def _da(options: _Options, block: _Block, z: Array, slope: Array | None, log_total: Array, dl: Array) -> Array:
    """da = dl ((α + Σ β + 2ζ Z) p − α e(t) − β) ∂z/∂a: NaN in rows of no class, 0 in those left out."""
    p = jnp.exp(z - log_total[:, None])
    q_sum = block.alpha if block.beta_sum is None else block.alpha + block.beta_sum
    is_label = _labels.one_hot(block.labels, z.shape[1])
    target = jnp.where(is_label, block.alpha[:, None], jnp.zeros((), z.dtype))
    dz = (q_sum + 2 * options.z_loss * log_total)[:, None] * p - target
    dz = dz if block.beta is None else dz - jnp.broadcast_to(block.beta, dz.shape)
    da = jnp.where(block.bad, jnp.nan, dl)[:, None] * (dz if slope is None else dz * slope)
    return jnp.where(block.counted[:, None], da, jnp.zeros((), da.dtype))


def _dbeta(block: _Block, z: Array, log_total: Array, dl: Array) -> Array:
    """dβ_c = Σ_n dl_n (Z_n − z_nc), over the rows with a class."""
    counts = (block.counted & ~block.bad)[:, None]
    counts = counts if block.fresh is None else counts & block.fresh[None, :]
    # Masked before the product: an infinite z of a masked class would leave NaN in the derivative by dl.
    return jnp.sum(dl[:, None] * jnp.where(counts, log_total[:, None] - z, jnp.zeros((), z.dtype)), 0)


def _share(options: _Options, inputs: _Inputs, l: Array) -> Array:
    """Return the device's share of the loss."""
    return _varied(options, inputs)(l / sharding.axis_size(options.axis_name))


def _types(inputs: _Inputs) -> list[Any]:
    return [None if a is None else type_of(a) for a in inputs[:-1]]


def _varied(options: _Options, inputs: _Inputs) -> Callable[[Array], Array]:
    """Return what marks an array as varying over the axes that some argument varies over, and that of the classes."""
    return lambda a: sharding.mark_varying(options.axis_name, vary_with(a, *map(type_of, jax.tree.leaves(inputs))))


def _block_sizes(
    holds_logits: bool, softcap: float | None, epsilon: float, block_size: int | None, n: int, v: int, d: int
) -> tuple[int, int, int]:
    """Return the rows of a block of `_by_rows`, and the classes of a block of the vocabulary, twice: see `_Options`.

    Each block of rows passes over dW's sum of 4VD bytes: the more rows the faster, until on a CPU the products take
    nearly all of the time. What a block of classes adds to dW is to fit in its cache, where it is cheap to pass over
    again. On other devices every pass is over the main memory: blocks are as large as the memory allows, and whole in
    V, where the product adds to the sum itself.
    """
    if jax.default_backend() == "cpu":
        rows, classes = fitting(32 << 20, v), fitting(2 << 20, d) if holds_logits else fitting(8 << 20, max(n, d))
    else:
        rows, classes = fitting(1 << 30, v), v if holds_logits else fitting(128 << 20, n)
    if block_size is not None:
        rows, classes = (block_size, classes) if holds_logits else (rows, block_size)
    # Logits that are held are summed up where they lie; capped or smoothed ones would be held once more.
    in_one = holds_logits and softcap is None and not epsilon
    return even(n, rows), even(v, classes), even(v, v if in_one else classes)


def _arguments(
    x: ArrayLike,
    w: ArrayLike,
    targets: ArrayLike,
    b: ArrayLike | None,
    weight: ArrayLike | None,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    reduction: str,
    memory: str,
    block_size: int | None,
    precision: Any,
    axis_name: AxisName | None,
) -> tuple[_Inputs, _Options, Array]:
    """Check the arguments; return the rule's, with the rows in one axis, and what each row counts for in the mean."""
    x, w, b = arguments.linear(x, w, b)
    d, v = w.shape[1], w.shape[0]
    labels = arguments.class_ids("targets", targets)
    if labels.shape != x.shape[:-1]:
        raise ValueError(
            f"{arguments.described('targets', labels)} must have shape {x.shape[:-1]}, that of `x` without its last "
            f"axis"
        )
    weight = _labels.class_weight(weight, v)
    epsilon = arguments.fraction("label_smoothing", label_smoothing)
    z_loss = arguments.number("z_loss", z_loss, 0)
    softcap = None if logit_softcap is None else arguments.number("logit_softcap", logit_softcap, 0, exclusive=True)
    arguments.one_of("reduction", reduction, arguments.REDUCTIONS)
    arguments.one_of("memory", memory, ("fast", "lean"))
    block_size = None if block_size is None else arguments.integer("block_size", block_size, 1)
    ignore_index = (
        None if ignore_index is None else arguments.integer("ignore_index", ignore_index, -(2**31), 2**31 - 1)
    )
    count = v * sharding.axis_size(axis_name)

    forms_gradient = memory == "fast" and reduction != "none"
    blocks = _block_sizes(forms_gradient, softcap, epsilon, block_size, labels.size, v, d)
    options = _Options(z_loss, softcap, ignore_index, forms_gradient, *blocks, axis_name, resolve_precision(precision))
    dtype = accumulation_dtype(x.dtype)
    counts = _labels.row_weight(labels, weight, ignore_index, dtype, axis_name)
    beta = None
    if epsilon:
        ones = jnp.ones(v, dtype) if weight is None else weight.astype(dtype)
        beta = ones * (epsilon / max(1, count))
    alpha = (1 - epsilon) * counts.reshape(-1)
    inputs = _Inputs(x.reshape(labels.size, d), w, b, alpha, beta, labels.reshape(-1))
    return inputs, options, counts
