"""The graph as data: as a table, as JSON, as a saved page, and in a notebook."""

import html
import json
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from graphs import FILTERS, T, W, X

import jaxnn
from jaxnn.graph import Graph, trace


def test_a_name_that_no_node_has():
    with pytest.raises(KeyError, match=re.escape("`name` ('x9') must be one of x, x1, ℓ")):
        trace(lambda x: jnp.sum(x * x), X)["x9"]


def test_a_page_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nowhere.page\.html"):
        trace(jnp.square, 1.0).save(tmp_path / "nowhere" / "page.html")


@pytest.mark.parametrize("name", ["graph.png", "graph.json", "graph", "graph.html.gz"])
def test_a_suffix_that_cannot_be_written_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"{name}') must end in .html or .htm: a graph is an HTML page")):
        trace(jnp.square, 1.0).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_nan_and_infinities_become_strings():
    graph = trace(lambda x: jnp.sum(jnp.log(x)), jnp.array([1.0, 0.0, -1.0, jnp.inf, jnp.nan]))
    log = graph.to_dict()["nodes"][1]
    assert log["value"]["data"] == [0.0, "-Infinity", "NaN", "Infinity", "NaN"]
    assert log["inputs"][0]["local"]["shape"] == [5, 5]
    assert graph.to_dict()["nodes"][0]["gradients"]["rule"]["data"][:2] == [1.0, "Infinity"]
    json.dumps(graph.to_dict(), allow_nan=False)
    assert "nan" in str(graph)


@pytest.mark.more
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


def test_trace_is_public():
    assert jaxnn.graph.trace is trace and isinstance(trace(lambda x: x * x, 2.0), Graph)
