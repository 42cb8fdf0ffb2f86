"""The central check, `gradient`: the rule, JAX's derivative of the definition, and the numeric derivative agree.

An element is right if it agrees with a truth that does not go through the rule. There are three: JAX's derivative of
the definition in float64; JAX's derivative of `reference=`; the numeric derivative, once it has settled. It is wrong if
a truth says so. Where all truths are NaN, refused or unsettled, the element is unproven.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck._conventions import within_one_sided_derivatives
from jaxnn.gradcheck._evidence import NumericElement, evidence, numeric_element
from jaxnn.gradcheck._slopes import Along, along_directions, is_linear_along
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Findings, Trial, evenly_spaced
from jaxnn.gradcheck.checks.examples import Expected
from jaxnn.gradcheck.patterns import MINUS, hint_of_output, match, pattern
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Evidence, Row
from jaxnn.gradcheck.tolerance import Truth, differs, finfo, index_text, largest_finite
from jaxnn.tracing.errors import first_line

# Of the elements where the rule differs, how many are looked at: the worst, and some from all over.
WORST, SPREAD = 8, {"rule": 8, "full": 32}
MOST_UNKNOWN = 32  # elements without an automatic derivative that are differentiated numerically, one by one
MOST_OUTPUTS = 8  # that are checked one by one
NO_DIGIT = 0.05  # relative error from which a gradient in float32 has lost its digits
STOPPED = "varies what f holds constant by a stop_gradient"
CURE = "give a `reference=` that JAX can differentiate, or other arguments"
FLOAT64 = "; or switch float64 on (JAX_ENABLE_X64=1), with the arguments and f's own arrays in float64"


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
    truth = t.truth.gradients[leaf]
    known = ~np.isnan(truth)
    wrong = differs(custom, truth, t.allowed(leaf)) & known
    if not wrong.any() and (exact := t.rule_in_float64) is not None and not t.no_float64:
        # In float64 the same comparison is a billion times sharper, unless the rule computes in less throughout.
        wrong = t.is_wrong_in_float64(leaf, exact[leaf]) & known
        custom = exact[leaf] if wrong.any() else custom
    if wrong.any() and t.improve_tolerance():
        return _judge(t, leaf)
    error = largest_finite(np.abs(custom - truth))
    t.note_error("automatic", error / (largest_finite(np.abs(truth)) or 1.0))
    along = along_directions(t, leaf)
    if wrong.any():
        return _explain(t, leaf, custom, wrong)
    if not known.all():
        return _judge_unknown(t, leaf, ~known, along)
    if along.agrees:
        return Row("gradient", t.subject.paths[leaf], PASS, _agreement(t, leaf, "custom, automatic and numeric", error))
    return _without_numeric(t, leaf, along, _agreement(t, leaf, "custom and automatic", error))


def _agreement(t: Trial, leaf: int, who: str, error: float) -> str:
    """Say that derivatives agree, unless rounding has left nothing to agree on."""
    top, eps = largest_finite(np.abs(t.truth.gradients[leaf])), float(finfo(t.subject.points[leaf].dtype).eps)
    if top and error > max(NO_DIGIT, 32 * eps) * top:
        return (
            f"right up to rounding, which is large here: error {error:.2g} of {top:.2g}; "
            f"the gradient has lost its digits in {t.subject.points[leaf].dtype}"
        )
    return f"{who} agree, error {error:.2g} of {top:.2g}"


def _judge_unknown(t: Trial, leaf: int, unknown: np.ndarray, along: Along) -> Row:
    """Judge numerically the elements for which JAX's derivative is NaN; the others are right."""
    count = f"{int(unknown.sum())} of {unknown.size} elements"
    if np.isnan(t.custom[leaf][unknown]).all() and not t.is_finite:
        message = f"custom and automatic are NaN at {count}, where f is not finite, and agree at the others"
        return Row("gradient", t.subject.paths[leaf], PASS, message)
    undecided = []
    flats = np.flatnonzero(unknown)
    tried = evenly_spaced(flats, MOST_UNKNOWN)
    for flat in tried:
        i = np.unravel_index(int(flat), unknown.shape)
        numeric, custom = numeric_element(t, leaf, int(flat)), t.custom[leaf][i]
        decided = numeric.settled or np.isinf(numeric.value)  # an infinite slope must be the same infinity
        if decided and numeric.is_close(custom, t.allowed(leaf)[i]):
            continue
        if numeric.kinked and within_one_sided_derivatives(t, t.subject.points, leaf, int(flat)):
            continue
        if not numeric.settled or not t.numeric_may_overrule(leaf):
            undecided.append(i)
            continue
        wrong = np.zeros_like(unknown)
        wrong[i] = True
        return _failure(t, leaf, wrong, evidence(t, leaf, i, custom, numeric, ""), "the numeric")
    if len(tried) < len(flats) and not (along.agrees and along.settled):
        undecided += [np.unravel_index(int(flat), unknown.shape) for flat in np.setdiff1d(flats, tried)]
    if not undecided:
        message = f"custom and numeric agree where automatic is NaN, at {count}"
        return Row("gradient", t.subject.paths[leaf], PASS, f"{message}; all three agree at the others")
    where = ", ".join(f"{t.subject.paths[leaf]}{index_text(i)}" for i in undecided[:3])
    more = f" and {len(undecided) - 3} more" if len(undecided) > 3 else ""
    why = STOPPED if leaf in t.stopped else "does not converge"
    message = f"{where}{more}: JAX's derivative is NaN, and the numeric one {why}; {_cure(t)}"
    return Row("gradient", t.subject.paths[leaf], INCONCLUSIVE, message, decides=True)


