"""The central check, `gradient`: the rule, JAX's derivative of the definition, and the numeric derivative agree."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck import _numeric
from jaxnn.gradcheck._conventions import within_one_sided_derivatives
from jaxnn.gradcheck._hints import MINUS, hint
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._tolerance import FLOAT32_ROUNDING, differs, largest_finite, unit_in_last_place
from jaxnn.gradcheck._trial import LARGE, Findings, Trial, evenly_spaced
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Evidence, Row
from jaxnn.tracing.errors import first_line

# How many single elements are differentiated numerically, by level: each costs a sweep of up to 21 evaluations of f.
# An argument with more elements is differentiated along random directions.
ELEMENTS = {"rule": 6, "full": 32}
DIRECTIONS, DIRECTIONS_OF_LARGE = 3, 1
# Of the elements where the rule differs, how many are looked at: the worst, and some from all over.
WORST, SPREAD = 8, {"rule": 8, "full": 32}
MOST_OUTPUTS = 8  # that are checked one by one
UNSETTLED = 0.05  # relative error above which a numeric derivative decides nothing


def gradient(t: Trial) -> Findings:
    """The cotangents equal the automatic and the numeric derivative, element by element."""
    s = t.subject
    if t.no_automatic:
        yield Row("gradient", "automatic", UNSUPPORTED, t.no_automatic)
    if t.no_float64:
        message = f"f does not run in float64 ({t.no_float64}); compared in its own precision"
        yield Row("gradient", "float64", UNSUPPORTED, message)
    rows = [_judge(t, leaf) for leaf in range(len(s.points))]
    yield from rows
    if len(s.outputs) > 1 and not t.no_automatic and all(row.status != FAIL for row in rows):
        yield from _each_cotangent_alone(t)
    if t.has_symbolic_zeros and len(s.points) > 1:
        yield from _each_argument_differentiated_alone(t)
    if t.has_symbolic_zeros and len(s.outputs) > 1:
        yield from _each_output_differentiated_alone(t)


# --- one argument ---


def _judge(t: Trial, leaf: int) -> Row:
    """Judge the cotangent of one argument."""
    custom = t.custom[leaf]
    if custom.size == 0:
        return Row("gradient", t.subject.paths[leaf], PASS, "the argument has no elements")
    if t.no_automatic:
        return _judge_numerically(t, leaf)
    truth, allowed = t.truth.gradients[leaf], t.allowed(leaf)
    wrong = differs(custom, truth, allowed) & ~(np.isnan(truth) & np.isfinite(custom))
    if wrong.any() and not t.re_estimated:
        t.re_estimate_tolerance()
        return _judge(t, leaf)
    if not wrong.any() and (custom64 := t.rule_in_float64) is not None and not t.no_float64:
        # In float64 the same comparison is a billion times sharper, unless the rule computes in float32 throughout.
        wrong = _is_wrong_in_float64(t, leaf, custom64[leaf]) & ~(np.isnan(truth) & np.isfinite(custom64[leaf]))
        custom = custom64[leaf] if wrong.any() else custom
    error = largest_finite(np.abs(custom - truth))
    t.note_error("automatic", error / (largest_finite(np.abs(truth)) or 1.0))
    slope, agrees = _numeric_agrees(t, leaf)
    if wrong.any():
        return _explain(t, leaf, custom, wrong)
    close = f"error {error:.2g} of {largest_finite(np.abs(truth)):.2g}"
    if agrees:
        return Row("gradient", t.subject.paths[leaf], PASS, f"custom, automatic and numeric agree, {close}")
    t.numeric_differs = True
    return _without_numeric(t, leaf, slope, close)


def _is_wrong_in_float64(t: Trial, leaf: int, custom64: Any) -> Any:
    allowed = t.truth.allowed(leaf, max(t.factor, FLOAT32_ROUNDING), jnp.float32)
    return differs(custom64, t.truth.gradients[leaf], allowed)


def _without_numeric(t: Trial, leaf: int, slope: _numeric.Slope, close: str) -> Row:
    """Judge an argument for which custom and automatic agree, and numeric does not."""
    row = functools.partial(Row, "gradient", t.subject.paths[leaf])
    agree = f"custom and automatic agree, {close}"
    if t.stops_gradients:
        return row(PASS, f"{agree}; numeric differs, because the definition has a stop_gradient")
    if slope.kinked:
        return row(PASS, f"{agree}; numeric differs, because f has a kink here: both follow the same convention")
    if not math.isfinite(slope.value) or slope.error > UNSETTLED * abs(slope.value):
        return row(PASS, f"{agree}; the numeric derivative does not converge here")
    if not np.isfinite(as64(t.subject.points[leaf])).any():
        return row(INCONCLUSIVE, "custom and automatic agree, but no element is finite; give finite arguments")
    custom = _numeric.dot([t.custom[leaf]], [t.last_direction[leaf]])
    return row(INCONCLUSIVE, f"{agree}, but along a direction custom is {custom:.6g} and numeric {slope.value:.6g}; "
               "does f depend on anything but its arguments?")  # fmt: skip


def _judge_numerically(t: Trial, leaf: int) -> Row:
    """Judge an argument for which there is no automatic derivative."""
    row = functools.partial(Row, "gradient", t.subject.paths[leaf])
    slope, agrees = _numeric_agrees(t, leaf)
    if agrees:
        return row(PASS, f"custom and numeric agree, error {slope.error:.2g} of {abs(slope.value):.2g}")
    if not all(np.isfinite(as64(y)).all() for y in t.subject.run("value", "custom", t.subject.points, t.subject.rest)):
        return row(INCONCLUSIVE, "f is not finite here, so it has no numeric derivative; give arguments where it is")
    custom = _numeric.dot([t.custom[leaf]], [t.last_direction[leaf]])
    if not math.isfinite(slope.value) or slope.error > UNSETTLED * abs(slope.value) or slope.kinked:
        found = f"custom {custom:.6g}, numeric {slope.value:.6g} ± {slope.error:.2g}"
        cure = "give a `reference=` that JAX can differentiate"
        return row(INCONCLUSIVE, f"the numeric derivative does not converge here ({found}); {cure}")
    relative = abs(custom - slope.value) / abs(slope.value) if slope.value else math.inf
    return row(
        FAIL, f"along a direction custom is {custom:.6g}, numeric {slope.value:.6g} (relative error {relative:.2g})",
        MINUS if abs(custom + slope.value) < 1e-2 * abs(custom) else "",
    )  # fmt: skip


def _numeric_agrees(t: Trial, leaf: int) -> tuple[_numeric.Slope, bool]:
    """Compare the rule with the numeric derivative, and return the slope that differs, or the last one."""
    points, dy = t.subject.points, t.dy
    in_float64 = t.rule_in_float64 is not None and not t.no_float64
    custom = (t.rule_in_float64 if in_float64 else t.custom)[leaf]  # type: ignore[index]
    # The allowed error of the sum over a direction's elements: independent roundings add up as a root of squares.
    allowed = np.square(np.nan_to_num(t.allowed(leaf)))
    for v in _directions(t, leaf):
        slope = t.slope(points, dy, v)
        t.last_direction = v
        found = _numeric.dot([custom], [v[leaf]])
        if leaf == 0 and not t.sweep:
            scale = abs(found) or 1.0
            t.sweep = tuple((h, abs(c - found) / scale) for h, c in slope.sweep if math.isfinite(c))
        error = abs(found - slope.value)
        t.note_error("numeric", error / (abs(slope.value) or 1.0))
        rounding = math.sqrt(_numeric.dot([np.square(np.abs(v[leaf]))], [allowed]))
        if not error <= 3 * slope.error + 4 * rounding + 1e-6 * abs(slope.value) + 1e-300:
            return slope, False
    return slope, True


def _directions(t: Trial, leaf: int) -> Iterator[Arrays]:
    """Yield the directions for one argument: each element if there are few, else random ones."""
    x = [as64(p) for p in t.subject.points]
    if x[leaf].size > ELEMENTS[t.level]:
        rng = np.random.default_rng((t.seed, 3, leaf))
        for _ in range(DIRECTIONS_OF_LARGE if t.size > LARGE else DIRECTIONS):
            yield _numeric.random_direction(x, leaf, rng)
        return
    finite = np.flatnonzero(np.isfinite(x[leaf]))
    directions = [_numeric.element_direction(x, leaf, int(i)) for i in (finite if finite.size else [0])]
    yield from directions
    if np.iscomplexobj(x[leaf]):
        yield from map(_numeric.imaginary, directions)


# --- elements where the rule and JAX's derivative differ ---


class NumericElement(NamedTuple):
    """The numeric derivative by one element."""

    value: complex
    error: float
    kinked: bool


def _explain(t: Trial, leaf: int, custom: Any, wrong: Any) -> Row:
    """The rule and JAX's derivative differ: find an element where the rule is wrong, or say why it is right."""
    truth, allowed = t.truth.gradients[leaf], t.allowed(leaf)
    excess = np.where(wrong, np.nan_to_num(np.abs(custom - truth) / np.maximum(allowed, 1e-300), nan=np.inf), -1.0)
    order = np.argsort(excess, axis=None)[::-1][: int(wrong.sum())]
    # Conventions at kinks are as far off as can be, so a mistake may hide behind the worst elements.
    candidates = dict.fromkeys([*order[:WORST], *evenly_spaced(order, SPREAD[t.level])])
    at_kinks = False
    for flat in candidates:
        i = np.unravel_index(int(flat), custom.shape)
        numeric = _numeric_element(t, leaf, int(flat))
        if numeric.kinked and within_one_sided_derivatives(t, t.subject.points, leaf, int(flat)):
            at_kinks = True
            continue
        like_custom, like_automatic = (_is_close(v, numeric, allowed[i]) for v in (custom[i], truth[i]))
        trusted = np.isnan(truth[i]) or not t.stops_gradients  # a numeric derivative ignores stop_gradient
        if like_custom and not like_automatic and not numeric.kinked and trusted:
            continue
        agree = "automatic" if like_automatic else "custom" if like_custom else ""
        return _failure(t, leaf, wrong, _evidence(t, leaf, i, custom[i], numeric, agree))
    t.accepted[leaf] = wrong
    if at_kinks:
        message = "custom and automatic follow different conventions at a kink, both between the one-sided derivatives"
    else:
        message = "custom and numeric agree; automatic differs (rounding, or a NaN, in JAX's derivative)"
    return Row("gradient", t.subject.paths[leaf], PASS, message)


