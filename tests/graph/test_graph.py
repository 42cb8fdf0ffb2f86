"""The computation graph: its nodes, names and formulas, and gradients that add up to what jax.grad says."""

import functools
import html
import inspect
import json
import re
import sys
import xml.etree.ElementTree
from pathlib import Path

import equinox
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxnn
from jaxnn.graph import Graph, trace
from jaxnn.graph._formulas import OPERATIONS

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


# The notes' networks.


def notes_network(W0, W1, x, t):
    x1 = jaxnn.conv2d(x, W0)
    x2 = jaxnn.relu(x1)
    x3 = jaxnn.max_pool2d(x2)
    x4 = jaxnn.linear(x3.reshape(1, -1), W1)
    y = jaxnn.softmax(x4)
    return jaxnn.nll(y, t, reduction="sum")


def test_the_notes_network_has_the_notes_names():
    graph = check(notes_network, FILTERS, ROWS, IMAGE, LABEL)
    assert operations(graph) == [
        "x1 = conv2d(x, W0)",
        "x2 = relu(x1)",
        "x3 = max_pool2d(x2)",
        "x3' = reshape(x3)",
        "x4 = linear(x3', W1)",
        "y = softmax(x4)",
        "ℓ = nll(y, t)",
    ]
    assert graph.function == "notes_network" and graph.output == "ℓ" and graph["ℓ"].value.shape == ()
    assert [n.kind for n in graph.nodes] == ["input"] * 4 + ["rule"] * 3 + ["operation"] + ["rule"] * 3
    assert [e.argument for n in ("x1", "x4", "ℓ") for e in graph[n].inputs] == ["x", "w", "x", "w", "p", "labels"]
    assert graph["x1"].formula.startswith(r"y_{s,oc,i,j} = \sum_{ic,i',j'} w_{oc,ic,i',j'}")
    assert graph["y"].inputs[0].formula == r"dx_j = y_j \left(dy_j - \sum_a dy_a\,y_a\right)"
    assert graph["t"].upstream is None and graph["t"].by_rule is None
    assert graph["x1"].by_rule is None, "of inputs alone"
    assert graph["W0"].difference_step == 6e-6 and graph["W0"].by_difference.dtype == np.float64


@pytest.fixture(scope="module")
def notes():
    return trace(notes_network, FILTERS, ROWS, IMAGE, LABEL)


def test_local_derivatives_are_jacobians_rows_outputs(notes):
    graph = notes
    y = graph["y"].value[0]
    np.testing.assert_allclose(graph["y"].inputs[0].local, np.diag(y) - np.outer(y, y), atol=1e-6)
    np.testing.assert_allclose(graph["x4"].inputs[0].local, ROWS)
    np.testing.assert_allclose(graph["x4"].inputs[1].local, np.kron(np.eye(3), graph["x3'"].value), atol=1e-6)
    np.testing.assert_allclose(graph["ℓ"].inputs[0].local, [[0, 0, -1 / y[2]]], rtol=1e-5)
    assert set(graph["x3"].inputs[0].local.flat) == {0, 1}


def test_of_a_fused_loss_the_logits_keep_their_number():
    def loss(params, x, t):
        return jaxnn.cross_entropy(jaxnn.linear(x, params["w"], params["b"]), t, weight=jnp.array([1.0, 3.0]))

    graph = check(loss, {"w": W, "b": jnp.zeros(2)}, jnp.stack([X, 2 * X]), jnp.array([0, 1]))
    assert [n.name for n in graph.nodes if n.kind == "input"] == ["b", "w", "x", "t"]
    assert operations(graph) == ["x1 = linear(x, w, b)", "x2 = cross_entropy(x1, t, c1)", "ℓ = mean(x2, t)"]
    np.testing.assert_array_equal(graph["c1"].value, [1, 3])
    assert graph["c1"].kind == "constant" and graph["c1"].upstream is None


