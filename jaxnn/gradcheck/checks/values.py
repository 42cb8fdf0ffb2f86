"""The checks at the arguments given: types, values, linearity, and arguments that have no gradient."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck.report import FAIL, NOTE, PASS, Row
from jaxnn.gradcheck.tolerance import differs, finfo, index_text, largest_finite, underflow_limit, worst_index
from jaxnn.tracing import jaxprs
from jaxnn.tracing.backward import BackwardRule, cotangent_type
from jaxnn.tracing.functions import random_values

REFERENCE_ROUNDING = 16  # times the allowed error: a reference may add up in another order, or by another algorithm
LINEAR_ROUNDING = 64  # times the allowed error, relative to each element: for a reference no response is computed


def types(t: Trial) -> Findings:
    """Each cotangent has exactly its argument's shape and dtype."""
    s = t.subject
    _, cotangents = s.run("vjp", "custom", s.points, s.rest, t.dy)
    for path, x, ct in zip(s.paths, s.points, cotangents, strict=True):
        want, got = (f"{v.dtype}{list(v.shape)}" for v in (x, ct))
        if want == got:
            yield Row("types", path, PASS, f"the cotangent is {got}")
        else:
            t.wrong_types = True
            yield Row("types", path, FAIL, f"the cotangent is {got}, must be {want} like the argument",
                      f"end the backward rule with .astype({path}.dtype)")  # fmt: skip


def primal(t: Trial) -> Findings:
    """The forward rule returns what f returns."""
    s = t.subject
    plain = s.run("value", "custom", s.points, s.rest)
    by_rule, _ = s.run("vjp", "custom", s.points, s.rest, t.dy)
    responses = [np.abs(as64(y)) for y in plain] if t.no_float64 else t.value_responses
    for path, y, r, response in zip(s.output_paths, plain, by_rule, responses, strict=True):
        finite = np.where(np.isfinite(response), response, 0.0)  # an infinity must be the same infinity
        allowed = 2 * t.factor(y.dtype) * finite + float(finfo(y.dtype).tiny)  # 2: both are rounded
        wrong = differs(a := as64(r), b := as64(y), allowed)
        if wrong.any() and not t.no_float64:
            wrong = differs(a, b, allowed + 4 * t.values_error * finite)
        if wrong.any():
            i = worst_index(a, b, wrong)
            yield Row(
                "primal", path, FAIL, f"the forward rule returns {a[i]:.6g} at {index_text(i)}, f returns {b[i]:.6g}"
            )
        else:
            yield Row("primal", path, PASS, "the forward rule returns what f returns")
    if s.other_outputs:
        plain, by_rule = (s.run(each, "custom", s.points, s.rest) for each in ("others", "others_by_forward_rule"))
        yield from _compare_exactly(s.other_outputs, by_rule, plain, "the forward rule", "f", FAIL)
    if s.reference is not None:
        yield from _compare_with_reference(t)


def _compare_exactly(names: list[str], a: Arrays, b: Arrays, who: str, whom: str, status: str) -> Findings:
    """Compare outputs that are not floating-point; `status` is what a difference is."""
    for name, x, y in zip(names, a, b, strict=True):
        different = int((np.asarray(x) != np.asarray(y)).sum())
        if different:
            message = f"{who} and {whom} return different {name}: {different} of {x.size} elements"
            yield Row("primal", name, status, message)
        else:
            yield Row("primal", name, PASS, f"{who} returns what {whom} returns")


def _compare_with_reference(t: Trial) -> Findings:
    """A function without a derivative, such as a kernel, must return what its reference does; others need not."""
    s = t.subject
    differ = FAIL if t.no_definition else NOTE
    values, references = (s.run("value", kind, s.points, s.rest) for kind in ("custom", "automatic"))
    for path, y, r in zip(s.output_paths, values, references, strict=True):
        a, b = as64(y), as64(r)
        scale = largest_finite(np.abs(b))
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        off = float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
        if y.dtype != r.dtype:
            yield Row("primal", path, differ, f"f returns {y.dtype}, the reference {r.dtype}")
        elif off <= max(REFERENCE_ROUNDING * t.factor(jnp.float32), t.factor(y.dtype)) * scale:
            yield Row("primal", path, PASS, "f returns what the reference returns")
        else:
            yield Row("primal", path, differ, f"f and the reference differ by up to {off:.3g} in value")
    if s.other_outputs:
        ours, theirs = (s.run("others", kind, s.points, s.rest) for kind in ("custom", "automatic"))
        if [x.shape for x in ours] == [x.shape for x in theirs]:
            yield from _compare_exactly(s.other_outputs, ours, theirs, "f", "the reference", differ)
        else:
            message = "f's integer, boolean and key outputs have other shapes than the reference's"
            yield Row("primal", s.name, differ, message)


