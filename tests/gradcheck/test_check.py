"""The checker itself: its report, its tolerance, its options, and what it says of bad input."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn
from jaxnn import gradcheck
from jaxnn.gradcheck import _numeric

# What the README's first screen shows: one sign is wrong.


@jax.custom_vjp
def dense(x, w):
    return jnp.tanh(x @ w)


def dense_fwd(x, w):
    y = jnp.tanh(x @ w)
    return y, (x, w, y)


def dense_bwd(residuals, dy):
    x, w, y = residuals
    dz = dy * (1 - y * y)
    return dz @ w.T, -(x.T @ dz)


dense.defvjp(dense_fwd, dense_bwd)
TABLE = np.zeros((2, 2))  # its text has two lines
X, W = jax.random.normal(jax.random.key(0), (5, 4)), jax.random.normal(jax.random.key(1), (4, 4))


def scaled(wrong, *, where=None):
    """x² whose derivative is `wrong` times too large, everywhere or at one index."""

    @jax.custom_vjp
    def square(x):
        return x * x

    def bwd(x, dy):
        dx = 2 * x * dy
        return (wrong * dx if where is None else dx.at[where].mul(wrong),)

    square.defvjp(lambda x: (x * x, x), bwd)
    return square


# The report.


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
    params = {f"w{i}": X + i for i in range(40)}
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


@pytest.mark.parametrize("name", HINTS)
def test_hints(name):
    bwd, hint = HINTS[name]
    f = jax.custom_vjp(lambda x, w: x @ w)
    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda residuals, dy: bwd(*residuals, dy))
    report = gradcheck.check(f, X[:4], W, level="rule")
    assert any(hint in row.hint for row in report.failures), report


def test_the_hint_for_a_missing_sum_over_a_broadcast_axis():
    f = jax.custom_vjp(lambda x, b: x + b[None])
    f.defvjp(lambda x, b: (x + b[None], None), lambda _, dy: (dy, dy))
    (row,) = gradcheck.check(f, X, W[0]).failures
    assert row.check == "signature" and "broadcast axis" in row.hint


# The tolerance.


@pytest.mark.parametrize("size", [1, 10, 1000, 1_000_000])
def test_a_wrong_factor_fails_at_every_size(size):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(size), jnp.float32)
    assert not gradcheck.check(scaled(1.001), x, level="rule").ok
    assert gradcheck.check(scaled(1.0), x, level="rule").ok


def test_one_wrong_element_of_a_million():
    x = jnp.asarray(np.random.default_rng(0).standard_normal(1_000_000), jnp.float32)
    (row,) = gradcheck.check(scaled(1.01, where=123_456), x, level="rule").failures
    assert row.evidence.index == (123_456,) and row.hint == "wrong at 1 of 1000000 elements"


def test_rtol_replaces_8_eps():
    assert gradcheck.check(scaled(1.001), X, level="rule", rtol=0.01).ok


def test_the_numeric_derivative_chooses_its_step_and_knows_its_error():
    for f, truth in ((np.sin, np.cos(1.0)), (np.exp, np.e), (lambda x: x**5, 5.0)):
        for eps, steps in ((2.0**-52, 2.0 ** -np.arange(4, 26, 3.0)), (2.0**-23, 2.0 ** -np.arange(1, 11.0))):
            noisy = lambda x, f=f, eps=eps: [f(x[0]) * (1 + eps * np.sin(1e9 * x[0]))]  # noqa: E731
            slope = _numeric.slope(noisy, [np.array([1.0])], [np.array([1.0])], [np.array([1.0])], list(steps), eps)
            assert abs(slope.value - truth) <= slope.error < 2e-2 * abs(truth)
            assert not slope.kinked
    kink = _numeric.slope(
        lambda x: [np.abs(x[0])], [np.array([0.0])], [np.array([1.0])], [np.array([1.0])], [0.1, 0.01], 2.0**-52
    )
    assert kink.kinked and kink.interval[0] <= -1 <= 1 <= kink.interval[1]


def test_arguments_that_are_not_finite():
    report = gradcheck.check(jaxnn.sigmoid, jnp.array([1.0, jnp.nan, -2.0, jnp.inf]))
    assert report.ok and "INCONCLUSIVE" not in {row.status for row in report.rows if row.check == "gradient"}, report
    assert not gradcheck.check(scaled(2.0), jnp.array([1.0, jnp.nan, -2.0]), level="rule").ok


# Options.


def test_argnums():
    assert gradcheck.check(dense, X, W, argnums=0, level="rule").ok
    for argnums in (1, -1, (0, 1), [1]):
        assert not gradcheck.check(dense, X, W, argnums=argnums, level="rule").ok


def test_kwargs_and_skip():
    report = gradcheck.check(dense, X, kwargs={"w": W}, skip=("gradient", "cost", "precision", "kinks", "extremes"))
    assert report.ok and not {"gradient", "cost", "precision"} & {row.check for row in report.rows}
    assert not gradcheck.check(dense, X, kwargs={"w": W}, level="rule").ok


def test_reference_stands_in_for_the_definition():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, dy: (dy,))
    assert not gradcheck.check(rounded, X, level="rule").ok
    assert gradcheck.check(rounded, X, reference=lambda x: x).ok
    report = gradcheck.check(lambda x: x.astype("float16"), X, reference=lambda x: x, level="rule")
    assert ("NOTE", "f returns float16, the reference float32") in [(row.status, row.message) for row in report.rows]


def with_rule(f, fwd, bwd):
    f = jax.custom_vjp(f)
    f.defvjp(fwd, bwd)
    return f


def statuses(report, check):
    return {row.status for row in report.rows if row.check == check}


def test_a_kernel_that_refuses_dtypes_is_judged_in_those_it_takes():
    def sin(x):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"expected float32, got {x.dtype}")
        return jnp.sin(x)

    def checked(derivative):
        f = with_rule(sin, lambda x: (sin(x), x), lambda x, dy: (dy * derivative(x),))
        return gradcheck.check(f, X, reference=jnp.sin)

    report = checked(jnp.cos)
    assert report.ok and statuses(report, "gradient") == {"PASS"}
    assert "f does not run" in next(row.message for row in report.rows if row.path == "float16")
    assert not checked(jnp.sin).ok


def test_indices_are_compared_with_the_references():
    def largest(flipped):
        def f(x):
            at = jnp.argmax(x)
            return x[at], x.size - 1 - at if flipped else at, x > 0

        return f

    x = jnp.array([1.0, 3.0, 2.0, -1.0])
    rows = {row.path: row.status for row in gradcheck.check(largest(True), x, reference=largest(False)).rows}
    assert rows["int32[]"] == "NOTE"
    assert rows["bool[4]"] == "PASS"
    kernel = with_rule(
        lambda x: jax.pure_callback(lambda x: (x.max(), x.argmin()), (x[0], jnp.int32(0)), x),
        lambda x: (jax.pure_callback(lambda x: (x.max(), x.argmin()), (x[0], jnp.int32(0)), x), x),
        lambda x, g: (jnp.where(jnp.arange(4) == jnp.argmax(x), g[0], 0.0),),
    )
    failures = gradcheck.check(kernel, x, reference=lambda x: (x.max(), jnp.argmax(x)), level="rule").failures
    assert [(row.check, row.message) for row in failures] == [
        ("primal", "f and the reference return different int32[]: 1 of 1 elements")
    ]


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


def test_a_second_derivative_that_is_nan_at_zero():
    f = with_rule(
        lambda x: x * x, lambda x: (x * x, x), lambda x, dy: (2 * dy * jnp.where(x == 0, x, x * x / x),)
    )  # fmt: skip
    report = gradcheck.check(f, jnp.array([0.0, 1.0, -2.0]))
    assert [row.check for row in report.failures] == ["second_order"]


def test_a_forward_rule_that_loses_an_infinity():
    def f(x):
        return jnp.where(x == 0.5, -jnp.inf, x)

    lost = with_rule(f, lambda x: (jnp.where(x == 0.5, 0.0, x), x), lambda x, dy: (jnp.where(x == 0.5, 0.0, dy),))
    (row,) = gradcheck.check(lost, jnp.array([0.5, -1.25, 2.0]), level="rule").failures
    assert row.message == "the forward rule returns 0 at [0], f returns -inf"


def test_an_infinite_slope_where_automatic_is_nan():
    def entropy(x, w):  # 0 log 0 = 0; jax.nn.log_softmax holds a stop_gradient
        return jnp.sum(jnp.where(w != 0, w * jax.nn.log_softmax(x), 0.0))

    def bwd(residuals, dy):
        x, w = residuals
        return dy * (w - jnp.sum(w) * jax.nn.softmax(x)), dy * jax.nn.log_softmax(x)

    f = with_rule(entropy, lambda x, w: (entropy(x, w), (x, w)), bwd)
    assert gradcheck.check(f, jnp.array([-jnp.inf, 1.0, 2.0]), jnp.array([0.0, 0.4, 0.6]), level="rule").ok


def test_nothing_numeric_where_f_is_nan():
    def host(x):
        return jax.pure_callback(
            lambda x: np.full_like(x, np.nan), jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all"
        )

    f = with_rule(host, lambda x: (host(x), None), lambda _, dy: (dy,))
    report = gradcheck.check(f, X, level="rule")
    assert report.ok and "INCONCLUSIVE" in statuses(report, "gradient")


def test_a_callback_without_reference_is_checked_numerically():
    def host(x):
        return jax.pure_callback(np.sinh, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all")

    def with_derivative(derivative):
        f = jax.custom_vjp(host)
        f.defvjp(lambda x: (host(x), x), lambda x, dy: (dy * derivative(x),))
        return f

    right = gradcheck.check(with_derivative(jnp.cosh), X, level="rule")
    assert right.ok and any("pure_callback" in row.message for row in right.rows if row.status == "UNSUPPORTED")
    assert not gradcheck.check(with_derivative(jnp.sinh), X, level="rule").ok


def test_custom_jvp_rules_are_checked():
    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvp(lambda primals, tangents: (cube(*primals), 2 * primals[0] ** 2 * tangents[0]))
    (row,) = gradcheck.check(cube, X, level="rule").failures
    assert row.check == "gradient" and row.evidence.agree == "automatic and numeric agree"


def test_one_device_is_inconclusive_about_values():
    code = """
