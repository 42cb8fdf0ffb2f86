"""The checks: each a function of a trial that yields rows. The table at the end is their order."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.gradcheck import _jaxprs, _numeric
from jaxnn.gradcheck._hints import hint
from jaxnn.gradcheck._subject import NOT_TRACEABLE, Arrays, as64, first_line, wide
from jaxnn.gradcheck._tolerance import Truth, finfo, in_units
from jaxnn.gradcheck._trial import LARGE, Trial, beyond
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, NOTE, PASS, UNSUPPORTED, Evidence, Row

Rows = Iterator[Row]


# --- types ---


def types(t: Trial) -> Rows:
    """Each cotangent has exactly its argument's shape and dtype."""
    s = t.subject
    _, cotangents = s.run("vjp", "custom", s.points, s.rest, t.dy)
    for path, x, ct in zip(s.paths, s.points, cotangents, strict=True):
        want, got = (f"{v.dtype}{list(v.shape)}" for v in (x, ct))
        if want == got:
            yield Row("types", path, PASS, f"cotangent {got}")
        else:
            t.wrong_types = True
            yield Row("types", path, FAIL, f"cotangent is {got}, must be {want} as the argument",
                      f"end the backward rule with .astype({path}.dtype)")  # fmt: skip


# --- values ---


def primal(t: Trial) -> Rows:
    """The forward rule returns what f returns."""
    s = t.subject
    plain = s.run("value", "custom", s.points, s.rest)
    ruled, _ = s.run("vjp", "custom", s.points, s.rest, t.dy)
    responses = [np.abs(as64(y)) for y in plain] if t.no_oracle else t.value_responses
    for path, y, r, response in zip(s.output_paths, plain, ruled, responses, strict=True):
        wrong = beyond(a := as64(r), b := as64(y), 2 * t.factor * response + float(finfo(y.dtype).tiny))
        if wrong.any():
            i = _worst(a, b, wrong)
            yield Row("primal", path, FAIL, f"the forward rule returns {a[i]:.6g} at {_index(i)}, f returns {b[i]:.6g}")
        else:
            yield Row("primal", path, PASS, "the forward rule returns what f returns")
    if s.reference is not None:
        yield from _against_reference(t, plain)


def _against_reference(t: Trial, plain: Arrays) -> Rows:
    """A kernel must compute what its reference does; a straight-through function need not."""
    s = t.subject
    for path, y, r in zip(s.output_paths, plain, s.run("value", "automatic", s.points, s.rest), strict=True):
        a, b = as64(y), as64(r)
        scale = _largest(np.abs(b))
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        off = float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
        if off <= 16 * t.factor * scale:
            yield Row("primal", path, PASS, "f returns what the reference returns")
        else:
            status = FAIL if t.no_definition else NOTE
            yield Row("primal", path, status, f"f and the reference differ by up to {off:.3g} in value")


def gradient(t: Trial) -> Rows:
    """The cotangents equal the automatic and the numeric derivative, element by element."""
    s = t.subject
    if t.no_automatic:
        yield Row("gradient", "automatic", UNSUPPORTED, t.no_automatic)
    if t.no_oracle:
        yield Row(
            "gradient",
            "float64",
            UNSUPPORTED,
            f"f does not run in float64 ({t.no_oracle}); compared in its own precision",
        )
    rows = [_judge(t, leaf) for leaf in range(len(s.points))]
    yield from rows
    if len(s.outputs) > 1 and not t.no_automatic and all(row.status != FAIL for row in rows):
        yield from _each_output_alone(t)
    if t.has_symbolic_zeros and len(s.points) > 1:
        yield from _each_argument_alone(t)


def _judge(t: Trial, leaf: int) -> Row:
    s = t.subject
    path, custom = s.paths[leaf], t.custom[leaf]
    row = functools.partial(Row, "gradient", path)
    if custom.size == 0:
        return row(PASS, "empty")
    if t.no_automatic:
        return _judge_numerically(t, leaf)
    truth, allowed = t.base.gradients[leaf], t.allowed(leaf)
    wrong = beyond(custom, truth, allowed) & ~(np.isnan(truth) & np.isfinite(custom))
    if wrong.any() and not t.lenient:
        t.lenient = True
        return _judge(t, leaf)
    if not wrong.any() and (custom64 := t.wide_custom) is not None and not t.no_oracle:
        # In float64 the same comparison is a billion times sharper, unless the rule computes in float32 throughout.
        narrow = t.base.allowed(leaf, max(t.factor, 64 * 2.0**-23), jnp.float32)
        wrong = beyond(custom64[leaf], truth, narrow) & ~(np.isnan(truth) & np.isfinite(custom64[leaf]))
        custom = custom64[leaf] if wrong.any() else custom
    error = _largest(np.abs(custom - truth))
    t.note_error("automatic", error / (_largest(np.abs(truth)) or 1.0))
    slope, agrees = _numeric_agrees(t, leaf)
    if wrong.any():
        return _explain(t, leaf, custom, truth, allowed, wrong)
    close = f"error {error:.2g} of {_largest(np.abs(truth)):.2g}"
    if agrees:
        return row(PASS, f"custom, automatic and numeric agree, {close}")
    t.numeric_differs = True
    if t.stops_gradients:
        return row(
            PASS, f"custom and automatic agree, {close}; the definition holds a stop_gradient, so numeric differs"
        )
    if slope.kinked:
        return row(PASS, f"custom and automatic agree, {close}; at a kink, by automatic's convention")
    if not math.isfinite(slope.value) or slope.error > 0.05 * abs(slope.value):
        return row(PASS, f"custom and automatic agree, {close}; numeric does not settle here")
    return row(INCONCLUSIVE, f"custom and automatic agree, {close}, but numeric gives {slope.value:.6g} for "
               f"{_numeric.dot([t.custom[leaf]], [t.last_direction[leaf]]):.6g} along a direction; "
               "is f a function of its arguments alone?")  # fmt: skip


