"""Our functions in models of Flax NNX and Equinox, trained by Optax: the same gradients and parameters as theirs.

Each model is written once with its library's own layers. A subclass with the same parameters calls our functions in
`__call__` and `loss` instead.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnn

nnx = pytest.importorskip("flax.nnx")
eqx = pytest.importorskip("equinox")

# Flax passes its parameters, which JAX takes for arrays and the annotations do not name.
pytestmark = pytest.mark.usefixtures("unchecked_annotations")

STEPS, RATE, LEARNING_RATE = 5, 0.3, 0.1
SGD = optax.sgd(LEARNING_RATE)


def optax_loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class FlaxNet(nnx.Module):
    def __init__(self, key):
        self.rngs = nnx.Rngs(key)
        normal = nnx.initializers.normal(0.1)  # NNX's biases start at 0, which would hide them
        self.conv = nnx.Conv(3, 4, (3, 3), bias_init=normal, rngs=self.rngs)
        self.hidden = nnx.Linear(48, 16, bias_init=normal, rngs=self.rngs)
        self.dropout = nnx.Dropout(RATE)
        self.out = nnx.Linear(16, 10, bias_init=normal, rngs=self.rngs)

    def __call__(self, x):  # x (N, H, W, C)
        x = nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), strides=(2, 2))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.out(self.dropout(x, rngs=self.rngs))

    def loss(self, x, labels):
        return optax_loss(self(x), labels)


class FlaxWithOurs(FlaxNet):
    def __call__(self, x):
        x = jaxnn.conv2d(x, self.conv.kernel, self.conv.bias, padding="SAME", layout="NHWC")
        x = jaxnn.max_pool2d(jaxnn.relu(x), 2, layout="NHWC")
        x = jaxnn.relu(jaxnn.linear(x.reshape(len(x), -1), self.hidden.kernel.T, self.hidden.bias))
        key = None if self.dropout.deterministic else self.rngs.dropout()
        x = jaxnn.dropout(x, self.dropout.rate, key, deterministic=self.dropout.deterministic)
        return jaxnn.linear(x, self.out.kernel.T, self.out.bias)

    def loss(self, x, labels):
        return jaxnn.cross_entropy(self(x), labels)


class Flax:
    theirs, ours, channels, vmap, stacked = FlaxNet, FlaxWithOurs, -1, nnx.vmap, 0
    logits = staticmethod(nnx.jit(lambda net, x: net(x)))
    gradient = staticmethod(nnx.jit(nnx.value_and_grad(lambda net, x, labels: net.loss(x, labels))))

    def evaluating(net):
        net = nnx.clone(net)
        net.eval()
        return net

    def train(net, x, labels):
        optimizer = nnx.Optimizer(net, SGD, wrt=nnx.Param)

        @nnx.jit
        def step(net, optimizer):
            loss, gradient = nnx.value_and_grad(lambda net: net.loss(x, labels))(net)
            optimizer.update(net, gradient)
            return loss

        return [step(net, optimizer) for _ in range(STEPS)], net

    def pure(net):
        graph, params, rest = nnx.split(net, nnx.Param, ...)
        return params, lambda params, x, labels: nnx.merge(graph, params, rest, copy=True).loss(x, labels)


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    hidden: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(3, 4, 3, padding=1, key=keys[0])
        self.hidden = eqx.nn.Linear(48, 16, key=keys[1])
        self.dropout = eqx.nn.Dropout(RATE)
        self.out = eqx.nn.Linear(16, 10, key=keys[2])

    def __call__(self, x, key):  # x (C, H, W): one sample
        x = eqx.nn.MaxPool2d(2, stride=2)(jax.nn.relu(self.conv(x)))
        x = jax.nn.relu(self.hidden(x.ravel()))
        return self.out(self.dropout(x, key=key))

    def logits(self, x, key):
        return jax.vmap(self)(x, jax.random.split(key, len(x)))

    def loss(self, x, labels, key):
        return optax_loss(self.logits(x, key), labels)


class EquinoxWithOurs(EquinoxNet):
    def __call__(self, x, key):
        x = jaxnn.conv2d(x, self.conv.weight, self.conv.bias[:, 0, 0], padding=1)
        x = jaxnn.max_pool2d(jaxnn.relu(x), 2)
        x = jaxnn.relu(jaxnn.linear(x.ravel(), self.hidden.weight, self.hidden.bias))
        x = jaxnn.dropout(x, self.dropout.p, key, deterministic=self.dropout.inference)
        return jaxnn.linear(x, self.out.weight, self.out.bias)

    def loss(self, x, labels, key):
        return jaxnn.cross_entropy(self.logits(x, key), labels)


class Equinox:
    theirs, ours, channels, vmap, stacked = EquinoxNet, EquinoxWithOurs, 1, eqx.filter_vmap, eqx.if_array(0)
    evaluating = eqx.nn.inference_mode
    logits = staticmethod(eqx.filter_jit(lambda net, x: net.logits(x, jax.random.key(1))))
    gradient = staticmethod(
        eqx.filter_jit(eqx.filter_value_and_grad(lambda net, x, labels: net.loss(x, labels, jax.random.key(1))))
    )

    def train(net, x, labels):
        state, losses = SGD.init(eqx.filter(net, eqx.is_inexact_array)), []

        @eqx.filter_jit
        def step(net, state, key):
            loss, gradient = eqx.filter_value_and_grad(lambda net: net.loss(x, labels, key))(net)
            updates, state = SGD.update(gradient, state)
            return loss, eqx.apply_updates(net, updates), state

        for key in jax.random.split(jax.random.key(2), STEPS):
            loss, net, state = step(net, state, key)
            losses.append(loss)
        return losses, net

    def pure(net):
        params, rest = eqx.partition(net, eqx.is_inexact_array)
        return params, lambda params, x, labels: eqx.combine(params, rest).loss(x, labels, jax.random.key(1))


both_libraries = pytest.mark.parametrize("library", [Flax, Equinox])


def batch(library, samples=16):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 3, 8, 6), np.float32)  # C, H, W = 3, 8, 6
    return jnp.asarray(np.moveaxis(x, 1, library.channels)), jnp.asarray(rng.integers(0, 10, samples, np.int32))


def nets(library, seed=0):
    return library.theirs(jax.random.key(seed)), library.ours(jax.random.key(seed))


def without_dropout(library, seed=0):
    return [library.evaluating(net) for net in nets(library, seed)]


def assert_close(got, expected, sizes=None, ulps=16):
    """Compare each element at float32's rounding of its size; by default its value plus the mean of its array."""
    got, expected, sizes = ([np.asarray(x, float) for x in jax.tree.leaves(tree)] for tree in (got, expected, sizes))
    sizes = sizes or [abs(e) + abs(e).mean() for e in expected]
    for g, e, size in zip(got, expected, sizes, strict=True):
        assert g.shape == e.shape == size.shape
        assert (abs(g - e) <= ulps * np.finfo(np.float32).eps * size).all(), abs(g - e) / size


