"""Rules of which people have reported a wrong verdict, or a message that did not lead to the mistake, in small."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.sparse import BCOO
from rules_to_check import with_rule

import jaxnn
from jaxnn import gradcheck
from jaxnn.gradcheck.checks import FULL, RULE


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def messages(report, check="gradient"):
    return " ".join(row.message for row in report.rows if row.check == check)


def solve(transpose):
    """Solve a x = b."""
    return lambda a, b: lax.custom_linear_solve(
        lambda x: a @ x, b, lambda _, b: jnp.linalg.solve(a, b), lambda _, b: jnp.linalg.solve(transpose(a), b)
    )


@pytest.mark.more
def test_a_solver_is_judged_by_the_numeric_derivative():
    """jnp.linalg.solve holds a stop_gradient of JAX's own, which excuses nothing (jax-ml/jax#33872)."""
    a, b = jnp.array([[3.0, 1.0], [-1.0, 2.0]]), jnp.array([1.0, -0.5])
    report = gradcheck.check(solve(lambda a: a), a, b, level="rule")
    assert report.verdict == "wrong" and "transpose_solve of custom_linear_solve" in messages(report)
    assert gradcheck.check(solve(jnp.transpose), a, b, level="rule").verdict == "right"


def cube_root(tangent):
    def newton(f, y):
        return lax.fori_loop(0, 60, lambda i, y: y - f(y) / (3 * y * y), y)

    return lambda a: lax.custom_root(lambda y: y**3 - a, jnp.ones_like(a), newton, tangent)


def divide(transpose):
    return lambda x, y: jax.custom_derivatives.linear_call(lambda y, x: x / y, transpose, y, x)


def test_rules_that_are_handed_over_to_jax_are_judged_and_named():
    """jax-ml/jax#1339."""
    for tangent, verdict in ((lambda g, y: y * g(1.0), "wrong"), (lambda g, y: y / g(1.0), "right")):
        report = gradcheck.check(cube_root(tangent), jnp.float32(2.0), level="rule")
        assert report.verdict == verdict and "tangent_solve of custom_root" in messages(report)
    y = jnp.array([1.5, 2.0])
    for transpose, verdict in ((lambda y, g: g * y, "wrong"), (lambda y, g: g / y, "right")):
        f = divide(transpose)
        report = gradcheck.check(lambda x, f=f: f(x, y), jnp.array([1.0, -2.0]), level="rule")
        assert report.verdict == verdict, report
        assert report.ok or "the transpose of linear_call" in messages(report)


@pytest.mark.parametrize(("at_zero", "verdict"), [(0.7, "wrong"), (0.0, "right")])
def test_where_automatic_is_nan_the_numeric_derivative_decides(at_zero, verdict):
    """A removable singularity (jax-ml/jax#1052)."""

    def sinc(x):
        return jnp.where(x == 0, 1.0, jnp.sin(x) / x)

    def slope(x):
        return jnp.where(x == 0, at_zero, (x * jnp.cos(x) - jnp.sin(x)) / jnp.where(x == 0, 1, x * x))

    f = with_rule(sinc, lambda x: (sinc(x), x), lambda x, g: (g * slope(x),))
    assert gradcheck.check(f, jnp.array([0.0, 0.5, -2.0]), level="rule").verdict == verdict


@pytest.mark.more
def test_a_right_rule_where_automatic_is_nan():
    """The exponential of a symmetric matrix with equal eigenvalues (jax-ml/jax#2311)."""

    def by_eigenvalues(a):
        w, v = jnp.linalg.eigh((a + a.T) / 2)
        return (v * jnp.exp(w)[None]) @ v.T

    def expm(a):
        return jax.scipy.linalg.expm((a + a.T) / 2)

    f = with_rule(by_eigenvalues, lambda a: (by_eigenvalues(a), a), lambda a, g: (jax.vjp(expm, a)[1](g)[0],))
    assert gradcheck.check(f, jnp.eye(3), level="rule").verdict == "right"
    assert gradcheck.check(f, jnp.diag(jnp.array([1.0, 1.0, 2.0, 3.0])), level="rule").verdict == "right"