def linearity(t: Trial) -> Findings:
    """The rule is linear in the cotangent: bwd(a g + b h) = a bwd(g) + b bwd(h), and bwd(0) = 0."""
    s = t.subject
    if _reference_is_not_linear(t):
        yield Row("linearity", s.name, NOTE, "the reference's rule is not linear in the cotangent either")
        return
    for combination in _combinations(t):
        found = t.gradients("custom", s.points, combination.dy)
        for leaf, path in enumerate(s.paths):
            expected = combination.expected[leaf]

            def allowed(leaf: int = leaf, of: Combination = combination) -> Any:
                both = t.allowed(leaf) + (t.allowed(leaf, second=True) if of.has_second else 0.0)
                return 2 * of.scale * both + underflow_limit(t.dtype)

            wrong = t.differing(found[leaf], expected, allowed) & np.isfinite(t.custom[leaf])
            if wrong.any():
                i = worst_index(found[leaf], expected, wrong)
                message = f"{combination.name} is {found[leaf][i]:.6g} at {index_text(i)}, must be {expected[i]:.6g}"
                yield Row("linearity", path, FAIL, message, "a clipped, squared or ignored cotangent")
                return
    yield Row("linearity", s.name, PASS, "bwd is linear in the cotangent")


class Combination(NamedTuple):
    """A combination of cotangents, and the same combination of the rule's results, which it must give."""

    name: str
    dy: Arrays
    expected: Arrays
    scale: float  # how large the result is beside bwd(g)
    has_second: bool = False  # whether bwd(h) is part of the result


def _combinations(t: Trial) -> Iterator[Combination]:
    # Powers of two, so that scaling rounds nothing; float16 has no room for more than 2**4.
    large = 2.0 ** (12 if finfo(t.dtype).max > 1e30 else 4)
    nothing = [np.zeros_like(b) for b in t.custom]
    yield Combination(
        "bwd(g + h)", [a + b for a, b in zip(t.dy, t.second_dy, strict=True)],
        [a + b for a, b in zip(t.custom, t.second_custom, strict=True)], 2.0, has_second=True,
    )  # fmt: skip
    for name, factor in ((f"bwd({large:.0f} g)", large), (f"bwd(g / {large:.0f})", 1 / large)):
        scaled = [(factor * a).astype(a.dtype) for a in t.dy]
        yield Combination(name, scaled, [factor * a for a in t.custom], factor)
    yield Combination("bwd(0)", [jnp.zeros_like(a) for a in t.dy], nothing, 2.0)


def _reference_is_not_linear(t: Trial) -> bool:
    """Whether the reference has a rule of its own that is not linear in the cotangent."""
    if t.subject.reference is None:
        return False
    scales = (1024, 2.0**-10)
    once, *many = (
        t.gradients("automatic", t.subject.points, [(a * k).astype(a.dtype) for a in t.dy]) for k in (1, *scales)
    )
    return any(
        differs(scaled, k * one, LINEAR_ROUNDING * t.factor(t.dtype) * np.abs(k * one)).any()
        for k, group in zip(scales, many, strict=True) for scaled, one in zip(group, once, strict=True)
    )  # fmt: skip


def integers(t: Trial) -> Findings:
    """Integer, boolean and key arguments have no gradient; JAX silently drops one that a rule returns."""
    for rule in t.backward_rules:
        for position, primal in enumerate(rule.primals):
            if jnp.issubdtype(primal.dtype, np.inexact):
                continue
            path = f"{rule.name}{rule.paths[position]}"
            returned = position in rule.positions
            if returned and "<flat index" in rule.paths[position]:  # a class such as BCOO may not take None
                message = f"JAX drops what the rule returns for an array of dtype {primal.dtype} inside of a class"
                yield Row("integers", path, PASS, message)
            elif returned and _is_nonzero(rule, rule.positions.index(position)):
                given = f"the rule returns a gradient for an argument of dtype {primal.dtype}, which JAX drops"
                yield Row("integers", path, FAIL, given, "return None for it")
            else:
                yield Row(
                    "integers", path, PASS, f"the rule returns no gradient for an argument of dtype {primal.dtype}"
                )


def _is_nonzero(rule: BackwardRule, position: int) -> bool:
    """Whether a cotangent of the rule is not 0, at random residuals and output cotangents."""
    given = random_values([*rule.residuals, *map(cotangent_type, rule.outputs)])
    with np.errstate(all="ignore"):
        return bool(np.any(as64(jaxprs.run(rule.jaxpr, *given)[position]) != 0))
