"""The loops of linear_cross_entropy over blocks of rows and blocks of classes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.losses import _labels
from jaxnn.losses import _linear_cross_entropy_terms as _terms
from jaxnn.losses._linear_cross_entropy_inputs import Inputs, Options
from jaxnn.losses._linear_cross_entropy_terms import Block, Statistics
from jaxnn.rules import sharding
from jaxnn.rules.blocks import add_at, over_blocks
from jaxnn.rules.cotangents import type_of, vary_with

Linear = Callable[[Block, Array], Array]  # returns a of a block of classes, given its first class


def on_its_platform(loops: Callable[..., Any], options: Options, *operands: Any) -> Any:
    """Run the loops with blocks of the sizes that suit the platform for which they are lowered."""
    elsewhere = options._replace(sizes=options.sizes_elsewhere)
    if options == elsewhere:
        return loops(options, *operands)
    on_cpu, default = (functools.partial(loops, o) for o in (options, elsewhere))
    return lax.platform_dependent(*operands, cpu=on_cpu, default=default)


def by_rows(options: Options, inputs: Inputs, forms_gradient: bool = False) -> tuple[Array, Any]:
    """Return the sum of the rows' losses, and its gradient, block of rows by block of rows."""
    whole, varied = _whole(options, inputs), _varied(options, inputs)
    zeros = functools.partial(jnp.zeros, dtype=whole.alpha.dtype)

    def add_rows(carry: Any, start: Array, fresh: Array | None) -> Any:
        block = _some_rows(whole, start, options.rows, fresh)
        a = _terms.linear(options, block)

        def linear(part: Block, first: Array) -> Array:
            return lax.dynamic_slice_in_dim(a, first, len(part.w), 1)

        l, log_total, gap = map(varied, _terms.losses(options, block, _statistics(options, block, linear, varied)))
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


def by_classes(options: Options, inputs: Inputs) -> tuple[Array, Array, Array]:
    """Return each row's loss, Z and Z − z_t, block of classes by block of classes."""
    whole, varied = _whole(options, inputs), _varied(options, inputs)
    statistics = _statistics(options, whole, lambda part, _: _terms.linear(options, part), varied)
    l, log_total, gap = _terms.losses(options, whole, statistics)
    return varied(l), varied(log_total), varied(gap)


def gradient_by_classes(options: Options, inputs: Inputs, log_total: Array, gap: Array, dl: Array) -> Any:
    """Return the cotangents of the arguments, recomputing the logits block of classes by block of classes."""
    # No two blocks add to the same class, so each sum over the rows has the type of its primal from the start.
    for_classes = jax.tree.map(
        lambda a: vary_with(jnp.zeros(a.shape, a.dtype), type_of(a)), (inputs.w, inputs.b, inputs.beta)
    )
    dx, (dw, db, dbeta) = _gradient(
        options, _whole(options, inputs), lambda part, _: _terms.linear(options, part), log_total, dl, for_classes
    )
    return dx, dw, db, dl * gap / sharding.axis_size(options.axis_name), dbeta


def _statistics(options: Options, rows: Block, linear: Linear, varied: Callable[[Array], Array]) -> Statistics:
    """Return the statistics of the logits of these rows, block of classes by block of classes."""

    def add_classes(so_far: Statistics, start: Array, fresh: Array | None) -> Statistics:
        part = _some_classes(rows, start, options.summed, fresh)
        z, _ = _terms.logits(options, part, linear(part, start))
        merged: Statistics = jax.tree.map(varied, _terms.merged(so_far, _terms.of_block(part, z)))
        return merged

    nothing = jnp.zeros_like(rows.alpha)
    none_yet = Statistics(nothing - jnp.inf, nothing, nothing, None if rows.beta is None else nothing)
    return _terms.of_all_devices(
        options, over_blocks(len(rows.w), options.summed, add_classes, jax.tree.map(varied, none_yet))
    )


def _gradient(
    options: Options,
    rows: Block,
    linear: Linear,
    log_total: Array,
    dl: Array,
    for_classes: Any,
) -> tuple[Array, Any]:
    """Return dx of these rows, and the sums (dW, db, dβ) with these rows added.

    In blocks of classes: XLA on a CPU does not add a product in place, and a block's part of dW fits in the cache.
    """

    def add_classes(carry: Any, start: Array, fresh: Array | None) -> Any:
        dx, for_classes = carry
        part = _some_classes(rows, start, options.classes, fresh)
        z, slope = _terms.logits(options, part, linear(part, start))
        da = _terms.da(options, part, z, slope, log_total, dl)
        factor = da.astype(part.x.dtype)
        # dW_cj = Σ_n da_nc x_nj; dx_nj = Σ_c da_nc W_cj
        dw = _terms.matrix_product(options, factor, part.x, 0, 0)
        db = None if part.b is None else jnp.sum(da, 0)
        dbeta = None if part.beta is None else _terms.dbeta(part, z, log_total, dl)
        return dx + _terms.matrix_product(options, factor, part.w, 1, 0), add_at(start, for_classes, (dw, db, dbeta))

    dx = vary_with(jnp.zeros(rows.x.shape, rows.alpha.dtype), type_of(dl))
    return over_blocks(len(rows.w), options.classes, add_classes, (dx, for_classes))


def _whole(options: Options, inputs: Inputs) -> Block:
    """Return all rows and classes as one block."""
    x, w, b, alpha, beta, labels = inputs
    counted = ~_labels.is_ignored(labels, options.ignore_index)
    bad = counted & ~_labels.is_label(labels, len(w) * sharding.axis_size(options.axis_name))
    beta_sum = None if beta is None else sharding.all_reduce(options.axis_name, lax.psum, jnp.sum(beta))
    here = _labels.local_labels(labels, len(w), options.axis_name)
    return Block(x, alpha, here, counted, bad, w, b, beta, None, beta_sum)


def _some_rows(block: Block, start: Array, size: int, fresh: Array | None) -> Block:
    rows = (block.x, block.alpha, block.labels, block.counted, block.bad)
    x, alpha, labels, counted, bad = (lax.dynamic_slice_in_dim(a, start, size) for a in rows)
    counted = counted if fresh is None else counted & fresh
    return block._replace(x=x, alpha=alpha, labels=labels, counted=counted, bad=bad)


def _some_classes(block: Block, start: Array, size: int, fresh: Array | None) -> Block:
    classes = (block.w, block.b, block.beta)
    w, b, beta = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), classes)
    labels = block.labels - start.astype(block.labels.dtype)
    if fresh is not None:
        labels = jnp.where(fresh[_labels.in_range(labels, size)], labels, jnp.full_like(labels, -1))
        beta = None if beta is None else jnp.where(fresh, beta, jnp.zeros_like(beta))
    return block._replace(labels=labels, w=w, b=b, beta=beta, fresh=fresh)


def share(options: Options, inputs: Inputs, l: Array) -> Array:
    """Return the device's share of the loss."""
    return _varied(options, inputs)(l / sharding.axis_size(options.axis_name))


def _varied(options: Options, inputs: Inputs) -> Callable[[Array], Array]:
    """Return a function that marks an array as varying over the mesh axes of all arguments and of the classes."""
    return lambda a: sharding.mark_varying(options.axis_name, vary_with(a, *map(type_of, jax.tree.leaves(inputs))))