def _judge_numerically(t: Trial, leaf: int) -> Row:
    row = functools.partial(Row, "gradient", t.subject.paths[leaf])
    slope, agrees = _numeric_agrees(t, leaf)
    if agrees:
        return row(PASS, f"custom and numeric agree within {slope.error:.2g} of {abs(slope.value):.2g}")
    custom = _numeric.dot([t.custom[leaf]], [t.last_direction[leaf]])
    if not math.isfinite(slope.value) or slope.error > 0.05 * abs(slope.value) or slope.kinked:
        found = f"{slope.value:.6g} ± {slope.error:.2g} for {custom:.6g}"
        return row(
            INCONCLUSIVE, f"numeric does not settle here ({found}); give a `reference=` that JAX can differentiate"
        )
    relative = abs(custom - slope.value) / abs(slope.value) if slope.value else math.inf
    return row(
        FAIL, f"along a direction custom is {custom:.6g}, numeric {slope.value:.6g} (relative error {relative:.2g})",
        "the sign: minus the derivative" if abs(custom + slope.value) < 1e-2 * abs(custom) else "",
    )  # fmt: skip


def _numeric_agrees(t: Trial, leaf: int) -> tuple[_numeric.Slope, bool]:
    """Compare the rule with the numeric derivative, element by element if there are few, else along directions."""
    s, rng = t.subject, np.random.default_rng((t.seed, 3, leaf))
    x = [as64(p) for p in s.points]
    size = x[leaf].size
    few = 6 if t.level == "rule" else 32
    if size <= few:
        directions = [_numeric.coordinate(x, leaf, i) for i in range(size)]
    else:
        directions = [_numeric.relative_direction(x, leaf, rng) for _ in range(1 if t.size > LARGE else 3)]
    custom = (t.wide_custom if t.wide_custom is not None and not t.no_oracle else t.custom)[leaf]
    for v in directions:
        slope = t.slope(s.points, t.dy, v)
        t.last_direction = v
        found = _numeric.dot([custom], [v[leaf]])
        if leaf == 0 and not t.sweep:
            scale = abs(found) or 1.0
            t.sweep = tuple((h, abs(c - found) / scale) for h, c in slope.sweep if math.isfinite(c))
        t.note_error("numeric", abs(found - slope.value) / (abs(slope.value) or 1.0))
        margin = math.sqrt(_numeric.dot([np.square(v[leaf])], [np.square(np.nan_to_num(t.allowed(leaf)))]))
        if not abs(found - slope.value) <= 3 * slope.error + 4 * margin + 1e-6 * abs(slope.value) + 1e-300:
            return slope, False
    return slope, True


def _explain(t: Trial, leaf: int, custom: Any, truth: Any, allowed: Any, wrong: Any) -> Row:
    """The rule and JAX's derivative differ: who is right?"""
    s = t.subject
    row = functools.partial(Row, "gradient", s.paths[leaf])
    excess = np.where(wrong, np.nan_to_num(np.abs(custom - truth) / np.maximum(allowed, 1e-300), nan=np.inf), -1.0)
    ranked = np.argsort(excess, axis=None)[::-1][: min(8, int(wrong.sum()))]
    at_kinks = False
    for flat in ranked:
        i = np.unravel_index(int(flat), custom.shape)
        slope = t.slope(s.points, t.dy, _numeric.coordinate([as64(p) for p in s.points], leaf, int(flat)))
        length = _numeric.coordinate([as64(p) for p in s.points], leaf, int(flat))[leaf].reshape(-1)[flat]
        numeric, error = slope.value / length, slope.error / length
        if slope.kinked and _inside(t, s.points, leaf, int(flat)):
            at_kinks = True
            continue
        like_custom = abs(custom[i] - numeric) <= 3 * error + allowed[i] + 1e-5 * abs(numeric)
        like_automatic = abs(truth[i] - numeric) <= 3 * error + allowed[i] + 1e-5 * abs(numeric)
        if like_custom and not like_automatic and not slope.kinked and not t.stops_gradients:
            continue
        agree = "automatic and numeric agree" if like_automatic else "no two agree"
        exact = None if t.wide_custom is None else t.wide_custom[leaf]
        t.wrong_anyway = exact is None or bool(
            beyond(exact, truth, t.base.allowed(leaf, 64 * 2.0**-23, jnp.float32)).any()
        )
        absolute = abs(float(np.real(custom[i] - truth[i]))) if np.isfinite(truth[i]) else math.inf
        spacing = _spacing(abs(_real(truth[i])), s.points[leaf].dtype)
        evidence = Evidence(
            tuple(int(k) for k in i), _real(custom[i]), _real(truth[i]), numeric, absolute,
            absolute / abs(_real(truth[i])) if truth[i] else math.inf, absolute / spacing if spacing else math.nan,
            float(allowed[i]), agree,
        )  # fmt: skip
        return row(
            FAIL, f"custom differs from {'the reference' if s.reference else 'automatic'}'s derivative at "
            f"{int(wrong.sum())} of {wrong.size} elements",
            hint(leaf, t.custom, t.base.gradients, s.paths, np.real(as64(s.points[leaf])), wrong), evidence,
        )  # fmt: skip
    t.excused[leaf] = wrong
    if at_kinks:
        return row(
            PASS, "custom and automatic follow different conventions at a kink, both between the one-sided derivatives"
        )
    return row(PASS, "custom and numeric agree; automatic differs (rounding, or a NaN, in JAX's derivative)")


