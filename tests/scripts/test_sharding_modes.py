"""Every component in every way to use many devices: `scripts/sharding_modes.py` for each row of its table."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnn

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import sharding_modes
from test_transformations import operations

WORKS = {work.name: work for work in sharding_modes.works(4)}
GLOBAL = ("Auto", "Explicit")


def like_others(name):
    """Return whether another row differs from it only in what is the same on every device."""
    return name.endswith(", sum") or name in (
        "tanh", "l1_penalty", "max_pool2d NCHW", "log_softmax, where", "nll, weight", "nll", "nll_loss",
        "binary_cross_entropy", "squared_error", "linear_cross_entropy fast", "linear_cross_entropy lean",
    )  # fmt: skip


@pytest.mark.one_in(24)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.more if like_others(n) else ()) for n in WORKS])
def test_the_gradient_is_that_of_one_device(name):
    with jax.enable_x64(True):
        mesh = sharding_modes.make_mesh(4)
        found = {way: sharding_modes.verdict(WORKS[name], way, mesh) for way in sharding_modes.WAYS}
        found |= {
            f"vmap, {way}": sharding_modes.verdict(WORKS[name].under_vmap(), way, mesh)
            for way in ("Explicit", "inside")
        }
    assert {way: v for way, v in found.items() if v not in ("ok", "-")} == {}


def test_a_gradient_that_is_wrong_on_several_devices_is_seen():
    """A rule that takes the largest of the devices' weight gradients, where it should sum them."""
    work, mesh = WORKS["linear"], sharding_modes.make_mesh(4)

    @jax.custom_vjp
    def wrong(x, w, b):
        return x @ w.T + jnp.broadcast_to(b, (len(x), len(b)))

    def backward(residuals, dy):
        x, w, _ = residuals
        axes = tuple(jax.typeof(dy).manual_axis_type.varying)
        dw, db = dy.T @ x, dy.sum(0)
        return dy @ w, *(jax.lax.pmax((dw, db), axes) if axes else (dw, db))

    wrong.defvjp(lambda *args: (wrong(*args), args), backward)
    wrong.definition = jaxnn.linear.definition
    with jax.enable_x64(True):
        assert sharding_modes.verdict(work._replace(f=wrong), "jit", mesh) == "ok"
        assert float(sharding_modes.verdict(work._replace(f=wrong), "inside", mesh)) > 0.1
        assert "ShardingTypeError" in sharding_modes.verdict(work._replace(f=wrong), "Explicit", mesh)


def by_class(f, sharding, out):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=sharding, out_specs=out))


def test_a_label_outside_the_classes_of_all_devices():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 8)), jnp.float32)
    labels = jnp.array([0, 7, 8, -1, -100], jnp.int32)

    def losses(x, labels):
        return jaxnn.cross_entropy(x, labels, ignore_index=-100, reduction="none", axis_name="model")

    def gradient(x, labels):
        return jax.grad(lambda x: jnp.sum(losses(x, labels)))(x)

    sharding = (P(None, "model"), P())
    assert list(np.isnan(by_class(losses, sharding, P())(x, labels))) == [False, False, True, True, False]
    dx = by_class(gradient, sharding, P(None, "model"))(x, labels)
    np.testing.assert_array_equal(np.isnan(dx).all(1), [False, False, True, True, False])
    np.testing.assert_array_equal(dx[4], 0)


SAME_CLASSES = {  # of each device: the loss, of an argument that has classes and one that has none
    "cross_entropy": lambda x, _, t, **o: jaxnn.cross_entropy(x, t, **o),
    "linear_cross_entropy, fast": lambda w, x, t, **o: jaxnn.linear_cross_entropy(x, w.T, t, **o),
    "linear_cross_entropy, lean": lambda w, x, t, **o: jaxnn.linear_cross_entropy(x, w.T, t, memory="lean", **o),
}


@pytest.mark.one_in(6)
@pytest.mark.parametrize("axis_name", ["model", ("model",)], ids=["name", "tuple"])
@pytest.mark.parametrize("f", SAME_CLASSES.values(), ids=SAME_CLASSES)
def test_classes_that_are_the_same_on_every_device(f, axis_name):
    """No argument varies over the axis of the classes then, and the loss has four times as many classes."""
    draw = np.random.default_rng(0).standard_normal
    args, labels = (
        (jnp.asarray(draw((5, 3)), jnp.float32), jnp.asarray(draw((5, 5)), jnp.float32)),
        jnp.array([0, 3, 7, 10, 11]),
    )
    expected = jax.value_and_grad(lambda c, x: f(jnp.concatenate([c] * 4, 1), x, labels), (0, 1))(*args)
    on_each = lambda c, x: f(c, x, labels, axis_name=axis_name)  # noqa: E731
    inside = by_class(jax.value_and_grad(on_each, (0, 1)), P(), P())
    outside = jax.value_and_grad(by_class(on_each, P(), P()), (0, 1))
    for found in (inside(*args), outside(*args)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_labels_of_any_integer_dtype(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8)), jnp.float32)
    with jax.enable_x64(dtype == "int64"):
        labels = jnp.array([0, 3, 7], dtype)
        f = by_class(lambda x, t: jaxnn.cross_entropy(x, t, axis_name="model"), (P(None, "model"), P()), P())
        assert float(f(x, labels)) == pytest.approx(float(jaxnn.cross_entropy(x, labels)), rel=1e-6)


def test_a_row_of_false_on_every_device():
    x, where = jnp.zeros((2, 8)), jnp.zeros((2, 8), bool).at[1, 6].set(True)
    sharding = (P(None, "model"),) * 2
    f = by_class(lambda x, w: jaxnn.softmax(x, where=w, axis_name="model"), sharding, sharding[0])
    np.testing.assert_array_equal(f(x, where), where)


@pytest.mark.parametrize("f", [jaxnn.softmax, jaxnn.log_softmax])
def test_large_logits_over_several_devices(f):
    """The maximum over all devices is subtracted, not the sum of their maxima."""
    x = 1e3 * jnp.asarray(np.random.default_rng(0).uniform(1, 2, (3, 8)), jnp.float32)
    sharding = P(None, "model")
    found = by_class(lambda x: f(x, axis_name="model"), sharding, sharding)(x)
    np.testing.assert_allclose(found, f(x), rtol=1e-6)


@pytest.mark.parametrize(
    "f", [jaxnn.softmax, jaxnn.log_softmax, lambda x, **o: jaxnn.cross_entropy(x, jnp.array([0]), **o)]
)
def test_an_axis_that_is_not_in_scope(f):
    with pytest.raises(ValueError, match=r"`axis_name` \('model'\) must name a mesh axis that is in scope"):
        f(jnp.zeros((1, 2)), axis_name="model")


EXCHANGED = ("pmax", "psum", "psum_invariant", "all_gather", "all_to_all", "ppermute")


def test_what_the_devices_exchange():
    """For each row the maximum, Σ exp and the loss; in the backward pass the maximum again, and Σ q."""
    x, labels = jnp.zeros((6, 8)), jnp.zeros(6, jnp.int32)
    f = by_class(lambda x, t: jaxnn.cross_entropy(x, t, axis_name="model"), (P(None, "model"), P()), P())
    forward = jax.make_jaxpr(f)(x, labels).jaxpr
    both = jax.make_jaxpr(jax.grad(f))(x, labels).jaxpr
    sizes = [[v.aval.size for eqn in operations(jaxpr, EXCHANGED) for v in eqn.invars] for jaxpr in (forward, both)]
    assert sizes == [[6, 6, 6], [6, 6, 6, 6, 6]]
