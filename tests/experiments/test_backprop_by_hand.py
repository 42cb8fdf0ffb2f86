"""Back propagation by hand: the claims hold, and each fails when its subject is broken."""

import json

import _backprop_by_hand_network as network
import _experiment
import backprop_by_hand as subject
import numpy as np
import pytest
from trials import failing

pytestmark = pytest.mark.more  # a training, or a page, of some seconds: polynomial regression stands for them

SUMS = ["digit network: ∂ℓ/∂h by the notes' sums", "residual network: ∂ℓ/∂h by the notes' sums"]
ROWS = ["digit network: ∂ℓ/∂h by rows", "residual network: ∂ℓ/∂h by rows"]
JACREV, EITHER_END, ARRIVES = "every Jacobian is jax.jacrev's", "the Jacobians' product", "nudge: what arrives"
COUNTS, LINEAR, NUDGE = "multiplications", "nudge: up to the first kink", "nudge: |slope − 2|"
SUMMED, FORGOTTEN, ACCURACY = "residual: |slope − 2|", "residual: |slope − 1|", "trained by hand"


@pytest.fixture(scope="module")
def results():
    options = _experiment.options_of("", "backprop_by_hand", subject.add_options).parse_args(["--passes", "3"])
    return json.loads(json.dumps(subject.measure(options), allow_nan=False))


def test_every_claim_holds(results):
    assert [claim["claim"] for claim in results["claims"] if not claim["holds"]] == []


def test_the_pictures_are_drawn_from_few_numbers(results):
    assert len(json.dumps(results)) < 150_000
    for name, figure in subject.draw(results).items():
        assert name.startswith("backprop_by_hand_")
        figure.draw_without_rendering()


@pytest.mark.parametrize("wrong", [["--passes", "0"], ["--passes", "two"], ["--rate", "1"]])
def test_wrong_usage_is_one_line(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        _experiment.main("", subject.add_options, subject.measure, subject.draw, wrong)
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "backprop_by_hand.py: error: " in err


@pytest.fixture(scope="module")
def trained():
    """The right network; only the test of the training breaks it."""
    return subject.train(subject.load("digits").train, 3, np.random.default_rng(0))


def swapped(part, which, wrong):
    """Replace one derivative of a layer."""

    def replace(monkeypatch):
        for name, layer in subject.LAYERS.items():
            functions = list(getattr(layer, part))
            if which in functions:
                functions[functions.index(which)] = wrong
                monkeypatch.setitem(subject.LAYERS, name, layer._replace(**{part: tuple(functions)}))

    return replace


def attribute(name, value):
    return lambda monkeypatch: monkeypatch.setattr(subject, name, value)


def half(dy, y, x):
    return 0.5 * maxpool_to_x(dy, y, x)


def turned(dy, y, x, w):
    return conv_to_x(dy, y, x, w[:, :, ::-1, ::-1])


def wrong_end(matrices, from_left):
    products, count = multiply(matrices, from_left)
    return (products, count) if from_left else ([products[-2]] * 2, count)


conv_to_x, maxpool_to_x, multiply = network.conv_to_x, network.maxpool_to_x, subject.multiply
BACKWARD = (ARRIVES, SUMMED)  # what the sums of the backward pass predict for a nudge of x
DEFECTS = {
    "the filter turned": (swapped("to", conv_to_x, turned), [*SUMS, *BACKWARD]),
    "half of max-pool": (swapped("to", maxpool_to_x, half), [*SUMS, *BACKWARD]),
    "softmax as if each class were alone": (
        swapped("to", network.softmax_to_x, lambda dp, p, x: p * (1 - p) * dp),
        [*SUMS, *BACKWARD],
    ),
    "a mean for the sum over pixels": (
        swapped("to", network.conv_to_w, lambda dy, y, x, w: np.einsum("oij,cijab->ocab", dy, network.patches(x)) / 36),
        SUMS,
    ),
    "a Jacobian transposed": (swapped("by", network.linear_by_w, lambda y, x, w: np.kron(x.ravel(), np.eye(10)) if len(y) == 10 else RIGHT(y, x, w)), ROWS),
    "a Jacobian without the case j ≠ a": (
        swapped("by", network.softmax_by_x, lambda p, x: np.diag(p * (1 - p))),
        [*ROWS, JACREV, NUDGE, ARRIVES],
    ),
    "a Jacobian of a filter 1% too small": (
        swapped("by", network.conv_by_x, lambda y, x, w: 0.99 * CONV_BY_X(y, x, w)),
        [*ROWS, JACREV, LINEAR, NUDGE, ARRIVES],
    ),
    "another order of the product": (attribute("multiply", wrong_end), [EITHER_END]),
    "from the left what is from the right": (
        attribute("multiply", lambda matrices, from_left: multiply(matrices, not from_left)),
        [COUNTS],
    ),
    "a consumer forgotten": (
        lambda monkeypatch: monkeypatch.setattr(subject.backward, "__defaults__", (subject.by_sums, subject.forget)),
        ["residual network", SUMMED],
    ),
    "nothing forgotten": (attribute("forget", network.add), [FORGOTTEN]),
    "ascent": (attribute("RATE", -1e-4), [ACCURACY]),
}  # fmt: skip
RIGHT, CONV_BY_X = network.linear_by_w, network.conv_by_x


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_noticed(name, monkeypatch, trained):
    defect, noticed = DEFECTS[name]
    defect(monkeypatch)
    if ACCURACY not in noticed:
        monkeypatch.setattr(subject, "train", lambda *_: dict(trained))
    failed = failing(subject, "--passes", "1")
    for claim in noticed:
        assert any(claim in each for each in failed), (claim, failed)
    for each in failed:
        assert any(claim in each for claim in noticed), f"not expected: {each}"