def _each_output_alone(t: Trial) -> Rows:
    s = t.subject
    for k, path in enumerate(s.output_paths[:8]):
        dy = [d if i == k else jnp.zeros_like(d) for i, d in enumerate(t.dy)]
        custom, truth = t.gradients("custom", s.points, dy), t.truth(s.points, dy, 1)
        bad = [
            leaf for leaf in range(len(s.points))
            if (beyond(custom[leaf], truth.gradients[leaf], t.allowed(leaf) + truth.allowed(leaf, t.factor, t.dtype))
                & np.isfinite(truth.gradients[leaf])).any()
        ]  # fmt: skip
        if bad:
            yield Row(
                "gradient",
                path,
                FAIL,
                f"with this output's cotangent alone, wrong for {', '.join(s.paths[b] for b in bad)}",
            )
        else:
            yield Row("gradient", path, PASS, "right with this output's cotangent alone")


def _each_argument_alone(t: Trial) -> Rows:
    """A rule with symbolic zeros sees which arguments are differentiated."""
    s = t.subject
    for leaf, path in enumerate(s.paths):

        def alone(x: Any, leaf: int = leaf) -> Arrays:
            return s.value("custom", [x if i == leaf else p for i, p in enumerate(s.points)], s.rest)

        try:
            found = as64(jax.jit(lambda x, dy: jax.vjp(alone, x)[1](dy)[0])(s.points[leaf], t.dy))
        except Exception as error:
            yield Row("gradient", path, FAIL, f"differentiated alone, it raises {first_line(error)}")
            continue
        wrong = beyond(found, t.custom[leaf], 2 * t.allowed(leaf))
        if wrong.any():
            yield Row("gradient", path, FAIL, "differentiated alone, it gets another gradient")
        else:
            yield Row("gradient", path, PASS, "the same when differentiated alone")


def linearity(t: Trial) -> Rows:
    """The rule is linear in the cotangent: bwd(a g + b h) = a bwd(g) + b bwd(h), and bwd(0) = 0."""
    s = t.subject
    other = s.cotangents(t.seed, 1)
    large = 2.0 ** (4 if t.dtype == jnp.float16 else 12)
    gradients = functools.partial(t.gradients, "custom", s.points)
    second = gradients(other)
    combinations: list[tuple[str, Arrays, Arrays]] = [
        ("bwd(g + h)", [a + b for a, b in zip(t.dy, other, strict=True)],
         [a + b for a, b in zip(t.custom, second, strict=True)]),
        (f"bwd({large:.0f} g)", [(large * a).astype(a.dtype) for a in t.dy], [large * a for a in t.custom]),
        (f"bwd(g / {large:.0f})", [(a / large).astype(a.dtype) for a in t.dy], [a / large for a in t.custom]),
        ("bwd(0)", [jnp.zeros_like(a) for a in t.dy], [np.zeros_like(a) for a in t.custom]),
    ]  # fmt: skip
    if _bends(t, "automatic"):
        yield Row("linearity", s.name, NOTE, "the reference's rule is not linear in the cotangent either")
        return
    for name, dy, expected in combinations:
        found = gradients(dy)
        scale = (
            large if name.startswith("bwd(4096") or name.startswith("bwd(16 ") else (1 / large if "/" in name else 2.0)
        )
        for leaf, path in enumerate(s.paths):
            allowed = 2 * scale * (t.allowed(leaf) + 2 * t.factor * (np.abs(second[leaf]) if "h" in name else 0))
            wrong = beyond(found[leaf], expected[leaf], allowed) & np.isfinite(t.custom[leaf])
            if wrong.any():
                i = _worst(found[leaf], expected[leaf], wrong)
                yield Row("linearity", path, FAIL, f"{name} is {found[leaf][i]:.6g} at {_index(i)}, linearity wants "
                          f"{expected[leaf][i]:.6g}", "a clipped, squared or forgotten cotangent")  # fmt: skip
                return
    yield Row("linearity", s.name, PASS, "bwd is linear in the cotangent")


def _bends(t: Trial, kind: str) -> bool:
    """Whether a reference with a rule of its own is not linear in the cotangent."""
    if t.subject.reference is None:
        return False
    g = [t.gradients(kind, t.subject.points, [(a * k).astype(a.dtype) for a in t.dy]) for k in (1, 1024, 2.0**-10)]
    return any(
        beyond(scaled, k * one, 64 * t.factor * np.abs(k * one)).any()
        for k, many in ((1024, g[1]), (2.0**-10, g[2])) for scaled, one in zip(many, g[0], strict=True)
    )  # fmt: skip


def integers(t: Trial) -> Rows:
    """Integer, boolean and key arguments have no gradient; one that a rule returns, JAX drops without a word."""
    for rule in t.backward_rules:
        for position, primal in enumerate(rule.primals):
            if jnp.issubdtype(primal.dtype, np.inexact):
                continue
            path = f"{rule.name}{rule.paths[position]}"
            if position in rule.positions and _is_nonzero(rule, rule.positions.index(position)):
                given = f"an argument of dtype {primal.dtype} is given a gradient, which JAX drops"
                yield Row("integers", path, FAIL, given, "return None for it")
            else:
                yield Row("integers", path, PASS, f"an argument of dtype {primal.dtype} is given no gradient")


def _is_nonzero(rule: _jaxprs.BackwardRule, position: int) -> bool:
    rng = np.random.default_rng(0)

    def example(aval: Any, floats: bool) -> Any:
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), aval.shape) if aval.shape else jax.random.key(0)
        if not jnp.issubdtype(aval.dtype, np.inexact):
            return np.zeros(aval.shape, jax.dtypes.float0) if floats else jnp.ones(aval.shape, aval.dtype)
        return jnp.asarray(rng.uniform(0.5, 1.5, aval.shape)).astype(aval.dtype)

    given = [*(example(a, False) for a in rule.residuals), *(example(a, True) for a in rule.outputs)]
    with np.errstate(all="ignore"):
        return bool(np.any(as64(_jaxprs.evaluate(rule.jaxpr, *given)[position]) != 0))


# --- special points ---


def kinks(t: Trial) -> Rows:
    """At ties and zeros, the rule is a convention between the one-sided derivatives."""
    yield from _special_points(t, "kinks", _tied(t))


