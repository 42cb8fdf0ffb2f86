"""The checks under transformations: the rule staged, batched, sharded, and differentiated again."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.gradcheck import _numeric
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._tolerance import index_text, largest_finite, worst_index
from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Row
from jaxnn.tracing import jaxprs, rewriting
from jaxnn.tracing.contexts import float64_mode
from jaxnn.tracing.errors import TRACING_ERRORS, first_line, is_missing_in_jax

TWO_GRADIENTS = 2.0  # times the error of one: those with and without the transformation are compared
MOST_SUBSETS_OF = (
    3  # up to so many arguments every subset is batched, in 7 programs; of more, all together and each alone
)
NEARBY = 1 + 2.0**-6  # an example that differs a little: in all dtypes another number, and a point of the same kind


class Expected(NamedTuple):
    """The gradients that a transformed rule must return: of the arguments, or of examples by turns.

    The examples' cotangents are the trial's first and second ones in turn. An argument of which every example has its
    own (its `batched` is true) has stacked gradients; one that they share has the sum of theirs.
    """

    gradients: Arrays
    examples: int = 1
    batched: tuple[bool, ...] | None = None

    def allowed(self, t: Trial, leaf: int) -> Any:
        if self.batched is None:
            return TWO_GRADIENTS * t.allowed(leaf)
        each = [t.allowed(leaf, second=k % 2 == 1) for k in range(self.examples)]
        return TWO_GRADIENTS * (np.stack(each) if self.batched[leaf] else np.sum(each, 0))


def _compare(t: Trial, check: str, name: str, found: Arrays, expected: Expected) -> Row:
    for leaf, path in enumerate(t.subject.paths):
        ours, want = found[leaf], expected.gradients[leaf]
        if ours.shape != want.shape:
            return Row(check, name, FAIL, f"{path} has shape {ours.shape}, must be {want.shape}")
        wrong = t.differing(ours, want, functools.partial(expected.allowed, t, leaf))
        if wrong.any():
            i = worst_index(ours, want, wrong)
            message = f"{path}{index_text(i)} is {ours[i]:.6g}, without the transformation {want[i]:.6g}"
            return Row(check, name, FAIL, message)
    return Row(check, name, PASS, "the same gradient")


def _attempt(t: Trial, check: str, name: str, run: Callable[[str], Arrays], expected: Expected) -> Row:
    """Run a transformation of the rule. If it raises, try the definition, to see whether the rule is the cause."""
    try:
        found = [as64(g) for g in run("custom")]
    except Exception as error:
        try:
            run("definition")
        except Exception:
            return Row(check, name, UNSUPPORTED, f"neither the rule nor its definition runs: {first_line(error)}")
        if _is_vma_error(error):
            message = "the cotangent of an argument that is equal on all devices must be summed over the devices"
            cure = "in bwd, psum over the axes that the cotangent varies over and the primal does not"
            return Row(check, name, UNSUPPORTED, f"{message}: {cure} (jax.typeof(x).manual_axis_type.varying)")
        if is_missing_in_jax(error):
            return Row(check, name, UNSUPPORTED, f"the rule does not run, its definition does: {first_line(error)}")
        return Row(check, name, FAIL, f"the rule raises, its definition does not: {first_line(error)}")
    return _compare(t, check, name, found, expected)


def _is_vma_error(error: Exception) -> bool:
    """Whether JAX complains of a cotangent that varies over other mesh axes than its argument."""
    return not isinstance(error, TRACING_ERRORS) and any(
        words in str(error) for words in ("bwd rule must produce", "varying manual axes", "{V:")
    )


def staging(t: Trial) -> Findings:
    """The gradient is the same under jit, scan, cond and remat as without."""
    s = t.subject

    def vjp_of(transform: Callable[[Callable[..., Arrays]], Callable[..., Arrays]], kind: str) -> Arrays:
        value = transform(lambda points: s.value(kind, points, s.rest))
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
            yield _attempt(t, "staging", name, functools.partial(vjp_of, transform), Expected(t.custom))


def _all_and_each(count: int) -> list[tuple[bool, ...]]:
    """Return the set of all arguments, and each argument alone."""
    return list(dict.fromkeys([(True,) * count, *(tuple(i == j for j in range(count)) for i in range(count))]))


def _subsets(count: int) -> list[tuple[bool, ...]]:
    """Return every non-empty subset of a few arguments; of many, all together and each alone."""
    if count > MOST_SUBSETS_OF:
        return _all_and_each(count)
    return [mask for mask in itertools.product((True, False), repeat=count) if any(mask)]


def _label(t: Trial, mask: tuple[bool, ...]) -> str:
    return "all" if all(mask) else ", ".join(path for path, m in zip(t.subject.paths, mask, strict=True) if m)


def _examples(t: Trial, count: int) -> tuple[list[Arrays], list[Arrays]]:
    """Return examples, the arguments and a point nearby in turn, and a cotangent for each."""
    near = [(x * NEARBY).astype(x.dtype) for x in t.subject.points]
    dys = [t.dy, t.second_dy]
    return [near if k % 2 else t.subject.points for k in range(count)], [dys[k % 2] for k in range(count)]


def _stacked(t: Trial, mask: tuple[bool, ...], examples: list[Arrays]) -> Arrays:
    """Stack the arguments that are batched; the others are the first example's."""
    return [
        jnp.stack([e[i] for e in examples]) if m else p
        for i, (p, m) in enumerate(zip(t.subject.points, mask, strict=True))
    ]  # fmt: skip