def _cure(t: Trial) -> str:
    """Say what would give a truth."""
    return CURE + FLOAT64 * bool(t.no_float64)


def _without_numeric(t: Trial, leaf: int, along: Along, agree: str) -> Row:
    """Judge an argument for which custom and automatic agree, and numeric does not."""
    row = functools.partial(Row, "gradient", t.subject.paths[leaf])
    t.numeric_differs = True
    if leaf in t.stopped:
        return row(PASS, f"{agree}; numeric differs, because the definition has a stop_gradient")
    kinked = along.slope.kinked or (along.settled and not is_linear_along(t, leaf, along.direction))
    if kinked:
        return row(PASS, f"{agree}; numeric differs, because f has a kink here: both follow the same convention")
    if not along.settled or (not t.is_finite and np.isfinite(as64(t.subject.points[leaf])).any()):
        return row(PASS, f"{agree}; the numeric derivative does not converge here")
    if not np.isfinite(as64(t.subject.points[leaf])).any():
        message = "custom and automatic agree, but no element is finite; give finite arguments"
        return row(INCONCLUSIVE, message, decides=True)
    both = f"along a direction custom and automatic are {along.text}"
    if not t.is_deterministic:
        message = f"{both}; f returns other values when it is called again: give it its randomness as an argument"
        return row(INCONCLUSIVE, message, decides=True)
    return row(FAIL, f"{both}: JAX's derivative of f is wrong too, or f depends on more than its arguments")


def _judge_numerically(t: Trial, leaf: int) -> Row:
    """Judge an argument for which there is no automatic derivative."""
    row = functools.partial(Row, "gradient", t.subject.paths[leaf])
    along = along_directions(t, leaf)
    rule = f"custom{t.named_rules}"
    if along.agrees and along.settled and t.is_finite:
        return row(PASS, f"{rule} and numeric agree, error {along.slope.error:.2g} of {abs(along.slope.value):.2g}")
    if not t.is_finite:
        message = f"f is not finite here, so it has no numeric derivative; {_cure(t)}"
        return row(INCONCLUSIVE, message, decides=True)
    if along.slope.kinked and along.slope.has_sides and along.within_interval:
        return row(PASS, f"{rule} lies between the one-sided numeric derivatives: f has a kink here")
    if not along.settled or along.slope.kinked:
        message = (
            f"the numeric derivative does not converge here (along a direction {rule} is {along.text}); {_cure(t)}"
        )
        return row(INCONCLUSIVE, message, decides=True)
    if leaf in t.stopped:
        message = f"along a direction {rule} is {along.text}: the numeric derivative {STOPPED}; {_cure(t)}"
        return row(INCONCLUSIVE, message, decides=True)
    minus = MINUS if abs(along.found + along.slope.value) < 1e-2 * abs(along.found) else ""
    return row(FAIL, f"along a direction {rule} is {along.text}", minus)