@pytest.mark.parametrize(
    ("loss", "prediction"),
    [
        (lambda w: jaxnn.squared_error(jaxnn.tanh(w), X), "tanh"),
        (lambda w: jaxnn.nll(jax.nn.softmax(w), T), "div"),
        (lambda w: jaxnn.nll_loss(jaxnn.log_softmax(w), T) + 0.1 * jaxnn.l2_penalty({"w": w}), "log_softmax"),
        (lambda w: jaxnn.nll(jaxnn.softmax(jnp.stack([w, 2 * w], 1), 0).T, jnp.array([0, 1])), "softmax"),
        (lambda w: jaxnn.cross_entropy(jaxnn.squared_error(jnp.tanh(w), X, reduction="none"), T), None),
        (lambda w: jaxnn.binary_cross_entropy(2 * w, jnp.ones(3)), None),
        (lambda w: jnp.sum((jaxnn.sigmoid(w) - X) ** 2), None),
        (lambda w: jaxnn.squared_error(w, X), None),
        (lambda y: jaxnn.squared_error(jaxnn.tanh(y), X), "input"),
    ],
    ids=["y", "p, by hand", "log p, and a penalty", "transposed", "fused", "binary", "plain", "an input", "y is taken"],
)
def test_y_is_what_goes_into_the_loss(loss, prediction):
    graph = check(loss, X)
    predictions = [node.operation for node in graph.nodes if re.fullmatch("y(_2)?", node.name)]
    assert predictions == ([prediction] if prediction else [])


# The chain rule: sums over consumers.


def test_a_residual_connection_adds_the_gradients_of_both_ways():
    def residual(w, x):
        h = jnp.tanh(w @ x)
        return jnp.sum(h + jnp.sin(h) * jnp.exp(h))

    graph = check(residual, W, X)
    tanh = graph["x2"]
    assert [node.name for node in graph.nodes if any(e.node == "x2" for e in node.inputs)] == ["x3", "x4", "x6"]
    parts = [edge.downstream for edge in consumers(graph, "x2")]
    assert all(np.any(part != tanh.upstream) for part in parts)
    np.testing.assert_allclose(sum(parts), tanh.upstream, rtol=1e-6)


def test_an_array_that_is_read_twice_by_one_operation_has_two_edges():
    graph = check(lambda x: jnp.sum(x * x), X)
    assert [(e.argument, e.node) for e in graph["x1"].inputs] == [("a", "x"), ("b", "x")]
    for edge in graph["x1"].inputs:
        np.testing.assert_array_equal(edge.local, np.diag(X))
    np.testing.assert_array_equal(graph["x"].upstream, 2 * X)


def test_no_gradient_flows_to_integers_constants_and_unused_inputs():
    graph = check(lambda a, b, t: jnp.sum(jnp.where(jnp.arange(3) < t, a, 4.0)), X, W, T)
    np.testing.assert_array_equal(graph["b"].upstream, np.zeros((2, 3)))
    assert graph["t"].upstream is None and graph["4.0"].upstream is None
    (where,) = (node for node in graph.nodes if node.operation == "where")
    condition, a, constant = where.inputs
    assert (condition.node, a.node, constant.node) == ("t", "a", "4.0")
    assert condition.local is None and condition.formula == "" and "no gradient" in condition.meaning
    assert constant.local is None and constant.meaning == "A constant: it does not move."
    np.testing.assert_array_equal(a.local, np.diag([1, 0, 0]))


def test_an_array_may_be_empty():
    graph = check(lambda x, w: jnp.sum(jnp.sin(x)) + w, X[:0], 2.0)
    assert graph["x1"].inputs[0].local.shape == (0, 0) and graph["x"].upstream.shape == (0,)


