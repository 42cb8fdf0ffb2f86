"""automatic(f) compiles nothing twice, traces a jitted function once, and keeps nothing alive."""

import gc

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest
from jax import lax
from placements import PLACEMENTS, X, square, wrong

import jaxnn
from jaxnn.tracing import rewriting


@pytest.fixture
def compilations():
    names = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "id", ["jit", "nested-three-deep", "jit-in-definition", "scan-cond-in-jit", "custom_jvp", "remat", "optimize_remat"]
)
def test_nothing_is_compiled_twice(id, compilations):
    f = jaxnn.automatic(PLACEMENTS[id][0](wrong))
    x = jnp.array(X)
    jax.clear_caches()
    f(x)
    assert compilations
    compilations.clear()
    f(x)
    assert not compilations

    gradient = jax.grad(lambda x: jnp.sum(f(x)))
    gradient(x)
    compilations.clear()
    gradient(x)
    assert not compilations


def test_a_jitted_function_is_traced_once():
    f, traces = wrong(square), []

    @jax.jit
    def traced(x):
        traces.append(x)
        return f(x)

    without, x = jaxnn.automatic(traced), jnp.array(X)
    for run in (without, without, jax.grad(lambda x: jnp.sum(without(x))), jax.jit(without)):
        run(x)
    assert len(traces) == 1


@pytest.mark.one_in(5)
@pytest.mark.parametrize("id", ["plain", "nested-three-deep", "jit-in-definition", "argument", "branch"])
def test_repeated_calls_keep_nothing_alive(id):
    def same(x):
        return x

    f = (
        PLACEMENTS[id][0](wrong)
        if id in PLACEMENTS
        else {"argument": same, "branch": lambda x: lax.cond(x[0] > 0, lambda x: x, square, x)}[id]
    )
    without, x = jaxnn.automatic(f), jnp.array(X)
    before = len(rewriting._rewritten)
    calls = 20 if id in ("branch", "jit-in-definition") else 100 if id == "nested-three-deep" else 1000
    for _ in range(calls):
        without(x)
    if calls == 20:
        jax.clear_caches()  # JAX's own
    gc.collect()
    assert len(rewriting._rewritten) <= before + 4


def test_a_deleted_function_is_forgotten():
    without = jaxnn.automatic(jax.jit(wrong(square)))
    without(jnp.array(X))
    before = len(rewriting._rewritten)
    del without
    jax.clear_caches()
    gc.collect()
    assert len(rewriting._rewritten) < before
