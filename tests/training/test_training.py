"""The models, the step, the epoch on the device, and the loop over the epochs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnn
from jaxnn import models, training

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 17, (50, 8, 8, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 10, 50).astype(np.int32)
CLASSIFIER = models.Classifier(models.cnn, 8.0, 5.0)


def start(model="softmax", optimizer=None, seed=0, rate=0.1):
    params = models.MODELS[model].init(jax.random.key(seed), (8, 8, 1), 10)
    optimizer = optimizer or optax.sgd(rate)
    classifier = models.Classifier(models.MODELS[model], 8.0, 5.0)
    return classifier, optimizer, training.init_state(params, optimizer, jax.random.key(seed + 1))


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "shape", [(12, 9, 3), *(pytest.param(s, marks=pytest.mark.more) for s in ((8, 8, 1), (28, 28, 1)))]
)
@pytest.mark.parametrize("name", models.MODELS)
def test_models_map_images_to_logits(name, shape):
    model = models.MODELS[name]
    params = model.init(jax.random.key(0), shape, 7)
    x = jnp.asarray(RNG.standard_normal((5, *shape)), jnp.float32)
    logits = model.apply(params, x)
    assert logits.shape == (5, 7)
    assert np.isfinite(logits).all()
    dropped = model.apply(params, x, key=jax.random.key(1), dropout=0.5)
    assert not np.allclose(dropped, logits)
    np.testing.assert_array_equal(model.apply(params, x, key=jax.random.key(1), dropout=0.0), logits)


def test_cnn_is_the_composition_of_the_notes():
    params = models.cnn.init(jax.random.key(0), (8, 8, 1), 10)
    assert set(params) == {"W0", "W1"}, "two weights, no bias"
    x = jnp.asarray(RNG.standard_normal((3, 8, 8, 1)), jnp.float32)
    x3 = jaxnn.max_pool2d(jaxnn.relu(jaxnn.conv2d(x, params["W0"], layout="NHWC")), layout="NHWC")
    y = jaxnn.softmax(jaxnn.linear(x3.reshape(3, -1), params["W1"]))
    np.testing.assert_allclose(jaxnn.softmax(models.cnn.apply(params, x)), y, rtol=1e-6)


def test_initial_weights_have_the_named_variances():
    convnet = models.convnet.init(jax.random.key(0), (28, 28, 1), 10)
    assert np.var(convnet["conv2"]["w"]) == pytest.approx(2 / (9 * 32), rel=0.05)
    assert np.var(convnet["linear1"]["w"]) == pytest.approx(2 / (12 * 12 * 64), rel=0.05)
    assert np.var(convnet["linear2"]["w"]) == pytest.approx(2 / (128 + 10), rel=0.1)
    assert not any(np.any(layer["b"]) for layer in convnet.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(convnet)) == 1_199_882, "as PyTorch's example"


def test_one_step_of_softmax_regression_is_the_update_of_the_notes():
    """Δw_ji = α (y_j − p_j) x_i, summed over the batch and divided by its size."""
    classifier, optimizer, state = start(rate=0.5)
    w = np.asarray(state.params["linear"]["w"], np.float64)
    x = (IMAGES.reshape(50, 64) - 8.0) / 5.0
    logits = x @ w.T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = w + 0.5 * (np.eye(10)[LABELS] - p).T @ x / 50
    step = jax.jit(training.make_step(classifier.loss(), optimizer), donate_argnums=0)
    state, metrics = step(state, (jnp.asarray(IMAGES), jnp.asarray(LABELS)))
    np.testing.assert_allclose(state.params["linear"]["w"], expected, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 1
    assert float(metrics["loss"]) == pytest.approx(-np.log(p[np.arange(50), LABELS]).mean(), rel=1e-5)


@pytest.mark.more
def test_the_penalty_is_on_weights_alone():
    classifier, _, state = start("mlp")
    params = jax.tree.map(lambda p: p + 0.01, state.params)
    batch, key = (jnp.asarray(IMAGES), jnp.asarray(LABELS)), jax.random.key(0)
    plain, with_l2 = (jax.grad(lambda p, l2=l2: classifier.loss(l2=l2)(p, batch, key)[0])(params) for l2 in (0.0, 0.3))
    for layer, gradients in plain.items():
        np.testing.assert_allclose(with_l2[layer]["w"] - gradients["w"], 0.6 * params[layer]["w"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(with_l2[layer]["b"], gradients["b"], rtol=1e-5, atol=1e-7)


def run(step, state, first=0, last=7, batch_size=8, images=IMAGES, seed=0):
    order = np.asarray(jax.random.permutation(jax.random.key(seed), len(images)))
    batches = training.make_batches(images, LABELS, order, batch_size)
    return training.run_steps(step, state, batches, jnp.int32(first), jnp.int32(last))


def test_an_epoch_takes_each_row_once_with_a_short_last_batch():
    classifier, optimizer, state = start()
    step = training.make_step(classifier.loss(), optimizer)
    _, index, sums, finite = run(step, state)
    assert (int(index), bool(finite), int(sums["count"])) == (7, True, 50)


def test_the_loop_on_the_device_takes_the_same_steps_as_python():
    """Two steps, of 32 rows and of 18, by momentum: over many steps, or divided by |g|, a rounding would grow."""
    classifier, optimizer, state = start("cnn", optax.sgd(0.1, momentum=0.9))
    step = training.make_step(classifier.loss(dropout=0.3), optimizer)
    by_hand = training.init_state(state.params, optimizer, state.key)
    order = np.asarray(jax.random.permutation(jax.random.key(0), 50))
    jitted = jax.jit(step)
    for i in range(2):
        rows = order[32 * i : 32 * i + 32]
        fill = 32 - len(rows)
        batch = (
            np.concatenate([IMAGES[rows], IMAGES[order[[-1] * fill]]]),
            np.concatenate([LABELS[rows], [-1] * fill]).astype(np.int32),
        )
        by_hand, _ = jitted(by_hand, jax.tree.map(jnp.asarray, batch))
    looped, *_ = run(step, state, last=2, batch_size=32)
    for a, b in zip(jax.tree.leaves(looped.params), jax.tree.leaves(by_hand.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_of_any_length_give_the_same_bits():
    results = []
    for ends in ((0, 7), (0, 1, 7), (0, 2, 3, 5, 7)):
        classifier, optimizer, state = start("cnn")
        step = training.make_step(classifier.loss(dropout=0.5), optimizer)
        for first, last in itertools.pairwise(ends):
            state, *_ = run(step, state, first, last)
        results.append(jax.tree.leaves(state.params))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_step_that_is_not_finite_is_not_taken():
    images = IMAGES.astype(np.float32)
    order = np.asarray(jax.random.permutation(jax.random.key(0), 50))
    images[order[8 * 3]] = np.nan
    classifier, optimizer, state = start("cnn", optax.adam(0.01))
    step = training.make_step(classifier.loss(), optimizer)
    state, index, sums, finite = run(step, state, images=images)
    assert (int(index), bool(finite), int(state.step), int(sums["count"])) == (3, False, 3, 24)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_fit_says_where_it_diverged():
    classifier, optimizer, state = start(rate=1e38)
    step = training.make_step(classifier.loss(), optimizer)
    with pytest.raises(training.Diverged, match=r"not finite in epoch 1, step \d: try a lower learning rate"):
        list(training.fit(step, state, jnp.asarray(IMAGES), jnp.asarray(LABELS), epochs=2, batch_size=8))


def test_fit_pauses_at_every_multiple_of_pause_every():
    """It pauses at every multiple, counted over all epochs, even if a chunk would be longer."""
    classifier, optimizer, state = start()
    step, paused = training.make_step(classifier.loss(), optimizer), []
    list(training.fit(
        step, state, IMAGES, LABELS, epochs=4, batch_size=2, pause_every=7,
        on_progress=lambda p: paused.append((p.epoch - 1) * p.steps + p.step),
    ))  # fmt: skip
    assert set(range(7, 100, 7)) <= set(paused)


def test_fit_trains_reports_and_stops_when_asked():
    classifier, optimizer, state = start("cnn", optax.adam(0.003))
    step = training.make_step(classifier.loss(), optimizer)
    seen = []
    data = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    results = list(training.fit(step, state, *data, epochs=40, batch_size=16, on_progress=seen.append))
    assert [r.epoch for r in results] == list(range(1, 41))
    assert results[-1].metrics["nll"] < results[0].metrics["nll"] / 4, "50 random images are memorised"
    assert all(r.metrics["count"] == 50 and r.finished for r in results)
    assert [p.step for p in seen if p.epoch == 40] == [4]
    classifier, optimizer, state = start("cnn")
    stopped = list(
        training.fit(
            training.make_step(classifier.loss(), optimizer), state, *data, epochs=40, batch_size=16, stop=lambda: True
        )
    )
    assert len(stopped) == 1 and int(stopped[0].state.step) == stopped[0].steps == 1 and not stopped[0].finished


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (IMAGES, LABELS[:5], r"`labels` \(shape \(5,\)\) must have one label for each of `images` \(50,\)"),
        (IMAGES, LABELS.astype(np.float32), "must be integer class ids"),
        (IMAGES, np.eye(10, dtype=np.int32)[LABELS], "must be integer class ids"),
    ],
)
def test_labels_that_do_not_fit_the_images_are_refused(images, labels, words):
    classifier, optimizer, state = start()
    step = training.make_step(classifier.loss(), optimizer)
    with pytest.raises(ValueError, match=words):
        next(training.fit(step, state, jnp.asarray(images), jnp.asarray(labels), epochs=1, batch_size=10))
    with pytest.raises(ValueError, match=words):
        training.evaluate(classifier.metrics, state.params, jnp.asarray(images), jnp.asarray(labels), batch_size=10)


@pytest.mark.parametrize("batch_size", [0, -1, 51])
def test_fit_refuses_a_batch_size_outside_the_data(batch_size):
    classifier, optimizer, state = start()
    step = training.make_step(classifier.loss(), optimizer)
    with pytest.raises(
        ValueError, match=rf"`batch_size` \({batch_size}\) must be between 1 and 50, the number of images"
    ):
        next(training.fit(step, state, jnp.asarray(IMAGES), jnp.asarray(LABELS), epochs=1, batch_size=batch_size))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    def train(seed):
        classifier, optimizer, state = start("cnn", seed=seed)
        step = training.make_step(classifier.loss(dropout=0.5), optimizer)
        data = jnp.asarray(IMAGES), jnp.asarray(LABELS)
        *_, last = training.fit(step, state, *data, epochs=2, batch_size=16)
        return np.asarray(last.state.params["W0"])

    np.testing.assert_array_equal(train(0), train(0))
    assert not np.array_equal(train(0), train(1))


@pytest.mark.more
def test_evaluation_counts_each_row_once():
    classifier, _, state = start("cnn")
    logits = np.asarray(classifier.logits(state.params, jnp.asarray(IMAGES)))
    correct = int((logits.argmax(1) == LABELS).sum())
    for batch_size in (50, 7, 1):
        sums = training.evaluate(
            classifier.metrics, state.params, jnp.asarray(IMAGES), jnp.asarray(LABELS), batch_size=batch_size
        )
        assert (int(sums["count"]), int(sums["correct"])) == (50, correct)
        np.testing.assert_array_equal(np.asarray(sums["confusion"]).sum(1), np.bincount(LABELS, minlength=10))
        assert np.trace(sums["confusion"]) == correct
        np.testing.assert_allclose(
            sums["nll"], jaxnn.cross_entropy(jnp.asarray(logits), LABELS, reduction="sum"), rtol=1e-5
        )


def parallel(step, how):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = dict(in_specs=(P(), P("data")), out_specs=(P(), P()))
    if how == "pmap":
        mapped = jax.pmap(step, "data", in_axes=(None, 0), out_axes=None)
        return lambda state, batch: mapped(state, jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), batch))
    return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=how == "check_vma", **specs))


@pytest.mark.more
@pytest.mark.one_in(6)
@pytest.mark.parametrize("how", ["check_vma", "no check_vma", "pmap"])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_the_step_on_four_devices_is_the_step_on_one(how, name):
    """Adam divides by |g| + eps: with the usual eps of 1e-8 the rounding of a gradient near 0 would decide its step."""
    optimizer = optax.adam(0.05, eps=1e-3) if name == "adam" else training.make_optimizer(name, 0.05, 10)
    classifier, _, state = start("convnet", optimizer)
    batch = jnp.asarray(IMAGES[:48]), jnp.asarray(LABELS[:48])
    loss = classifier.loss(l2=1e-3, dropout=0.0)
    one, expected = jax.jit(training.make_step(loss, optimizer))(state, batch)
    step = training.make_step(loss, optimizer, axis_name="data")
    four, metrics = parallel(step, how)(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b)), one.params, state.params)
    apart = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b)), one.params, four.params)
    for m, a in zip(jax.tree.leaves(moved), jax.tree.leaves(apart), strict=True):
        assert a < 1e-4 * m


def test_devices_have_different_keys():
    def loss(params, batch, key):
        return jnp.sum(params) * 0.0, {"bits": jax.random.uniform(key)}

    state = training.init_state(jnp.zeros(2), optax.sgd(0.1), jax.random.key(0))
    step = training.make_step(loss, optax.sgd(0.1), axis_name="data")
    mapped = jax.pmap(step, "data", in_axes=(None, 0), out_axes=None)
    _, metrics = mapped(state, jnp.zeros((4, 1)))
    single = jax.pmap(step, "data", in_axes=(None, 0), out_axes=None, devices=jax.devices()[:1])(
        state, jnp.zeros((1, 1))
    )[1]
    assert float(metrics["bits"]) != float(single["bits"]), "the mean over four different draws"


@pytest.mark.one_in(4)
@pytest.mark.parametrize("model", models.MODELS)
def test_the_step_lowers_for_cpu_cuda_and_tpu(model):
    classifier, optimizer, state = start(model, optax.adam(0.01))
    step = jax.jit(training.make_step(classifier.loss(l2=1e-4, dropout=0.5), optimizer), donate_argnums=0)
    batch = jnp.asarray(IMAGES[:4]), jnp.asarray(LABELS[:4])
    shapes = jax.eval_shape(lambda *a: a, state._replace(key=jax.random.key_data(state.key)), batch)

    def from_raw_key(state, batch):  # typed keys cannot be serialised
        state, metrics = step(state._replace(key=jax.random.wrap_key_data(state.key)), batch)
        return state._replace(key=jax.random.key_data(state.key)), metrics

    exported = jax.export.export(jax.jit(from_raw_key), platforms=("cpu", "cuda", "tpu"))(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "select_and_scatter" not in exported.mlir_module()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("schedule", training.SCHEDULES)
@pytest.mark.parametrize("name", training.OPTIMIZERS)
def test_every_optimizer_and_schedule_by_name(name, schedule):
    classifier, optimizer, state = start(optimizer=training.make_optimizer(name, 0.1, 40, schedule=schedule))
    step = training.make_step(classifier.loss(), optimizer)
    before = np.asarray(state.params["linear"]["w"]).copy()
    state, *_ = run(step, state)
    assert not np.array_equal(before, state.params["linear"]["w"])


def test_momentum_is_used_and_unknown_names_are_refused():
    updates = []
    for momentum in (0.0, 0.9):
        optimizer = training.make_optimizer("momentum", 1.0, 10, momentum=momentum)
        opt_state = optimizer.init(jnp.zeros(()))
        updates.append(float(optimizer.update(jnp.ones(()), opt_state)[0]))
    assert updates == [-1.0, pytest.approx(-1.9)]
    with pytest.raises(ValueError, match=r"`name` \('sdg'\) must be one of sgd"):
        training.make_optimizer("sdg", 0.1, 1)
    with pytest.raises(ValueError, match=r"`schedule` \('up'\) must be one of constant"):
        training.make_optimizer("sgd", 0.1, 1, schedule="up")


def test_saved_parameters_are_loaded_again(tmp_path):
    params = models.convnet.init(jax.random.key(0), (8, 8, 1), 10)
    training.save_params(tmp_path / "params.npz", params, {"model": "convnet", "input_shape": [8, 8, 1]})
    again, config = training.load_params(tmp_path / "params.npz")
    assert config == {"model": "convnet", "input_shape": [8, 8, 1]}
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert [p.name for p in tmp_path.iterdir()] == ["params.npz"]


@pytest.mark.parametrize(
    "params", [{"a/b": np.ones(1)}, [np.ones(1)], {"w": jnp.ones(1, jnp.bfloat16)}, np.ones(1), {1: np.ones(1)}]
)
def test_parameters_that_could_not_be_loaded_again_are_refused(params, tmp_path):
    with pytest.raises(TypeError, match="`params"):
        training.save_params(tmp_path / "params.npz", params, {})
    assert not any(tmp_path.iterdir())


def test_more_epochs_than_a_float_has_exponents():
    """The length of a chunk is computed from the steps that were taken; doubled after every epoch it would overflow."""
    step = training.make_step(lambda params, batch, key: (jnp.sum(params**2), {}), optax.sgd(0.1))
    state = training.init_state(jnp.ones(2), optax.sgd(0.1), jax.random.key(0))
    data = jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32)
    *_, last = training.fit(step, state, *data, epochs=1100, batch_size=2)
    assert last.finished and int(last.state.step) == 1100


def test_the_step_is_compiled_once_for_all_chunks():
    classifier, optimizer, state = start()
    count, inner = 0, classifier.loss()

    def loss(params, batch, key):
        nonlocal count
        count += 1
        return inner(params, batch, key)

    step = training.make_step(loss, optimizer)
    run_ = functools.partial(run, step)
    state, *_ = run_(state, 0, 1)
    traced = count
    for first, last in ((1, 3), (3, 4), (4, 7)):
        state, *_ = run_(state, first, last)
    assert count == traced
