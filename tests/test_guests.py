"""jaxnn as a guest in Flax NNX's and Equinox's houses: their containers and training, our functions.

Each net is written once as its library's users write it. Its guest is a subclass with the same parameters, whose
`__call__` and `loss` call jaxnn's functions instead.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnn

nnx = pytest.importorskip("flax.nnx")
eqx = pytest.importorskip("equinox")

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


class FlaxGuest(FlaxNet):
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
    theirs, ours, channels, vmap, stacked = FlaxNet, FlaxGuest, -1, nnx.vmap, 0
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


class EquinoxGuest(EquinoxNet):
    def __call__(self, x, key):
        x = jaxnn.conv2d(x, self.conv.weight, self.conv.bias[:, 0, 0], padding=1)
        x = jaxnn.max_pool2d(jaxnn.relu(x), 2)
        x = jaxnn.relu(jaxnn.linear(x.ravel(), self.hidden.weight, self.hidden.bias))
        x = jaxnn.dropout(x, self.dropout.p, key, deterministic=self.dropout.inference)
        return jaxnn.linear(x, self.out.weight, self.out.bias)

    def loss(self, x, labels, key):
        return jaxnn.cross_entropy(self.logits(x, key), labels)


class Equinox:
    theirs, ours, channels, vmap, stacked = EquinoxNet, EquinoxGuest, 1, eqx.filter_vmap, eqx.if_array(0)
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


houses = pytest.mark.parametrize("house", [Flax, Equinox])


def batch(house, samples=16):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 3, 8, 6), np.float32)  # C, H, W = 3, 8, 6
    return jnp.asarray(np.moveaxis(x, 1, house.channels)), jnp.asarray(rng.integers(0, 10, samples, np.int32))


def nets(house, seed=0):
    return house.theirs(jax.random.key(seed)), house.ours(jax.random.key(seed))


def without_dropout(house, seed=0):
    return [house.evaluating(net) for net in nets(house, seed)]


def assert_close(got, expected, sizes=None, ulps=16):
    """Compare each element at float32's rounding of its own size; by default its value plus its array's typical one."""
    got, expected, sizes = ([np.asarray(x, float) for x in jax.tree.leaves(tree)] for tree in (got, expected, sizes))
    sizes = sizes or [abs(e) + abs(e).mean() for e in expected]
    for g, e, size in zip(got, expected, sizes, strict=True):
        assert g.shape == e.shape == size.shape
        assert (abs(g - e) <= ulps * np.finfo(np.float32).eps * size).all(), abs(g - e) / size


@houses
def test_loss_and_gradients_are_theirs(house):
    x, labels = batch(house)
    (loss, expected), (our_loss, got) = (house.gradient(net, x, labels) for net in without_dropout(house))
    params, pure = house.pure(without_dropout(house)[0])
    of_sample = jax.jit(jax.vmap(lambda x, label: jax.grad(pure)(params, x[None], label[None])))
    assert_close(our_loss, loss, ulps=2)
    assert_close(got, expected, sizes=jax.tree.map(lambda g: abs(g).mean(0), of_sample(x, labels)))


@houses
def test_training_ends_in_their_parameters(house):
    x, labels = batch(house)
    (losses, theirs), (our_losses, ours) = (house.train(net, x, labels) for net in without_dropout(house))
    assert our_losses[-1] < our_losses[0]
    assert_close(our_losses, losses)
    assert_close(house.pure(ours)[0], house.pure(theirs)[0])


@houses
def test_a_net_with_dropout_trains(house):
    x, labels = batch(house)
    _, without = house.train(without_dropout(house)[1], x, labels)
    _, trained = house.train(nets(house)[1], x, labels)
    ends = [house.evaluating(net) for net in (nets(house)[1], without, trained)]
    untrained, without, trained = (float(house.gradient(net, x, labels)[0]) for net in ends)
    assert trained < 0.95 * untrained
    assert abs(trained - without) > 1e-4  # dropout was there


@houses
def test_dropout_has_a_mask_for_each_sample_and_none_in_evaluation(house):
    one, _ = batch(house, 1)
    x = jnp.repeat(one, 40_000, axis=0)
    theirs, ours = without_dropout(house)
    expected = np.asarray(house.logits(theirs, one)[0])
    assert_close(house.logits(ours, x)[-1], expected)
    logits = np.asarray(house.logits(nets(house)[1], x))  # linear in what was dropped: the mean is as without dropout
    deviation = logits.std(0)
    assert (deviation > 0.01).all()
    assert (abs(logits.mean(0) - expected) < 5 * deviation / np.sqrt(len(x))).all()


@houses
def test_the_gradient_has_the_masks_of_the_loss(house):
    params, loss = house.pure(nets(house)[1])
    args = batch(house)
    gradient = jax.jit(jax.grad(loss))(params, *args)
    assert_close(jax.jit(jax.grad(jax.checkpoint(loss)))(params, *args), gradient)
    slope = sum(float((g**2).sum()) for g in jax.tree.leaves(gradient))
    up, down = (jax.tree.map(lambda p, g, h=h: p + h * g, params, gradient) for h in (3e-4, -3e-4))
    assert float(loss(up, *args) - loss(down, *args)) == pytest.approx(6e-4 * slope, rel=0.01)


@houses
def test_a_scan_over_steps(house):
    x, labels = batch(house)
    theirs, ours = without_dropout(house)
    params, loss = house.pure(ours)

    def step(params, _):
        value, gradient = jax.value_and_grad(loss)(params, x, labels)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient), value

    got, losses = jax.lax.scan(step, params, length=STEPS)
    expected_losses, trained = house.train(theirs, x, labels)
    assert_close(list(losses), expected_losses)
    assert_close(got, house.pure(trained)[0])


@houses
def test_an_ensemble_under_vmap(house):
    x, labels = batch(house)
    ensemble = house.vmap(house.ours)(jnp.stack([jax.random.key(seed) for seed in range(3)]))
    gradient = house.vmap(house.gradient, in_axes=(house.stacked, None, None))
    losses, gradients = gradient(house.evaluating(ensemble), x, labels)
    for seed in range(3):
        loss, expected = house.gradient(without_dropout(house, seed)[0], x, labels)
        assert_close(losses[seed], loss)
        assert_close([leaf[seed] for leaf in jax.tree.leaves(gradients)], expected)
