"""The step, the epoch and the evaluation on several devices and in micro-batches."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import models, training
from jaxnn.tracing.jaxprs import equations

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 17, (50, 8, 8, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 10, 50).astype(np.int32)


def make_mesh(devices):
    types = (AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=types) if devices else None


def start(devices, accumulate=1, model="convnet", dropout=0.0, dtype="float32"):
    """Momentum, and not Adam, which divides by |g|: where g is nearly 0 that would magnify its rounding."""
    classifier = models.Classifier(models.MODELS[model], 8.0, 5.0, dtype)
    optimizer = training.make_optimizer("momentum", 0.1, 30)
    state = training.init_state(classifier.model.init(jax.random.key(0), (8, 8, 1), 10), optimizer, jax.random.key(1))
    loss = classifier.loss(l2=1e-4, dropout=dropout)
    axis = "data" if devices else None
    return classifier, training.make_step(loss, optimizer, axis_name=axis, accumulate=accumulate), state


def train(devices, accumulate=1, **options):
    classifier, step, state = start(devices, accumulate, **options)
    """Take two steps, of 16 rows and of 2: over many steps a rounding would grow."""
    mesh = make_mesh(devices)
    (last,) = training.fit(step, state, IMAGES[:18], LABELS[:18], epochs=1, batch_size=16, mesh=mesh)
    sums = training.evaluate(classifier.metrics, last.state.params, IMAGES, LABELS, batch_size=13, mesh=mesh)
    return last, jax.tree.map(np.asarray, sums)


@functools.cache
def alone():
    return train(None)


@pytest.mark.more
@pytest.mark.parametrize("devices, accumulate", [(1, 1), (2, 1), (4, 1), (None, 4), (3, 2)])
def test_any_number_of_devices_and_micro_batches_trains_the_same(devices, accumulate):
    """The second batch has 2 rows, so most parts of it have none. The bound is relative to what the steps change."""
    last, sums = train(devices, accumulate)
    (expected, expected_sums), before = alone(), start(None)[2].params
    for a, b, c in zip(*map(jax.tree.leaves, (last.state.params, expected.state.params, before)), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b - c)
    assert (last.metrics["count"], last.metrics["correct"]) == (18, expected.metrics["correct"])
    assert last.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)
    np.testing.assert_array_equal(sums["confusion"], expected_sums["confusion"])
    assert sums["count"] == 50 and sums["nll"] == pytest.approx(expected_sums["nll"], rel=1e-5)


@pytest.mark.more
def test_devices_exchange_only_one_sum_per_step():
    """The compiled program has one collective, of the gradient, the loss, the rows and three metrics."""
    _, step, state = start(4, accumulate=2, dropout=0.5)
    mesh = make_mesh(4)
    batches = training.make_batches(IMAGES, LABELS, np.arange(50), 16, mesh=mesh, accumulate=2)
    state = training.on_all_devices(mesh, state)
    program = training.run_steps.lower(step, state, batches, 0, 4, mesh=mesh).compile().as_text()
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    (collective,) = re.findall(rf"= (.*) (?:{names})(?:-start)?\(", program)
    sizes = [
        int(np.prod([int(d) for d in dims.split(",") if d])) for dims in re.findall(r"f32\[([\d,]*)\]", collective)
    ]
    assert "f32" in collective and not re.findall(r"\b(?!f32)[a-z]+\d+\[", collective)
    assert sum(sizes) == sum(p.size for p in jax.tree.leaves(state.params)) + 5  # loss, rows, and three metrics


@pytest.mark.more
@pytest.mark.one_in(10)
@pytest.mark.parametrize("model", ["convnet", "mlp"])
@pytest.mark.parametrize("how", ["shard_map", "unchecked", "pmap", "Auto", "Explicit"])
def test_the_step_is_the_same_under_every_transformation(how, model):
    """One shard has no rows, another only some."""
    labels = jnp.asarray(LABELS[:16]).at[5:8].set(-1).at[12:].set(-1)
    batch = jnp.asarray(IMAGES[:16]), labels
    _, step, state = start(None, model=model)
    expected, metrics = jax.jit(step)(state, batch)
    if how in ("Auto", "Explicit"):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(getattr(AxisType, how),))
        with jax.set_mesh(mesh):
            sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
            found, found_metrics = jax.jit(step)(jax.device_put(state, NamedSharding(mesh, P())), sharded)
    else:
        _, step, state = start(4, model=model)
        if how == "pmap":
            batch = jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), batch)
            found, found_metrics = jax.pmap(step, "data", in_axes=(None, 0), out_axes=None)(state, batch)
        else:
            mapped = jax.shard_map(
                step, mesh=make_mesh(4), in_specs=(P(), P("data")), out_specs=P(), check_vma=how == "shard_map"
            )
            found, found_metrics = jax.jit(mapped)(state, batch)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name in metrics:
        assert float(found_metrics[name]) == pytest.approx(float(metrics[name]), rel=1e-5)


def draws(devices, accumulate):
    """Return the random number of each device and each micro-batch in one step."""

    def loss(params, batch, key):
        return jnp.sum(params) * 0.0, {"draws": jnp.zeros(24).at[batch[0]].set(jax.random.uniform(key))}

    step = training.make_step(loss, optax.sgd(0.1), axis_name="data" if devices else None, accumulate=accumulate)
    state = training.init_state(jnp.zeros(2), optax.sgd(0.1), jax.random.key(0))._replace(step=jnp.int32(1))
    rows = jnp.arange((devices or 1) * accumulate)
    if devices:
        step = jax.shard_map(step, mesh=make_mesh(devices), in_specs=(P(), P("data")), out_specs=P())
    return np.asarray(step(state, rows)[1]["draws"])[: len(rows)]


@pytest.mark.more
def test_devices_and_micro_batches_have_different_keys():
    assert len(set(draws(4, 3))) == 12
    assert len(set(draws(None, 3))) == 3


@pytest.mark.more
def test_bfloat16_computes_and_float32_is_stored():
    _, step, state = start(None, dtype="bfloat16")
    jaxpr = jax.make_jaxpr(step)(state, (jnp.asarray(IMAGES[:4]), jnp.asarray(LABELS[:4])))
    products = [eqn for eqn in equations(jaxpr) if eqn.primitive.name in ("dot_general", "conv_general_dilated")]
    assert len(products) > 8 and {str(v.aval.dtype) for eqn in products for v in eqn.invars} == {"bfloat16"}
    (last, sums), (expected, _) = train(None, dtype="bfloat16"), alone()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(last.state.params)} == {"float32"}
    assert sums["nll"].dtype == np.float32
    assert last.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=0.02)
    before = start(None)[2].params
    for a, b, c in zip(*map(jax.tree.leaves, (last.state.params, expected.state.params, before)), strict=True):
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b - c)  # bfloat16 has 8 bits, four layers


@pytest.mark.one_in(6)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64"])
@pytest.mark.parametrize("devices", [None, 2])
def test_labels_of_any_integer_dtype(devices, dtype):
    classifier, step, state = start(devices, model="softmax")
    mesh, labels = make_mesh(devices), LABELS.astype(dtype)
    *_, last = training.fit(step, state, IMAGES, labels, epochs=1, batch_size=16, mesh=mesh)
    sums = training.evaluate(classifier.metrics, last.state.params, IMAGES, labels, batch_size=16, mesh=mesh)
    assert (last.metrics["count"], int(sums["count"])) == (50, 50)


@pytest.mark.more
@pytest.mark.parametrize("devices, accumulate", [(4, 1), (None, 4)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_loss_of_low_precision_has_an_exact_count_of_rows(dtype, devices, accumulate):
    """70,001 is not a bfloat16 number, and exceeds the largest float16 number."""
    rows = 70_000 + np.array([1, 0, 0, 0])

    def loss(params, batch, key):
        return jnp.mean(params["w"] * batch[0].astype(jnp.float32)).astype(dtype), {"count": jnp.sum(batch[1])}

    step = training.make_step(loss, optax.sgd(1.0), axis_name="data" if devices else None, accumulate=accumulate)
    state = training.init_state({"w": jnp.zeros(())}, optax.sgd(1.0), jax.random.key(0))
    if devices:
        step = jax.shard_map(step, mesh=make_mesh(devices), in_specs=(P(), P("data")), out_specs=P())
    values = np.array([1, 2, 3, 4], np.float32)
    state, metrics = step(state, (jnp.asarray(values), jnp.asarray(rows, jnp.int32)))
    assert int(metrics["count"]) == 280_001
    assert -float(state.params["w"]) == pytest.approx((values * rows).sum() / rows.sum(), rel=1e-6)


@pytest.mark.parametrize("axis, devices", [("data", None), (None, 2), ("rows", 2)])
def test_a_step_for_another_mesh_is_refused(axis, devices):
    classifier, _, state = start(None)
    step = training.make_step(classifier.loss(), optax.sgd(0.1), axis_name=axis)
    with pytest.raises(ValueError, match=r"`step` \(axis_name .*\) must be made for the axis of `mesh`"):
        next(training.fit(step, state, IMAGES, LABELS, epochs=1, batch_size=8, mesh=make_mesh(devices)))


def test_a_batch_that_cannot_be_split_is_refused():
    _, step, state = start(4, 2)
    with pytest.raises(
        ValueError,
        match=r"`batch_size` \(7\) must be at least 8: one row for each micro-batch of each device \(4 devices, 2",
    ):
        next(training.fit(step, state, IMAGES, LABELS, epochs=1, batch_size=7, mesh=make_mesh(4)))
    _, step, state = start(None, 2)
    with pytest.raises(
        ValueError, match=r"`batch` \(3 rows on a device\) must be a multiple of `accumulate` \(2\) rows"
    ):
        step(state, (jnp.asarray(IMAGES[:3]), jnp.asarray(LABELS[:3])))
    with pytest.raises(ValueError, match=r"`accumulate` \(0\) must be at least 1"):
        start(None, 0)
    with pytest.raises(TypeError, match=r"`axis_name` \(\('data',\)\) must be the name of a mesh axis, or None"):
        training.make_step(lambda *_: None, optax.sgd(0.1), axis_name=("data",))
