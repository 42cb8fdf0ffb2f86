"""Primitives that somebody has registered with JAX by hand: they have no definition, and their derivative is a rule."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from rules_to_check import X, with_rule

from jaxnn import gradcheck


def sine(name, factor=1.0, *, differentiable=True, compiled=True):
    """The sine as a primitive, with a derivative that is `factor` times too large."""
    primitive = Primitive(name)
    primitive.def_impl(jnp.sin)
    primitive.def_abstract_eval(lambda x: x)
    batching.defvectorized(primitive)
    if compiled:
        mlir.register_lowering(primitive, mlir.lower_fun(jnp.sin, multiple_results=False))
    if differentiable:
        ad.defjvp(primitive, lambda t, x: factor * t * jnp.cos(x))
    return primitive.bind


# The second has the name of JAX's primitive for a HiPrim, and not its parameters, as a newer JAX may have it.
@pytest.mark.parametrize("name", ["foreign_sine", "call_hi_primitive"])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "right"), (1.1, "wrong")])
def test_it_is_named_and_judged_by_the_numeric_derivative(name, factor, verdict):
    bound = sine(name, factor)
    report = gradcheck.check(lambda x: bound(x) * x, jnp.array([0.3, -1.2, 2.6, 0.7]), skip=("shard_map",))
    (row,) = [row for row in report.rows if f"`{name}`" in row.message]
    assert report.verdict == verdict and row.status == "UNSUPPORTED" and row.check == "gradient", report
    assert {"jit", "scan"} <= {row.path for row in report.rows if row.check == "staging" and row.status == "PASS"}


def test_one_without_a_derivative_is_named_in_the_definition_of_a_rule():
    bound = sine("plain_sine", differentiable=False)
    for factor, verdict in ((1.0, "right"), (1.1, "wrong")):
        f = with_rule(bound, lambda x: (bound(x), x), lambda x, dy, k=factor: (k * dy * jnp.cos(x),))
        report = gradcheck.check(f, X, level="rule")
        assert report.verdict == verdict and "`plain_sine`" in report.rows[3].message, report


def test_a_rule_of_a_function_that_does_not_compile_is_not_called_wrong():
    bound = sine("uncompiled_sine", compiled=False)
    f = with_rule(bound, lambda x: (bound(x), x), lambda x, dy: (dy * jnp.cos(x),))
    report = gradcheck.check(f, X, level="rule")
    (row,) = report.undecided
    assert report.verdict == "unproven" and "uncompiled_sine" in row.message and "jax.jit" in row.message
    assert jax.numpy.allclose(f(X), jnp.sin(X))
