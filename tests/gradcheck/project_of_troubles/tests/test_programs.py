"""Tests that look at how a rule is traced, compiled and run: each would notice another program."""

import gc
import warnings
import weakref

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from oddities import rules

X = np.array([0.5, -0.25, 0.75], "float32")
leaked = []


def test_a_tracer_is_left_behind():
    def f(x):
        leaked.append(x)
        return rules.sine(x)

    jax.jit(f)(X)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        rules.sine(leaked[0]).block_until_ready()


def test_jax_finds_no_leak_in_a_rule():
    with jax.checking_leaks():
        value = jax.jit(jax.grad(lambda x: jnp.sum(rules.sine(x))))(jnp.asarray(X) + 1)
    np.testing.assert_allclose(value, np.cos(X + 1), rtol=1e-6)


def test_a_function_is_traced_once():
    traced = []

    @jax.jit
    def f(x):
        traced.append(1)
        return rules.sine(x)

    for i in range(3):
        f(jnp.asarray(X) + i)
    assert len(traced) == 1 and f._cache_size() == 1


def test_the_program_has_one_equation():
    closed = jax.make_jaxpr(rules.sine)(X)
    assert len(closed.eqns) == 1 and "callback" not in str(closed)
    backward = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(rules.sine(x))))(X)
    assert not backward.effects and "callback" not in str(backward)


def test_the_compiled_program_calls_nobody():
    text = jax.jit(rules.sine).lower(X).as_text()
    assert "sine" in text and "custom_call" not in text and "callback" not in text


def test_an_export_runs_again():
    exported = jax.export.export(jax.jit(rules.sine))(jax.ShapeDtypeStruct((3,), "float32"))
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(X), np.sin(X), rtol=1e-6)


def test_no_warning_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.grad(lambda x: jnp.sum(rules.sine(x)))(X)


def test_a_warning_of_a_rule_reaches_the_caller():
    def f(x):
        warnings.warn("seen while tracing", stacklevel=2)
        return jnp.sin(x)

    rule = jax.custom_vjp(f)
    rule.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.cos(x),))
    with pytest.warns(UserWarning, match="seen while tracing") as seen:
        rule(jnp.asarray(X))
    assert len(seen) == 1


def test_an_argument_is_freed():
    class Array(np.ndarray):
        """An array that can be referred to weakly."""

    x = X.view(Array)
    where = weakref.ref(x)
    rules.sine(x)
    del x
    gc.collect()
    assert where() is None


def test_a_transfer_guard_is_kept():
    x = jax.device_put(X)
    f = jax.jit(rules.sine)
    f(x)
    with jax.transfer_guard("disallow"):
        y = f(x)
    assert y.shape == (3,)


def test_a_rule_is_the_object_that_it_was():
    assert type(rules.sine) is jax.custom_vjp and rules.sine.__name__ == "sine"
    assert rules.sine.__wrapped__(0.0) == 0 and rules.sine.__doc__ == "A right rule."


def test_an_error_is_raised_as_it_is():
    with pytest.raises(TypeError) as caught:
        rules.sine("text")
    assert "text" in str(caught.value) or "str" in str(caught.value)
    with pytest.raises(TypeError):
        rules.sine(1.0, 2.0)