def _tied(t: Trial) -> Iterator[tuple[str, Arrays]]:
    points = t.subject.points
    free = [t.is_free(as64(x)) for x in points]
    for name, step in (("rounded to multiples of their size", None), ("rounded to integers", 1.0)):
        yield name, [_rounded(x, step) if f else x for x, f in zip(points, free, strict=True)]
    for leaf, other in itertools.permutations(range(len(points)), 2):
        if free[leaf] and np.broadcast_shapes(points[leaf].shape, points[other].shape) == points[leaf].shape:
            tied, wanted = np.array(points[leaf]), np.broadcast_to(np.asarray(points[other]), points[leaf].shape)
            tied.reshape(-1)[::2] = wanted.reshape(-1)[::2]
            moved = [jnp.asarray(tied) if i == leaf else x for i, x in enumerate(points)]
            yield f"{t.subject.paths[leaf]} tied with {t.subject.paths[other]}", moved
            return


def _rounded(x: Any, step: float | None) -> Any:
    h = as64(x)
    if step is None:
        finite = h[np.isfinite(h)]
        step = 2.0 ** round(math.log2(math.sqrt(float(np.mean(np.square(finite))))))
    return jnp.asarray(np.rint(h / step) * step).astype(x.dtype)


def extremes(t: Trial) -> Rows:
    """At huge, tiny and infinite arguments the rule is as good as JAX's derivative."""
    yield from _special_points(t, "extremes", _extreme(t))


def _extreme(t: Trial) -> Iterator[tuple[str, Arrays]]:
    free = [t.is_free(as64(x)) for x in t.subject.points]
    largest = 100.0 if t.dtype == jnp.float16 else 1e4

    def everywhere(factor: float) -> Arrays:
        return [(x * factor).astype(x.dtype) if f else x for x, f in zip(t.subject.points, free, strict=True)]

    def with_one(value: float) -> Arrays:
        points = list(t.subject.points)
        for leaf, x in enumerate(points):
            if free[leaf] and x.size and not _is_sorted(as64(x)):
                flat = np.asarray(x).reshape(-1).copy()
                flat[np.random.default_rng((t.seed, 4, leaf)).integers(flat.size)] = value
                points[leaf] = jnp.asarray(flat.reshape(x.shape))
        return points

    yield "30 times as large", everywhere(30.0)
    if t.size <= LARGE:
        yield f"{largest:g} times as large", everywhere(largest)
        yield "1e-6 times as large", everywhere(1e-6)
        yield "with one inf", with_one(math.inf)
        yield "with one -inf", with_one(-math.inf)
    else:
        yield "with one -inf", with_one(-math.inf)


def _is_sorted(x: Any) -> bool:
    return bool(x.ndim and x.shape[-1] > 2 and ((np.diff(x) >= 0).all() or (np.diff(x) <= 0).all()))


def _special_points(t: Trial, check: str, points: Iterator[tuple[str, Arrays]]) -> Rows:
    s = t.subject
    if t.no_automatic:
        yield Row(check, s.name, UNSUPPORTED, "there is no automatic derivative to compare with")
        return
    if not any(t.is_free(as64(x)) for x in s.points):
        reason = (
            "every argument looks constrained (of one sign, normalized or symmetric); give such points as arguments"
        )
        yield Row(check, s.name, INCONCLUSIVE, reason)
        return
    if t.wrong_anyway:
        yield Row(check, s.name, INCONCLUSIVE, "the gradient is wrong at the arguments given already")
        return
    for name, moved in points:
        yield _at_special_point(t, check, name, moved)


def _at_special_point(t: Trial, check: str, name: str, points: Arrays) -> Row:
    s = t.subject
    custom, automatic = t.gradients("custom", points, t.dy), t.gradients("automatic", points, t.dy)
    suspects = [
        beyond(c, a, 2 * t.factor * np.abs(a) + float(finfo(t.dtype).tiny)) & ~np.isnan(a)
        for c, a in zip(custom, automatic, strict=True)
    ]
    if not any(w.any() for w in suspects):
        return Row(check, name, PASS, "custom and automatic agree")
    truth = t.truth(points, t.dy, 1)
    remark = "custom and automatic agree"
    for leaf, path in enumerate(s.paths):
        c, a, g = custom[leaf], automatic[leaf], truth.gradients[leaf]
        representable = np.isfinite(g) & (np.abs(g) < float(finfo(s.points[leaf].dtype).max))
        allowed = truth.allowed(leaf, t.factor, t.dtype) + np.nan_to_num(4 * np.abs(a - g), posinf=0.0)
        wrong = suspects[leaf] & representable & beyond(c, g, allowed)
        if check == "extremes":
            wrong &= ~t.by_convention(leaf)
        if name == "with one inf":  # a rule may mix infinity into other elements: inf − inf
            wrong &= np.isinf(as64(points[leaf]))
        for flat in np.flatnonzero(wrong)[:4]:
            i = np.unravel_index(int(flat), c.shape)
            if np.isfinite(c[i]) and _inside(t, points, leaf, int(flat)):
                remark = "another convention than automatic's at a kink, between the one-sided derivatives"
                continue
            where = " outside the interval of the one-sided derivatives" if check == "kinks" else ""
            at = f"{path}{_index(i)} = {float(np.asarray(points[leaf])[i]):.4g}"
            pattern = "" if np.isfinite(c[i]) else hint(leaf, custom, truth.gradients, s.paths, g, wrong)
            return Row(check, name, FAIL, f"{at}: custom {c[i]:.6g}, automatic {g[i]:.6g}{where}", pattern)
    return Row(check, name, PASS, remark)