def test_a_stopped_gradient_stops():
    def f(x):
        return jnp.sum(lax.stop_gradient(jnp.exp(x)) * x)

    graph = trace(f, X)
    stopped = next(node for node in graph.nodes if node.operation == "stop_gradient")
    assert stopped.upstream is None and stopped.inputs[0].downstream is None
    assert stopped.inputs[0].meaning.startswith("Stopped")
    np.testing.assert_array_equal(graph[stopped.inputs[0].node].upstream, np.zeros(3))
    np.testing.assert_allclose(graph["x"].upstream, np.exp(X), rtol=1e-6)
    np.testing.assert_allclose(graph["x"].by_difference, np.exp(X) * (1 + X), rtol=1e-5)
    assert graph.caption.endswith("They move what stop_gradient holds still, too.")


# A user's own rules.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scaled_square(x, factor, params):
    """Square, and scale.

    With a rule that forgets the scale.
    """
    return factor * x * x * params["w"][0]


scaled_square.defvjp(
    lambda x, factor, params: (scaled_square(x, factor, params), (x, params["w"][0])),
    lambda factor, kept, dy: (2 * kept[0] * kept[1] * dy, {"w": [jnp.sum(factor * kept[0] ** 2 * dy)]}),
)


def test_a_wrong_rule_differs_from_autodiff_and_differences():
    def loss(v, x):
        return jnp.sum(scaled_square(x, 3.0, {"w": [v]}))

    graph = check(loss, 0.5, X, rule_is_right=False)
    node, rule = graph["x"], graph["x1"]
    np.testing.assert_allclose(node.by_rule, X, rtol=1e-6)
    np.testing.assert_allclose(node.by_autodiff, 3 * X, rtol=1e-6)
    np.testing.assert_allclose(node.by_difference, 3 * X, rtol=1e-6)
    np.testing.assert_allclose(rule.inputs[0].local, np.diag(X), rtol=1e-6)
    assert (rule.operation, rule.kind) == ("scaled_square", "rule")
    assert [edge.argument for edge in rule.inputs] == ["x", "params.w.0"]
    assert rule.formula == r"y = \text{scaled_square}(x, \text{params.w.0})"
    assert rule.inputs[0].meaning == "Hand-written rule scaled_square: Square, and scale."


def test_a_right_rule_agrees():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (cube(x), x), lambda x, dy: (3 * x * x * dy,))
    graph = check(lambda x: jnp.sum(cube(x)), X)
    assert graph["x1"].inputs[0].meaning == "Hand-written rule cube"


def test_a_rule_with_several_results_is_a_node_for_each_that_is_used():
    @jax.custom_vjp
    def both(x, w):
        return x * w, x + w, x - w

    both.defvjp(lambda x, w: (both(x, w), (x, w)), lambda r, d: (d[0] * r[1] + d[1] + d[2], d[0] * r[0] + d[1] - d[2]))

    def loss(x, w):
        a, b, _ = both(x, w)
        return jnp.sum(a * b)

    graph = check(loss, X, X + 1)
    assert operations(graph)[:3] == ["x1 = both[0](x, w)", "x2 = both[1](x, w)", "x3 = mul(x1, x2)"]


def test_a_custom_jvp_function_is_a_rule_too_and_one_of_jax_is_not():
    @jax.custom_jvp
    def double(x):
        return 2 * x

    double.defjvp(lambda primals, tangents: (double(*primals), 2 * tangents[0]))
    graph = check(lambda x: jnp.sum(jax.nn.relu(double(x))), X)
    assert [(n.operation, n.kind) for n in graph.nodes[1:]] == [
        ("double", "rule"), ("relu", "operation"), ("reduce_sum", "operation"),
    ]  # fmt: skip
    assert graph["x1"].inputs[0].argument == "x"


def test_rules_under_vmap_keep_their_name_arguments_and_formulas():
    graph = check(lambda w, x: jnp.sum(jax.vmap(lambda x: jaxnn.linear(x, w))(x)), W, jnp.stack([X, 2 * X]))
    assert operations(graph)[0] == "x1 = linear(x, w)"
    assert [e.argument for e in graph["x1"].inputs] == ["x", "w"]
    assert graph["x1"].inputs[1].formula == r"dW_{ij} = \sum_s dy_{si}\,x_{sj}"


