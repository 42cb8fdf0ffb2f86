"""The verdict: right or wrong by proof, else unproven, with a cure that leads to one of the two."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from rules_to_check import X, with_rule
from zoo.unproven import UNPROVEN, on_host

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


HELPER = """
from jax import lax

def straight_through(x, y):
    return x + lax.stop_gradient(y - x)
"""


def by_helper(x):
    from rounding_of_a_package import straight_through

    return straight_through(x, jnp.round(x))


def mixed(x):
    """Hold one factor constant in every step of a loop."""
    return lax.scan(lambda c, v: (c, lax.stop_gradient(jnp.exp(v)) * v), 0.0, x)[1]


STRAIGHT = {
    "in the function": (lambda x: x + lax.stop_gradient(jnp.round(x) - x), jnp.ones_like),
    "by tree.map": (lambda x: x + jax.tree.map(lax.stop_gradient, [jnp.round(x) - x])[0], jnp.ones_like),
    "by a package": (by_helper, jnp.ones_like),
    "in a loop": (mixed, jnp.exp),
    "in JAX's log_softmax": (lambda x: jnp.exp(jax.nn.log_softmax(jnp.stack([x, 0 * x]), 0)[0]),
                                       lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)),
}  # fmt: skip


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.01, "wrong")])
@pytest.mark.parametrize("where", STRAIGHT)
def test_what_a_stop_gradient_holds_constant_is_no_mistake_and_hides_none(
    where, factor, verdict, tmp_path, monkeypatch
):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "rounding_of_a_package.py").write_text(HELPER)
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    monkeypatch.delitem(sys.modules, "rounding_of_a_package", raising=False)
    f, derivative = STRAIGHT[where]
    rule = with_rule(f, lambda x: (f(x), x), lambda x, dy: (factor * dy * derivative(x),))
    assert gradcheck.check(rule, jnp.array([0.3, -1.2, 2.6]), level="rule").verdict == verdict


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.1, "wrong")])
def test_a_numeric_derivative_is_no_truth_for_an_argument_that_is_held_constant(factor, verdict):
    def scaled(x):
        return on_host(np.sin)(x) * lax.stop_gradient(x)

    f = with_rule(scaled, lambda x: (scaled(x), x), lambda x, dy: (factor * dy * jnp.cos(x) * x,))
    (row,) = gradcheck.check(f, X, level="rule").undecided
    assert "stop_gradient" in row.message and "reference=" in row.message
    reference = lambda x: jnp.sin(x) * lax.stop_gradient(x)  # noqa: E731
    assert gradcheck.check(f, X, level="rule", reference=reference).verdict == verdict


@pytest.mark.parametrize("transpose", [jnp.transpose, lambda a: a])
def test_an_argument_beside_one_that_is_held_constant_is_judged(transpose):
    def solve(a, b):
        return lax.custom_linear_solve(
            lambda x: a @ x, b, lambda _, b: jnp.linalg.solve(a, b), lambda _, b: jnp.linalg.solve(transpose(a), b)
        )

    a, b = jnp.array([[3.0, 1.0], [-1.0, 2.0]]), jnp.array([1.0, -0.5])
    report = gradcheck.check(lambda a, b: solve(lax.stop_gradient(a), b), a, b, level="rule")
    assert report.verdict == ("unproven" if transpose is jnp.transpose else "wrong")
    assert {row.path for row in report.undecided} == {"a"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.1, "wrong")])
def test_float64_is_a_cure_where_f_has_arrays_of_its_own(factor, verdict):
    def check(dtype):
        one = jnp.ones(2, dtype)  # in float64 JAX's strict product does not take it in float32
        f = lambda x: on_host(lambda x: 1e6 + np.sin(x))(lax.mul(x, one))  # noqa: E731
        rule = with_rule(f, lambda x: (f(x), x), lambda x, dy: (factor * dy * jnp.cos(x),))
        return gradcheck.check(rule, jnp.array([1e-3, 0.5], dtype), level="rule")

    report = check("float32")
    assert report.verdict == "unproven" and "JAX_ENABLE_X64=1" in report.failed_lines(), report
    with jax.enable_x64(True):
        assert check("float64").verdict == verdict


def test_where_f_is_not_finite_its_second_derivative_convicts_nobody():
    @jax.custom_vjp
    def root(x):
        return jax.pure_callback(np.sqrt, x, x, vmap_method="expand_dims")

    root.defvjp(lambda x: (root(x), x), lambda x, dy: (dy * 0.5 / jnp.sqrt(x),))
    assert gradcheck.check(root, jnp.array([-1.0]), skip=("shard_map",)).verdict == "unproven"


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.001, "wrong")])
def test_where_automatic_is_wrong_the_rule_may_round_as_its_dtype_does(factor, verdict):
    """The definition is linear in w; its `where` gives JAX the derivative 0 at w = 0. log_softmax there loses digits."""

    @jax.custom_jvp
    def weighted(x, w):
        log_p = jax.nn.log_softmax(x)
        return jnp.where(w != 0, w * log_p, jnp.zeros_like(log_p))

    @weighted.defjvp
    def _(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        dlog_p = dx - jnp.sum(dx * jax.nn.softmax(x), keepdims=True)
        slope = jnp.where(w == 0, jnp.asarray(factor, x.dtype), jnp.ones((), x.dtype))
        return weighted(x, w), w * dlog_p + dw * slope * jax.nn.log_softmax(x)

    x, w = jnp.array([10.0, 1.0, 0.5]), jnp.array([0.0, 1.0, 0.0])
    assert gradcheck.check(weighted, x, w, level="rule").verdict == verdict
    infinite = gradcheck.check(weighted, jnp.array([-jnp.inf, 1.0, 0.5]), jnp.array([0.5, 1.0, 0.0]), level="rule")
    assert infinite.verdict == ("unproven" if factor == 1 else "wrong"), "numeric leaves infinite outputs out"


@pytest.mark.parametrize(("changes", "verdict"), [(True, "unproven"), (False, "wrong")])
def test_a_function_that_changes_what_it_reads_proves_nothing(changes, verdict):
    """As a layer does that counts its calls, to draw other random numbers each time."""
    calls = []

    @jax.custom_vjp
    def noisy(x):
        calls.append(changes)
        return x * sum(calls, 1.0)

    noisy.defvjp(lambda x: (noisy(x), x), lambda x, dy: (2 * dy,))
    report = gradcheck.check(noisy, jnp.array([1.0, 2.0]), level="rule")
    if changes and getattr(jax.config, "jax_custom_vjp3", False):
        pytest.skip("JAX remembers the trace of a function that has a rule: it does not change")
    assert report.verdict == verdict
    assert ("traced again" in report.failed_lines()) == changes