@pytest.mark.more
@both_libraries
def test_loss_and_gradients_are_those_of_the_librarys_layers(library):
    x, labels = batch(library)
    (loss, expected), (our_loss, got) = (library.gradient(net, x, labels) for net in without_dropout(library))
    params, pure = library.pure(without_dropout(library)[0])
    of_sample = jax.jit(jax.vmap(lambda x, label: jax.grad(pure)(params, x[None], label[None])))
    assert_close(our_loss, loss, ulps=2)
    assert_close(got, expected, sizes=jax.tree.map(lambda g: abs(g).mean(0), of_sample(x, labels)))


@pytest.mark.more
@pytest.mark.one_in(2)
@both_libraries
def test_training_ends_with_the_same_parameters_as_with_the_librarys_layers(library):
    x, labels = batch(library)
    (losses, theirs), (our_losses, ours) = (library.train(net, x, labels) for net in without_dropout(library))
    assert our_losses[-1] < our_losses[0]
    assert_close(our_losses, losses)
    assert_close(library.pure(ours)[0], library.pure(theirs)[0])


@pytest.mark.more
@pytest.mark.one_in(2)
@both_libraries
def test_a_model_with_dropout_trains(library):
    x, labels = batch(library)
    _, without = library.train(without_dropout(library)[1], x, labels)
    _, trained = library.train(nets(library)[1], x, labels)
    ends = [library.evaluating(net) for net in (nets(library)[1], without, trained)]
    untrained, without, trained = (float(library.gradient(net, x, labels)[0]) for net in ends)
    assert trained < 0.95 * untrained
    assert abs(trained - without) > 1e-4  # dropout took part


@pytest.mark.more
@both_libraries
def test_dropout_draws_a_mask_for_each_sample_and_none_in_evaluation(library):
    one, _ = batch(library, 1)
    x = jnp.repeat(one, 40_000, axis=0)
    theirs, ours = without_dropout(library)
    expected = np.asarray(library.logits(theirs, one)[0])
    assert_close(library.logits(ours, x)[-1], expected)
    logits = np.asarray(
        library.logits(nets(library)[1], x)
    )  # linear in the dropout mask: on average as without dropout
    deviation = logits.std(0)
    assert (deviation > 0.01).all()
    assert (abs(logits.mean(0) - expected) < 5 * deviation / np.sqrt(len(x))).all()


@pytest.mark.more
@both_libraries
def test_the_gradient_uses_the_same_dropout_masks_as_the_loss(library):
    params, loss = library.pure(nets(library)[1])
    args = batch(library)
    gradient = jax.jit(jax.grad(loss))(params, *args)
    assert_close(jax.jit(jax.grad(jax.checkpoint(loss)))(params, *args), gradient)
    slope = sum(float((g**2).sum()) for g in jax.tree.leaves(gradient))
    up, down = (jax.tree.map(lambda p, g, h=h: p + h * g, params, gradient) for h in (3e-4, -3e-4))
    assert float(loss(up, *args) - loss(down, *args)) == pytest.approx(6e-4 * slope, rel=0.01)


@pytest.mark.more
@both_libraries
def test_training_steps_under_scan(library):
    x, labels = batch(library)
    theirs, ours = without_dropout(library)
    params, loss = library.pure(ours)

    def step(params, _):
        value, gradient = jax.value_and_grad(loss)(params, x, labels)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient), value

    got, losses = jax.lax.scan(step, params, length=STEPS)
    expected_losses, trained = library.train(theirs, x, labels)
    assert_close(list(losses), expected_losses)
    assert_close(got, library.pure(trained)[0])


@pytest.mark.more
@both_libraries
def test_an_ensemble_of_models_under_vmap(library):
    x, labels = batch(library)
    ensemble = library.vmap(library.ours)(jnp.stack([jax.random.key(seed) for seed in range(3)]))
    gradient = library.vmap(library.gradient, in_axes=(library.stacked, None, None))
    losses, gradients = gradient(library.evaluating(ensemble), x, labels)
    for seed in range(3):
        loss, expected = library.gradient(without_dropout(library, seed)[0], x, labels)
        assert_close(losses[seed], loss)
        assert_close([leaf[seed] for leaf in jax.tree.leaves(gradients)], expected)