def _inside(t: Trial, points: Arrays, leaf: int, flat: int) -> bool:
    """Whether the rule's derivative of each output that the element moves lies between the one-sided derivatives.

    Along coordinates alone (1, 1) would pass for the maximum at a tie; along (1, 1) it does not. Directions of many
    elements are a test only where the output bends one way in all of them (a maximum, a norm).
    """
    s, x = t.subject, [as64(p) for p in points]
    step = 2.0**-20
    towards = _numeric.coordinate(x, leaf, flat)
    with wide():
        outputs = [
            [as64(y) for y in s.run("value", "custom" if s.reference is None else "automatic",
                                    [jnp.asarray(a + k * step * v) for a, v in zip(x, towards, strict=True)], t.rest64)]
            for k in (-1, 0, 1)
        ]  # fmt: skip
    moved = [
        (k, int(j)) for k in range(len(s.outputs))
        for j in np.flatnonzero((outputs[0][k] != outputs[1][k]) | (outputs[2][k] != outputs[1][k]))[:3]
    ]  # fmt: skip
    rng = np.random.default_rng((t.seed, 5))
    return all(_between(t, points, x, towards, k, j, rng) for k, j in moved[:4])


def _between(t: Trial, points: Arrays, x: Arrays, towards: Arrays, output: int, element: int, rng: Any) -> bool:
    dy = [np.zeros(d.shape) for d in t.dy]
    dy[output].reshape(-1)[element] = 1.0
    row = t.gradients("custom", points, [jnp.asarray(d).astype(o.dtype) for d, o in zip(dy, t.dy, strict=True)])
    support = [(r != 0) | (v != 0) for r, v in zip(row, towards, strict=True)]
    joint = [[s * 1.0 for s in support], [np.nan_to_num(r) for r in row]]
    joint += [[s * rng.choice([-1.0, 1.0], s.shape) for s in support] for _ in range(3)]
    slopes = [t.slope(points, dy, v) for v in (towards, *joint)]
    bends = [slope.right - slope.left for slope in slopes if slope.kinked]
    one_way = all(b >= 0 for b in bends) or all(b <= 0 for b in bends)
    for v, slope in list(zip([towards, *joint], slopes, strict=True))[: None if one_way else 1]:
        low, high = slope.interval
        found = _numeric.dot(row, v)
        margin = 8 * t.factor * math.sqrt(_numeric.dot(row, row) * _numeric.dot(v, v)) + 1e-6 * (abs(low) + abs(high))
        if not low - margin <= found <= high + margin:
            return False
    return True


# --- precision ---


def precision(t: Trial) -> Rows:
    """In each dtype the rule is as accurate as JAX's derivative of the definition."""
    s = t.subject
    if t.no_automatic or t.no_oracle:
        yield Row("precision", s.name, UNSUPPORTED, t.no_automatic or t.no_oracle)
        return
    if t.wrong_anyway:
        yield Row("precision", s.name, INCONCLUSIVE, "the gradient is wrong in any precision")
        return
    for dtype in ("float32", "bfloat16", "float16"):
        for scale in (1.0,) if t.size > LARGE else (1.0, 8.0):
            factors = [scale if t.may_scale(as64(x)) else 1.0 for x in s.points]
            points = [(jnp.asarray(x) * k).astype(dtype) for x, k in zip(s.points, factors, strict=True)]
            name = dtype if scale == 1.0 else f"{dtype} x{scale:.0f}"
            try:
                automatic = t.gradients("automatic", points, t.dy)
            except Exception as error:
                yield Row("precision", name, UNSUPPORTED, f"the definition does not run: {first_line(error)}")
                break
            try:
                custom = s.run("vjp", "custom", points, s.rest, t.dy)[1]
            except Exception as error:
                yield Row("precision", name, FAIL, f"the rule raises, the definition does not: {first_line(error)}")
                break
            other = [f"{path} is {ct.dtype}" for path, ct in zip(s.paths, custom, strict=True) if ct.dtype != dtype]
            if other and not t.wrong_types:
                yield Row("precision", name, FAIL, f"the cotangent of {other[0]}, must be {dtype} as the argument")
                break
            if t.dtype == dtype and scale == 1.0:
                truth = t.base
            elif dtype == "float32":
                truth = t.truth(points, t.dy, 1)
            else:  # no responses are asked for
                exact = t.gradients64("automatic", [as64(p) for p in points], [as64(d) for d in t.dy])
                truth = Truth(exact, exact)
            yield _precision_row(t, name, dtype, truth, [as64(g) for g in custom], automatic)


def _precision_row(t: Trial, name: str, dtype: str, truth: Truth, custom: Arrays, automatic: Arrays) -> Row:
    eps = float(finfo(dtype).eps)
    worst = (0.0, 0.0)
    for leaf, path in enumerate(t.subject.paths):
        c, a, g = custom[leaf], automatic[leaf], truth.gradients[leaf]
        usable = np.isfinite(a) & np.isfinite(g) & (np.abs(g) < float(finfo(dtype).max)) & ~t.by_convention(leaf)
        if (usable & ~np.isfinite(c)).any():
            i = tuple(np.argwhere(usable & ~np.isfinite(c))[0])
            return Row("precision", name, FAIL, f"{path}{_index(i)} is {c[i]}, automatic {a[i]:.6g}")
        scale = np.where(usable, np.abs(g), 0.0)
        errors = [in_units(np.where(usable, np.abs(v - g), 0.0), scale) / eps for v in (c, a)]
        # A sum in another order is right. In low precision it has to be widened; strictly, if the caller uses that.
        sums = max(64, 16 * in_units(np.where(usable, truth.responses[leaf], 0.0), scale)) if dtype == "float32" else 32
        sums, times = (6, 4) if t.dtype == dtype != "float32" else (sums, 8)
        floor = float(finfo(dtype).smallest_normal) / max(scale.max(initial=0.0), 1e-300) / eps
        if errors[0] > max(times * errors[1], floor, sums):
            found = f"{path}: error {errors[0]:.3g} eps of the largest element, automatic {errors[1]:.3g} eps"
            return Row("precision", name, FAIL, found, "widen sums, exps and logs to float32, round once at the end")
        worst = max(worst, (errors[0], errors[1]))
    return Row("precision", name, PASS, f"error {worst[0]:.2g} eps, automatic {worst[1]:.2g} eps")


