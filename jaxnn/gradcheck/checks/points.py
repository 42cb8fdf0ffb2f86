"""The checks at points made from the arguments: ties, extremes, and other dtypes."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck._conventions import within_one_sided_derivatives
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import LARGE, Findings, Trial, evenly_spaced
from jaxnn.gradcheck.patterns import pattern
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Row
from jaxnn.gradcheck.tolerance import (
    Truth,
    differs,
    finfo,
    index_text,
    largest_per_response,
    largest_response,
    relative_to_largest,
)
from jaxnn.tracing import jaxprs
from jaxnn.tracing.errors import first_line, is_missing_in_jax
from jaxnn.tracing.functions import is_inexact

MOST_ELEMENTS = 6  # suspicious elements of an argument that are looked at: each costs several sweeps
WIDEN = "widen sums, exps and logs to float32, and round once, at the end"
NOT_COMPARED = "there is no automatic derivative to compare with"
SATURATING = 8.0  # scales the arguments of `precision` once more: exp, softmax and tanh are near their limits there


class Point(NamedTuple):
    """Arguments at which the rule is tried, with a name for the report."""

    name: str
    arguments: Arrays


# --- ties and extremes ---


def kinks(t: Trial) -> Findings:
    """At ties and zeros, the rule is a convention between the one-sided derivatives."""
    yield from _try_points(t, "kinks", _tied(t))


def extremes(t: Trial) -> Findings:
    """At huge, tiny and infinite arguments the rule is as good as JAX's derivative."""
    yield from _try_points(t, "extremes", _extreme(t))


def _is_unconstrained(x: Any) -> bool:
    """Whether an argument seems to have no constraint: it may be scaled, and is of both signs."""
    return _may_be_scaled(x) and (np.iscomplexobj(x) or bool((x > 0).any() and (x < 0).any()))


def _may_be_scaled(x: Any) -> bool:
    """Whether an argument is not normalized (unit vectors, probabilities, log-probabilities) and not symmetric."""
    if not np.isfinite(x).any():
        return False
    logs = np.exp(np.minimum(np.real(x), 1))
    sums = (np.square(np.abs(x)).sum(-1), x.sum(-1), logs.sum(-1)) if x.ndim else ()
    if any(np.allclose(total, 1, atol=1e-3) for total in sums):
        return False
    return not (x.ndim == 2 and x.shape[0] > 1 and x.shape[0] == x.shape[1] and np.array_equal(x, x.T))


def _tied(t: Trial) -> Iterator[Point]:
    points = t.subject.points
    free = [_is_unconstrained(as64(x)) for x in points]
    for name, step in (("rounded to multiples of their size", None), ("rounded to integers", 1.0)):
        yield Point(name, [_rounded(x, step) if f else x for x, f in zip(points, free, strict=True)])
    for leaf, other in itertools.permutations(range(len(points)), 2):
        if free[leaf] and _broadcasts(points[other].shape, points[leaf].shape):
            tied, wanted = np.array(points[leaf]), np.broadcast_to(np.asarray(points[other]), points[leaf].shape)
            tied.reshape(-1)[::2] = wanted.reshape(-1)[::2]
            arguments = [jnp.asarray(tied) if i == leaf else x for i, x in enumerate(points)]
            yield Point(f"{t.subject.paths[leaf]} tied with {t.subject.paths[other]}", arguments)
            return


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))


def _rounded(x: Any, step: float | None) -> Any:
    """Round to multiples of `step`; by default of the power of two nearest to the root mean square."""
    h = as64(x)
    if step is None:
        finite = h[np.isfinite(h)]
        step = 2.0 ** round(math.log2(math.sqrt(float(np.mean(np.square(np.abs(finite)))))))
    return jnp.asarray(np.rint(h / step) * step).astype(x.dtype)


