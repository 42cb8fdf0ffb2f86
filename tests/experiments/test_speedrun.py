"""The speedrun: the claims hold on small images, and each fails when its subject is broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import speedrun as subject
from trials import failing

import jaxnn
from jaxnn.data import load

pytestmark = pytest.mark.more  # a training, or a page, of some seconds: polynomial regression stands for them

SHORT = ("--seeds", "1", "--rounds", "1")
DIGITS = load("digits")
RECIPE = subject.RECIPES["digits"]


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(subject, "torch_forms", list)


def test_every_claim_holds():
    assert failing(subject, *SHORT) == []


def test_shuffled_labels_fail(monkeypatch):
    def shuffled(*_):
        labels = np.random.default_rng(0).permutation(DIGITS.train.labels)
        return DIGITS._replace(train=DIGITS.train._replace(labels=labels))

    monkeypatch.setattr(subject, "load", shuffled)
    assert "mean test accuracy" in failing(subject, *SHORT)


@pytest.mark.more
def test_a_wrong_rule_fails(monkeypatch):
    """With half of ReLU's derivative the network learns nevertheless."""

    half = jax.custom_vjp(jaxnn.relu)
    half.defvjp(
        lambda x: (jnp.maximum(x, jnp.zeros_like(x)), x > 0),
        lambda mask, dy: (jnp.where(mask, dy / 2, jnp.zeros_like(dy)),),
    )
    monkeypatch.setattr(subject.jaxnn, "relu", half)
    assert "gradient by rule is JAX's own, of the largest element" in failing(subject, *SHORT)


def test_validation_leaves_the_test_images_alone():
    train, judged = subject.splits(DIGITS, True)
    assert (train, judged) == (DIGITS.train, DIGITS.validation)
    train, judged = subject.splits(DIGITS, False)
    assert len(train.labels) == len(DIGITS.train.labels) + len(DIGITS.validation.labels) and judged is DIGITS.test


def test_a_program_for_each_step_takes_the_steps_of_one_program():
    """In whole numbers, which are not rounded: a sum that depends on every step, on their order, and on the data."""
    data = np.arange(7, dtype=np.int32), np.int32(5)

    def begin(key):
        return jax.random.randint(key, (), 0, 100), jax.random.randint(key, (4, 3), 0, 7)

    def advance(state, rows, numbers, factor):
        return state * factor + numbers[rows] @ jnp.array([1, 10, 100])

    forms = (subject.at_once, subject.by_steps)
    at_once, by_steps = (form(begin, advance, jax.device_put(data)) for form in forms)
    for seed in (0, 1):
        key = jax.random.key(seed)
        state, batches = begin(key)
        for rows in batches:
            state = advance(state, rows, *data)
        assert at_once(key) == by_steps(key) == state


def test_all_images_are_averaged_once_and_not_at_every_step():
    pytest.importorskip("torch")
    calls = []

    class Counted(np.ndarray):
        def mean(self):
            calls.append(self.shape)
            return np.asarray(self).mean()

    train = subject.Split(DIGITS.train.images[:128].view(Counted), DIGITS.train.labels[:128])
    subject.with_torch(RECIPE._replace(epochs=1), "float32", train, DIGITS.test, "eager").train(0)
    assert calls == [train.images.shape]


@pytest.mark.more
def test_the_network_in_pytorch_is_ours():
    """The same parameters give the same accuracy, and it learns as much."""
    pytest.importorskip("torch")
    short = RECIPE._replace(epochs=4)
    for form in ("eager", "eager, channels_last"):
        race = subject.with_torch(short, "float32", DIGITS.train, DIGITS.test, form)
        params = race.train(0)
        assert race.share_right(params) > 0.9
        ours = {k: v.detach().numpy() for k, v in params.items()}
        ours |= {k: np.moveaxis(ours[k], (2, 3), (0, 1)).swapaxes(2, 3) for k in ("W0", "W1")}
        same = subject.with_jax(short, "float32", DIGITS.train, DIGITS.test, lambda loss: loss)
        # The channels of the flattened image are in another order there.
        size = int(np.sqrt(ours["W2"].shape[1] / short.filters[1]))
        ours["W2"] = ours["W2"].reshape(-1, short.filters[1], size, size).transpose(0, 2, 3, 1).reshape(10, -1)
        assert same.share_right(ours) == race.share_right(params)


def test_a_contestant_that_guesses_fails(monkeypatch):
    monkeypatch.setattr(subject, "torch_forms", lambda: ["eager"])
    monkeypatch.setattr(subject, "with_torch", lambda *_: subject.Race(lambda seed: None, lambda params: 0.5, 0.0))
    assert [claim for claim in failing(subject, *SHORT) if "accuracy is ours" in claim and "eager" in claim]


def test_the_picture():
    race = {"seconds": [1.0, 2.0], "accuracy": [0.98, 0.99]}
    figure = subject.draw({"races": {subject.OURS: race, subject.AUTODIFF: race}, "floor": 0.97})["speedrun"]
    figure.draw_without_rendering()
