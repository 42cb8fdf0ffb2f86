"""Arguments and functions to trace, and `check`, which compares a graph with jax.grad and with itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np

import jaxnn
from jaxnn.graph import trace

X = jnp.array([0.5, -1.25, 2.0])
W = jnp.array([[0.3, -0.2, 0.5], [-0.4, 0.1, 0.25]])
T = jnp.array(1)
KEY = jax.random.key(0)
IMAGE = jax.random.uniform(jax.random.key(1), (1, 1, 6, 6))
FILTERS = 0.5 * jax.random.normal(jax.random.key(2), (2, 1, 3, 3))
ROWS = 0.3 * jax.random.normal(jax.random.key(3), (3, 8))
LABEL = jnp.array([2])


def floating(leaf):
    return isinstance(leaf, float) or (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact))


def gradients(f, args):
    """What jax.grad says, of each floating-point leaf."""
    leaves, tree = jax.tree.flatten(args)
    at = [i for i, leaf in enumerate(leaves) if floating(leaf)]

    def of_leaves(*values):
        filled = list(leaves)
        for i, value in zip(at, values, strict=True):
            filled[i] = value
        return f(*jax.tree.unflatten(tree, filled))

    return jax.tree.map(np.asarray, jax.grad(of_leaves, tuple(range(len(at))))(*(jnp.asarray(leaves[i]) for i in at)))


def consumers(graph, name):
    return [edge for node in graph.nodes for edge in node.inputs if edge.node == name]


def check(f, *args, rule_is_right=True):
    """Trace f, and hold the graph against jax.grad and against itself."""
    graph = trace(f, *args)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(graph[graph.output].value.reshape(()), f(*args), rtol=1e-6)
    inputs = [node for node in graph.nodes if node.by_rule is not None]
    for node, expected in zip(inputs, gradients(f, args), strict=True):
        np.testing.assert_allclose(node.upstream, expected, rtol=1e-5, atol=1e-6)
        assert node.upstream.dtype == expected.dtype
    for node, expected in zip(inputs, gradients(jaxnn.automatic(f), args), strict=True):
        np.testing.assert_allclose(node.by_autodiff, expected, rtol=1e-5, atol=1e-6)
        assert node.by_difference.count() == node.value.size
        np.testing.assert_allclose(node.by_difference[~node.kinks], expected[~node.kinks], rtol=1e-4, atol=1e-4)
        if rule_is_right:
            np.testing.assert_allclose(node.by_rule, expected, rtol=1e-5, atol=1e-6)
    seen = set()
    for node in graph.nodes:
        assert seen.issuperset(edge.node for edge in node.inputs), "each after those it reads"
        seen.add(node.name)
        if node.upstream is not None and node.name != graph.output:
            total = sum(
                (e.downstream for e in consumers(graph, node.name) if e.downstream is not None), 0 * node.upstream
            )
            np.testing.assert_allclose(total, node.upstream, rtol=1e-5, atol=1e-6)
        for edge in node.inputs:
            source = graph[edge.node]
            assert (edge.downstream is None) == (node.upstream is None or source.upstream is None)
            assert edge.meaning and (edge.formula != "") == (edge.downstream is not None)
            if edge.downstream is not None and node.value.size * source.value.size <= 4096:
                assert edge.local.shape == (node.value.size, source.value.size)
                product = node.upstream.reshape(-1) @ edge.local
                np.testing.assert_allclose(edge.downstream.reshape(-1), product, rtol=1e-4, atol=1e-6)
            else:
                assert edge.local is None
    json.dumps(graph.to_dict(), allow_nan=False)
    assert all(len(line) <= 100 for line in str(graph).splitlines())
    return graph


def operations(graph):
    """The nodes that are computed, as "x1 = conv2d(x, W0)"."""
    return [f"{n.name} = {n.operation}({', '.join(e.node for e in n.inputs)})" for n in graph.nodes if n.inputs]


def notes_network(W0, W1, x, t):
    x1 = jaxnn.conv2d(x, W0)
    x2 = jaxnn.relu(x1)
    x3 = jaxnn.max_pool2d(x2)
    x4 = jaxnn.linear(x3.reshape(1, -1), W1)
    y = jaxnn.softmax(x4)
    return jaxnn.nll(y, t, reduction="sum")