# --- elements where the rule and JAX's derivative differ ---


def _explain(t: Trial, leaf: int, custom: np.ndarray, wrong: np.ndarray) -> Row:
    """The rule and JAX's derivative differ: find an element where the rule is wrong, or say why it is right."""
    truth, allowed = t.truth.gradients[leaf], t.allowed(leaf)
    excess = np.where(wrong, np.nan_to_num(np.abs(custom - truth) / np.maximum(allowed, 1e-300), nan=np.inf), -1.0)
    order = np.argsort(excess, axis=None)[::-1][: int(wrong.sum())]
    # Conventions at kinks are as far off as can be, so a mistake may hide behind the worst elements.
    candidates = dict.fromkeys([*order[:WORST], *evenly_spaced(order, SPREAD[t.level])])
    at_kinks, undecided = False, []
    for flat in candidates:
        i = np.unravel_index(int(flat), custom.shape)
        numeric = numeric_element(t, leaf, int(flat))
        if numeric.kinked and within_one_sided_derivatives(t, t.subject.points, leaf, int(flat)):
            at_kinks = True
            continue
        like_automatic = numeric.is_close(truth[i], allowed[i])
        like_custom = numeric.is_close(custom[i], allowed[i]) or (
            not like_automatic and _is_right_but_for_rounding(t, leaf, i, custom[i], numeric)
        )
        if like_custom and not like_automatic and not numeric.kinked and numeric.settled:
            if t.numeric_may_overrule(leaf):
                continue
            if leaf not in t.stopped and np.isfinite(truth[i]):
                undecided.append(i)
                continue
        agree = "automatic" if like_automatic else "custom" if like_custom else ""
        whose = "the reference's" if t.subject.reference else "automatic's"
        return _failure(t, leaf, wrong, evidence(t, leaf, i, custom[i], numeric, agree), whose)
    t.accepted[leaf] = wrong
    if undecided:
        where = f"{t.subject.paths[leaf]}{index_text(undecided[0])}"
        message = (
            f"{where}: custom and numeric agree, JAX's derivative differs; but f is not finite at these arguments, and "
            "numeric leaves such outputs out; give arguments at which f is finite"
        )
        return Row("gradient", t.subject.paths[leaf], INCONCLUSIVE, message, decides=True)
    if at_kinks:
        message = "custom and automatic follow different conventions at a kink, both between the one-sided derivatives"
    else:
        message = "custom and numeric agree; automatic differs (rounding in JAX's derivative)"
    return Row("gradient", t.subject.paths[leaf], PASS, message)


def _is_right_but_for_rounding(t: Trial, leaf: int, i: Any, custom: Any, numeric: NumericElement) -> bool:
    """Whether the rule agrees with numeric in float64, and its own dtype's rounding explains the rest.

    The allowed error follows automatic's responses, which say nothing where automatic is wrong.
    """
    exact = t.rule_in_float64
    if exact is None or t.no_float64:
        return False
    rounding = abs(custom - exact[leaf][i])
    return numeric.is_close(exact[leaf][i], 0.0) and bool(rounding <= t.allowed_by_rule(leaf)[i])


def _failure(t: Trial, leaf: int, wrong: np.ndarray, evidence: Evidence, whose: str) -> Row:
    s, exact = t.subject, t.rule_in_float64
    t.wrong_in_float64 = exact is None or bool(t.is_wrong_in_float64(leaf, exact[leaf]).any())
    message = f"custom{t.named_rules} differs from {whose} derivative at {int(wrong.sum())} of {wrong.size} elements"
    point = np.real(as64(s.points[leaf]))
    hint = str(pattern(leaf, t.custom, t.truth.gradients, s.paths, point, wrong))
    if not hint or hint.startswith("wrong "):  # at some elements: no pattern of the whole
        values = [as64(y) for y in t.own_values]
        hint = _forgotten_cotangent(t, leaf) or hint_of_output(t.custom[leaf], t.truth.gradients[leaf], values) or hint
    return Row("gradient", s.paths[leaf], FAIL, message, hint, evidence)


