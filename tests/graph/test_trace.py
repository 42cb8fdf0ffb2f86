"""The nodes of a graph, their names, and gradients that add up to what jax.grad says."""

import functools
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import FILTERS, IMAGE, KEY, LABEL, ROWS, T, W, X, check, consumers, notes_network, operations
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxnn
from jaxnn.graph import trace


@pytest.mark.more
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


def test_local_derivatives_are_jacobians_rows_outputs(notes):
    graph = notes
    y = graph["y"].value[0]
    np.testing.assert_allclose(graph["y"].inputs[0].local, np.diag(y) - np.outer(y, y), atol=1e-6)
    np.testing.assert_allclose(graph["x4"].inputs[0].local, ROWS)
    np.testing.assert_allclose(graph["x4"].inputs[1].local, np.kron(np.eye(3), graph["x3'"].value), atol=1e-6)
    np.testing.assert_allclose(graph["ℓ"].inputs[0].local, [[0, 0, -1 / y[2]]], rtol=1e-5)
    assert set(graph["x3"].inputs[0].local.flat) == {0, 1}


@pytest.mark.more
def test_the_logits_of_a_fused_loss_are_not_called_y():
    def loss(params, x, t):
        return jaxnn.cross_entropy(jaxnn.linear(x, params["w"], params["b"]), t, weight=jnp.array([1.0, 3.0]))

    graph = check(loss, {"w": W, "b": jnp.zeros(2)}, jnp.stack([X, 2 * X]), jnp.array([0, 1]))
    assert [n.name for n in graph.nodes if n.kind == "input"] == ["b", "w", "x", "t"]
    assert operations(graph) == ["x1 = linear(x, w, b)", "x2 = cross_entropy(x1, t, c1)", "ℓ = mean(x2, t)"]
    np.testing.assert_array_equal(graph["c1"].value, [1, 3])
    assert graph["c1"].kind == "constant" and graph["c1"].upstream is None


@pytest.mark.one_in(9)
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
    assert constant.local is None and constant.meaning == "A constant has no gradient."
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
    assert graph.caption.endswith("They also vary what stop_gradient holds constant.")


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
        and graph["x1"].inputs[1].meaning == "Every iteration adds its part."
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


@pytest.mark.more
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


def test_checkpoint_name_names_a_node_and_makes_none():
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


def test_a_node_names_the_users_line(notes):
    first = inspect.getsourcelines(notes_network)[1]
    file, own = Path(inspect.getsourcefile(notes_network)).name, Path(__file__).name

    def inner(x):
        return jnp.sin(x)

    line = inspect.getsourcelines(inner)[1] + 1
    assert trace(lambda x: inner(x[0]), X)["ℓ"].source == f"{own}:{line}", "where it is written"
    assert [n.source for n in notes.nodes if n.inputs] == [f"{file}:{first + k}" for k in (1, 2, 3, 4, 4, 5, 6)]
