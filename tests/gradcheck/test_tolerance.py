"""How far an element may be off: the same at every size, in every dtype, and where numbers cancel."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules_to_check import X, scaled, with_rule

import jaxnn
from jaxnn import gradcheck
from jaxnn.gradcheck import _numeric, _trial, checker
from jaxnn.gradcheck.checks import FULL


@pytest.mark.one_in(4)
@pytest.mark.parametrize("size", [1, 10, 1000, 1_000_000])
def test_a_wrong_factor_fails_at_every_size(size):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(size), jnp.float32)
    assert not gradcheck.check(scaled(1.001), x, level="rule").ok
    assert gradcheck.check(scaled(1.0), x, level="rule").ok


def test_one_wrong_element_of_a_million():
    x = jnp.asarray(np.random.default_rng(0).standard_normal(1_000_000), jnp.float32)
    (row,) = gradcheck.check(scaled(1.01, where=123_456), x, level="rule").failures
    assert row.evidence.index == (123_456,) and row.hint == "wrong at 1 of 1000000 elements"


@pytest.mark.parametrize("dtypes", ["every", "float32"])
def test_draws_are_added_to_those_already_made(dtypes, monkeypatch):
    """By turns or at once, the same draws give the same responses; where the rule runs in float32 alone, too."""
    trials = []
    run = checker._run
    monkeypatch.setattr(checker, "_run", lambda trial, checks: trials.append(trial) or run(trial, checks))
    gradcheck.check(oscillating(float32_alone=dtypes == "float32"), X, X + 1, level="rule")
    (t,) = trials
    assert (t.rule_in_float64 is None) == (dtypes == "float32")
    truth_at = functools.partial(t.truth_at, t.subject.points, t.dy)
    one, at_once = truth_at(1), truth_at(5)
    by_turns = truth_at(5, so_far=truth_at(3, so_far=one))
    for leaf in range(2):
        np.testing.assert_array_equal(by_turns.responses[leaf], at_once.responses[leaf])
        assert (one.responses[leaf] < at_once.responses[leaf]).any()
    assert t.second_truth.draws == t.truth.draws
    t.improve_tolerance()
    assert t.second_truth.draws == t.truth.draws


@pytest.mark.parametrize("blind, verdict", [(4, "right"), (math.inf, "wrong")])
def test_an_element_whose_response_the_first_draws_miss_is_not_called_wrong(blind, verdict, monkeypatch):
    """The digits of 1 − tanh² cancel at 4. If the first draws show no response to that, those to come do."""
    response, calls = _trial.response, itertools.count()
    monkeypatch.setattr(_trial, "response", lambda base, at: [r * (next(calls) >= blind) for r in response(base, at)])
    f = with_rule(jnp.tanh, lambda x: (jnp.tanh(x),) * 2, lambda y, dy: (dy * (1 - y * y),))
    accurate = with_rule(jnp.tanh, lambda x: (jnp.tanh(x), x), lambda x, dy: (dy / jnp.cosh(x) ** 2,))
    report = gradcheck.check(f, jnp.linspace(3.5, 4.5, 50), reference=accurate, level="rule", skip=("primal",))
    assert report.verdict == verdict


def oscillating(wrong=1.0, float32_alone=False):
    """cos(50 x y): its elements respond to rounding very differently. Element 7 of dx is `wrong` times too large."""

    def forward(x, y):
        if float32_alone and x.dtype != jnp.float32:
            raise TypeError("float32 only")
        slope = -50 * jnp.sin(50 * x * y)
        return jnp.cos(50 * x * y), (slope * y, slope * x)

    def backward(slopes, dy):
        by_x, by_y = slopes
        factor = jnp.where(jnp.arange(by_x.size) == 7, wrong, 1.0).astype(by_x.dtype).reshape(by_x.shape)
        return dy * by_x * factor, dy * by_y

    return with_rule(lambda x, y: jnp.cos(50 * x * y), forward, backward)


@pytest.mark.parametrize("seed", range(4))
def test_an_element_that_a_draw_has_missed_widens_no_tolerance_of_others(seed):
    """The automatic derivative's error per response is huge at an element whose response no draw has shown yet."""
    x, y = jnp.asarray(np.random.default_rng(seed).uniform(-2, 2, (2, 1000)), jnp.float32)
    for wrong, verdict in ((1.0, "right"), (1.01, "wrong")):
        f = oscillating(wrong, float32_alone=True)
        assert gradcheck.check(f, x, y, level="rule", skip=("primal", "precision")).verdict == verdict


def test_rtol_replaces_8_eps():
    assert gradcheck.check(scaled(1.001), X, level="rule", rtol=0.01).ok