# Nodes.


@jax.jit
def jitted_by_user(x):
    return jnp.sin(x) * 2


def test_the_users_jitted_functions_are_written_out_and_a_librarys_are_not():
    graph = check(jax.jit(lambda x: jnp.sum(jax.nn.silu(jitted_by_user(jitted_by_user(x))))), X)
    assert [n.operation for n in graph.nodes if n.inputs] == ["sin", "mul", "sin", "mul", "silu", "reduce_sum"]


def test_control_flow_is_one_node_each():
    def f(x, n):
        carry, sums = lax.scan(lambda c, a: (c * a, c + a), jnp.ones(()), x)
        carry = lax.cond(carry > 0, jnp.sin, jnp.cos, carry)
        carry = jax.checkpoint(lambda c: jnp.sin(jnp.cos(c)))(carry)
        turns = lax.while_loop(lambda i: i < n, lambda i: i + 1, 0)
        return carry * turns.astype(jnp.float32) + jnp.sum(sums)

    graph = check(f, X, jnp.array(3))
    found = [n.operation for n in graph.nodes if n.inputs]
    assert found == ["scan[0]", "scan[1]", "gt", "cond", "remat", "while", "convert_element_type", "mul", "reduce_sum", "add"]  # fmt: skip
    assert (
        graph["x1"].formula == "(c_{t+1}, y_t) = f(c_t, x_t)"
        and graph["x1"].inputs[1].meaning == "Every turn adds its part."
    )


def test_a_shard_map_is_one_node():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(lambda x: jnp.sin(x) * 2, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"))
    graph = check(lambda x: jnp.sum(mapped(x)), jnp.arange(4.0))
    assert [n.operation for n in graph.nodes if n.inputs] == ["shard_map", "reduce_sum"]


def test_axes_of_size_one_are_no_nodes():
    def f(x):
        return jnp.sum(jnp.tanh(x[None]).reshape(3, 1).squeeze(1)[None, :, None] * 2)

    assert operations(check(f, X)) == ["x1 = tanh(x)", "x2 = mul(x1, 2.0)", "ℓ = reduce_sum(x2)"]
    assert check(lambda x: x.reshape(()), jnp.array([2.0])).output == "x"


def test_constants_are_computed_and_shared():
    table = np.array([1.0, 2.0, 3.0], np.float32)

    def f(x):
        return jnp.sum((x * jnp.full(3, 2.0) + jnp.sqrt(jnp.array(4.0))) * table - jnp.exp(table) * table)

    graph = check(f, X)
    assert [n.name for n in graph.nodes if n.kind == "constant"] == ["2.0", "c1", "c2"]
    assert [len(consumers(graph, name)) for name in ("2.0", "c1", "c2")] == [2, 1, 1]
    np.testing.assert_allclose(graph["c2"].value, np.exp(table) * table, rtol=1e-6)
    infinite = check(lambda x: jnp.maximum(-jnp.inf, jnp.max(x)), X)
    assert infinite["-inf"].value == -np.inf


def test_a_function_that_ignores_its_input():
    graph = trace(lambda x: 3.0, X)
    assert [n.name for n in graph.nodes] == ["x", "ℓ"] and graph["ℓ"].kind == "constant"
    np.testing.assert_array_equal(graph["x"].upstream, np.zeros(3))


def test_labels_and_keys_are_read_by_what_uses_them():
    def f(x, key, t):
        h = jaxnn.dropout(x, 0.5, jax.random.fold_in(key, 1))
        return jnp.log(jax.nn.softmax(h)[t]) * jax.nn.one_hot(t, 3)[t]

    graph = check(f, X, KEY, T)
    assert operations(graph)[0] == "x1 = dropout(x, key)"
    assert graph["key"].value.dtype == np.uint32 and graph["key"].upstream is None
    (picked,) = (n for n in graph.nodes if n.operation == "dynamic_slice" and n.upstream is not None)
    assert picked.inputs[1].node == "t"
    assert any(n.operation == "one_hot" for n in graph.nodes), "numbers are a node of their own"


def test_prints_are_left_out(capsys):
    def f(x):
        jax.debug.print("printed")
        return jnp.sum(x * x)

    graph = check(f, X)
    assert [n.operation for n in graph.nodes if n.inputs] == ["mul", "reduce_sum"]


# Names.


def test_leaves_have_the_shortest_name_that_no_other_has():
    def f(params, others, *rest):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((params, others, rest)))

    layer = {"w": X, "b": X}
    graph = trace(f, {"one": layer, "two": {"w": X, "scale": X}}, [X, {"W0": X}], 2.0, X)
    assert [n.name for n in graph.nodes if n.kind == "input"] == [
        "b", "one.w", "scale", "two.w", "others.0", "W0", "args.2", "args.3",
    ]  # fmt: skip


