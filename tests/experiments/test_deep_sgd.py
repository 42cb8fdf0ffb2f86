"""Per-example descent of a deep network: the claims hold, and each fails when its subject is broken."""

import json

import _experiment
import deep_sgd as subject
import jax
import pytest
from trials import failing

import jaxnn
from jaxnn.data import load

pytestmark = pytest.mark.more  # a training, or a page, of some seconds: polynomial regression stands for them

FEW = ("--epochs", "3")
OMEGAS, EPOCH, DELTA, INITIALISE = dict(subject.OMEGAS), subject.epoch, subject.delta, subject.initialise
NLL, CROSS_ENTROPY = jaxnn.nll, jaxnn.cross_entropy
OF_L1 = ["Δ, Ω L1: by rule", "Δ, Ω L1: along", "100 updates, Ω L1", "blank pixels, Ω L1", "L1: share"]
OF_L2 = ["Δ, Ω L2: by rule", "Δ, Ω L2: along", "100 updates, Ω L2", "blank pixels, Ω L2", "L2: ‖θ‖"]
OF_DELTA = [f"Δ, Ω {name}: {how}" for name in OMEGAS for how in ("by rule", "along")]
OF_ACCURACY = [f"Ω {name}: validation accuracy" for name in OMEGAS]


@pytest.fixture(autouse=True, scope="module")
def stronger():
    """In three epochs only a stronger Ω shows; programs compiled with the other λ are forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "STRENGTH", 1e-3)
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def digits():
    return subject.scaled(load("digits").train)


@pytest.fixture(scope="module")
def theta():
    return subject.initialise("he", jax.random.key(0))


def names(failed, among):
    """Return the claims that failed, and require that no others did."""
    assert all(any(each.startswith(name) for name in among) for each in failed), failed
    return [name for name in among if any(each.startswith(name) for each in failed)]


def failed_of(claims):
    return [claim["claim"] for claim in claims if not claim["holds"]]


def test_every_claim_holds(tmp_path):
    argv = [*FEW, "--output", str(tmp_path)]
    code = _experiment.main(subject.__doc__, subject.add_options, subject.measure, subject.draw, argv)
    results = json.loads((tmp_path / "results.json").read_text())
    assert failed_of(results["claims"]) == [] and code == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == set(subject.draw(results))
    assert (tmp_path / "results.json").stat().st_size < 150_000


def zeros_with_noise(name, key):
    theta = INITIALISE(name, key)
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), theta) if name == "zeros" else theta


FULL_RUNS = {
    "L1 forgotten": ("OMEGAS", OMEGAS | {"L1": OMEGAS["none"]}, OF_L1),
    "a penalty where there is none": (
        "OMEGAS",
        OMEGAS | {"none": lambda theta: 0.1 * jaxnn.l2_penalty(theta)},
        [*OF_DELTA[:2], "100 updates, Ω none", "blank pixels, Ω none"],
    ),
    "L2 forgotten": ("OMEGAS", OMEGAS | {"L2": OMEGAS["none"]}, OF_L2),
    "zeros with a little noise": ("initialise", zeros_with_noise, ["zeros: difference", "zeros: validation"]),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", FULL_RUNS)
def test_a_defect_is_noticed(name, monkeypatch):
    attribute, broken, noticed = FULL_RUNS[name]
    monkeypatch.setattr(subject, attribute, broken)
    assert names(failing(subject, *FEW), noticed) == noticed


def test_zeros_learn_nothing():
    noticed = ["L1: share", "L2: ‖θ‖", *OF_ACCURACY]
    assert names(failing(subject, *FEW, "--init", "zeros"), noticed) == noticed


def weights_only(theta):
    return jaxnn.l2_penalty([p for p in jax.tree.leaves(theta) if p.ndim > 1])


GRADIENTS = {
    "the wrong sign": ("delta", lambda *args: jax.tree.map(jax.numpy.negative, DELTA(*args)), OF_DELTA),
    "half of λ": ("delta", lambda theta, x, y, strength, omega: DELTA(theta, x, y, strength / 2, omega), OF_DELTA[2:]),
    "biases without a penalty": ("OMEGAS", OMEGAS | {"L2": weights_only}, OF_L2[:2]),
    "L2 with a half": ("OMEGAS", OMEGAS | {"L2": lambda theta: jaxnn.l2_penalty(theta) / 2}, OF_L2[:2]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_broken_gradient_is_noticed(name, monkeypatch, theta, digits):
    attribute, broken, noticed = GRADIENTS[name]
    monkeypatch.setattr(subject, attribute, broken)
    assert (
        names(failed_of(subject.measure_gradients(theta, digits.images[:2], digits.labels[:2], 0)), noticed) == noticed
    )


EPOCHS = {
    "another order": lambda theta, x, y, omega: EPOCH(theta, x[::-1], y[::-1], omega=omega),
    "an example left out": lambda theta, x, y, omega: EPOCH(theta, x[1:], y[1:], omega=omega),
    "θ of the first half": lambda theta, x, y, omega: EPOCH(theta, x[:50], y[:50], omega=omega),
}


@pytest.mark.parametrize("name", EPOCHS)
def test_another_epoch_is_noticed(name, monkeypatch, theta, digits):
    monkeypatch.setattr(subject, "epoch", EPOCHS[name])
    monkeypatch.setattr(subject, "OMEGAS", {"L2": OMEGAS["L2"]})
    assert len(failed_of(subject.measure_updates(theta, digits.images[:100], digits.labels[:100]))) == 1


OUTPUTS = {
    "a mean for the sum": ("nll", lambda f, y, reduction: NLL(f, y), ["at the output"]),
    "smooth labels": ("cross_entropy", lambda a, y, reduction: CROSS_ENTROPY(a, y, reduction=reduction, label_smoothing=0.01), ["before softmax"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_another_loss_is_noticed(name, monkeypatch, theta, digits):
    function, broken, noticed = OUTPUTS[name]
    monkeypatch.setattr(jaxnn, function, broken)
    assert names(failed_of(subject.measure_output(theta, digits.images[:20], digits.labels[:20])), noticed) == noticed


@pytest.mark.parametrize("argv", [("--init", "ones"), ("--epochs", "0"), ("--dataset", "mnist")])
def test_wrong_usage_is_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        _experiment.main(subject.__doc__, subject.add_options, subject.measure, subject.draw, argv)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
