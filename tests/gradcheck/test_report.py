"""The report: what is wrong, where, and which mistake it looks like; as text, as JSON, and in an exception."""

import json

import jax
import jax.numpy as jnp
import pytest
from rules_to_check import W, X, dense, scaled

import jaxnn
from jaxnn import gradcheck


def test_the_report_says_what_is_wrong_and_where():
    report = gradcheck.check(dense, X, W)
    (row,) = report.failures
    assert not report.ok
    assert (row.check, row.path, row.hint) == ("gradient", "w", "the sign: minus the derivative")
    evidence = row.evidence
    assert evidence.agree == "automatic and numeric agree"
    assert evidence.custom == pytest.approx(-evidence.automatic) == pytest.approx(-evidence.numeric, rel=1e-5)
    assert evidence.absolute == pytest.approx(2 * abs(evidence.automatic)) and evidence.relative == pytest.approx(2)
    assert 2**24 <= evidence.ulp <= 2**25
    text = str(report)
    assert f"w[{', '.join(map(str, evidence.index))}]" in text and "hint: the sign" in text and "seed=0" in text
    assert {row.status for row in report.rows} >= {"PASS", "FAIL", "NOTE", "UNSUPPORTED"}


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_the_table_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, str(gradcheck.check(dense, X, W, level="rule")).splitlines())) <= max(columns, 80)


def test_the_report_as_json():
    report = gradcheck.check(dense, X, W)
    back = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert back["ok"] is False and len(back["rows"]) == len(report.rows)
    assert {"residual_bytes", "flops", "temporary_bytes", "milliseconds"} <= set(back["costs"]["custom"])
    assert back["sweep"] and back["errors"]["automatic"] == pytest.approx(2)


def test_assert_correct():
    gradcheck.assert_correct(jaxnn.tanh, X, level="rule")
    with pytest.raises(AssertionError, match="the sign") as error:
        gradcheck.assert_correct(dense, X, W, level="rule")
    lines = str(error.value).splitlines()
    assert len(lines) <= 30 and not any(line.startswith("PASS") for line in lines)


def test_assert_correct_is_brief():
    params = {f"w{i}": X + i for i in range(12)}  # four lines each
    wrong = scaled(3.0)
    with pytest.raises(AssertionError) as error:
        gradcheck.assert_correct(lambda params: jax.tree.map(wrong, params), params, level="rule")
    lines = str(error.value).splitlines()
    assert len(lines) <= 30 and "and more" in lines[-2]


def test_the_repro_line_runs():
    report = gradcheck.check(dense, X, W, level="rule", argnums=1, seed=5)
    again = eval(report.repro, {"gradcheck": gradcheck, "dense": dense, "args": (X, W)})
    assert str(again) == str(report)


def test_the_seed_chooses_the_cotangents():
    values = {gradcheck.check(dense, X, W, level="rule", seed=s).failures[0].evidence.custom for s in (0, 1, 1)}
    assert len(values) == 2


HINTS = {
    "sign": (lambda x, w, dy: (-dy @ w.T, x.T @ dy), "the sign"),
    "factor": (lambda x, w, dy: (2 * (dy @ w.T), x.T @ dy), "a constant factor: 2 times"),
    "transpose": (lambda x, w, dy: (dy @ w.T, (x.T @ dy).T), "a transpose"),
    "zero": (lambda x, w, dy: (dy @ w.T, jnp.zeros_like(w)), "zero everywhere"),
    "order": (lambda x, w, dy: (x.T @ dy, dy @ w.T), "the order of the returned cotangents"),
    "reversed": (lambda x, w, dy: ((dy @ w.T)[::-1], x.T @ dy), "reversed along axis 0"),
    "averaged": (lambda x, w, dy: (dy @ w.T, jnp.broadcast_to((x.T @ dy).mean(0), w.shape)), "over axis 0"),
    "positive": (
        lambda x, w, dy: (jnp.where(x > 0, 2.0, 1.0) * (dy @ w.T), x.T @ dy),
        "only where the argument is > 0",
    ),
    "one": (lambda x, w, dy: (dy @ w.T, (x.T @ dy).at[0, 1].add(1)), "wrong at 1 of 16"),
    "not finite": (lambda x, w, dy: (dy @ w.T / 0, x.T @ dy), "not finite"),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", HINTS)
def test_hints(name):
    bwd, hint = HINTS[name]
    f = jax.custom_vjp(lambda x, w: x @ w)
    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda residuals, dy: bwd(*residuals, dy))
    report = gradcheck.check(f, X[:4], W, level="rule")
    assert any(hint in row.hint for row in report.failures), report