@pytest.mark.one_in(2)
@pytest.mark.parametrize("verdict", ["right", "wrong"])
def test_a_host_function_in_float32(verdict):
    """numpyro#1668: in float64 its steps are those of float32."""
    w = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)

    def on_host(w):
        return lambda x: jax.pure_callback(
            lambda x: (w @ np.asarray(x, np.float32)).astype(x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype), x,
            vmap_method="sequential",
        )  # fmt: skip

    call, adjoint = on_host(w), on_host(w.T if verdict == "right" else w)
    f = with_rule(call, lambda x: (call(x), None), lambda _, g: (adjoint(g),))
    assert gradcheck.check(f, normal(6, seed=1), level="rule").verdict == verdict


@pytest.mark.more
def test_arrays_that_are_left_out_or_closed_over():
    """equinox#413: other dtypes are not mixed with the float32 of an array that is not differentiated."""

    def dense(x, w):
        return jnp.tanh(x @ w)

    def bwd(saved, g):
        x, w, y = saved
        dz = g * (1 - y * y)
        return dz @ w.T, x.T @ dz

    f = with_rule(dense, lambda x, w: (dense(x, w), (x, w, dense(x, w))), bwd)
    x, w = normal(5, 4), normal(4, 3, seed=1)
    for report in (gradcheck.check(f, x, w, argnums=0), gradcheck.check(lambda x: f(x, w), x)):
        assert report.verdict == "right", report


@pytest.mark.more
def test_a_solver_with_a_tolerance_of_its_own():
    """jax-ml/jax#17753: the fixed point is iterated until 1e-5, and depends on the guess by less than that."""

    def step(a, x):
        return jnp.cos(x) / 2 + a

    def fixed_point(a, guess):
        return lax.while_loop(
            lambda c: jnp.abs(c[0] - c[1]).max() > 1e-5, lambda c: (c[1], step(a, c[1])), (guess, step(a, guess))
        )[1]

    def bwd(factor, saved, g):
        a, x = saved
        w = lax.fori_loop(0, 100, lambda i, w: g + jax.vjp(functools.partial(step, a), x)[1](w)[0], g)
        return factor * jax.vjp(lambda a: step(a, x), a)[1](w)[0], jnp.zeros_like(x)

    a, guess = jnp.array([0.2, -0.3]), jnp.array([0.5, -0.5])
    for factor, verdict in ((1.0, "right"), (1.1, "wrong")):
        forward = lambda a, guess: (fixed_point(a, guess), (a, fixed_point(a, guess)))  # noqa: E731
        f = with_rule(fixed_point, forward, functools.partial(bwd, factor))
        assert gradcheck.check(f, a, guess, level="rule").verdict == verdict


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (0.0, "wrong"), (1.9, "wrong")])
def test_a_coarse_argument_does_not_loosen_the_tolerance_of_the_others(factor, verdict):
    def scaled(q, scale, x):
        return scale * q.astype(jnp.float32) + x

    def bwd(r, g):
        q, scale = r
        return (g * scale).astype(q.dtype), factor * jnp.sum(g * q.astype(jnp.float32)), factor * g

    f = with_rule(scaled, lambda q, s, x: (scaled(q, s, x), (q, s)), bwd)
    q = jnp.array([1.5, -2.0, 0.25]).astype(jnp.float8_e4m3fn)
    assert gradcheck.check(f, q, jnp.float32(0.5), jnp.array([1.0, -2.0, 3.0]), level="rule").verdict == verdict