import jax, jax.numpy as jnp, jaxnn
from jaxnn import gradcheck
report = gradcheck.check(jaxnn.linear, jnp.ones((2, 3)), jnp.ones((4, 3)))
print([row.message for row in report.rows if (row.check, row.status) == ("shard_map", "INCONCLUSIVE")], report.ok)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "JAX_NUM_CPU_DEVICES=2" in out and "True" in out


def test_the_mesh_may_be_given():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    report = gradcheck.check(jaxnn.linear, X, W, mesh=mesh)
    assert report.ok and any(row.check == "shard_map" and row.status == "PASS" for row in report.rows)


# Bad input: one line each.


def raising(x):
    raise RuntimeError("first\nsecond")


def keyword_only(x, *, scale):
    return x * scale


BAD = {
    "no function": (("abc", X), {}, TypeError, "`f` ('abc') must be a function of arrays"),
    "raises": ((raising, X), {}, ValueError, "`f` (raising) must run on `args`, but raises RuntimeError: first"),
    "wants keywords": ((keyword_only, X), {}, ValueError, "kwargs={...}"),
    "integer output": ((lambda x: jnp.argmax(x), X), {}, TypeError, "must return a floating-point array"),
    "no output": ((lambda x: None, X), {}, TypeError, "must return a floating-point array"),
    "integers only": ((lambda x: x * 1.0, jnp.arange(3)), {}, TypeError, "`args` (int32[3]) must include a floating"),
    "a string": ((lambda x: 1.0, "abc"), {}, TypeError, "`args` (str) must include a floating-point array"),
    "no arguments": ((lambda: 1.0,), {}, TypeError, "`args` (none) must include"),
    "branches": ((lambda x: x if x.sum() > 0 else -x, X), {}, TypeError, "must not branch in Python"),
    "donates": ((jax.jit(lambda x: 2 * x, donate_argnums=0), X), {}, ValueError, "must not donate its arguments"),
    "level": ((dense, X, W), {"level": "fast"}, ValueError, "`level` ('fast') must be one of 'rule', 'full'"),
    "skip": ((dense, X, W), {"skip": ("speed",)}, ValueError, "`skip` (('speed',)) must be a sequence of names"),
    "skip a string": ((dense, X, W), {"skip": "vmap"}, ValueError, "`skip` ('vmap')"),
    "argnums": ((dense, X, W), {"argnums": 2}, ValueError, "`argnums` (2) must be positions among the 2"),
    "rtol": ((dense, X, W), {"rtol": -1.0}, ValueError, "`rtol` (-1.0)"),
    "seed": ((dense, X, W), {"seed": -1}, ValueError, "`seed` (-1)"),
    "kwargs": ((dense, X, W), {"kwargs": [1]}, TypeError, "`kwargs` (list) must be a dict"),
    "reference": ((dense, X, W), {"reference": 3}, TypeError, "`reference` (3) must be a function"),
    "skip nothing": ((dense, X, W), {"skip": None}, ValueError, "`skip` (None) must be a sequence of names"),
    "skip lists": ((dense, X, W), {"skip": [["kinks"]]}, ValueError, "`skip` ([['kinks']])"),
    "level a list": ((dense, X, W), {"level": ["rule"]}, ValueError, "`level` (['rule'])"),
    "argnums a bool": ((dense, X, W), {"argnums": True}, ValueError, "`argnums` (True)"),
    "mesh": ((dense, X, W), {"mesh": "devices"}, ValueError, "`mesh` ('devices') must be a jax.sharding.Mesh"),
    "unknown keyword": ((dense, X, W), {"kwargs": {"u": X}}, ValueError, "got an unexpected keyword argument 'u'"),
    "a signature of many lines": (
        (lambda x, table=TABLE: x @ table, X, X, X), {}, ValueError, "but too many positional arguments"
    ),
    "reference of other arguments": ((dense, X, W), {"reference": jnp.sin}, ValueError, "`reference` (sin(x: "),
    "reference raises": (
        (jnp.sin, X), {"reference": raising}, ValueError, "`reference` (raising) must run on `args`, but raises RuntimeErr"
    ),
    "reference of another shape": (
        (jnp.sin, X), {"reference": lambda x: x[:1]}, ValueError, "must return arrays as f does, of shapes"
    ),
    "not differentiable": (
        (lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x), X), {}, TypeError, "must be differentiable"
    ),
}  # fmt: skip


