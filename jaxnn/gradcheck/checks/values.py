"""The checks at the arguments given: types, values, linearity, and arguments without a gradient."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck import _numeric
from jaxnn.gradcheck._conventions import inside
from jaxnn.gradcheck._hints import hint
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._tolerance import finfo, index_text, largest_of, smallest, spacing, worst
from jaxnn.gradcheck._trial import LARGE, Rows, Trial, beyond, few
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, NOTE, PASS, UNSUPPORTED, Evidence, Row
from jaxnn.tracing import jaxprs, kinds
from jaxnn.tracing.functions import first_line


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
        finite = np.where(np.isfinite(response), response, 0.0)  # what is infinite has to be the same infinity
        wrong = beyond(a := as64(r), b := as64(y), 2 * t.factor * finite + float(finfo(y.dtype).tiny))
        if wrong.any():
            i = worst(a, b, wrong)
            yield Row(
                "primal", path, FAIL, f"the forward rule returns {a[i]:.6g} at {index_text(i)}, f returns {b[i]:.6g}"
            )
        else:
            yield Row("primal", path, PASS, "the forward rule returns what f returns")
    if s.other_outputs:
        plain_others = s.run("others_of", "custom", s.points, s.rest)
        ruled_others = s.run("others_as_ruled", "custom", s.points, s.rest)
        yield from _same(s.other_outputs, ruled_others, plain_others, "the forward rule", "f", FAIL)
    if s.reference is not None:
        yield from _against_reference(t, plain)


def _same(names: list[str], a: Arrays, b: Arrays, who: str, whom: str, differ: str) -> Rows:
    """Compare outputs that are not floating-point."""
    for name, x, y in zip(names, a, b, strict=True):
        different = int((np.asarray(x) != np.asarray(y)).sum())
        if different:
            yield Row("primal", name, differ, f"{who} returns another {name} than {whom}, at {different} of {x.size}")
        else:
            yield Row("primal", name, PASS, f"{who} returns what {whom} returns")


def _against_reference(t: Trial, plain: Arrays) -> Rows:
    """A kernel must compute what its reference does; a straight-through function need not."""
    s = t.subject
    differ = FAIL if t.no_definition else NOTE
    for path, y, r in zip(s.output_paths, plain, s.run("value", "automatic", s.points, s.rest), strict=True):
        a, b = as64(y), as64(r)
        scale = largest_of(np.abs(b))
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        off = float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
        if y.dtype != r.dtype:
            yield Row("primal", path, differ, f"f returns {y.dtype}, the reference {r.dtype}")
        elif off <= 16 * t.factor * scale:
            yield Row("primal", path, PASS, "f returns what the reference returns")
        else:
            yield Row("primal", path, differ, f"f and the reference differ by up to {off:.3g} in value")
    if s.other_outputs:
        ours, theirs = (s.run("others_of", kind, s.points, s.rest) for kind in ("custom", "automatic"))
        if [x.shape for x in ours] == [x.shape for x in theirs]:
            yield from _same(s.other_outputs, ours, theirs, "f", "the reference", differ)
        else:
            yield Row("primal", s.name, differ, "the reference does not return f's integers")


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
    if t.has_symbolic_zeros and len(s.outputs) > 1:
        yield from _each_output_differentiated_alone(t)


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
        t.look_closer()
        return _judge(t, leaf)
    if not wrong.any() and (custom64 := t.wide_custom) is not None and not t.no_oracle:
        # In float64 the same comparison is a billion times sharper, unless the rule computes in float32 throughout.
        narrow = t.base.allowed(leaf, max(t.factor, 64 * 2.0**-23), jnp.float32)
        wrong = beyond(custom64[leaf], truth, narrow) & ~(np.isnan(truth) & np.isfinite(custom64[leaf]))
        custom = custom64[leaf] if wrong.any() else custom
    error = largest_of(np.abs(custom - truth))
    t.note_error("automatic", error / (largest_of(np.abs(truth)) or 1.0))
    slope, agrees = _numeric_agrees(t, leaf)
    if wrong.any():
        return _explain(t, leaf, custom, truth, allowed, wrong)
    close = f"error {error:.2g} of {largest_of(np.abs(truth)):.2g}"
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
    if not np.isfinite(as64(s.points[leaf])).any():
        return row(INCONCLUSIVE, "custom and automatic agree, but nothing of it is finite; give arguments that are")
    return row(INCONCLUSIVE, f"custom and automatic agree, {close}, but numeric gives {slope.value:.6g} for "
               f"{_numeric.dot([t.custom[leaf]], [t.last_direction[leaf]]):.6g} along a direction; "
               "is f a function of its arguments alone?")  # fmt: skip


def _judge_numerically(t: Trial, leaf: int) -> Row:
    row = functools.partial(Row, "gradient", t.subject.paths[leaf])
    slope, agrees = _numeric_agrees(t, leaf)
    if agrees:
        return row(PASS, f"custom and numeric agree within {slope.error:.2g} of {abs(slope.value):.2g}")
    if not all(np.isfinite(as64(y)).all() for y in t.subject.run("value", "custom", t.subject.points, t.subject.rest)):
        return row(INCONCLUSIVE, "f is not finite here: there is no numeric derivative; give arguments at which it is")
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
        finite = np.flatnonzero(np.isfinite(x[leaf]))
        directions = [_numeric.coordinate(x, leaf, int(i)) for i in (finite if finite.size else [0])]
        if np.iscomplexobj(x[leaf]):
            directions += [_numeric.turned(v) for v in directions]
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
        margin = math.sqrt(_numeric.dot([np.square(np.abs(v[leaf]))], [np.square(np.nan_to_num(t.allowed(leaf)))]))
        if not abs(found - slope.value) <= 3 * slope.error + 4 * margin + 1e-6 * abs(slope.value) + 1e-300:
            return slope, False
    return slope, True


def _explain(t: Trial, leaf: int, custom: Any, truth: Any, allowed: Any, wrong: Any) -> Row:
    """The rule and JAX's derivative differ: who is right?"""
    s = t.subject
    row = functools.partial(Row, "gradient", s.paths[leaf])
    excess = np.where(wrong, np.nan_to_num(np.abs(custom - truth) / np.maximum(allowed, 1e-300), nan=np.inf), -1.0)
    order = np.argsort(excess, axis=None)[::-1][: int(wrong.sum())]
    # The worst, and some of all: behind conventions at kinks, which are as far off as can be, a mistake may hide.
    ranked = dict.fromkeys([*order[:8], *few(order, 8 if t.level == "rule" else 32)])
    at_kinks = False
    for flat in ranked:
        i = np.unravel_index(int(flat), custom.shape)
        direction = _numeric.coordinate([as64(p) for p in s.points], leaf, int(flat))
        slope, length = t.slope(s.points, t.dy, direction), float(np.real(direction[leaf].reshape(-1)[flat]))
        numeric: complex = slope.value / length
        error = slope.error / length
        if np.iscomplexobj(truth):  # Re(g v) along v, and along i v
            numeric -= 1j * t.slope(s.points, t.dy, _numeric.turned(direction)).value / length
        if slope.kinked and inside(t, s.points, leaf, int(flat)):
            at_kinks = True
            continue
        margin = 3 * error + allowed[i] + 1e-5 * abs(numeric) if np.isfinite(numeric) else 0.0
        like_custom, like_automatic = (v == numeric or abs(v - numeric) <= margin for v in (custom[i], truth[i]))
        trusted = np.isnan(truth[i]) or not t.stops_gradients  # numeric, which no stop_gradient stops
        if like_custom and not like_automatic and not slope.kinked and trusted:
            continue
        agree = "automatic and numeric agree" if like_automatic else "no two agree"
        exact = None if t.wide_custom is None else t.wide_custom[leaf]
        t.wrong_anyway = exact is None or bool(
            beyond(exact, truth, t.base.allowed(leaf, 64 * 2.0**-23, jnp.float32)).any()
        )
        absolute = float(abs(custom[i] - truth[i])) if np.isfinite(truth[i]) else math.inf
        unit = spacing(float(abs(truth[i])), s.points[leaf].dtype)
        evidence = Evidence(
            tuple(int(k) for k in i), custom[i].item(), truth[i].item(), numeric, absolute,
            absolute / float(abs(truth[i])) if truth[i] else math.inf, absolute / unit if unit else math.nan,
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


def _each_output_differentiated_alone(t: Trial) -> Rows:
    """And which outputs have a cotangent."""
    s = t.subject
    for k, path in enumerate(s.output_paths[:8]):

        def alone(*points: Any, k: int = k) -> Any:
            return s.value("custom", list(points), s.rest)[k]

        expected = t.gradients("custom", s.points, [d if i == k else jnp.zeros_like(d) for i, d in enumerate(t.dy)])
        try:
            found = jax.jit(lambda dy, *points: jax.vjp(alone, *points)[1](dy))(t.dy[k], *s.points)
        except Exception as error:
            yield Row("gradient", path, FAIL, f"with this output alone differentiated, it raises {first_line(error)}")
            continue
        pairs = enumerate(zip(found, expected, strict=True))
        if any(beyond(as64(f), e, 2 * t.allowed(leaf)).any() for leaf, (f, e) in pairs):
            yield Row("gradient", path, FAIL, "with this output alone differentiated, it is another gradient")
        else:
            yield Row("gradient", path, PASS, "the same with this output alone differentiated")


def linearity(t: Trial) -> Rows:
    """The rule is linear in the cotangent: bwd(a g + b h) = a bwd(g) + b bwd(h), and bwd(0) = 0."""
    s = t.subject
    other = s.cotangents(t.seed, 1)
    large = 2.0 ** (12 if finfo(t.dtype).max > 1e30 else 4)
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
            allowed = allowed + smallest(t.dtype)
            wrong = beyond(found[leaf], expected[leaf], allowed) & np.isfinite(t.custom[leaf])
            if wrong.any():
                i = worst(found[leaf], expected[leaf], wrong)
                is_, wants = f"{found[leaf][i]:.6g} at {index_text(i)}", f"{expected[leaf][i]:.6g}"
                message = f"{name} is {is_}, linearity wants {wants}"
                yield Row("linearity", path, FAIL, message, "a clipped, squared or forgotten cotangent")
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


def _is_nonzero(rule: kinds.BackwardRule, position: int) -> bool:
    rng = np.random.default_rng(0)

    def example(aval: Any, floats: bool) -> Any:
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), aval.shape) if aval.shape else jax.random.key(0)
        if not jnp.issubdtype(aval.dtype, np.inexact):
            return np.zeros(aval.shape, jax.dtypes.float0) if floats else jnp.ones(aval.shape, aval.dtype)
        return jnp.asarray(rng.uniform(0.5, 1.5, aval.shape)).astype(aval.dtype)

    given = [*(example(a, False) for a in rule.residuals), *(example(a, True) for a in rule.outputs)]
    with np.errstate(all="ignore"):
        return bool(np.any(as64(jaxprs.evaluate(rule.jaxpr, *given)[position]) != 0))
