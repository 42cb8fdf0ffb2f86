"""Softmax regression: the claims hold, and each fails when its subject is broken."""

import json
from pathlib import Path

import _experiment
import pytest
import softmax_regression as subject
from trials import failing

import jaxnn
from jaxnn.data import Split, load

pytestmark = pytest.mark.more  # a training, or a page, of some seconds: polynomial regression stands for them

REAL_MNIST = Path(__file__).parents[3] / "shared/data/mnist"
RIGHT = {name: getattr(jaxnn, name) for name in ("softmax", "nll", "cross_entropy", "l2_penalty")}
MINIMUM = ["descent arrives", "… ‖W − W*‖", "… largest difference"]


@pytest.fixture(autouse=True)
def not_compiled_before():
    """Forget programs compiled before a function was replaced, and after (`descend` is compiled for each descent)."""
    subject.update.clear_cache()
    yield
    subject.update.clear_cache()


def run(monkeypatch, *options):
    monkeypatch.setattr(subject, "MOST", 1500)
    return failing(subject, *options)


def test_every_claim_holds(monkeypatch):
    assert run(monkeypatch) == []


DEFECTS = {
    "twice the loss": (
        "cross_entropy",
        lambda l, a: 2 * RIGHT["cross_entropy"](l, a),
        ["one update", "cross entropy's own", *MINIMUM],
    ),
    "labels made smooth": (
        "cross_entropy",
        lambda l, a: RIGHT["cross_entropy"](l, a, label_smoothing=0.1),
        ["one update", "cross entropy's own", *MINIMUM],
    ),
    "no penalty": ("l2_penalty", lambda w: 0 * RIGHT["l2_penalty"](w), MINIMUM),
    "half the penalty": ("l2_penalty", lambda w: RIGHT["l2_penalty"](w) / 2, MINIMUM),
    "softmax upside down": (
        "softmax",
        lambda l: RIGHT["softmax"](-l),
        ["softmax, j = a", "softmax, j ≠ a", "softmax: ∂p_a/∂l_j", "(−1/p_a)"],
    ),
    "no denominator shared by the classes": (
        "softmax",
        jaxnn.sigmoid,
        ["softmax, j ≠ a", "softmax: ∂p_a/∂l_j", "(−1/p_a)"],
    ),
    "−p for −log p": ("nll", lambda p, a: -p[a], ["(−1/p_a)"]),
}


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", DEFECTS)
def test_a_broken_function_is_noticed(name, monkeypatch):
    function, broken, noticed = DEFECTS[name]
    monkeypatch.setattr(jaxnn, function, broken)
    failed = run(monkeypatch)
    assert len(failed) == len(noticed), failed
    assert all(each.startswith(claim) for each, claim in zip(failed, noticed, strict=True)), failed


@pytest.mark.more
def test_a_descent_that_stops_early_has_not_arrived(monkeypatch):
    monkeypatch.setattr(subject, "MOST", subject.BLOCK)
    assert [claim[:9] for claim in failing(subject)] == [claim[:9] for claim in MINIMUM]


def main(*argv):
    return _experiment.main(subject.__doc__, subject.add_options, subject.measure, subject.draw, argv)


def test_the_results_and_the_pictures(tmp_path):
    assert main("--output", str(tmp_path)) == 0
    assert (tmp_path / "results.json").stat().st_size < 150_000
    results = json.loads((tmp_path / "results.json").read_text())
    assert {path.stem for path in tmp_path.glob("*.png")} == set(subject.draw(results))


def test_mnist(monkeypatch):
    if not REAL_MNIST.is_dir():
        pytest.skip("the MNIST files are not there")
    few = load("mnist", REAL_MNIST)
    few = few._replace(
        **{part: Split(*(each[:400] for each in getattr(few, part))) for part in ("train", "validation", "test")}
    )
    monkeypatch.setattr(subject, "load", lambda name, folder: few)
    assert run(monkeypatch, "--dataset", "mnist") == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--dataset", "mnist"), "--data-dir"),
        (("--dataset", "mnist", "--data-dir", "nowhere"), "nowhere"),
        (("--data-dir", "anywhere"), "--data-dir"),
    ],
)
def test_missing_data_are_one_line(argv, said, tmp_path, capsys):
    assert main("--output", str(tmp_path), *argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


@pytest.mark.parametrize("argv", [("--dataset", "letters"), ("--momentum", "1")])
def test_wrong_usage_is_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(*argv)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