def test_the_numeric_derivative_chooses_its_step_and_knows_its_error():
    for f, truth in ((np.sin, np.cos(1.0)), (np.exp, np.e), (lambda x: x**5, 5.0)):
        for eps in (2.0**-52, 2.0**-23):
            noisy = lambda x, f=f, eps=eps: [f(x[0]) * (1 + eps * np.sin(1e9 * x[0]))]  # noqa: E731
            slope = _numeric.slope(noisy, [np.array([1.0])], [np.array([1.0])], [np.array([1.0])], eps)
            assert abs(slope.value - truth) <= slope.error < 2e-2 * abs(truth)
            assert not slope.kinked
    kink = _numeric.slope(lambda x: [np.abs(x[0])], [np.array([0.0])], [np.array([1.0])], [np.array([1.0])], 2.0**-52)
    assert kink.kinked and kink.interval[0] <= -1 <= 1 <= kink.interval[1]


@pytest.mark.more
def test_arguments_that_are_not_finite():
    report = gradcheck.check(jaxnn.sigmoid, jnp.array([1.0, jnp.nan, -2.0, jnp.inf]))
    assert report.ok and "INCONCLUSIVE" not in {row.status for row in report.rows if row.check == "gradient"}, report
    assert not gradcheck.check(scaled(2.0), jnp.array([1.0, jnp.nan, -2.0]), level="rule").ok


@pytest.mark.more
def test_rounding_is_allowed_for_without_an_automatic_derivative():
    """x² − 2 where it is nearly 0: compiled or not, its rounding is large beside it."""

    def cubic(x):
        return jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, s[1] ** 3 / 3 - 2 * s[1]), (0, x))[1]

    x = jnp.sqrt(2.0) + jnp.array([0.0, 1.0, -1.0, 2.0, -3.0]) * 2.0**-23
    f = with_rule(cubic, lambda x: (cubic(x), x), lambda x, dy: (dy * (x * x - 2),))
    report = gradcheck.check(f, x)
    assert report.ok, report.failed_lines()
    wrong = with_rule(cubic, lambda x: (cubic(x), x), lambda x, dy: (dy * (x * x - 2.001),))
    assert not gradcheck.check(wrong, x).ok


@pytest.mark.more
def test_a_kernel_for_float32_only_may_round_what_it_saves():
    def attention(q, k, v):
        return jax.nn.softmax(q @ k.T) @ v

    def kernel(wrong):
        def fwd(q, k, v):
            if q.dtype != jnp.float32:
                raise ValueError(f"expected float32, got {q.dtype}")
            scores = q @ k.T
            total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)  # rounded: all of a row's p are off by it
            return jnp.exp(scores - total) @ v, (q, k, v, total + wrong)

        def bwd(residuals, dy):
            q, k, v, total = residuals
            p = jnp.exp(q @ k.T - total)
            dp = dy @ v.T
            ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True))
            return ds @ k, ds.T @ q, p.T @ dy

        return with_rule(lambda *x: fwd(*x)[0], fwd, bwd)

    for seed in (0, 5, 16):
        qkv = [jax.random.normal(key, (16, 16)) for key in jax.random.split(jax.random.key(seed), 3)]
        report = gradcheck.check(kernel(0.0), *qkv, reference=attention, level="rule", seed=seed)
        assert report.ok, report.failed_lines()
        assert not gradcheck.check(kernel(1e-3), *qkv, reference=attention, level="rule", seed=seed).ok


def test_arguments_without_a_finite_element_are_inconclusive():
    double = jax.custom_vjp(lambda x: 2 * x)
    double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
    (row,) = [r for r in gradcheck.check(double, jnp.array([jnp.inf]), level="rule").rows if r.check == "gradient"]
    assert row.status == "INCONCLUSIVE" and "give finite arguments" in row.message and row.decides


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.1, "wrong")])
def test_a_batch_in_bfloat16_is_compared_in_float64_too(factor, verdict):
    """An error of 10 % in one element of a batch is no more than some roundings of bfloat16."""

    @jax.custom_batching.custom_vmap
    def spoiled(dx):
        return dx

    @spoiled.def_vmap
    def _(size, batched, dx):
        return dx.at[0, 7].multiply(factor), batched[0]

    f = with_rule(lambda x: x * x, lambda x: (x * x, x), lambda x, dy: (spoiled(2 * x * dy),))
    x = jax.random.normal(jax.random.key(0), (10_000,)).astype(jnp.bfloat16)
    assert gradcheck.check(f, x, skip=all_but("vmap")).verdict == verdict


def test_the_textbook_rule_of_a_saturated_softmax_is_right():
    """p (dp − Σ p dp) has lost its digits where p is nearly 1, and JAX's derivative of this definition has not."""

    def softmax(x):
        e = jnp.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def attention(q, k, v):
        return softmax(q @ k.T / 8) @ v

    def bwd(saved, dy):
        q, k, v = saved
        p, dp = softmax(q @ k.T / 8), dy @ v.T
        ds = p * (dp - jnp.sum(dp * p, -1, keepdims=True)) / 8
        return ds @ k, ds.T @ q, p.T @ dy

    rng = np.random.default_rng(16)
    qkv = [jnp.asarray(rng.standard_normal((52, 64)), jnp.float32) for _ in range(3)]
    f = with_rule(attention, lambda *x: (attention(*x), x), bwd)
    report = gradcheck.check(f, *qkv, skip=all_but("extremes"), seed=16)
    assert report.ok, report


def all_but(check):
    return tuple(set(FULL) - {check})