def test_checkpoint_name_names_a_node_and_is_none():
    def f(x, y, x1):
        h = checkpoint_name(jnp.tanh(x * y), "h")
        h = checkpoint_name(jnp.exp(h) * checkpoint_name(x1, "mine"), "h")
        return checkpoint_name(jnp.sum(jnp.sin(h)), "loss")

    graph = check(f, X, X + 1, X)
    assert operations(graph) == [
        "x2 = mul(x, y)", "h = tanh(x2)", "x3 = exp(h)", "h_2 = mul(x3, x1)", "x4 = sin(h_2)", "loss = reduce_sum(x4)",
    ]  # fmt: skip
    assert graph.output == "loss"


def test_rearranged_numbers_keep_their_name_with_a_prime():
    def f(w):
        return jnp.sum(jnp.sin(w.T.reshape(-1)) * w.reshape(-1)) + jnp.sum(w.astype(jnp.float16)).astype(jnp.float32)

    graph = trace(f, W)
    assert operations(graph)[:3] == ["w' = transpose(w)", "w'' = reshape(w')", "x1 = sin(w'')"]
    assert "w'_2 = reshape(w)" in operations(graph)


def test_a_name_that_no_node_has():
    with pytest.raises(KeyError, match=re.escape("`name` ('x9') must be one of x, x1, ℓ")):
        trace(lambda x: jnp.sum(x * x), X)["x9"]


def test_lines_are_the_users(notes):
    first = inspect.getsourcelines(notes_network)[1]
    file = Path(__file__).name

    def inner(x):
        return jnp.sin(x)

    line = inspect.getsourcelines(inner)[1] + 1
    assert trace(lambda x: inner(x[0]), X)["ℓ"].source == f"{file}:{line}", "where it is written"
    assert [n.source for n in notes.nodes if n.inputs] == [f"{file}:{first + k}" for k in (1, 2, 3, 4, 4, 5, 6)]


# Numeric differences.


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