def _one_by_one(t: Trial, mask: tuple[bool, ...], examples: list[Arrays], dys: list[Arrays]) -> Expected:
    """Return the examples' cotangents: stacked for a batched argument, summed for one that all examples share."""
    parts = [
        t.gradients("custom", [e if m else p for e, p, m in zip(example, t.subject.points, mask, strict=True)], dy)
        for example, dy in zip(examples, dys, strict=True)
    ]  # fmt: skip
    groups = zip(zip(*parts, strict=True), mask, strict=True)
    return Expected([np.stack(g) if m else np.sum(g, 0) for g, m in groups], len(examples), mask)


def vmap(t: Trial) -> Findings:
    """A batch has the gradients of its examples, whichever arguments are batched."""
    s = t.subject
    examples, dys = _examples(t, 2)
    stacked_dy = [jnp.stack(pair) for pair in zip(*dys, strict=True)]

    def batched(mask: tuple[bool, ...], kind: str) -> Arrays:
        value = jax.vmap(lambda p: s.value(kind, p, s.rest), in_axes=([0 if m else None for m in mask],))
        return list(jax.jit(lambda p, d: jax.vjp(value, p)[1](d)[0])(_stacked(t, mask, examples), stacked_dy))

    def cotangents_alone(kind: str) -> Arrays:
        return list(
            jax.jit(jax.vmap(lambda d, p: s.vjp(kind, p, s.rest, d)[1], in_axes=(0, None)))(stacked_dy, s.points)
        )

    for mask in _subsets(len(s.points)):
        expected = _one_by_one(t, mask, examples, dys)
        yield _attempt(t, "vmap", _label(t, mask), functools.partial(batched, mask), expected)
    each = [np.stack(pair) for pair in zip(t.custom, t.second_custom, strict=True)]
    expected = Expected(each, 2, (True,) * len(each))
    yield _attempt(t, "vmap", "cotangents (jacrev)", cotangents_alone, expected)


def shard_map(t: Trial) -> Findings:
    """Over several devices the gradients are those of the examples, with check_vma on and off."""
    s = t.subject
    auto = (jax.sharding.AxisType.Auto,)
    mesh = t.mesh or jax.make_mesh((min(2, jax.device_count()),), ("devices",), axis_types=auto)
    axis, spec = mesh.axis_names[0], _spec(mesh.axis_names[0])
    count = mesh.shape[axis]
    if count == 1:
        cure = "start Python with JAX_NUM_CPU_DEVICES=2, or give a `mesh=`"
        yield Row("shard_map", "values", INCONCLUSIVE, f"on one device only the types are checked; {cure}")
    examples, dys = _examples(t, count)
    stacked_dy = [jnp.stack(group) for group in zip(*dys, strict=True)]

    def sharded(mask: tuple[bool, ...], check_vma: bool, kind: str) -> Arrays:
        def body(points: Arrays, rest: Arrays) -> Arrays:
            local = [p[0] if m else p for p, m in zip(points, mask, strict=True)]
            return [_varying(y[None], axis, check_vma) for y in s.value(kind, local, rest)]

        specs = ([spec if m else _spec() for m in mask], _spec())
        value = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=check_vma)
        gradient = jax.jit(lambda p, r, d: jax.vjp(lambda p: value(p, r), p)[1](d)[0])
        return list(gradient(_stacked(t, mask, examples), s.rest, stacked_dy))

    has_callback = any(e.primitive.name in rewriting.OPAQUE_CALLS for e in jaxprs.equations(t.jaxpr))
    for check_vma in (True, False):
        for mask in _all_and_each(len(s.points)):
            name = f"{_label(t, mask)} (check_vma={check_vma})"
            expected = _one_by_one(t, mask, examples, dys)
            row = _attempt(t, "shard_map", name, functools.partial(sharded, mask, check_vma), expected)
            if row.status == FAIL and check_vma and has_callback:
                # JAX does not mark a callback's results as varying over the mesh, and sums their cotangents.
                message = f"JAX forgets the mesh axis at a callback: {row.message}; use check_vma=False"
                row = Row("shard_map", name, UNSUPPORTED, message)
            yield row


def _spec(*axes: str) -> Any:
    return jax.P(*axes)  # type: ignore[no-untyped-call]


def _varying(y: Any, axis: str, check_vma: bool) -> Any:
    """Mark an output that does not depend on the sharded arguments as varying, so that it can be stacked."""
    if not check_vma or axis in jax.typeof(y).manual_axis_type.varying:
        return y
    return lax.pcast(y, axis, to="varying")


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