def _numeric_element(t: Trial, leaf: int, flat: int) -> NumericElement:
    direction = _numeric.element_direction([as64(p) for p in t.subject.points], leaf, flat)
    slope, length = t.slope(t.subject.points, t.dy, direction), float(np.real(direction[leaf].reshape(-1)[flat]))
    value: complex = slope.value / length
    if np.iscomplexobj(t.truth.gradients[leaf]):  # Re(g v) along v, and along i v
        value -= 1j * t.slope(t.subject.points, t.dy, _numeric.imaginary(direction)).value / length
    return NumericElement(value, slope.error / length, slope.kinked)


def _is_close(derivative: Any, numeric: NumericElement, allowed: float) -> bool:
    finite = np.isfinite(numeric.value)
    margin = 3 * numeric.error + allowed + 1e-5 * abs(numeric.value) if finite else 0.0
    return bool(derivative == numeric.value or abs(derivative - numeric.value) <= margin)


def _evidence(t: Trial, leaf: int, i: Any, custom: Any, numeric: NumericElement, like_numeric: str) -> Evidence:
    truth = t.truth.gradients[leaf][i]
    absolute = float(abs(custom - truth)) if np.isfinite(truth) else math.inf
    unit = unit_in_last_place(float(abs(truth)), t.subject.points[leaf].dtype)
    return Evidence(
        index=tuple(int(k) for k in i),
        custom=custom.item(),
        automatic=truth.item(),
        numeric=numeric.value,
        absolute=absolute,
        relative=absolute / float(abs(truth)) if truth else math.inf,
        ulp=absolute / unit if unit else math.nan,
        tolerance=float(t.allowed(leaf)[i]),
        agree=f"{like_numeric} and numeric agree" if like_numeric else "no two agree",
    )


