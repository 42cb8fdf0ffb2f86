"""Graphs of models of Flax and Equinox."""

import equinox
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import T, X, check

import jaxnn
from jaxnn.graph import trace


class Dense(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(2)(flax.linen.relu(flax.linen.Dense(4)(x)))


@pytest.mark.more
def test_a_flax_model():
    model = Dense()
    variables = model.init(jax.random.key(0), X)
    graph = check(lambda variables, x: jaxnn.cross_entropy(model.apply(variables, x), T), variables, X)
    assert {n.name for n in graph.nodes if n.kind == "input"} == {
        "Dense_0.bias", "Dense_0.kernel", "Dense_1.bias", "Dense_1.kernel", "x",
    }  # fmt: skip
    assert "relu" in [n.operation for n in graph.nodes]


@pytest.mark.more
def test_an_nnx_model_under_its_own_jit():
    model = flax.nnx.Linear(3, 2, rngs=flax.nnx.Rngs(0))

    def loss(model, x):
        return jaxnn.cross_entropy(model(x), T)

    graph = trace(lambda model, x: flax.nnx.jit(loss)(model, x), model, X)
    expected = flax.nnx.grad(loss)(model, X)
    (kernel,) = (n for n in graph.nodes if "kernel" in n.name)
    np.testing.assert_allclose(kernel.upstream, expected["kernel"][...], rtol=1e-6)
    assert [n.operation for n in graph.nodes if n.inputs] == ["dot_general", "add", "cross_entropy", "mean"]


@pytest.mark.more
@pytest.mark.parametrize("wrap", [lambda f: f, equinox.filter_jit], ids=["plain", "filter_jit"])
def test_an_equinox_model(wrap):
    model = equinox.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))

    def loss(model, x):
        return jaxnn.squared_error(model(x), jnp.ones(2))

    graph = trace(wrap(loss), model, X)
    expected = jax.tree.leaves(equinox.filter_grad(loss)(model, X))
    weights = [n for n in graph.nodes if n.kind == "input" and n.name != "x"]
    assert [n.name for n in weights] == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    for node, gradient in zip(weights, expected, strict=True):
        np.testing.assert_allclose(node.upstream, gradient, rtol=1e-5)
    assert [n.operation for n in graph.nodes if n.inputs] == ["dot_general", "add", "relu", "dot_general", "add", "squared_error", "mean"]  # fmt: skip
    assert "y" in [n.name for n in graph.nodes]