# --- transformations ---


def _compare(t: Trial, check: str, name: str, found: Arrays, expected: Arrays, factor: float = 2.0) -> Row:
    for leaf, path in enumerate(t.subject.paths):
        if found[leaf].shape != expected[leaf].shape:
            return Row(check, name, FAIL, f"{path} has shape {found[leaf].shape}, must be {expected[leaf].shape}")
        wrong = beyond(found[leaf], expected[leaf], factor * np.broadcast_to(t.allowed(leaf), expected[leaf].shape))
        if wrong.any():
            i = _worst(found[leaf], expected[leaf], wrong)
            return Row(
                check, name, FAIL, f"{path}{_index(i)} is {found[leaf][i]:.6g}, without it {expected[leaf][i]:.6g}"
            )
    return Row(check, name, PASS, "the same gradient")


def _attempt(
    t: Trial, check: str, name: str, run: Callable[[str], Arrays], expected: Arrays, factor: float = 2.0
) -> Row:
    """Run a transformation of the rule. Where it raises, the definition says whose fault it is."""
    try:
        found = [as64(g) for g in run("custom")]
    except Exception as error:
        try:
            run("definition")
        except Exception:
            return Row(check, name, UNSUPPORTED, f"neither the rule nor its definition can: {first_line(error)}")
        if _is_vma_error(error):
            cure = "in bwd, psum it over jax.typeof(ct).manual_axis_type.varying less the primal's"
            return Row(check, name, UNSUPPORTED, f"an argument equal on all devices needs a cotangent that is: {cure}")
        return Row(check, name, FAIL, f"raises, and the definition does not: {first_line(error)}")
    return _compare(t, check, name, found, expected, factor)


def _is_vma_error(error: Exception) -> bool:
    """Whether JAX complains of a type that varies over the mesh where it must not, or the other way round."""
    traced = isinstance(error, NOT_TRACEABLE)
    return not traced and any(words in str(error) for words in ("bwd rule must produce", "varying manual axes", "{V:"))


def staging(t: Trial) -> Rows:
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
            yield _attempt(t, "staging", name, functools.partial(vjp_of, transform), t.custom)


def _all_and_each(count: int) -> list[tuple[bool, ...]]:
    """All arguments, and each alone."""
    return list(dict.fromkeys([(True,) * count, *(tuple(i == j for j in range(count)) for i in range(count))]))


def _subsets(count: int) -> list[tuple[bool, ...]]:
    """Every non-empty subset of a few arguments; of many, all and each alone."""
    if count > 3:
        return _all_and_each(count)
    return [mask for mask in itertools.product((True, False), repeat=count) if any(mask)]


def _label(t: Trial, mask: tuple[bool, ...]) -> str:
    return "all" if all(mask) else ", ".join(path for path, m in zip(t.subject.paths, mask, strict=True) if m)


def _examples(t: Trial, count: int) -> tuple[list[Arrays], list[Arrays]]:
    """Make examples that differ a little from the arguments, and a cotangent for each."""
    near = [(x * (1 + 2.0**-6)).astype(x.dtype) for x in t.subject.points]
    dys = [t.dy, t.subject.cotangents(t.seed, 1)]
    return [near if k % 2 else t.subject.points for k in range(count)], [dys[k % 2] for k in range(count)]


def _stacked(t: Trial, mask: tuple[bool, ...], examples: list[Arrays]) -> Arrays:
    """Stack the arguments that are batched; the others are the first example's."""
    return [
        jnp.stack([e[i] for e in examples]) if m else p
        for i, (p, m) in enumerate(zip(t.subject.points, mask, strict=True))
    ]  # fmt: skip


def _one_by_one(t: Trial, mask: tuple[bool, ...], examples: list[Arrays], dys: list[Arrays]) -> Arrays:
    """Return the examples' cotangents: stacked where the argument is, else summed, as the chain rule sums over uses."""
    parts = [
        t.gradients("custom", [e if m else p for e, p, m in zip(example, t.subject.points, mask, strict=True)], dy)
        for example, dy in zip(examples, dys, strict=True)
    ]  # fmt: skip
    return [np.stack(group) if m else np.sum(group, 0) for group, m in zip(zip(*parts, strict=True), mask, strict=True)]


def vmap(t: Trial) -> Rows:
    """A batch gives what its examples give one by one, whichever arguments are batched."""
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
        yield _attempt(t, "vmap", _label(t, mask), functools.partial(batched, mask), expected, 4.0)
    each = [t.gradients("custom", s.points, dy) for dy in dys]
    expected = [np.stack(pair) for pair in zip(*each, strict=True)]
    yield _attempt(t, "vmap", "cotangents (jacrev)", cotangents_alone, expected, 4.0)


def shard_map(t: Trial) -> Rows:
    """Sharded over devices the gradient is that of the examples one by one, with check_vma on and off."""
    s = t.subject
    auto = (jax.sharding.AxisType.Auto,)
    mesh = t.mesh or jax.make_mesh((min(2, jax.device_count()),), ("devices",), axis_types=auto)
    axis, spec = mesh.axis_names[0], _spec(mesh.axis_names[0])
    count = mesh.shape[axis]
    if count == 1:
        yield Row("shard_map", "values", INCONCLUSIVE,
                  "one device shows types alone; start Python with JAX_NUM_CPU_DEVICES=2, or give a mesh=")  # fmt: skip
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

    for check_vma in (True, False):
        for mask in _all_and_each(len(s.points)):
            name = f"{_label(t, mask)} (check_vma={check_vma})"
            expected = _one_by_one(t, mask, examples, dys)
            row = _attempt(t, "shard_map", name, functools.partial(sharded, mask, check_vma), expected, 2.0 * count)
            if (
                row.status == FAIL
                and check_vma
                and any(e.primitive.name in _jaxprs.CALLED for e in _jaxprs.equations(t.jaxpr))
            ):
                # JAX does not mark a callback's results as varying over the mesh, and sums their cotangents.
                row = Row(
                    "shard_map",
                    name,
                    UNSUPPORTED,
                    f"a callback loses the mesh axis: {row.message}; use check_vma=False",
                )
            yield row


