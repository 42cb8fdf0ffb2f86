"""The output layer at scale: the claims hold, and each fails when its subject is broken."""

import jax.numpy as jnp
import output_layer_at_scale as subject
import pytest
from trials import failing

pytestmark = pytest.mark.more  # a training, or a page, of some seconds: polynomial regression stands for them

ONE_WAY = [subject.FAST, pytest.param(subject.LEAN, marks=pytest.mark.more)]

SMALL = ("--rows", "512", "--features", "16", "--largest", "65536", "--rounds", "1")


IN_TORCH = subject.torch_losses


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(subject, "torch_losses", dict)


@pytest.fixture
def losses(monkeypatch):
    changed = dict(subject.LOSSES)
    monkeypatch.setattr(subject, "LOSSES", changed)
    return changed


def test_every_claim_holds():
    assert failing(subject, *SMALL) == []


@pytest.mark.more
@pytest.mark.parametrize("name", ONE_WAY)
def test_a_loss_that_holds_the_logits_fails(losses, name):
    losses[name] = subject.plain
    assert [claim.partition(":")[0] for claim in failing(subject, *SMALL)] == [name, name]


@pytest.mark.more
@pytest.mark.parametrize("name", ONE_WAY)
def test_a_wrong_gradient_fails(losses, name):
    right = losses[name]
    losses[name] = lambda x, w, t: right(x, w, t) + 1e-3 * jnp.sum(w)
    assert [claim.partition(", in")[0] for claim in failing(subject, *SMALL)] == [
        f"{name}: ∂L/∂W off from (p − e(y)) xᵀ"
    ]


@pytest.mark.more
def test_a_plain_loss_without_logits_fails(losses):
    losses[subject.PLAIN] = losses[subject.LEAN]
    assert failing(subject, *SMALL)[0].startswith("bytes the plain loss sets aside")


def test_the_losses_in_pytorch_are_the_plain_loss():
    pytest.importorskip("torch")
    x, w, t = subject.arguments(8, 4, 40, "float32", 0)
    found, values = IN_TORCH(), {}

    def kept(name, loss):
        values[name] = loss.item()
        return loss

    for name, loss in found.items():
        subject.in_torch(lambda *a, name=name, loss=loss: kept(name, loss(*a)), x, w, t)[0]()
    assert "PyTorch" in values and values.keys() == found.keys()
    assert list(values.values()) == pytest.approx([float(subject.plain(x, w, t))] * len(values), rel=1e-5)


def test_a_small_vocabulary_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        subject.experiment.main(
            subject.__doc__, subject.add_options, subject.measure, subject.draw, ["--largest", "31"]
        )
    assert stopped.value.code == 2
    assert "must be at least 32" in capsys.readouterr().err
