"""The page of the digit network: its numbers are the gradient, and a wrong one is noticed."""

import dataclasses

import backprop_in_action as subject
import jax
import numpy as np
import pytest
from trials import failing

import jaxnn

pytestmark = pytest.mark.more  # a training, or a page, of some seconds: polynomial regression stands for them


def output(tmp_path, *options):
    return ("--output", str(tmp_path), *options)


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    monkeypatch.setattr(subject, "STEPS", 20)


def test_every_claim_holds(tmp_path):
    assert failing(subject, *output(tmp_path)) == []
    page = (tmp_path / subject.PAGE).read_text()
    assert "u003cmath" in page


def test_an_image_of_ones_own(tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).uniform(0, 16, (8, 8)))  # no two pixels tie
    assert failing(subject, *output(tmp_path, "--image", str(tmp_path / "mine.npy"), "--label", "1")) == []


@pytest.mark.parametrize(
    "image", [np.zeros((28, 28)), np.full((8, 8), np.nan), np.full((8, 8), "x"), np.full((8, 8), -1.0), None]
)
def test_a_file_without_a_digit_is_refused_in_one_line(image, tmp_path):
    path = tmp_path / "mine.npy"
    if image is not None:
        np.save(path, image)
    with pytest.raises(ValueError, match=r"^--image .*mine.npy .*"):
        failing(subject, *output(tmp_path, "--image", str(path)))


relu = jaxnn.relu.definition
wrong_relu = jax.custom_vjp(relu)
wrong_relu.defvjp(lambda x: (relu(x), x), lambda x, dy: (jax.numpy.where(x > -1, dy, 0.0),))


def test_a_wrong_rule_differs_from_autodiff_and_difference(tmp_path, monkeypatch):
    monkeypatch.setattr(subject.jaxnn, "relu", wrong_relu)
    failed = failing(subject, *output(tmp_path))
    assert [claim.split()[1] for claim in failed] == ["autodiff's", "the"]


def broken(change):
    """A trace whose nodes are changed."""

    def trace(*args):
        graph = jaxnn.graph.trace(*args)
        return dataclasses.replace(graph, nodes=tuple(change(node) for node in graph.nodes))

    return trace


def doubled_edges(node):
    edges = [e if e.downstream is None else dataclasses.replace(e, downstream=2 * e.downstream) for e in node.inputs]
    return dataclasses.replace(node, inputs=tuple(edges))


def wrong_sign(node):
    return (
        dataclasses.replace(node, upstream=-node.upstream)
        if node.kind == "input" and node.upstream is not None
        else node
    )


@pytest.mark.parametrize(
    "change, words", [(doubled_edges, ["downstream is", "add up"]), (wrong_sign, ["jax.grad's", "autodiff's", "numeric", "add up"])]
)  # fmt: skip
def test_wrong_numbers_on_the_page_are_noticed(change, words, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "jaxnn", Library(jaxnn, broken(change)))
    failed = failing(subject, *output(tmp_path))
    assert len(failed) == len(words)
    for word, claim in zip(words, failed, strict=True):
        assert word in claim


class Library:
    """jaxnn with another trace."""

    def __init__(self, library, trace):
        self.graph = type("graph", (), {"trace": staticmethod(trace)})
        self.library = library

    def __getattr__(self, name):
        return getattr(self.library, name)
