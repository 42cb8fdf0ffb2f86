"""The notes' networks as pairs of plain functions: `init(key, input_shape, classes)` and `apply(params, x)`.

`apply` returns the logits, the layer before softmax; so does the model `softmax`, which is softmax regression. The loss
`cross_entropy` fuses softmax and NLL as the notes do. The layer `jaxnn.softmax` maps the logits to the notes' y. Images
are NHWC: (N, H, W, C). Parameters are dicts of float32 arrays.

Initialisation: weights before a ReLU have He's normal distribution, variance 2 / fan_in (He et al. 2015,
arXiv:1502.01852). Other weights have Glorot's uniform distribution, variance 2 / (fan_in + fan_out) (Glorot & Bengio
2010). Biases are 0. The notes require an initialisation method but do not name one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxnn.layers import conv2d, dropout, linear, max_pool2d, relu
from jaxnn.losses import cross_entropy, l2_penalty

Params = dict[str, Any]  # of float32 arrays, at most two levels deep
Shape = tuple[int, int, int]  # height, width, channels


class Apply(Protocol):
    """Maps images to logits. Dropout is applied if a key is given."""

    def __call__(
        self, params: Params, x: Float[Array, "n h w c"], *, key: Array | None = None, dropout: float | None = None
    ) -> Float[Array, "n classes"]:
        """Return the logits; `dropout` overrides the rate of every dropout layer."""


class Model(NamedTuple):
    """A network: `init` makes its parameters, `apply` maps images to logits."""

    init: Callable[[Array, Shape, int], Params]
    apply: Apply


def _linear_params(key: Array, inputs: int, outputs: int, initializer: Any) -> dict[str, Array]:
    return {"w": initializer(key, (outputs, inputs), jnp.float32), "b": jnp.zeros(outputs, jnp.float32)}


def _conv_params(key: Array, window: int, inputs: int, outputs: int) -> dict[str, Array]:
    return {"w": _he(key, (window, window, inputs, outputs), jnp.float32), "b": jnp.zeros(outputs, jnp.float32)}


_he = jax.nn.initializers.he_normal()  # for HWIO filters
_he_rows = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)  # for (outputs, inputs) matrices
_glorot_rows = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _two_keys(key: Array | None) -> tuple[Array | None, Array | None]:
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second


def _drop(x: Array, rate: float, key: Array | None) -> Array:
    return dropout(x, rate, key, deterministic=key is None)


def _softmax_init(key: Array, input_shape: Shape, classes: int) -> Params:
    return {"linear": _linear_params(key, math.prod(input_shape), classes, _glorot_rows)}


def _softmax_apply(params: Params, x: Array, *, key: Array | None = None, dropout: float | None = None) -> Array:
    h = _drop(_flat(x), dropout or 0.0, key)
    return linear(h, params["linear"]["w"], params["linear"]["b"])


softmax = Model(_softmax_init, _softmax_apply)
"""Softmax regression (*Multi-class classification and backpropagation*): Wx + b."""

_MLP_UNITS = 256


def _mlp_init(key: Array, input_shape: Shape, classes: int) -> Params:
    keys = jax.random.split(key, 3)
    return {
        "linear1": _linear_params(keys[0], math.prod(input_shape), _MLP_UNITS, _he_rows),
        "linear2": _linear_params(keys[1], _MLP_UNITS, _MLP_UNITS, _he_rows),
        "linear3": _linear_params(keys[2], _MLP_UNITS, classes, _glorot_rows),
    }


def _mlp_apply(params: Params, x: Array, *, key: Array | None = None, dropout: float | None = None) -> Array:
    h = _flat(x)
    for name, key_of_layer in zip(("linear1", "linear2"), _two_keys(key), strict=True):
        h = relu(linear(h, params[name]["w"], params[name]["b"]))
        h = _drop(h, dropout or 0.0, key_of_layer)
    return linear(h, params["linear3"]["w"], params["linear3"]["b"])


mlp = Model(_mlp_init, _mlp_apply)
"""A deep network (Larochelle, *Neural networks: training neural networks*): two hidden layers of 256 ReLU units."""

_CNN_FILTERS = 64


def _cnn_init(key: Array, input_shape: Shape, classes: int) -> Params:
    height, width, channels = input_shape
    window = _cnn_window(input_shape)
    pooled = ((height - window + 1) // 2) * ((width - window + 1) // 2) * _CNN_FILTERS
    keys = jax.random.split(key)
    return {
        "W0": _he(keys[0], (window, window, channels, _CNN_FILTERS), jnp.float32),
        "W1": _glorot_rows(keys[1], (classes, pooled), jnp.float32),
    }


def _cnn_window(input_shape: Shape) -> int:
    return 5 if min(input_shape[:2]) >= 16 else 3


def _cnn_apply(params: Params, x: Array, *, key: Array | None = None, dropout: float | None = None) -> Array:
    x1 = conv2d(x, params["W0"], layout="NHWC")
    x2 = relu(x1)
    x3 = max_pool2d(x2, layout="NHWC")
    x4 = linear(_drop(_flat(x3), dropout or 0.0, key), params["W1"])
    return x4


cnn = Model(_cnn_init, _cnn_apply)
"""The notes' network (Taura, *Neural Networks Basics*): softmax(W1 maxpool(ReLU(W0 * x))), without biases. It has 64
filters of 5x5, or of 3x3 for images under 16 pixels."""


def _convnet_init(key: Array, input_shape: Shape, classes: int) -> Params:
    height, width, channels = input_shape
    keys = jax.random.split(key, 4)
    return {
        "conv1": _conv_params(keys[0], 3, channels, 32),
        "conv2": _conv_params(keys[1], 3, 32, 64),
        "linear1": _linear_params(keys[2], ((height - 4) // 2) * ((width - 4) // 2) * 64, 128, _he_rows),
        "linear2": _linear_params(keys[3], 128, classes, _glorot_rows),
    }


def _convnet_apply(params: Params, x: Array, *, key: Array | None = None, dropout: float | None = None) -> Array:
    rates = (0.25, 0.5) if dropout is None else (dropout, dropout)
    keys = _two_keys(key)
    h = relu(conv2d(x, params["conv1"]["w"], params["conv1"]["b"], layout="NHWC"))
    h = relu(conv2d(h, params["conv2"]["w"], params["conv2"]["b"], layout="NHWC"))
    h = _drop(_flat(max_pool2d(h, layout="NHWC")), rates[0], keys[0])
    h = relu(linear(h, params["linear1"]["w"], params["linear1"]["b"]))
    return linear(_drop(h, rates[1], keys[1]), params["linear2"]["w"], params["linear2"]["b"])


convnet = Model(_convnet_init, _convnet_apply)
"""The network with two convolutions from the exercise in Taura's lecture; also PyTorch's MNIST example."""

MODELS = {"softmax": softmax, "mlp": mlp, "cnn": cnn, "convnet": convnet}


class Classifier(NamedTuple):
    """A model, the normalisation of its images, (pixel − mean) / std, and the dtype of its computation.

    The parameters, their gradient and the loss are always float32, because a bfloat16 weight does not change by an
    update that is 512 times smaller.
    """

    model: Model
    mean: float
    std: float
    dtype: str = "float32"

    def logits(self, params: Params, images: Array, *, key: Array | None = None, dropout: float | None = None) -> Array:
        """Return the logits of images that are not normalised yet (uint8)."""
        x = (images.astype(jnp.float32) - self.mean) / self.std
        params, x = jax.tree.map(lambda a: a.astype(self.dtype), (params, x))
        return self.model.apply(params, x, key=key, dropout=dropout)

    def loss(self, *, l2: float = 0.0, dropout: float | None = None) -> Callable[..., Any]:
        """Return `loss(params, batch, key)`: mean cross entropy + l2 · Ω, and the sums for the metrics.

        Ω = Σw² is over the weights, without biases (arrays with one axis). Rows with the label −1, which pad the last
        batch, are ignored.
        """

        def loss(params: Params, batch: tuple[Array, Array], key: Array) -> tuple[Array, dict[str, Array]]:
            images, labels = batch
            logits = self.logits(params, images, key=key, dropout=dropout)
            sums = _sums(logits, labels)
            value = cross_entropy(logits, labels, ignore_index=-1)
            if l2:
                value = value + l2 * l2_penalty([w for w in jax.tree.leaves(params) if w.ndim > 1])
            return value, sums

        return loss

    def metrics(self, params: Params, batch: tuple[Array, Array]) -> dict[str, Array]:
        """Return the sums over a batch: cross entropy, correct predictions, rows, and the confusion matrix."""
        images, labels = batch
        logits = self.logits(params, images)
        classes = logits.shape[-1]
        counts = jnp.zeros((classes, classes), jnp.int32).at[labels, jnp.argmax(logits, -1)]
        return {**_sums(logits, labels), "confusion": counts.add(jnp.where(labels >= 0, 1, 0))}


def _sums(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> dict[str, Array]:
    counted = labels >= 0
    return {
        "nll": cross_entropy(logits, labels, ignore_index=-1, reduction="sum"),
        "correct": jnp.sum((jnp.argmax(logits, -1) == labels) & counted),
        "count": jnp.sum(counted),
    }
