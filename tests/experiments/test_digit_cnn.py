"""The notes' digit recogniser: the claims hold, and each fails when its subject is broken."""

import argparse
import json

import _experiment
import digit_cnn as subject
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnn
from jaxnn import models
from jaxnn.data import Dataset, Split, load
from jaxnn.models import Classifier, Model

pytestmark = pytest.mark.more  # a training, or a page, of some seconds: polynomial regression stands for them

DIGITS = load("digits")
CNN = Classifier(models.cnn, float(DIGITS.train.images.mean()), float(DIGITS.train.images.std()))


def options(*argv) -> argparse.Namespace:
    return _experiment.options_of("", "digit_cnn", subject.add_options).parse_args(argv)


@pytest.fixture(scope="module")
def results():
    measured = subject.measure(options("--seeds", "1", "--epochs", "30"))
    return json.loads(json.dumps(measured, allow_nan=False))


def failing(claims):
    return [claim["claim"] for claim in claims if not claim["holds"]]


def test_every_claim_holds(results):
    assert len(results["claims"]) == 9
    assert failing(results["claims"]) == []


def test_the_pictures_are_drawn_from_few_numbers(results):
    assert len(json.dumps(results)) < 150_000
    figures = subject.draw(results)
    assert set(figures) == {"digit_cnn", "digit_cnn_features", "digit_cnn_mistakes"}
    for figure in figures.values():
        figure.draw_without_rendering()


def test_the_picture_of_a_network_without_mistakes():
    subject.draw_mistakes({"cnn": [], "convnet": []}).draw_without_rendering()


def test_the_worst_mistakes_come_first(results):
    for images in results["mistakes"].values():
        assert all(each["true"] != each["predicted"] and each["p_true"] < each["p_predicted"] for each in images)
        assert [each["p_true"] for each in images] == sorted(each["p_true"] for each in images)


def claims_after_training(dataset):
    return failing(subject.claims_of_training("cnn", dataset, subject.train("cnn", CNN, dataset, range(1), 8)))


def test_shuffled_labels_are_noticed():
    labels = np.random.default_rng(0).permutation(DIGITS.train.labels)
    failed = claims_after_training(DIGITS._replace(train=DIGITS.train._replace(labels=labels)))
    assert [claim[:10] for claim in failed] == ["cnn: mean ", "cnn: the l"]


def test_a_wrong_sign_of_the_step_is_noticed(monkeypatch):
    right = subject.make_optimizer
    monkeypatch.setattr(subject, "make_optimizer", lambda *a, **k: optax.chain(right(*a, **k), optax.scale(-1.0)))
    assert [claim[:10] for claim in claims_after_training(DIGITS)] == ["cnn: mean ", "cnn: the l"]


def test_wrong_classes_are_noticed():
    y = np.eye(10)[(DIGITS.test.labels + 1) % 10]
    run = subject.Run({}, [0.0], y, y)
    assert [claim[:9] for claim in failing(subject.claims_of_training("cnn", DIGITS, [run]))] == ["cnn: mean"]


@jax.custom_vjp
def leaky(x):
    return jaxnn.relu.definition(x)


leaky.defvjp(lambda x: (leaky(x), x), lambda x, dy: (jnp.where(x > 0, dy, 1e-6 * dy),))


def test_a_wrong_rule_is_noticed(monkeypatch):
    params = models.cnn.init(jax.random.key(0), (8, 8, 1), 10)
    monkeypatch.setattr(models, "relu", leaky)
    assert not subject.claim_of_gradient("cnn", CNN, DIGITS, params)["holds"]


def with_bias(params, x, *, key=None, dropout=None):
    return models.cnn.apply({"W0": params["W0"], "W1": params["W1"]}, x, key=key, dropout=dropout) + params["b"][None]


def turned(x, w, **options):
    return jaxnn.conv2d(x, w[::-1, ::-1], **options)


def test_a_bias_is_noticed():
    params = models.cnn.init(jax.random.key(0), (8, 8, 1), 10)
    assert failing(subject.claims_of_notes(CNN, DIGITS, params)) == []
    biased = CNN._replace(model=Model(models.cnn.init, with_bias))
    failed = failing(subject.claims_of_notes(biased, DIGITS, {**params, "b": jnp.arange(10.0)}))
    assert [claim[:8] for claim in failed] == ["cnn: y i", "cnn: par", "cnn: wit"]


def test_a_true_convolution_is_noticed(monkeypatch):
    params = models.cnn.init(jax.random.key(0), (8, 8, 1), 10)
    monkeypatch.setattr(models, "conv2d", turned)
    assert [claim[:8] for claim in failing(subject.claims_of_notes(CNN, DIGITS, params))] == ["cnn: y i"]


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        (["--seeds", "0"], 2, "--seeds"),
        (["--dataset", "cifar"], 2, "--dataset"),
        (["--momentum", "1"], 2, "--momentum"),
        (["--dataset", "mnist", "--data-dir", "/nowhere"], 1, "/nowhere"),
        (["--data-dir", "/nowhere"], 1, "--data-dir"),
    ],
)
def test_wrong_usage_is_one_line(wrong, code, says, capsys, tmp_path):
    try:
        got = _experiment.main(
            "", subject.add_options, subject.measure, subject.draw, [*wrong, "--output", str(tmp_path)]
        )
    except SystemExit as stopped:
        got = stopped.code
    out, err = capsys.readouterr()
    assert got == code and not out and err.count("\n") == 1 and says in err, err


def test_mnist_has_five_by_five_filters():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (64, 28, 28, 1), np.uint8), np.arange(64, dtype=np.int32) % 10)
    mnist = Dataset("mnist", split, split, split, DIGITS.classes)
    params = jax.tree.map(np.asarray, models.cnn.init(jax.random.key(0), (28, 28, 1), 10))
    assert failing(subject.claims_of_notes(CNN, mnist, params)) == []
    assert np.shape(subject.what_it_sees(CNN, mnist, params)["filters"]) == (64, 5, 5)