def _extreme(t: Trial) -> Iterator[Point]:
    free = [_is_unconstrained(as64(x)) for x in t.subject.points]
    # exp overflows at 30 times in float16, at 10,000 times in every dtype; float16 itself ends at 65,504.
    largest = 100.0 if t.dtype == jnp.float16 else 1e4

    def scaled(factor: float) -> Arrays:
        return [(x * factor).astype(x.dtype) if f else x for x, f in zip(t.subject.points, free, strict=True)]

    def with_one(value: float) -> Arrays:
        points = list(t.subject.points)
        for leaf, x in enumerate(points):
            if free[leaf] and x.size and not _is_sorted(as64(x)):
                flat = np.asarray(x).reshape(-1).copy()
                flat[np.random.default_rng((t.seed, 4, leaf)).integers(flat.size)] = value
                points[leaf] = jnp.asarray(flat.reshape(x.shape))
        return points

    yield Point("30 times as large", scaled(30.0))
    if t.size <= LARGE:
        yield Point(f"{largest:g} times as large", scaled(largest))
        yield Point("1e-6 times as large", scaled(1e-6))
        yield Point("with one inf", with_one(math.inf))
    yield Point("with one -inf", with_one(-math.inf))


def _is_sorted(x: Any) -> bool:
    return bool(x.ndim and x.shape[-1] > 2 and ((np.diff(x) >= 0).all() or (np.diff(x) <= 0).all()))


def _try_points(t: Trial, check: str, points: Iterator[Point]) -> Findings:
    s = t.subject
    if t.no_automatic:
        yield Row(check, s.name, UNSUPPORTED, NOT_COMPARED)
    elif not any(_is_unconstrained(as64(x)) for x in s.points):
        reason = "every argument looks constrained (of one sign, normalized or symmetric), so it is not changed"
        yield Row(check, s.name, INCONCLUSIVE, f"{reason}; to test other points, call `check` with them")
    elif t.wrong_in_float64:
        yield Row(check, s.name, INCONCLUSIVE, "the gradient is wrong already at the arguments given")
    else:
        for point in points:
            yield _at_point(t, check, point)


def _at_point(t: Trial, check: str, point: Point) -> Row:
    """Compare custom with automatic, then in float64 where they differ, then with the one-sided derivatives."""
    custom, automatic = (t.gradients(kind, point.arguments, t.dy) for kind in ("custom", "automatic"))
    suspects = [
        differs(c, a, 2 * t.factor(p.dtype) * np.abs(a) + float(finfo(p.dtype).tiny)) & ~np.isnan(a)
        for c, a, p in zip(custom, automatic, point.arguments, strict=True)
    ]
    remark = "custom and automatic agree"
    if not any(w.any() for w in suspects):
        return Row(check, point.name, PASS, remark)
    truth = t.truth_at(point.arguments, t.dy, 1)

    def wrong_elements(truth: Truth) -> Arrays:
        return [
            suspect & _is_wrong(t, check, point, leaf, custom[leaf], automatic[leaf], truth)
            for leaf, suspect in enumerate(suspects)
        ]

    if any(wrong.any() for wrong in wrong_elements(truth)):  # one draw may miss an element's response
        truth = t.truth_at(point.arguments, t.dy, t.most_draws, so_far=truth)
    if check == "extremes" and any(wrong.any() for wrong in wrong_elements(truth)):
        # Terms of a saturated softmax's rule cancel. What is left is their rounding, which no residual need show.
        rounding = t.rule_response(point.arguments, t.dy, range(t.most_draws), "rounded_vjp")
        truth = Truth(truth.gradients, largest_response(truth.responses, rounding))
    for leaf, (suspect, wrong) in enumerate(zip(suspects, wrong_elements(truth), strict=True)):
        for flat in evenly_spaced(np.flatnonzero(wrong), MOST_ELEMENTS):
            i = np.unravel_index(int(flat), suspect.shape)
            finite = np.isfinite(custom[leaf][i])
            if not finite or not within_one_sided_derivatives(t, point.arguments, leaf, int(flat)):
                hint = "" if finite else str(
                    pattern(leaf, custom, truth.gradients, t.subject.paths, truth.gradients[leaf], wrong)
                )  # fmt: skip
                message = _message(t, check, point, leaf, i, custom[leaf][i], truth.gradients[leaf][i])
                return Row(check, point.name, FAIL, message, hint)
            remark = (
                "custom and automatic follow different conventions at a kink, both between the one-sided derivatives"
            )
    return Row(check, point.name, PASS, remark)