def test_inside_jit_it_says_so():
    with pytest.raises(TypeError, match="`args` must be values, not what jit, grad or vmap traces"):
        jax.jit(lambda x: gradcheck.check(jnp.sin, x).ok)(X)


def test_numbers_of_numpy_are_options_too():
    options = {"argnums": np.int64(-1), "rtol": np.float32(1e-4), "seed": np.int64(3), "level": "rule"}
    report = gradcheck.check(jnp.arctan2, X, X + 1, **options)
    assert report.ok and json.loads(json.dumps(report.to_dict()))["seed"] == 3


def test_a_complex_gradient_and_its_hint():
    """Evidence, hints and JSON of complex numbers; a conjugate is one mistake, the real part another."""
    z = jnp.array([1 + 2j, -3 + 1j], jnp.complex64)
    for wrong, hint in ((jnp.conj, "the complex conjugate of"), (lambda z: z.real.astype(z.dtype), "real part alone")):
        f = jax.custom_vjp(lambda z: z * z)
        f.defvjp(lambda z: (z * z, z), lambda z, g, wrong=wrong: (wrong(2 * z * g),))
        (row,) = [row for row in gradcheck.check(f, z, level="rule").failures if row.check == "gradient"]
        assert hint in row.hint and abs(row.evidence.automatic - row.evidence.numeric) < 1e-3
        assert json.dumps(gradcheck.check(f, z, level="rule").to_dict())


