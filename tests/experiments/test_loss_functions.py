"""The losses −log p, 1 − p and −p: the claims hold, and each fails when its subject is broken."""

import _loss_functions_arithmetic as arithmetic
import jax.numpy as jnp
import loss_functions as subject
import numpy as np
import pytest
from trials import failing

import jaxnn

pytestmark = pytest.mark.more  # a training, or a page, of some seconds: polynomial regression stands for them

PASSES = 40


@pytest.fixture(autouse=True)
def few_step_sizes(monkeypatch):
    monkeypatch.setattr(subject, "RATES", (0.01, 0.1, 0.3))


def test_every_claim_holds():
    assert failing(subject, "--repeats", "1", "--passes", str(PASSES)) == []


def replace(monkeypatch, name, value):
    """Replace a name in both files of the experiment."""
    for module in (subject, arithmetic):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)


def failed(results):
    """Return the claims of a part of the experiment that do not hold."""
    return [claim["claim"] for claim in results[0] if not claim["holds"]]


def replaced(losses, name, loss):
    """Return the losses with one of them replaced."""
    return {**losses, name: loss}


def log_10(p, t):
    return jaxnn.nll(p, t, reduction="none") / np.float32(np.log(10))


def by_way_of_p(name, x, t):
    return subject.LOSSES[name](jaxnn.softmax(x), t)


def naive_cross_entropy(x, t, **options):
    return -jnp.log(subject.of_true(jaxnn.softmax(x), t)).astype(jnp.float32)


def summed_in_the_dtype(log_p, t, **options):
    return -arithmetic.running(jnp.add, log_p[:, 0])[-1]


def in_float64(step, values):
    return {jnp.multiply: np.multiply, jnp.add: np.add}[step].accumulate(np.asarray(values, np.float64))


LOSSES, LOG, INVERSE, MINUS = subject.LOSSES, subject.LOG, subject.INVERSE, subject.MINUS
ARITHMETIC = {  # what is broken: the part of the experiment, a name in it, its value, claims that fail
    "a logarithm to base 10": (
        "example", "LOSSES", replaced(LOSSES, LOG, log_10), ["p = (.3, .2, .5)", "1/p is log's slope", "log₁₀'s"]
    ),
    "natural logarithms in the notes": (
        "example", "LOGS_IN_THE_NOTES", {p: np.log(p) for p in (0.9, 0.5, 0.001)}, ["the notes' three"]
    ),
    "a wrong sign": (
        "gradients", "LOSSES", replaced(LOSSES, INVERSE, lambda p, t: 1 + subject.of_true(p, t)), ["∂l/∂p_t", "∂l/∂logit"]
    ),
    "the logits' losses interchanged": (
        "gradients", "loss_of_logits", lambda name, x, t: LOSSES[LOG if name != LOG else MINUS](jaxnn.softmax(x), t),
        ["stays large", "vanishes", "∂l/∂logit"],
    ),
    "a naive loss that is fused": ("precision", "naive", arithmetic.fused, ["float32: −log softmax is inf", "bfloat16: −log", "float16: −log"]),
    "a fused loss that is naive": (
        "precision", "fused", arithmetic.naive, ["float16: cross_entropy", "float32: the fused gradient", "bfloat16: the fused gradient"]
    ),
    "a gradient that skips p": (
        "precision", "LOSSES", replaced(LOSSES, LOG, lambda p, t: jnp.sum(p, -1)), ["float32: gaps whose", "float16: gaps whose"]
    ),
    "1 − p in float64": (
        "differences", "VALUES", replaced(arithmetic.VALUES, INVERSE, lambda p: 1 - np.asarray(p, np.float64)),
        ["float32: values of 1 − p", "float16: values of 1 − p"],
    ),
    "a logarithm to whole digits": (
        "differences", "VALUES", replaced(arithmetic.VALUES, LOG, lambda p: jnp.ceil(-jnp.log10(p))), ["float32: values of −log p"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARITHMETIC)
def test_broken_arithmetic_is_noticed(name, monkeypatch):
    part, attribute, value, noticed = ARITHMETIC[name]
    measure = getattr(subject, f"measure_{part}")
    assert failed(measure()) == []
    replace(monkeypatch, attribute, value)
    found = failed(measure())
    for claim in noticed:
        assert any(claim in each for each in found), (claim, found)


def test_the_products_claims_hold_and_notice_sums_in_the_dtype_and_products_in_float64(monkeypatch):
    p = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, 1000), jnp.float32)
    assert failed(subject.measure_product(p)) == []
    with monkeypatch.context() as patch:
        patch.setattr(jaxnn, "nll_loss", summed_in_the_dtype)
        found = failed(subject.measure_product(p))
        assert any("p = 1/10, bfloat16: Σ −log p" in claim for claim in found), found
    with monkeypatch.context() as patch:
        patch.setattr(arithmetic.math, "fsum", lambda values: 1.001 * sum(values))
        assert any("−log Π p is" in claim for claim in failed(subject.measure_product(p)))
    monkeypatch.setattr(arithmetic, "running", in_float64)
    found = failed(subject.measure_product(p))
    assert any("p = 1/10, float16: the product is 0" in claim for claim in found), found


def test_log_softmax_by_way_of_p_is_noticed(monkeypatch):
    monkeypatch.setattr(jaxnn, "log_softmax", lambda x: jnp.log(jaxnn.softmax(x)))
    found = failed(subject.measure_precision())
    assert [claim.partition(":")[0] for claim in found if "log_softmax" in claim] == list(arithmetic.DTYPES)


TRAINING = {
    "1 − p trained by −log p": (
        "loss_of_logits", lambda name, x, t: jaxnn.cross_entropy(x, t, reduction="none"),
        ["from weights 0: passes", "the same by 1 − p", "wrong start, each at its best"],
    ),
    "−p with another slope": ("LOSSES", replaced(LOSSES, MINUS, lambda p, t: -2 * subject.of_true(p, t)), ["differ by a constant"]),
    "−log p scaled by p": (
        "loss_of_logits", lambda name, x, t: LOSSES[INVERSE](jaxnn.softmax(x), t), ["of the images with p_t < 0.001 at first, by −log p"]
    ),
    "no wrong labels": ("WRONG_SHARE", 0.0, ["nor with 40% random labels"]),
    "tiny steps": ("RATES", (1e-4, 3e-4, 1e-3), ["not so from weights 0"]),
}  # fmt: skip


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", TRAINING)
def test_broken_training_is_noticed(name, monkeypatch):
    attribute, value, noticed = TRAINING[name]
    replace(monkeypatch, attribute, value)
    monkeypatch.setattr(subject, "SHARED", subject.RATES[-1] if attribute == "RATES" else subject.SHARED)
    subject.descend.clear_cache()  # it was compiled with the right losses
    found = failed(subject.measure_training(seed=0, repeats=1, passes=PASSES))
    subject.descend.clear_cache()
    for claim in noticed:
        assert any(claim in each for each in found), (claim, found)