def _forgotten_cotangent(t: Trial, leaf: int) -> str:
    """Say that the rule ignores the cotangent, if its gradient is the one for a cotangent of ones."""
    if t.no_automatic:
        return ""
    at_ones = t.gradients("automatic", t.subject.points, [jnp.ones_like(d) for d in t.dy])[leaf]
    return "the derivative for a cotangent of ones: multiply by the cotangent" if match(t.custom[leaf], at_ones) else ""


# --- one output or one argument at a time ---


def _each_cotangent_alone(t: Trial) -> Findings:
    """Check the gradient of each output: all but one cotangent are 0."""
    s = t.subject
    for k, path in enumerate(s.output_paths[:MOST_OUTPUTS]):
        dy = _only(t.dy, k)
        custom = t.gradients("custom", s.points, dy)
        truth = t.truth_at(s.points, dy, 1)
        wrong = _wrong_arguments(t, custom, truth)
        while wrong and truth.draws < t.most_draws:  # a few draws may miss an element's response
            t.improve_tolerance()
            truth = t.truth_at(s.points, dy, truth.draws + 1, so_far=truth)
            wrong = _wrong_arguments(t, custom, truth)
        if wrong:
            yield Row("gradient", path, FAIL, f"wrong for {', '.join(wrong)} when all other outputs' cotangents are 0")
        else:
            yield Row("gradient", path, PASS, "right when all other outputs' cotangents are 0")


def _wrong_arguments(t: Trial, custom: Arrays, truth: Truth) -> list[str]:
    """Name the arguments whose cotangents differ from the truth."""
    names = []
    for leaf, path in enumerate(t.subject.paths):
        dtype, exact = t.subject.points[leaf].dtype, truth.gradients[leaf]
        allowed = t.allowed(leaf) + truth.allowed(leaf, t.factor(dtype), dtype)
        if (differs(custom[leaf], exact, allowed) & np.isfinite(exact)).any():
            names.append(path)
    return names


def _only(dy: Arrays, k: int) -> Arrays:
    return [d if i == k else jnp.zeros_like(d) for i, d in enumerate(dy)]


def _each_argument_differentiated_alone(t: Trial) -> Findings:
    """Differentiate by one argument at a time: a rule with symbolic zeros sees which arguments are differentiated."""
    s = t.subject
    for leaf, path in enumerate(s.paths):

        def of_one(x: Any, leaf: int = leaf) -> Arrays:
            return s.value("custom", [x if i == leaf else p for i, p in enumerate(s.points)], s.rest)

        yield _alone(t, path, "argument", of_one, {leaf: t.custom[leaf]}, t.dy)


def _each_output_differentiated_alone(t: Trial) -> Findings:
    """Differentiate one output at a time: a rule with symbolic zeros sees which outputs have a cotangent."""
    s = t.subject
    for k, path in enumerate(s.output_paths[:MOST_OUTPUTS]):

        def one(*points: Any, k: int = k) -> Any:
            return s.value("custom", list(points), s.rest)[k]

        expected = dict(enumerate(t.gradients("custom", s.points, _only(t.dy, k))))
        yield _alone(t, path, "output", one, expected, t.dy[k])


def _alone(t: Trial, path: str, what: str, f: Any, expected: dict[int, Any], dy: Any) -> Row:
    """Compare the cotangents of the arguments in `expected` with those of f, which has only these arguments."""
    points = [t.subject.points[leaf] for leaf in expected]
    try:
        found = jax.jit(lambda dy, *x: jax.vjp(f, *x)[1](dy))(dy, *points)
    except Exception as error:
        message = f"the rule raises when only this {what} is differentiated: {first_line(error)}"
        return Row("gradient", path, FAIL, message)
    for (leaf, wanted), got in zip(expected.items(), found, strict=True):
        if t.differing(as64(got), wanted, functools.partial(Expected(t.custom).allowed, t, leaf)).any():
            return Row("gradient", path, FAIL, f"the gradient changes when only this {what} is differentiated")
    return Row("gradient", path, PASS, f"the same gradient when only this {what} is differentiated")