def _is_wrong(t: Trial, check: str, point: Point, leaf: int, custom: Any, automatic: Any, truth: Truth) -> Any:
    """Return which elements differ from the truth by more than rounding, or than JAX's own derivative does."""
    exact = truth.gradients[leaf]
    representable = np.isfinite(exact) & (np.abs(exact) < float(finfo(t.subject.points[leaf].dtype).max))
    dtype = point.arguments[leaf].dtype
    own = np.abs(automatic - exact)  # JAX's derivative may round more than its response to rounding explains
    factor = t.factor(dtype) + 4 * largest_per_response(np.where(representable, own, 0.0), truth.responses[leaf])
    allowed = truth.allowed(leaf, factor, dtype) + np.nan_to_num(4 * own, posinf=0.0)
    wrong = representable & differs(custom, exact, allowed)
    if check == "extremes":  # digits may be lost at such points, but not the number
        wrong &= ~t.accepted_at(leaf) & ~(np.abs(custom - exact) <= 1e-2 * np.abs(exact))
    if point.name == "with one inf":  # a rule may compute inf − inf for the elements beside it
        wrong &= np.isinf(as64(point.arguments[leaf]))
    return wrong


def _message(t: Trial, check: str, point: Point, leaf: int, i: Any, custom: Any, exact: Any) -> str:
    at = f"{t.subject.paths[leaf]}{index_text(i)} = {as64(point.arguments[leaf])[i]:.4g}"
    where = ", outside of the one-sided derivatives" if check == "kinks" else ""
    return f"at {at}: custom {custom:.6g}, automatic {exact:.6g}{where}"


# --- other dtypes ---


def precision(t: Trial) -> Findings:
    """In each dtype the rule is as accurate as JAX's derivative of the definition."""
    s = t.subject
    if t.no_automatic or t.no_float64:
        yield Row("precision", s.name, UNSUPPORTED, NOT_COMPARED if t.no_automatic else t.no_float64)
        return
    if t.wrong_in_float64:
        yield Row("precision", s.name, INCONCLUSIVE, "the gradient is wrong in any precision")
        return
    if closed_over := jaxprs.closed_over_dtypes(t.jaxpr):
        dtypes = ", ".join(sorted(closed_over))
        message = f"f closes over {dtypes} arrays, which other dtypes would be mixed with; pass them as arguments"
        yield Row("precision", s.name, UNSUPPORTED, message)
        return
    has_complex = any(np.iscomplexobj(x) for x in [*s.points, *t.dy])
    for dtype in ("float32",) if has_complex else ("float32", "bfloat16", "float16"):
        for scale in (1.0,) if t.size > LARGE else (1.0, SATURATING):
            row, goes_on = _in_dtype(t, dtype, scale)
            yield row
            if not goes_on:
                break


def _in_dtype(t: Trial, dtype: str, scale: float) -> tuple[Row, bool]:
    """Return the row for one dtype and scale of the arguments, and whether other scales are worth trying."""
    s, name = t.subject, dtype if scale == 1.0 else f"{dtype} x{scale:.0f}"
    factors = [scale if _may_be_scaled(as64(x)) else 1.0 for x in s.points]
    points = [(jnp.asarray(x) * k).astype(_as(dtype, x)) for x, k in zip(s.points, factors, strict=True)]
    rest = [x.astype(_as(dtype, x)) if is_inexact(x) else x for x in s.rest]
    dy = t.dy if t.dtype == dtype else s.cotangents(t.seed, coarse=True)
    try:
        automatic = [as64(g) for g in s.run("vjp", "automatic", points, rest, dy)[1]]
    except Exception as error:
        return Row("precision", name, UNSUPPORTED, f"the definition does not run: {first_line(error)}"), False
    try:
        custom = s.run("vjp", "custom", points, rest, dy)[1]
    except Exception as error:
        return _refused(t, name, points, error), False
    for path, ct, x in zip(s.paths, custom, points, strict=True):
        if ct.dtype != x.dtype and not t.wrong_types:
            message = f"the cotangent of {path} is {ct.dtype}, must be {x.dtype} like the argument"
            return Row("precision", name, FAIL, message), False
    row = _compare_errors(t, name, dtype, _truth_in(t, dtype, scale, points, dy), [as64(g) for g in custom], automatic)
    if row.status == FAIL or dtype == "float32" or scale != 1.0:
        return row, True
    # Terms of one sign show a sum that is kept in the narrow dtype: it stops growing.
    dy = [abs(d) for d in dy]
    automatic, custom = ([as64(g) for g in s.run("vjp", kind, points, rest, dy)[1]] for kind in ("automatic", "custom"))
    one_sign = _compare_errors(t, f"{name}, one sign", dtype, _truth_in(t, "", scale, points, dy), custom, automatic)
    return (one_sign if one_sign.status == FAIL else row), True


