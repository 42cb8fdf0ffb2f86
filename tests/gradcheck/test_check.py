"""`check`: its options, and rules of many kinds: kernels, callbacks, custom_jvp, complex, non-finite."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules_to_check import W, X, dense, statuses, with_rule

import jaxnn
from jaxnn import gradcheck


def test_argnums():
    assert gradcheck.check(dense, X, W, argnums=0, level="rule").ok
    for argnums in (1, -1, (0, 1), [1]):
        assert not gradcheck.check(dense, X, W, argnums=argnums, level="rule").ok


@pytest.mark.more
def test_kwargs_and_skip():
    report = gradcheck.check(dense, X, kwargs={"w": W}, skip=("gradient", "cost", "precision", "kinks", "extremes"))
    assert report.ok and not {"gradient", "cost", "precision"} & {row.check for row in report.rows}
    assert not gradcheck.check(dense, X, kwargs={"w": W}, level="rule").ok


def test_the_reference_replaces_the_definition():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, dy: (dy,))
    assert not gradcheck.check(rounded, X, level="rule").ok
    assert gradcheck.check(rounded, X, reference=lambda x: x).ok
    report = gradcheck.check(lambda x: x.astype("float16"), X, reference=lambda x: x, level="rule")
    assert ("NOTE", "f returns float16, the reference float32") in [(row.status, row.message) for row in report.rows]


def test_the_evidence_says_which_two_derivatives_agree():
    def agree(f, derivative):
        rule = with_rule(f, lambda x: (f(x), x), lambda x, dy: (dy * derivative(x),))
        (row,) = gradcheck.check(rule, X, level="rule").failures
        return row.evidence.agree

    assert agree(jnp.sin, jnp.sin) == "automatic and numeric agree"
    held = lambda x: x * jax.lax.stop_gradient(x)  # noqa: E731
    assert agree(held, lambda x: 2 * x) == "custom and numeric agree", "a numeric derivative ignores stop_gradient"
    assert agree(held, lambda x: 3 * x) == "no two agree"


@pytest.mark.more
def test_a_kernel_that_refuses_dtypes_is_checked_in_the_dtypes_it_takes():
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


@pytest.mark.more
def test_integer_outputs_are_compared_with_those_of_the_reference():
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


@pytest.mark.more
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


def test_there_is_no_numeric_derivative_where_f_is_nan():
    def host(x):
        return jax.pure_callback(
            lambda x: np.full_like(x, np.nan), jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all"
        )

    f = with_rule(host, lambda x: (host(x), None), lambda _, dy: (dy,))
    report = gradcheck.check(f, X, level="rule")
    assert report.verdict == "unproven" and "INCONCLUSIVE" in statuses(report, "gradient")


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


@pytest.mark.more
def test_the_mesh_may_be_given():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    report = gradcheck.check(jaxnn.linear, X, W, mesh=mesh)
    assert report.ok and any(row.check == "shard_map" and row.status == "PASS" for row in report.rows)


def test_options_may_be_numpy_numbers():
    options = {"argnums": np.int64(-1), "rtol": np.float32(1e-4), "seed": np.int64(3), "level": "rule"}
    report = gradcheck.check(jnp.arctan2, X, X + 1, **options)
    assert report.ok and json.loads(json.dumps(report.to_dict()))["seed"] == 3


def test_without_an_automatic_derivative_the_imaginary_axis_is_tried_too():
    """The rule of |z|² forgets the imaginary part of 2 conj(z), and a callback has no derivative to compare it with."""

    def length(z):
        return jax.pure_callback(lambda z: np.square(np.abs(z)), jax.ShapeDtypeStruct(z.shape, z.real.dtype), z)

    for kept, status in ((lambda z: z.real.astype(z.dtype), "FAIL"), (jnp.conj, "PASS")):
        f = jax.custom_vjp(length)
        f.defvjp(lambda z: (length(z), z), lambda z, g, kept=kept: (2 * g.astype(z.dtype) * kept(z),))
        rows = gradcheck.check(f, jnp.array([1 + 2j, -3 + 1j], jnp.complex64), level="rule").rows
        assert [row.status for row in rows if row.check == "gradient" and row.path == "z"] == [status]