def test_a_rule_that_raises_is_named_with_its_line():
    """jax-ml/jax#17953, #23235."""

    @jax.custom_jvp
    def product(m, v):
        return m @ v

    product.defjvp(lambda p, t: (product(*p), t[0] @ p[1] + p[0] @ t[1]))  # the tangent of its indices is float0
    m = BCOO((jnp.array([1.0, -2.0]), jnp.array([[0, 1], [2, 0]])), shape=(3, 3))
    (row,) = gradcheck.check(product, m, jnp.arange(3.0), level="rule").failures
    assert "test_reported.py:" in row.message and "float0" in row.hint

    @jax.custom_jvp
    def solution(p):
        return p / 2

    solution.defjvp(lambda p, t: (solution(*p), jax.scipy.sparse.linalg.gmres(2 * jnp.eye(3), t[0])[0]))
    (row,) = gradcheck.check(solution, jnp.arange(3.0), level="rule").failures
    assert "the rule of solution, test_reported.py:" in row.message and "transpose" in row.hint
    with pytest.raises(ValueError, match=r"its rule raises, or cannot be transposed: jaxnn\.gradcheck\.check says why"):
        jaxnn.graph.trace(lambda p: solution(p).sum(), jnp.arange(3.0))
    with pytest.raises(TypeError, match=r"it returns int8\[3\]"):
        gradcheck.check(lambda x: x.astype(jnp.int8), jnp.ones(3))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cotangent", [lambda m: m.indices, lambda m: 0 * m.indices])
def test_a_sparse_matrix_may_hold_its_indices_in_the_cotangent(cotangent):
    """jax-ml/jax#12811: BCOO takes no None."""

    def bwd(saved, g):
        m, v = saved
        values = g[m.indices[:, 0]] * v[m.indices[:, 1]]
        return BCOO((values, cotangent(m)), shape=m.shape), m.T @ g

    f = with_rule(lambda m, v: m @ v, lambda m, v: (m @ v, (m, v)), bwd)
    m = BCOO((jnp.array([1.0, -2.0]), jnp.array([[0, 1], [2, 0]])), shape=(3, 3))
    everything = set(FULL) - set(RULE) - {"integers"}
    assert gradcheck.check(f, m, jnp.array([0.5, -1.0, 2.0]), skip=tuple(everything)).verdict == "right"


def test_a_hint_beside_a_nan():
    """jaxsim#411: JAX's derivative of the norm is NaN for the other row."""

    def norm(x):
        return jnp.linalg.norm(x, axis=-1)

    def bwd(x, g):
        n = norm(x)
        return (2 * x * (g / jnp.where(n == 0, 1, n))[:, None],)

    f = with_rule(norm, lambda x: (norm(x), x), bwd)
    (row,) = gradcheck.check(f, jnp.array([[3.0, 4.0], [0.0, 0.0]]), level="rule").failures
    assert row.hint == "a constant factor: 2 times the derivative"


@pytest.mark.one_in(2)
@pytest.mark.parametrize("x", [1e-6, 1e-4])
def test_derivatives_without_a_right_digit_are_not_said_to_agree(x):
    """jax-ml/jax#34139: the textbook formula of the derivative of sinc cancels, and so does JAX's derivative of it."""

    def sinc(x):
        return jnp.sin(jnp.pi * x) / (jnp.pi * x)

    def slope(x):
        return (jnp.cos(jnp.pi * x) - jnp.sin(jnp.pi * x) / (jnp.pi * x)) / x

    f = with_rule(sinc, lambda x: (sinc(x), x), lambda x, g: (g * slope(x),))
    assert abs(jax.grad(f)(x) + jnp.pi**2 * x / 3) > 0.5 * x  # all digits are wrong
    report = gradcheck.check(f, jnp.array([x]), level="rule")
    assert "agree" not in messages(report)  # JAX's derivative is as bad, or it is better, as the version of JAX may be
    assert "lost its digits in float32" in messages(report) or report.verdict == "wrong"


def test_a_rule_on_a_method():
    """jax-ml/jax#2483: JAX does not bind self."""

    class Layer:
        @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
        def square(self, x):
            return x * x

        square.defvjp(lambda self, x: (x * x, x), lambda self, x, g: (2 * x * g,))

    layer, x = Layer(), jnp.array([1.0, -2.0])
    with pytest.raises(ValueError, match=r"Class\.method\(object, x\)"):
        gradcheck.check(layer.square, x)
    (row,) = gradcheck.check(lambda x: layer.square(x), x, level="rule").failures
    assert "does not bind" in row.hint
    assert gradcheck.check(lambda x: Layer.square(layer, x), x, level="rule").ok


