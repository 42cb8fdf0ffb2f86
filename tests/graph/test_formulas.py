"""The formulas of the nodes: every component and every everyday operation has its own."""

import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import pytest
from graphs import KEY, T, W, X, check
from jax import lax

import jaxnn
from jaxnn.graph import trace
from jaxnn.graph._formulas import OPERATIONS

COMPONENTS = {
    "linear": lambda x: jaxnn.linear(x, W, jnp.ones(2)).sum(),
    "conv2d": lambda x: jaxnn.conv2d(x.reshape(1, 3, 1), jnp.ones((1, 1, 2, 1)), jnp.ones(1)).sum(),
    "relu": lambda x: jaxnn.relu(x).sum(),
    "sigmoid": lambda x: jaxnn.sigmoid(x).sum(),
    "tanh": lambda x: jaxnn.tanh(x).sum(),
    "max_pool2d": lambda x: jaxnn.max_pool2d(x.reshape(1, 3, 1), (3, 1)).sum(),
    "dropout": lambda x: jaxnn.dropout(x, 0.5, KEY).sum(),
    "softmax": lambda x: jaxnn.softmax(x)[0],
    "log_softmax": lambda x: jaxnn.log_softmax(x)[0],
    "nll": lambda x: jaxnn.nll(x, T),
    "nll_loss": lambda x: jaxnn.nll_loss(x, T),
    "cross_entropy": lambda x: jaxnn.cross_entropy(x, jnp.abs(x), weight=x),
    "linear_cross_entropy": lambda x: jaxnn.linear_cross_entropy(x, W, T, b=x[:2], weight=x[1:], label_smoothing=0.1),
    "binary_cross_entropy": lambda x: jaxnn.binary_cross_entropy(x, x),
    "squared_error": lambda x: jaxnn.squared_error(x, x),
    "l1_penalty": lambda x: jaxnn.l1_penalty({"w": x}),
    "l2_penalty": lambda x: jaxnn.l2_penalty([x, 2 * x]),
    "mean": lambda x: jaxnn.squared_error(x, X),
}


@pytest.mark.one_in(18)
@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_has_its_formulas(name):
    graph = trace(COMPONENTS[name], jnp.abs(X))
    (node,) = (n for n in graph.nodes if n.operation == name)
    assert node.formula and r"\text{" + name not in node.formula
    flowing = [edge for edge in node.inputs if edge.downstream is not None]
    assert flowing
    for edge in flowing:
        assert edge.formula.startswith("d") and r"\partial" not in edge.formula
        assert not edge.meaning.startswith("Hand-written rule")


def everyday(x, w):
    h = jnp.exp(-x) / (1 + jnp.abs(x)) - jnp.sqrt(jnp.square(x) + 1) * jnp.log1p(x**2)
    h = (
        jnp.maximum(h, 0.1)
        + jnp.minimum(h, jnp.tanh(h))
        + lax.logistic(h)
        + lax.rsqrt(x * x + 1)
        + jnp.sin(h) * jnp.cos(h)
    )
    h = jnp.concatenate([h[:2], jnp.flip(h), jnp.where(h > 0, h, 2 * h)]) + lax.erf(jnp.pad(h, (2, 3)))
    h = jnp.log(jnp.abs(h) + 1) * jnp.clip(jnp.cumsum(h), -1, 1) + jnp.expm1(jnp.prod(0.5 * h) + jnp.min(h))
    return jnp.sum((w.T @ w)[jnp.array([0, 2]), 1] ** 3) + jnp.max(h) + jnp.sum(h) + jax.nn.softplus(h[0])


@pytest.mark.more
def test_everyday_operations_have_formulas():
    graph = check(everyday, X, W)
    without = {
        n.operation
        for n in graph.nodes
        for e in n.inputs
        if e.downstream is not None and e.meaning.startswith("JAX's own")
    }
    assert without == set()
    assert sum(n.operation in OPERATIONS for n in graph.nodes) >= 30


def test_an_operation_without_formula_is_named():
    graph = check(lambda x: jnp.sum(lax.lgamma(x)), jnp.abs(X))
    edge = graph["x1"].inputs[0]
    assert graph["x1"].formula == r"y = \text{lgamma}(x)"
    assert (edge.formula, edge.meaning) == (
        r"dx = dy\,\frac{\partial y}{\partial x}",
        "JAX's own derivative of lgamma.",
    )


@pytest.mark.parametrize("batched", [False, True])
def test_products_have_a_letter_for_each_axis(batched):
    a, b = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    if batched:
        node = trace(lambda a, b: jnp.sum(jnp.einsum("bij,bjk->bik", a, b)), a, b)["x1"]
        assert node.formula == r"y_{ijl} = \sum_{k} a_{ijk}\,b_{ikl}"
        assert [e.formula for e in node.inputs] == [
            r"da_{ijk} = \sum_{l} dy_{ijl}\,b_{ikl}",
            r"db_{ikl} = \sum_{j} dy_{ijl}\,a_{ijk}",
        ]
    else:
        node = trace(lambda w, x: jnp.sum(w @ x), W, X)["x1"]
        assert node.formula == r"y_{i} = \sum_{k} a_{ik}\,b_{k}"
        assert [e.formula for e in node.inputs] == [r"da_{ik} = dy_{i}\,b_{k}", r"db_{k} = \sum_{i} dy_{i}\,a_{ik}"]


def test_powers_show_their_exponent():
    node = trace(lambda x: jnp.sum(x**3), X)["x1"]
    assert (node.formula, node.inputs[0].formula) == ("y_i = x_i^{3}", r"dx_i = dy_i\,3\,x_i^{2}")


@pytest.mark.parametrize("name", OPERATIONS)
def test_formulas_become_mathml(name):
    from latex2mathml.converter import convert

    formulas = OPERATIONS[name]
    for formula in [formulas.definition, *(formula for formula, _ in formulas.gradients.values())]:
        text = "".join(xml.etree.ElementTree.fromstring(convert(formula)).itertext()) if formula else ""
        assert "\\" not in text, text
