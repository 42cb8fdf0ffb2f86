"""The verdict: right or wrong by proof, else unproven, with a cure that leads to one of the two."""

import jax
import jax.numpy as jnp
import pytest
from rules_to_check import X, with_rule
from zoo.unproven import UNPROVEN

from jaxnn import gradcheck


@pytest.mark.one_in(4)
@pytest.mark.parametrize("id", UNPROVEN)
def test_what_is_unproven_has_a_cure(id):
    f, derivative, x, cured, verdict = UNPROVEN[id]
    rule = with_rule(f, lambda x: (f(x), x), lambda x, dy: ((dy * derivative(x)).astype(x.dtype),))
    report = gradcheck.check(rule, jnp.array(x), level="rule")
    assert report.verdict == "unproven" and not report.ok, report
    (row,) = report.undecided
    assert "reference=" in row.message if "reference" in cured else "arguments" in row.message
    with pytest.raises(AssertionError, match="unproven"):
        gradcheck.assert_correct(rule, jnp.array(x), level="rule")
    options = {name: value for name, value in cured.items() if name != "x"}
    assert gradcheck.check(rule, jnp.array(cured.get("x", x)), level="rule", **options).verdict == verdict


def test_a_function_without_a_rule_keeps_its_verdict_and_the_summary_says_so():
    report = gradcheck.check(lambda x: jnp.sin(x), X, level="rule")
    assert report.ok and "no custom rule found" in str(report).splitlines()[0]
    sine = with_rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))
    report = gradcheck.check(sine, X, level="rule")
    assert report.ok and "no custom rule" not in str(report)
    assert report.to_dict()["verdict"] == "right"


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.01, "wrong")])
def test_a_low_precision_argument_is_judged_in_float32_too(factor, verdict):
    f = with_rule(
        lambda x, w: x * w[None], lambda x, w: (x * w[None], (x, w)),
        lambda r, g: (g * r[1][None], (factor * jnp.sum((g * r[0]).astype(jnp.float32), 0)).astype(r[1].dtype)),
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (256, 8)).astype(jnp.bfloat16) + 1
    w = jax.random.normal(jax.random.key(1), (8,)).astype(jnp.bfloat16)
    assert gradcheck.check(f, x, w, level="rule").verdict == verdict
