"""A component that is added to the table, and nowhere else, appears in all that reads it."""

import functools

import cases
import jax
import numpy as np
import oracles
import pytest

from jaxnn import components, graph
from jaxnn.cli import cases as compared
from jaxnn.components import TableLine


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def toy(x, power=2):
    """A power of the elements."""
    return x**power


toy.defvjp(lambda x, power: (x**power, x), lambda power, x, dy: (power * x ** (power - 1) * dy,))
toy.definition = lambda x, power=2: x**power
LINE = TableLine(
    "toy 3", toy, lambda rng, size: (rng.standard_normal(size.images, np.float32),), lambda x: 0, {"power": 3}
)


@pytest.fixture
def with_a_toy(monkeypatch):
    monkeypatch.setattr(components, "COMPONENTS", [*components.COMPONENTS, LINE])
    monkeypatch.setattr(oracles, "toy", lambda x, power: np.prod([x] * power, axis=0), raising=False)
    monkeypatch.setattr(oracles, "toy_vjp", lambda x, dy, power: (dy * power * x ** (power - 1),), raising=False)


def test_compare_has_it(with_a_toy):
    (case,) = compared.find("toy")
    assert case.name == "toy 3" and compared.names()[-1] == "toy"


def test_the_cases_of_the_tests_have_it_and_judge_it(with_a_toy):
    from test_components import Hashable, arguments, checked, value_and_cotangents

    (case,) = (case for case in cases.of_table() if case.f is toy)
    ours, exact, dy, exact_dy = arguments(Hashable(*case), "float32")
    y, (dx,) = value_and_cotangents(Hashable(*case), ours, dy)
    np.testing.assert_allclose(y, case.oracle(*exact), rtol=1e-5)
    np.testing.assert_allclose(dx, case.oracle_vjp(exact_dy, *exact)[0], rtol=1e-5)
    assert checked(case, "rule").ok


def test_a_line_without_loops_to_compare_with_is_named(with_a_toy, monkeypatch):
    monkeypatch.delattr(oracles, "toy_vjp")
    (case,) = (case for case in cases.of_table() if case.f is toy)
    with pytest.raises(AssertionError, match="write toy_vjp in tests/oracles"):
        case.oracle_vjp(1.0, np.ones(3))


def first(y):
    """The output that has a gradient."""
    return y[0] if isinstance(y, tuple) else y


def traced(line):
    """The graph of the sum of a line's outputs, as a function of its first argument."""
    args = line.example(components.TINY)
    return graph.trace(lambda x: first(line(x, *args[1:])).sum(), jax.numpy.asarray(args[0]))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("line", components.COMPONENTS, ids=lambda line: line.name)
def test_the_graph_shows_the_formula_of_every_line(line):
    found = traced(line)
    name = line.f.__name__.removesuffix("_with_indices")
    (node,) = (node for node in found.nodes if node.operation.partition("[")[0] in (name, line.f.__name__))
    assert node.formula and r"\text{" + name not in node.formula
    assert any(edge.formula.startswith("d") and r"\partial" not in edge.formula for edge in node.inputs)


def test_the_graph_has_the_toy(with_a_toy):
    (node,) = (node for node in traced(components.COMPONENTS[-1]).nodes if node.operation == "toy")
    assert node.inputs[0].downstream is not None