def _failure(t: Trial, leaf: int, wrong: Any, evidence: Evidence) -> Row:
    s, exact = t.subject, t.rule_in_float64
    t.wrong_in_float64 = exact is None or bool(_is_wrong_in_float64(t, leaf, exact[leaf]).any())
    whose = "the reference's" if s.reference else "automatic's"
    message = f"custom differs from {whose} derivative at {int(wrong.sum())} of {wrong.size} elements"
    point = np.real(as64(s.points[leaf]))
    return Row(
        "gradient", s.paths[leaf], FAIL, message,
        hint(leaf, t.custom, t.truth.gradients, s.paths, point, wrong), evidence,
    )  # fmt: skip


# --- one output or one argument at a time ---


def _each_cotangent_alone(t: Trial) -> Findings:
    """Check the gradient of each output: all but one cotangent are 0."""
    s = t.subject
    for k, path in enumerate(s.output_paths[:MOST_OUTPUTS]):
        dy = _only(t.dy, k)
        custom, truth = t.gradients("custom", s.points, dy), t.truth_at(s.points, dy, 1)
        bad = []
        for leaf, name in enumerate(s.paths):
            allowed = t.allowed(leaf) + truth.allowed(leaf, t.factor, t.dtype)
            wrong = differs(custom[leaf], truth.gradients[leaf], allowed) & np.isfinite(truth.gradients[leaf])
            bad += [name] if wrong.any() else []
        if bad:
            yield Row("gradient", path, FAIL, f"wrong for {', '.join(bad)} when all other outputs' cotangents are 0")
        else:
            yield Row("gradient", path, PASS, "right when all other outputs' cotangents are 0")