def normalize(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def centre(x):
    return x - x.mean(-1, keepdims=True)


TYPICAL = {  # f, the rule from the output y, the hint
    "tanh": (jnp.tanh, lambda x, y, g: g * (1 - y), "1 − y in place of 1 − y²"),
    "exp": (jnp.exp, lambda x, y, g: g, "a factor is missing: y, the output"),
    "square-of-exp": (jnp.exp, lambda x, y, g: g * y * y, "a factor too many: y, the output"),
    "softmax": (jax.nn.softmax, lambda x, y, g: g * y, "in proportion to the output: the derivative through a sum"),
    "norm": (
        normalize, lambda x, y, g: g / jnp.linalg.norm(x, axis=-1, keepdims=True),
        "in proportion to the argument: the derivative through a norm",
    ),
    "mean": (centre, lambda x, y, g: g, "the same along the last axis: the derivative through a mean"),
    "cotangent": (jnp.sin, lambda x, y, g: jnp.cos(x), "a cotangent of ones: multiply by the cotangent"),
}  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", TYPICAL)
def test_hints_of_typical_mistakes(name):
    f, bwd, hint = TYPICAL[name]
    rule = jax.custom_vjp(lambda x: f(x))
    rule.defvjp(lambda x: (f(x), (x, f(x))), lambda r, g: (bwd(*r, g),))
    report = gradcheck.check(rule, X, level="rule")
    assert any(hint in row.hint for row in report.failures), report


def test_the_hint_for_a_missing_sum_over_a_broadcast_axis():
    f = jax.custom_vjp(lambda x, b: x + b[None])
    f.defvjp(lambda x, b: (x + b[None], None), lambda _, dy: (dy, dy))
    (row,) = gradcheck.check(f, X, W[0]).failures
    assert row.check == "signature" and "broadcast axis" in row.hint


def test_a_complex_gradient_and_its_hint():
    """Evidence, hints and JSON of complex numbers; a conjugate is one mistake, the real part another."""
    z = jnp.array([1 + 2j, -3 + 1j], jnp.complex64)
    for wrong, hint in (
        (jnp.conj, "the complex conjugate of"),
        (lambda z: z.real.astype(z.dtype), "only the real part"),
    ):
        f = jax.custom_vjp(lambda z: z * z)
        f.defvjp(lambda z: (z * z, z), lambda z, g, wrong=wrong: (wrong(2 * z * g),))
        (row,) = [row for row in gradcheck.check(f, z, level="rule").failures if row.check == "gradient"]
        assert hint in row.hint and abs(row.evidence.automatic - row.evidence.numeric) < 1e-3
        assert json.dumps(gradcheck.check(f, z, level="rule").to_dict())


def test_a_factor_of_a_complex_gradient_is_real():
    triple = jax.custom_vjp(lambda z: z * z)
    triple.defvjp(lambda z: (z * z, z), lambda z, g: (jnp.complex64(6 + 1e-5j) * z * g,))
    (row,) = gradcheck.check(triple, jnp.array([1 + 2j, -3 + 1j], jnp.complex64), level="rule").failures
    assert row.hint == "a constant factor: 3 times the derivative"


def test_a_small_error_is_not_called_a_constant_factor():
    nearly = jax.custom_vjp(lambda x: 50 * jnp.tanh(x / 50))
    nearly.defvjp(lambda x: (nearly(x), x), lambda x, g: (g,))
    (row,) = gradcheck.check(nearly, jnp.array([0.5, -0.3, 1.2]), level="rule").failures
    assert "factor" not in row.hint


@pytest.mark.more
def test_of_a_derivative_that_is_wrong_in_every_precision_no_precision_is_blamed():
    cube = jax.custom_vjp(lambda x: x**3)
    cube.defvjp(lambda x: (x**3, x), lambda x, g: (2.91 * g * x**2,))
    report = gradcheck.check(cube, jnp.array([0.5, -0.3, 1.2], jnp.bfloat16))
    assert [row.check for row in report.failures] == ["gradient"]
    (row,) = (row for row in report.rows if row.check == "precision")
    assert row.message == "the gradient is wrong in any precision"