@pytest.mark.more
@pytest.mark.parametrize("verdict", ["right", "wrong"])
def test_a_sum_in_bfloat16(verdict):
    def in_bfloat16(a):
        return lax.scan(lambda c, row: (c + row, None), jnp.zeros(a.shape[1:], a.dtype), a)[0]

    def in_float32(a):
        return jnp.sum(a.astype(jnp.float32), 0)

    total = in_float32 if verdict == "right" else in_bfloat16
    f = with_rule(
        lambda x, w: x * w[None], lambda x, w: (x * w[None], (x, w)),
        lambda s, g: (g * s[1][None], total(g * s[0]).astype(s[1].dtype)),
    )  # fmt: skip
    x, w = ((normal(*shape, seed=1) + 1).astype(jnp.bfloat16) for shape in ((1024, 8), (8,)))
    skip = tuple(set(FULL) - set(RULE) - {"precision"})
    report = gradcheck.check(f, x, w, skip=skip)
    assert report.verdict == verdict, report


RULES = """
import jax, jax.numpy as jnp, jaxnn

def sine(kind):
    f = kind(lambda x: jnp.sin(x))
    if kind is jax.custom_vjp:
        f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (-g * jnp.cos(x),))
    else:
        f.defjvp(lambda p, t: (jnp.sin(p[0]), -t[0] * jnp.cos(p[0])))
    return f

x = jnp.array([1.0, -2.0, 0.3])
for kind in (jax.custom_vjp, jax.custom_jvp):
    print(jaxnn.gradcheck.check(sine(kind), x, level="rule").verdict)
print(jaxnn.gradcheck.check(jaxnn.softmax, x, level="rule").verdict, jax.grad(jaxnn.automatic(jax.nn.relu))(0.0))
"""


@pytest.mark.more
@pytest.mark.parametrize(
    "switches", [("JAX_CUSTOM_VJP3",), ("JAX_CUSTOM_JVP3",), ("JAX_CUSTOM_VJP3", "JAX_CUSTOM_JVP3")]
)
def test_jaxs_switches_for_its_newer_forms_hide_no_rule(switches):
    root = Path(__file__).resolve().parents[2]
    env = os.environ | dict.fromkeys(switches, "1") | {"PYTHONPATH": str(root)}
    out = subprocess.run([sys.executable, "-c", RULES], env=env, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["wrong", "wrong", "right", "0.0"]


def rms_norm(x, w):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * w


def rms_norm_bwd(saved, g):
    x, w = saved
    r = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    gw = g * w
    dx = r * gw - x * r**3 * jnp.mean(gw * x, -1, keepdims=True)
    return dx, jnp.sum(g * x * r, tuple(range(x.ndim - 1)), keepdims=True)


def gated(x, w):
    return x * w * jax.nn.sigmoid(w)


def gated_bwd(saved, g):
    x, w = saved
    s = jax.nn.sigmoid(w)
    return g * w * s, g * x * (s + w * s * (1 - s))


LARGE = {
    "rms-norm": (rms_norm, rms_norm_bwd, lambda n: ((n // 64, 64), (1, 64))),
    "gated": (gated, gated_bwd, lambda n: ((n // 64, 64), (n // 64, 64))),
    "product": (jnp.matmul, lambda r, g: (g @ r[1].T, r[0].T @ g), lambda n: ((n // 128, 128), (128, 64))),
}


@pytest.mark.more
@pytest.mark.one_in(4)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [2**14, 2**17])
@pytest.mark.parametrize("name", LARGE)
def test_two_runs_of_a_right_rule_agree_at_size(name, size, seed):
    """Single elements are off by one or two units in the last place, whatever the seed."""
    f, bwd, shapes = LARGE[name]
    rule = with_rule(f, lambda x, w: (f(x, w), (x, w)), bwd)
    x, w = (normal(*shape, seed=seed + k) for k, shape in enumerate(shapes(size)))
    skip = tuple(set(FULL) - set(RULE) - {"vmap", "staging"})
    report = gradcheck.check(rule, x, w, skip=skip, seed=seed)
    assert report.verdict == "right", report