def _only(dy: Arrays, k: int) -> Arrays:
    return [d if i == k else jnp.zeros_like(d) for i, d in enumerate(dy)]


def _each_argument_differentiated_alone(t: Trial) -> Findings:
    """Differentiate by one argument at a time: a rule with symbolic zeros sees which arguments are differentiated."""
    s = t.subject
    for leaf, path in enumerate(s.paths):

        def of_one(x: Any, leaf: int = leaf) -> Arrays:
            return s.value("custom", [x if i == leaf else p for i, p in enumerate(s.points)], s.rest)

        try:
            found = as64(jax.jit(lambda x, dy: jax.vjp(of_one, x)[1](dy)[0])(s.points[leaf], t.dy))
        except Exception as error:
            yield Row(
                "gradient",
                path,
                FAIL,
                f"the rule raises when only this argument is differentiated: {first_line(error)}",
            )
            continue
        if differs(found, t.custom[leaf], 2 * t.allowed(leaf)).any():
            yield Row("gradient", path, FAIL, "the gradient changes when only this argument is differentiated")
        else:
            yield Row("gradient", path, PASS, "the same gradient when only this argument is differentiated")


def _each_output_differentiated_alone(t: Trial) -> Findings:
    """Differentiate one output at a time: a rule with symbolic zeros sees which outputs have a cotangent."""
    s = t.subject
    for k, path in enumerate(s.output_paths[:MOST_OUTPUTS]):

        def one(*points: Any, k: int = k) -> Any:
            return s.value("custom", list(points), s.rest)[k]

        expected = t.gradients("custom", s.points, _only(t.dy, k))
        try:
            found = jax.jit(lambda dy, *points: jax.vjp(one, *points)[1](dy))(t.dy[k], *s.points)
        except Exception as error:
            yield Row(
                "gradient", path, FAIL, f"the rule raises when only this output is differentiated: {first_line(error)}"
            )
            continue
        pairs = enumerate(zip(found, expected, strict=True))
        if any(differs(as64(f), e, 2 * t.allowed(leaf)).any() for leaf, (f, e) in pairs):
            yield Row("gradient", path, FAIL, "the gradient changes when only this output is differentiated")
        else:
            yield Row("gradient", path, PASS, "the same gradient when only this output is differentiated")
