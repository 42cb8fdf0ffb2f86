"""Gradient descent on a polynomial: the claims hold, and each fails when its subject is broken."""

import jax
import polynomial_regression as subject
import pytest
from trials import failing

import jaxnn

FEW = ("--passes", "40000")


def test_every_claim_holds():
    assert failing(subject, *FEW) == []


def wrong_mean(w, x, t):
    return jaxnn.squared_error(jaxnn.linear(subject.jnp.stack([x**0, x, x**2], axis=1), w[None])[:, 0], t)


DEFECTS = {
    "a mean for the sum": (wrong_mean, ["gradient by rule", "predicts the decrease"]),
    "a wrong sign": (lambda w, x, t: -RIGHT(w, x, t), ["gradient by rule", "full batch: distance", "one example: distance", "η = 1.9"]),
    "the linear term forgotten": (lambda w, x, t: RIGHT(w.at[1].set(0), x, t), ["gradient by rule", "mini-batches"]),
}  # fmt: skip
RIGHT = subject.loss


@pytest.mark.more
@pytest.mark.parametrize("name", DEFECTS)
def test_a_broken_loss_is_noticed(name, monkeypatch):
    loss, noticed = DEFECTS[name]
    monkeypatch.setattr(subject, "gradient", jax.grad(loss))
    jax.clear_caches()  # `descend` was compiled with the right gradient
    failed = failing(subject, "--passes", "2000")
    jax.clear_caches()
    for claim in noticed:
        assert any(claim in each for each in failed), (claim, failed)


@pytest.mark.more
def test_steps_that_do_not_shrink_never_arrive(monkeypatch):
    monkeypatch.setattr(subject, "SLOWER", 10**9)
    jax.clear_caches()
    failed = failing(subject, "--passes", "2000")
    jax.clear_caches()
    assert any("one example: distance" in claim for claim in failed)