def test_without_an_automatic_derivative_the_imaginary_axis_is_tried_too():
    """The rule of |z|² forgets the imaginary part of 2 conj(z), and a callback has no derivative to compare it with."""

    def length(z):
        return jax.pure_callback(lambda z: np.square(np.abs(z)), jax.ShapeDtypeStruct(z.shape, z.real.dtype), z)

    for kept, status in ((lambda z: z.real.astype(z.dtype), "FAIL"), (jnp.conj, "PASS")):
        f = jax.custom_vjp(length)
        f.defvjp(lambda z: (length(z), z), lambda z, g, kept=kept: (2 * g.astype(z.dtype) * kept(z),))
        rows = gradcheck.check(f, jnp.array([1 + 2j, -3 + 1j], jnp.complex64), level="rule").rows
        assert [row.status for row in rows if row.check == "gradient" and row.path == "z"] == [status]


def test_a_factor_of_a_complex_gradient_is_real():
    triple = jax.custom_vjp(lambda z: z * z)
    triple.defvjp(lambda z: (z * z, z), lambda z, g: (jnp.complex64(6 + 1e-5j) * z * g,))
    (row,) = gradcheck.check(triple, jnp.array([1 + 2j, -3 + 1j], jnp.complex64), level="rule").failures
    assert row.hint == "a constant factor: 3 times the derivative"


def test_arguments_without_a_finite_element_tell_nothing():
    double = jax.custom_vjp(lambda x: 2 * x)
    double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
    (row,) = [r for r in gradcheck.check(double, jnp.array([jnp.inf]), level="rule").rows if r.check == "gradient"]
    assert row.status == "INCONCLUSIVE" and "give finite arguments" in row.message


def test_a_small_error_is_not_called_a_constant_factor():
    nearly = jax.custom_vjp(lambda x: 50 * jnp.tanh(x / 50))
    nearly.defvjp(lambda x: (nearly(x), x), lambda x, g: (g,))
    (row,) = gradcheck.check(nearly, jnp.array([0.5, -0.3, 1.2]), level="rule").failures
    assert "factor" not in row.hint


def test_off_in_every_precision_is_not_a_question_of_sums():
    cube = jax.custom_vjp(lambda x: x**3)
    cube.defvjp(lambda x: (x**3, x), lambda x, g: (2.91 * g * x**2,))
    rows = gradcheck.check(cube, jnp.array([0.5, -0.3, 1.2], jnp.bfloat16)).failures
    assert {row.hint for row in rows if row.check == "precision"} == {"the derivative is wrong in every precision"}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    args, options, kind, message = BAD[name]
    with pytest.raises(kind, match=re.escape(message)) as error:
        gradcheck.check(*args, **options)
    assert "\n" not in str(error.value)
