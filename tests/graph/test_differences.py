"""The numeric differences of a graph's inputs: dtypes, steps, kinks, and what is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import X, check
from jax import lax

import jaxnn
from jaxnn.graph import trace


def test_differences_run_in_float64_and_leave_the_configuration_alone():
    before = {
        name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_debug_nans")
    }

    def f(x, exponent):
        return jnp.sum(jnp.tanh(x) ** exponent) * np.float32(1.5) + 100

    graph = check(f, X, 3)
    assert graph["x"].by_difference.dtype == np.float64
    exact = 1.5 * 3 * np.tanh(np.asarray(X, np.float64)) ** 2 / np.cosh(np.asarray(X, np.float64)) ** 2
    np.testing.assert_allclose(graph["x"].by_difference, exact, rtol=1e-8)
    assert graph.caption == "Numeric differences in float64, with a step of 6e-06 of an element's size."
    assert before == {name: getattr(jax.config, name) for name in before}


def coarse(x):
    return jnp.sum(jnp.tanh(x).astype(jnp.float16)).astype(jnp.float32)


def random(x):
    return jnp.sum(x * jax.random.normal(jax.random.key(1), (3,)))


def typed(x):
    return jnp.sum(
        jax.pure_callback(lambda a: 2 * a, jax.ShapeDtypeStruct((3,), jnp.float32), lax.stop_gradient(x)) + x
    )


@pytest.mark.more
@pytest.mark.parametrize(
    ("f", "args", "dtype", "reason", "rtol"),
    [
        (coarse, (X,), "float16", "", 0.05),
        (random, (X,), "float32", "f has another value in float64 (does it draw random numbers?)", 1e-3),
        (typed, (X,), "float32", "f does not run in float64", 1e-3),
        (lambda x: jnp.sum((x * x).astype(jnp.float32)), (X,), "float32", "", 1e-3),
        (lambda x: jnp.sum(x * x), (X.astype(jnp.bfloat16),), "float64", "", 0.02),
    ],
    ids=["float16", "random", "callback", "rounded", "bfloat16 arguments"],
)
def test_a_function_of_lower_precision_is_differentiated_with_a_larger_step(f, args, dtype, reason, rtol):
    graph = trace(f, *args)
    steps = {"float64": 6e-6, "float32": 5e-3, "float16": 0.1}
    assert graph["x"].difference_step == steps[dtype]
    expected = f"Numeric differences in {dtype}, with a step of {steps[dtype]:g} of an element's size" + (
        f": {reason}" if reason else ""
    )
    assert graph.caption.startswith(expected)
    stopped = 2 if f is typed else 0  # what the callback adds, and stop_gradient takes from the rule alone
    np.testing.assert_allclose(
        graph["x"].by_difference, np.asarray(graph["x"].by_rule, np.float64) + stopped, rtol=rtol
    )


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "f, x", [(jnp.square, 0.0), (lambda x: x**4, 0.0), (lambda x: (x - 1) ** 2, 1.0), (lambda x: 3 * x**2 + x**3, 0.0)]
)
def test_a_minimum_is_no_kink(f, x):
    assert not trace(f, x).nodes[0].kinks
    assert trace(lambda x: f(x) + jnp.abs(x - x0), x0 := jnp.float32(x)).nodes[0].kinks


def test_a_function_that_runs_in_one_dtype_only():
    node = trace(lambda x: jax.lax.mul(x, jnp.ones((), jnp.bfloat16)), jnp.bfloat16(2))["x"]
    np.testing.assert_allclose(np.float64(node.by_difference), 1, rtol=0.05)


def test_kinks_are_distinguished_from_smooth_points():
    def f(x):
        return jnp.sum(jaxnn.relu(x)) + jnp.max(x[2:]) + jnp.sum(jnp.exp(x)) + jnp.abs(x[1] - 1e-7)

    graph = trace(f, jnp.array([0.0, 0.5, 2.0, 2.0, -1e-3]))
    node = graph["x"]
    assert node.kinks.tolist() == [True, False, True, True, False]
    assert not np.ma.getmaskarray(node.by_difference).any()
    np.testing.assert_allclose(node.by_difference[[1, 4]], node.by_rule[[1, 4]], rtol=1e-5)
    near = trace(lambda x: jnp.sum(jnp.abs(x - jnp.array([1.0, 1.0, 1.0]))), jnp.array([1 + 2.4e-7, 1.0, 1 - 2.4e-7]))[
        "x"
    ]
    np.testing.assert_allclose(near.by_difference, [1, 0, -1], atol=1e-6)  # a kink within the step, but not at x
    assert near.kinks.tolist() == [False, True, False]


def test_a_large_input_gets_differences_of_some_elements():
    graph = trace(lambda x, w: jnp.sum(jnp.sin(x)) * w, jnp.linspace(-1, 1, 2500), 2.0)
    node = graph["x"]
    assert node.by_difference.count() == 2000 and graph["w"].by_difference.count() == 1
    np.testing.assert_allclose(node.by_difference, np.ma.array(node.by_rule, mask=node.by_difference.mask), atol=1e-6)
    again = trace(lambda x: jnp.sum(x), jnp.linspace(-1, 1, 2500))["x"].by_difference
    np.testing.assert_array_equal(np.ma.getmaskarray(again), np.ma.getmaskarray(node.by_difference))
    tensor = graph.to_dict()["nodes"][0]["gradients"]["difference"]
    assert tensor["data"].count(None) == 500 and not tensor["truncated"]


def test_a_definition_without_a_derivative_leaves_autodiff_out():
    @jax.custom_vjp
    def doubled(x):
        return jax.pure_callback(lambda a: 2 * a, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    doubled.defvjp(lambda x: (doubled(x), None), lambda _, dy: (2 * dy,))
    graph = trace(lambda x: jnp.sum(doubled(x)), X)
    np.testing.assert_array_equal(graph["x"].by_rule, [2, 2, 2])
    assert graph["x"].by_autodiff is None
    np.testing.assert_allclose(graph["x"].by_difference, [2, 2, 2], rtol=1e-3)
    assert "JAX has no derivative of the rules' definitions: TypeError: the definition of `doubled`" in graph.caption
    assert graph.to_dict()["nodes"][0]["gradients"]["autodiff"] is None