@pytest.mark.parametrize(
    ("f", "args", "dtype", "reason", "rtol"),
    [
        (coarse, (X,), "float16", "", 0.05),
        (random, (X,), "float32", "f has another value in float64, as one that draws random numbers has", 1e-3),
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


@pytest.mark.parametrize(
    "f, x", [(jnp.square, 0.0), (lambda x: x**4, 0.0), (lambda x: (x - 1) ** 2, 1.0), (lambda x: 3 * x**2 + x**3, 0.0)]
)
def test_a_minimum_is_no_kink(f, x):
    assert not trace(f, x).nodes[0].kinks
    assert trace(lambda x: f(x) + jnp.abs(x - x0), x0 := jnp.float32(x)).nodes[0].kinks


def test_a_function_that_insists_on_its_dtype():
    node = trace(lambda x: jax.lax.mul(x, jnp.ones((), jnp.bfloat16)), jnp.bfloat16(2))["x"]
    np.testing.assert_allclose(np.float64(node.by_difference), 1, rtol=0.05)


def test_a_page_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nowhere.page\.html"):
        trace(jnp.square, 1.0).save(tmp_path / "nowhere" / "page.html")


def test_kinks_are_told_from_smooth_places():
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


def test_of_a_large_input_some_elements_are_taken():
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


# Values that are not finite, and JSON.


def test_nan_and_infinities_become_strings():
    graph = trace(lambda x: jnp.sum(jnp.log(x)), jnp.array([1.0, 0.0, -1.0, jnp.inf, jnp.nan]))
    log = graph.to_dict()["nodes"][1]
    assert log["value"]["data"] == [0.0, "-Infinity", "NaN", "Infinity", "NaN"]
    assert log["inputs"][0]["local"]["shape"] == [5, 5]
    assert graph.to_dict()["nodes"][0]["gradients"]["rule"]["data"][:2] == [1.0, "Infinity"]
    json.dumps(graph.to_dict(), allow_nan=False)
    assert "nan" in str(graph)


def test_to_dict_holds_what_the_graph_does(notes):
    graph = notes
    data = json.loads(json.dumps(graph.to_dict(), allow_nan=False))
    assert (data["function"], data["output"], data["caption"]) == ("notes_network", "ℓ", graph.caption)
    for node, held in zip(graph.nodes, data["nodes"], strict=True):
        assert (held["name"], held["operation"], held["kind"], held["source"]) == (
            node.name,
            node.operation,
            node.kind,
            node.source,
        )
        assert (held["shape"], held["dtype"]) == (list(node.value.shape), str(node.value.dtype))
        np.testing.assert_allclose(held["value"]["data"], node.value.reshape(-1), rtol=1e-8)
        assert held["formula"] == node.formula and held["mathml"].startswith("<math") == bool(node.formula)
        assert (held["upstream"] is None) == (node.upstream is None)
        for edge, kept in zip(node.inputs, held["inputs"], strict=True):
            assert (kept["argument"], kept["node"], kept["formula"], kept["meaning"]) == (
                edge.argument,
                edge.node,
                edge.formula,
                edge.meaning,
            )
            assert (kept["local"] is None) == (edge.local is None) and (kept["downstream"] is None) == (
                edge.downstream is None
            )
        if node.by_rule is None:
            assert held["gradients"] is None
        else:
            three = held["gradients"]
            assert (three["step"], three["argument"], three["kinks"]) == (6e-6, node.name, [])
            for key, array in (
                ("rule", node.by_rule),
                ("autodiff", node.by_autodiff),
                ("difference", node.by_difference),
            ):
                np.testing.assert_allclose(three[key]["data"], array.reshape(-1), rtol=1e-8)
                assert three[key]["dtype"] == str(array.dtype)
    assert data["nodes"][0]["value"]["data"][0] == float(f"{FILTERS.reshape(-1)[0]:.9g}")


def test_without_latex2mathml_an_error_names_it(notes, monkeypatch):
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    assert "conv2d" in str(notes)
    with pytest.raises(ImportError, match="pip install latex2mathml") as raised:
        notes.to_dict()
    assert "\n" not in str(raised.value)


def test_large_tensors_are_summarised():
    x = jnp.linspace(-1, 1, 20_001).at[7:9].set(0)
    first = trace(lambda x: jnp.sum(x * x), x).to_dict()["nodes"][0]
    assert (
        first["value"]["data"] is None and first["value"]["truncated"] is True and first["value"]["shape"] == [20_001]
    )
    host = np.asarray(x, np.float64)
    expected = {"min": -1, "max": 1, "mean": host.mean(), "norm": np.linalg.norm(host), "zeros": np.sum(host == 0)}
    assert first["value"]["summary"] == pytest.approx(expected)
    assert first["gradients"]["difference"]["truncated"] is True
    assert "summary" not in trace(lambda x: jnp.sum(x), x[:20_000]).to_dict()["nodes"][0]["value"]


def test_no_jacobian_above_4096_elements():
    graph = trace(lambda x: jnp.sum(jnp.sin(x)), jnp.linspace(-1, 1, 64))
    assert graph["x1"].inputs[0].local.shape == (64, 64)
    graph = trace(lambda x: jnp.sum(jnp.sin(x)), jnp.linspace(-1, 1, 65))
    assert graph["x1"].inputs[0].local is None and graph["x1"].inputs[0].downstream is not None


def test_the_printed_table():
    def loss(w, x, t):
        return jaxnn.cross_entropy(jaxnn.linear(x, w), t, reduction="sum")

    lines = [
        "loss(w, x, t) = 1.483",
        "name  operation             shape        value  |upstream|",
        "w     input                 (2,3)   -0.4 … 0.5        2.64",
        "x     input                 (3,)     -1.25 … 2        0.62",
        "t     input                 ()               1",
        "x1    linear(x, w)          (2,)   0.175 … 1.4        1.09",
        "ℓ     cross_entropy(x1, t)  ()           1.483           1",
    ]
    assert str(trace(loss, W, X, T)).splitlines() == lines
    long = {f"a_rather_long_name_{k}": X for k in range(9)}
    table = str(trace(lambda params: sum(jnp.sum(x) for x in params.values()), long)).splitlines()
    assert max(map(len, table)) <= 100 and table[0].endswith("…") and table[2].startswith("a_rather_long_n…  input")


def test_the_page_is_saved_whole_and_shown_in_a_frame(tmp_path):
    graph = trace(lambda x: jnp.sum(x * x), X)
    graph.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert json.dumps("reduce_sum") in page
    shown = graph._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and shown.count("<") == 2, "all of the page is inside of the attribute"
    assert html.unescape(shown[len('<iframe srcdoc="') : shown.index('" style=')]) == page


# Formulas.


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


@pytest.mark.once
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


def test_no_component_is_forgotten():
    public = {name for name, value in vars(jaxnn).items() if hasattr(value, "definition")}
    assert public - {"max_pool2d_with_indices"} == set(COMPONENTS) - {"mean"}


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


@pytest.mark.once
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


@pytest.mark.once
@pytest.mark.parametrize("name", OPERATIONS)
def test_formulas_become_mathml(name):
    from latex2mathml.converter import convert

    formulas = OPERATIONS[name]
    for formula in [formulas.definition, *(formula for formula, _ in formulas.gradients.values())]:
        text = "".join(xml.etree.ElementTree.fromstring(convert(formula)).itertext()) if formula else ""
        assert "\\" not in text, text


# Models of other libraries.


class Dense(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(2)(flax.linen.relu(flax.linen.Dense(4)(x)))


def test_a_flax_model():
    model = Dense()
    variables = model.init(jax.random.key(0), X)
    graph = check(lambda variables, x: jaxnn.cross_entropy(model.apply(variables, x), T), variables, X)
    assert {n.name for n in graph.nodes if n.kind == "input"} == {
        "Dense_0.bias", "Dense_0.kernel", "Dense_1.bias", "Dense_1.kernel", "x",
    }  # fmt: skip
    assert "relu" in [n.operation for n in graph.nodes]


def test_an_nnx_model_under_its_own_jit():
    model = flax.nnx.Linear(3, 2, rngs=flax.nnx.Rngs(0))

    def loss(model, x):
        return jaxnn.cross_entropy(model(x), T)

    graph = trace(lambda model, x: flax.nnx.jit(loss)(model, x), model, X)
    expected = flax.nnx.grad(loss)(model, X)
    (kernel,) = (n for n in graph.nodes if "kernel" in n.name)
    np.testing.assert_allclose(kernel.upstream, expected["kernel"][...], rtol=1e-6)
    assert [n.operation for n in graph.nodes if n.inputs] == ["dot_general", "add", "cross_entropy", "mean"]


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


# Bad input: one clear line.


def branch(x):
    return x if x > 0 else -x


def raises(x):
    raise RuntimeError("no such file\nand a second line")


def callback(x):
    return jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct((), jnp.float32), jnp.sum(x))


def looped(x):
    return lax.while_loop(lambda c: c < 3, lambda c: 2 * c, jnp.sum(jnp.abs(x)))


def with_effect(x):
    from jax.experimental import io_callback

    return io_callback(lambda a: a, jax.ShapeDtypeStruct((), jnp.float32), jnp.sum(x))


def complex_inside(x):
    return jnp.abs(jnp.fft.fft(x))[1]


@jax.custom_vjp
def misshapen(x):
    return jnp.sum(x)


misshapen.defvjp(lambda x: (misshapen(x), None), lambda _, dy: (dy,))


@pytest.mark.parametrize(
    ("f", "args", "error", "message"),
    [
        ("loss", (X,), TypeError, "`f` (str 'loss') must be a function of arrays"),
        (jnp.sin, (X,), TypeError, "`f` (sin) must return one floating-point scalar; it returns an array of shape (3,): sum it, or index it"),
        (lambda x: (x[0], x), (X,), TypeError, "`f` (<lambda>) must return one floating-point scalar; it returns a tuple of 2 values: return the loss alone, without auxiliary values"),
        (lambda x: None, (X,), TypeError, "`f` (<lambda>) must return one floating-point scalar; it returns a NoneType: return the loss alone"),
        (lambda x: "done", (X,), TypeError, "`f` (<lambda>) must return one floating-point scalar; it returns a str: return the loss alone"),
        (lambda x: jnp.argmax(x), (X,), TypeError, "`f` (<lambda>) must return one floating-point scalar; it returns int32"),
        (lambda: 1.0, (), TypeError, "`args` (none) must include a floating-point array to differentiate"),
        (lambda t: 1.0, (T,), TypeError, "`args` (t: int32[]) must include a floating-point array to differentiate"),
        (jnp.sum, (X[:0],), TypeError, "`args` (a: float32[0]) must include a floating-point array to differentiate"),
        (lambda z: 1.0, (lax.complex(X, X),), TypeError, "`z` (dtype complex64) must be real; pass its real and its imaginary part"),
        (complex_inside, (X,), TypeError, "`f` (complex_inside) must compute in real numbers, but `fft` (test_graph.py:"),
        (branch, (1.0,), TypeError, "`f` (branch) must not branch in Python on the value of an array"),
        (raises, (X,), ValueError, "`f` (raises) must run on `args`, but raises RuntimeError: no such file"),
        (jaxnn.linear, (X, W.T), ValueError, "`f` (linear) must run on `args`, but raises ValueError: `w` (shape (3, 2)) must have 3 input features"),
        (lambda x: x, (X, X), ValueError, "`f` (<lambda>) must run on `args`, but raises TypeError: "),
        (callback, (X,), ValueError, "`pure_callback` (test_graph.py:"),
        (looped, (X,), ValueError, "`while` (test_graph.py:"),
        (lambda x: misshapen(x), (X,), ValueError, "`misshapen` (test_graph.py:"),
        (with_effect, (X,), TypeError, "`f` (with_effect) must be a pure function, without `io_callback`"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("own_errors")
def test_bad_input_gives_one_clear_line(f, args, error, message):
    with pytest.raises(error) as raised:
        trace(f, *args)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_no_trace_inside_of_a_transformation():
    with pytest.raises(TypeError, match="`args` must be arrays that have values; call trace outside"):
        jax.jit(lambda x: trace(jnp.sum, x))(X)
    with pytest.raises(TypeError, match="must not close over the values of a surrounding"):
        jax.grad(lambda x: trace(lambda y: y * x, 1.0))(2.0)


def test_what_is_public():
    assert jaxnn.graph.trace is trace and isinstance(trace(lambda x: x * x, 2.0), Graph)