def _spec(*axes: str) -> Any:
    return jax.P(*axes)  # type: ignore[no-untyped-call]


def _varying(y: Any, axis: str, check_vma: bool) -> Any:
    """Mark an output that does not depend on the sharded arguments as varying, so that it can be stacked."""
    if not check_vma or axis in jax.typeof(y).manual_axis_type.varying:
        return y
    return lax.pcast(y, axis, to="varying")


def second_order(t: Trial) -> Rows:
    """The derivative of the rule is that of what it computes: no stop_gradient, no constant, hides in it."""
    s = t.subject
    if t.no_oracle:
        yield Row("second_order", s.name, UNSUPPORTED, f"f does not run in float64 ({t.no_oracle})")
        return
    x, d = [as64(p) for p in s.points], [as64(dy) for dy in t.dy]
    if not all(np.isfinite(p).all() for p in x):
        yield Row("second_order", s.name, INCONCLUSIVE, "the arguments are not finite; give finite ones")
        return
    rng = np.random.default_rng((t.seed, 6))
    u = [rng.choice([-1.0, 1.0], p.shape) * rng.integers(2, 17, p.shape) / 8 for p in x]

    def twice(kind: str) -> Arrays:
        def both(points: Arrays, dy: Arrays, u: Arrays) -> Any:
            first, pull = jax.vjp(lambda p, d: s.vjp(kind, p, t.rest64, d)[1], points, dy)
            return pull([a.astype(g.dtype) for a, g in zip(u, first, strict=True)])

        with wide():
            operands = [[jnp.asarray(a) for a in group] for group in (x, d, u)]
            return [as64(g) for g in jax.tree.leaves(jax.jit(both)(*operands))]

    try:
        custom = twice("custom")
    except Exception as error:
        yield Row("second_order", s.name, UNSUPPORTED, f"the rule cannot be differentiated again: {first_line(error)}")
        return
    try:
        automatic: Arrays | None = None if t.no_automatic else twice("automatic")
    except Exception:  # as for a while_loop: then the numeric derivative of the rule decides alone
        automatic = None
    paths = [*s.paths, *(f"cotangent of {p}" for p in s.output_paths)]
    for k, path in enumerate(paths):
        if automatic is not None and _close_in_norm(custom[k], automatic[k], t, k):
            yield Row("second_order", path, PASS, "custom and automatic agree")
        else:
            yield _second_order_numerically(t, path, k, custom[k], automatic is not None, [*x, *d], u)


def _close_in_norm(custom: Any, automatic: Any, t: Trial, k: int) -> bool:
    """Whether the second derivatives agree to 1e-5 of their largest element (or of the first's, if that is 0)."""
    first = _largest(np.abs(t.base.gradients[k])) if k < len(t.base.gradients) else 0.0
    finite = np.isfinite(automatic)
    error = np.abs(custom[finite] - automatic[finite]).max(initial=0.0)
    return bool(error <= 1e-5 * (np.abs(automatic[finite]).max(initial=0.0) + 1e-3 * first))


def _second_order_numerically(
    t: Trial, path: str, k: int, custom: Any, automatic: bool, at: Arrays, u: Arrays
) -> Row:  # fmt: skip
    """Differentiate what the rule computes, ⟨u, bwd⟩, numerically."""
    points = len(t.subject.points)
    direction = _numeric.relative_direction(at, k, np.random.default_rng((t.seed, 7)))
    slope = _numeric.slope(
        lambda v: t.gradients64("custom", v[:points], v[points:]), at, u, direction,
        [2.0 ** (-4 - 3 * i) for i in range(7)], 2.0**-52,
    )  # fmt: skip
    found = _numeric.dot([custom], [direction[k]])
    scale = max(abs(slope.value), 1e-6 * math.sqrt(_numeric.dot(u, u) * _numeric.dot(direction, direction)))
    row = functools.partial(Row, "second_order", path)
    if abs(found - slope.value) <= 10 * slope.error + 1e-4 * scale:
        return row(PASS, "custom is the derivative of what the rule computes (automatic has another, off this point)"
                   if automatic else "custom is the derivative of what the rule computes")  # fmt: skip
    if not math.isfinite(slope.value) or slope.error > 0.01 * scale or slope.kinked:
        return row(INCONCLUSIVE, "the rule's derivative is not automatic's, and numeric does not settle")
    return row(
        FAIL, f"differentiating the rule gives {found:.6g} along a direction, numerically it is {slope.value:.6g}",
        "a stop_gradient or a constant in fwd or bwd" if abs(found) < 1e-3 * abs(slope.value) else "",
    )  # fmt: skip


# --- the rule as a program ---


def determinism(t: Trial) -> Rows:
    """Two runs give the same bits."""
    s = t.subject
    one, two = (s.vjp("custom", s.points, s.rest, t.dy)[1] for _ in range(2))
    for path, a, b in zip(s.paths, one, two, strict=True):
        if not np.array_equal(as64(a), as64(b), equal_nan=True):
            off = _largest(np.abs(as64(a) - as64(b)))
            yield Row("determinism", path, FAIL, f"two runs differ by up to {off:.3g}",
                      "randomness must come from a key among the arguments")  # fmt: skip
            return
    yield Row("determinism", s.name, PASS, "two runs are bitwise equal")


