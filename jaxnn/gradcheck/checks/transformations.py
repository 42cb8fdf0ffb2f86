"""The checks under transformations: the rule staged, batched, and differentiated again."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.gradcheck import _numeric
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck.checks.examples import (
    TWO_GRADIENTS,
    Expected,
    Mask,
    attempt,
    examples,
    label,
    one_by_one,
    stacked,
    subsets,
)  # fmt: skip
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Row
from jaxnn.gradcheck.tolerance import differs, finfo, index_text, largest_finite, worst_index
from jaxnn.tracing.contexts import float64_mode
from jaxnn.tracing.errors import first_line


def staging(t: Trial) -> Findings:
    """The gradient is the same under jit, scan, cond and remat as without."""
    s = t.subject

    def vjp_of(transform: Callable[[Callable[..., Arrays]], Callable[..., Arrays]], kind: str) -> Arrays:
        rest = s.with_refs(s.rest)
        value = transform(lambda points: s.value(kind, points, rest))
        return list(jax.vjp(value, s.points)[1]([d.astype(y.dtype) for d, y in zip(t.dy, s.outputs, strict=True)])[0])

    def scanned(f: Callable[..., Arrays]) -> Callable[..., Arrays]:
        def run(points: Arrays) -> Arrays:
            out = lax.scan(lambda c, p: (c + 1, f(p)), 0, [p[None] for p in points])[1]
            return [y[0] for y in out]

        return run

    def branched(f: Callable[..., Arrays]) -> Callable[..., Arrays]:
        def zeros(points: Arrays) -> Arrays:
            return [jnp.zeros(y.shape, y.dtype) for y in s.outputs]

        return lambda points: lax.cond(jnp.bool_(True), f, zeros, points)

    if s.eager:
        yield Row("staging", "jit", FAIL, f"the rule cannot be traced, the definition can: {t.not_traced}",
                  "no Python branching on values in fwd and bwd: jnp.where or lax.cond")  # fmt: skip
    variants: dict[str, Callable[..., Any]] = {
        "eager": lambda f: f,
        "jit": jax.jit,
        "scan": scanned,
        "cond": branched,
        "remat": jax.checkpoint,
    }
    for name, transform in variants.items():
        if not (s.eager and name in ("eager", "jit")):
            yield attempt(t, "staging", name, functools.partial(vjp_of, transform), Expected(t.custom))


def vmap(t: Trial) -> Findings:
    """A batch has the gradients of its examples, whichever arguments are batched."""
    s = t.subject
    both, dys = examples(t, 2)
    stacked_dy = [jnp.stack(pair) for pair in zip(*dys, strict=True)]

    def batched(mask: Mask, kind: str) -> Arrays:
        value = jax.vmap(lambda p: s.value(kind, p, s.rest), in_axes=([0 if m else None for m in mask],))
        return list(jax.jit(lambda p, d: jax.vjp(value, p)[1](d)[0])(stacked(t, mask, both), stacked_dy))

    def cotangents_alone(kind: str) -> Arrays:
        return list(
            jax.jit(jax.vmap(lambda d, p: s.vjp(kind, p, s.rest, d)[1], in_axes=(0, None)))(stacked_dy, s.points)
        )

    for mask in subsets(len(s.points)):
        expected = one_by_one(t, mask, both, dys)
        yield attempt(t, "vmap", label(t, mask), functools.partial(batched, mask), expected)
    each = [np.stack(pair) for pair in zip(t.custom, t.second_custom, strict=True)]
    expected = Expected(each, 2, (True,) * len(each))
    yield attempt(t, "vmap", "cotangents (jacrev)", cotangents_alone, expected)
    if finfo(t.dtype).bits < 32 and t.rule_in_float64 is not None and not t.no_float64:
        yield from _batched_in_float64(t)


def _batched_in_float64(t: Trial) -> Findings:
    """Compare a batch with its examples in float64 as well: a narrow dtype hides an error of some per cent."""
    s, dy = t.subject, [as64(d) for d in t.dy]
    both = [[as64(x) for x in example] for example in examples(t, 2)[0]]

    def batched(points: Arrays, dy: Arrays) -> Arrays:
        y, pull = jax.vjp(jax.vmap(lambda p: s.value("custom", p, t.rest64)), points)
        return list(pull([d.astype(o.dtype) for d, o in zip(dy, y, strict=True)])[0])

    try:
        expected = [np.stack(group) for group in zip(*(t.gradients64("custom", e, dy) for e in both), strict=True)]
        with float64_mode():
            operands = [[jnp.stack(pair) for pair in zip(*pairs, strict=True)] for pairs in (both, (dy, dy))]
            found = [as64(g) for g in jax.jit(batched)(*operands)]
    except Exception:  # the rows above say so
        return
    for leaf, (path, ours, want) in enumerate(zip(s.paths, found, expected, strict=True)):
        wrong = differs(ours, want, 2 * TWO_GRADIENTS * t.allowed_in_float64(leaf))  # 2: one point is only nearby
        if wrong.any():
            i = worst_index(ours, want, wrong)
            message = f"{path}{index_text(i)} is {ours[i]:.6g}, without the transformation {want[i]:.6g}"
            yield Row("vmap", "all (float64)", FAIL, message)
            return
    yield Row("vmap", "all (float64)", PASS, "the same gradient")


def second_order(t: Trial) -> Findings:
    """The rule can be differentiated again: no stop_gradient, and no constant, hides in it."""
    s = t.subject
    if t.no_float64:
        yield Row("second_order", s.name, UNSUPPORTED, f"f does not run in float64 ({t.no_float64})")
        return
    x, d = [as64(p) for p in s.points], [as64(dy) for dy in t.dy]
    if not all(np.isfinite(p).all() for p in x):
        yield Row("second_order", s.name, INCONCLUSIVE, "the arguments are not finite; give finite arguments")
        return
    rng = np.random.default_rng((t.seed, 6))
    u = [rng.choice([-1.0, 1.0], p.shape) * rng.integers(2, 17, p.shape) / 8 for p in x]

    def twice(kind: str) -> Arrays:
        def both(points: Arrays, dy: Arrays, u: Arrays) -> Any:
            first, pull = jax.vjp(lambda p, d: s.vjp(kind, p, t.rest64, d)[1], points, dy)
            return pull([a.astype(g.dtype) for a, g in zip(u, first, strict=True)])

        with float64_mode():
            operands = [[jnp.asarray(a) for a in group] for group in (x, d, u)]
            return [as64(g) for g in jax.tree.leaves(jax.jit(both)(*operands))]

    try:
        custom = twice("custom")
    except Exception as error:
        yield Row("second_order", s.name, UNSUPPORTED, f"the rule cannot be differentiated again: {first_line(error)}")
        return
    try:
        automatic: Arrays | None = None if t.no_automatic else twice("automatic")
    except Exception:  # a while_loop, say; then only the numeric derivative of the rule decides
        automatic = None
    if automatic is None and not all(np.isfinite(g).all() for g in t.gradients64("custom", x, d)):
        message = "the rule's derivative is not finite at these arguments; give others"
        yield Row("second_order", s.name, INCONCLUSIVE, message)
        return
    paths = [*s.paths, *(f"cotangent of {p}" for p in s.output_paths)]
    for k, path in enumerate(paths):
        if automatic is not None and _close_in_norm(custom[k], automatic[k], t, k):
            yield Row("second_order", path, PASS, "custom and automatic agree")
        else:
            yield _second_order_numerically(t, path, k, custom[k], automatic is not None, [*x, *d], u)


def _close_in_norm(custom: Any, automatic: Any, t: Trial, k: int) -> bool:
    """Whether the second derivatives agree to 1e-5 of their largest element.

    That is far above float64's rounding, and leaves room for rules that compute in float32. Where the second derivative
    is nearly 0, a thousandth of the first is the scale.
    """
    first = largest_finite(np.abs(t.truth.gradients[k])) if k < len(t.truth.gradients) else 0.0
    finite = np.isfinite(automatic)
    error = np.abs(custom[finite] - automatic[finite]).max(initial=0.0)
    return bool(error <= 1e-5 * (np.abs(automatic[finite]).max(initial=0.0) + 1e-3 * first))


def _second_order_numerically(
    t: Trial, path: str, k: int, custom: Any, automatic: bool, at: Arrays, u: Arrays
) -> Row:  # fmt: skip
    """Differentiate what the rule computes, ⟨u, bwd⟩, numerically."""
    points = len(t.subject.points)
    direction = _numeric.random_direction(at, k, np.random.default_rng((t.seed, 7)))
    missed = np.flatnonzero(np.isnan(custom) & (direction[k] == 0))  # a NaN at an argument of 0
    if missed.size:
        direction = _numeric.element_direction(at, k, int(missed[0]))

    def by_rule(v: Arrays) -> Arrays:
        return t.gradients64("custom", v[:points], v[points:])

    # The rule may lose digits that f keeps.
    slope = _numeric.slope(by_rule, at, u, direction, _numeric.rounding_of(by_rule, at, direction))
    found = _numeric.dot([custom], [direction[k]])
    # The sum over a direction may cancel: then a millionth of its typical size is the scale.
    scale = max(abs(slope.value), 1e-6 * math.sqrt(_numeric.dot(u, u) * _numeric.dot(direction, direction)))
    row = functools.partial(Row, "second_order", path)
    if abs(found - slope.value) <= 10 * slope.error + 1e-4 * scale:
        elsewhere = (
            " (JAX's second derivative differs: the rule equals f's gradient here, but not nearby)" if automatic else ""
        )
        return row(PASS, f"custom is the derivative of what the rule computes{elsewhere}")
    if not math.isfinite(slope.value) or slope.error > 0.01 * scale or slope.kinked:
        return row(
            INCONCLUSIVE, "the rule's derivative differs from automatic's, and the numeric one does not converge"
        )
    return row(
        FAIL, f"differentiating the rule gives {found:.6g} along a direction, numerically it is {slope.value:.6g}",
        "a stop_gradient or a constant in fwd or bwd" if abs(found) < 1e-3 * abs(slope.value) else "",
    )  # fmt: skip