def _as(dtype: str, x: Any) -> Any:
    return jnp.complex64 if np.iscomplexobj(x) else dtype


def _refused(t: Trial, name: str, points: Arrays, error: Exception) -> Row:
    """Say why a rule does not run in a dtype in which its definition, or its reference, does."""
    try:
        t.subject.run("value", "custom", points, t.subject.rest)
    except Exception as own:  # a kernel for other dtypes; its reference has this one
        return Row("precision", name, UNSUPPORTED, f"f does not run: {first_line(own)}")
    if is_missing_in_jax(error):
        return Row("precision", name, UNSUPPORTED, f"the rule does not run: {first_line(error)}")
    return Row("precision", name, FAIL, f"the rule raises, its definition does not: {first_line(error)}")


def _truth_in(t: Trial, dtype: str, scale: float, points: Arrays, dy: Arrays) -> Truth:
    if t.dtype == dtype and scale == 1.0:
        return t.truth
    if dtype == "float32":
        return t.truth_at(points, dy, 1)
    exact = t.gradients64("automatic", [as64(p) for p in points], [as64(d) for d in dy])
    return Truth(exact, exact)  # `_limits` does not ask for responses here


class Limits(NamedTuple):
    """The error that a rule may have, relative to the largest element: the largest of these."""

    eps: float
    times_automatic: float
    underflow: float


def _limits(t: Trial, dtype: str, responses: Any, scale: Any) -> Limits:
    """Return what a rule may be off by. All numbers are chosen so that every right rule of the zoo passes.

    Sums in another order are right, so float32 gets some multiple of the response. In a narrower dtype sums must be
    widened to float32, which leaves some roundings at the end: 32 of them, or 6 where the caller works in that dtype.
    """
    underflow = float(finfo(dtype).smallest_normal) / max(scale.max(initial=0.0), 1e-300) / float(finfo(dtype).eps)
    if dtype == "float32":
        return Limits(max(64, 16 * relative_to_largest(responses, scale)), 8, underflow)
    return Limits(6, 4, underflow) if t.dtype == dtype else Limits(32, 8, underflow)


def _compare_errors(t: Trial, name: str, dtype: str, truth: Truth, custom: Arrays, automatic: Arrays) -> Row:
    """Compare the rule's largest error in a dtype with that of JAX's derivative there."""
    eps = float(finfo(dtype).eps)
    worst = (0.0, 0.0)
    for leaf, path in enumerate(t.subject.paths):
        c, a, g = custom[leaf], automatic[leaf], truth.gradients[leaf]
        usable = np.isfinite(a) & np.isfinite(g) & (np.abs(g) < float(finfo(dtype).max)) & ~t.accepted_at(leaf)
        if (usable & ~np.isfinite(c)).any():
            i = tuple(np.argwhere(usable & ~np.isfinite(c))[0])
            return Row("precision", name, FAIL, f"{path}{index_text(i)} is {c[i]}, automatic {a[i]:.6g}")
        scale = np.abs(g)
        if name != dtype:  # scaled arguments: a softmax is saturated there, and its derivative is nothing but rounding
            scale = np.maximum(scale, np.nan_to_num(np.abs(t.truth.gradients[leaf]), posinf=0.0))
        scale = np.where(usable, scale, 0.0)
        ours, theirs = (relative_to_largest(np.where(usable, np.abs(v - g), 0.0), scale) / eps for v in (c, a))
        limits = _limits(t, dtype, np.where(usable, truth.responses[leaf], 0.0), scale)
        if ours > max(limits.times_automatic * theirs, limits.underflow, limits.eps):
            message = f"{path}: error {ours:.3g} eps of the largest element, automatic {theirs:.3g} eps"
            return Row("precision", name, FAIL, message, WIDEN)
        worst = max(worst, (ours, theirs))
    return Row("precision", name, PASS, f"error {worst[0]:.2g} eps, automatic {worst[1]:.2g} eps")