def closure(t: Trial) -> Rows:
    """No array with a gradient goes past the rule: in nondiff_argnums, or closed over."""
    for path, reason in t.subject.frozen:
        yield Row("closure", path, FAIL, reason, "make it an ordinary argument of the rule")
    if not t.subject.frozen:
        yield Row("closure", t.subject.name, PASS, "every array reaches the rule as an argument")


# --- reports ---


def stop_gradient(t: Trial) -> Rows:
    """Say that the definition stops gradients: the verdicts are against automatic."""
    if t.stops_gradients and t.numeric_differs:
        yield Row("stop_gradient", t.subject.name, NOTE,
                  "the definition holds a stop_gradient: judged against automatic, not numeric")  # fmt: skip


def forward_mode(t: Trial) -> Rows:
    """Say whether jax.jvp works."""
    s = t.subject
    try:
        jaxpr = jax.make_jaxpr(lambda p: jax.jvp(lambda *p: s.value("custom", list(p), s.rest), p, p))(tuple(s.points))
        works = not any(_jaxprs.is_backward_only(e) for e in _jaxprs.equations(jaxpr))
    except Exception:
        works = False
    if not works:
        yield Row("forward_mode", s.name, NOTE, "none: jax.jvp and jax.hessian raise; jaxnn.automatic(f) has both")
    else:
        yield Row("forward_mode", s.name, NOTE, "jax.jvp works")


def _residual_bytes(t: Trial, kind: str) -> int:
    s = t.subject

    def saved(points: Arrays, rest: Arrays) -> Any:
        return jax.vjp(lambda *p: s.value(kind, list(p), rest), *points)[1]

    return sum(_bytes(x) for x in jax.tree.leaves(jax.eval_shape(saved, s.points, s.rest)))


def _bytes(x: Any) -> int:
    return int(math.prod(x.shape) * x.dtype.itemsize)


def residuals(t: Trial) -> Rows:
    """Count the bytes that the forward pass keeps, and those that the backward rule never reads."""
    kinds = ["custom"] if t.no_automatic else ["custom", "automatic"]
    for kind in kinds:
        t.costs.setdefault(kind, {})["residual_bytes"] = _residual_bytes(t, kind)
    counts = ", ".join(f"{kind} keeps {t.costs[kind]['residual_bytes']:,} bytes" for kind in kinds)
    yield Row("residuals", t.subject.name, NOTE, counts)
    for rule in t.backward_rules:
        for i in _jaxprs.unused_inputs(rule.jaxpr):
            if i < len(rule.residuals) and (size := _bytes(rule.residuals[i])):
                kept = f"residual {i} ({rule.residuals[i].str_short()}, {size:,} bytes) is kept and never read"
                yield Row("residuals", rule.name, NOTE, kept)


def cost(t: Trial) -> Rows:
    """Compare what XLA compiled: arithmetic, memory traffic, temporary memory and time of value and gradient."""
    s = t.subject
    kinds = ["custom"] if t.no_automatic else ["custom", "automatic"]
    for kind in kinds:
        t.gradients(kind, s.points, t.dy)  # compiled, if it was not yet
    programs = {kind: s.native[kind] for kind in kinds if kind in s.native}
    times = _milliseconds(t, programs)
    for kind, program in programs.items():
        found, memory = program.cost_analysis() or {}, program.memory_analysis()
        costs = t.costs.setdefault(kind, {})
        costs["flops"], costs["bytes_accessed"] = (float(found.get(k, math.nan)) for k in ("flops", "bytes accessed"))
        costs["temporary_bytes"] = float(getattr(memory, "temp_size_in_bytes", math.nan))
        costs["milliseconds"] = times[kind]
        yield Row("cost", kind, NOTE, f"{costs['flops']:,.0f} flops, {costs['bytes_accessed']:,.0f} bytes moved, "
                  f"{costs['temporary_bytes']:,.0f} bytes of temporaries, {times[kind]:.3g} ms")  # fmt: skip


def _milliseconds(t: Trial, programs: dict[str, Any]) -> dict[str, float]:
    """Run the programs in turn, and return the median time of each."""
    taken: dict[str, list[float]] = {kind: [] for kind in programs}
    started = time.perf_counter()
    while any(len(v) < 3 for v in taken.values()) or time.perf_counter() - started < 0.1:
        for kind, program in programs.items():
            before = time.perf_counter()
            jax.tree.map(lambda x: x.block_until_ready(), program(t.subject.points, t.subject.rest, t.dy))
            taken[kind].append(1e3 * (time.perf_counter() - before))
    return {kind: float(np.median(v)) for kind, v in taken.items()}


def _worst(a: Any, b: Any, wrong: Any) -> tuple[int, ...]:
    with np.errstate(all="ignore"):
        off = np.where(wrong, np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf), -1.0)
    return tuple(int(k) for k in np.unravel_index(int(np.argmax(off)), off.shape))


def _index(i: Any) -> str:
    return f"[{', '.join(str(int(k)) for k in i)}]" if len(i) else ""


def _real(x: Any) -> float:
    return float(np.real(x))


def _spacing(x: float, dtype: Any) -> float:
    """Return the distance from x to the next number of the dtype."""
    return float(finfo(dtype).eps) * 2.0 ** math.floor(math.log2(x)) if 0 < x < math.inf else math.nan


def _largest(x: Any) -> float:
    return float(np.nanmax(np.where(np.isfinite(x), x, 0.0), initial=0.0))


# In order. Those up to `linearity` are the quick core, level="rule"; the last four report and never fail.
RULE: dict[str, Callable[[Trial], Rows]] = {f.__name__: f for f in (types, primal, gradient, linearity)}
FULL: dict[str, Callable[[Trial], Rows]] = RULE | {
    f.__name__: f
    for f in (
        integers, kinks, extremes, precision, staging, vmap, shard_map, second_order, determinism, closure,
        stop_gradient, forward_mode, residuals, cost,
    )
}  # fmt: skip
