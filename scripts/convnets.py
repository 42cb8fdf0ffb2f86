"""The convnet and its training step: by jaxnn, in plain JAX, in Flax with Optax, and in PyTorch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import libraries
import numpy as np
from libraries import tensor
from workloads import lax_conv, lax_pool, optax_cross_entropy, plain_cross_entropy

import jaxnn
from jaxnn import models

LEARNING_RATE = 1e-3
Loss = Callable[[Any, Any, Any, Any], Any]  # of parameters, images, labels, and a key or None for no dropout


def sgd(params: Any, gradient: Any) -> Any:
    """Return θ − η ∇L."""
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)


def with_optax(params: Any, gradient: Any) -> Any:
    """Return θ − η ∇L as optax computes it."""
    optimizer = libraries.optax.sgd(LEARNING_RATE)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return libraries.optax.apply_updates(params, updates)


def to_nchw(params: Any) -> Any:
    """Return the convnet's parameters, or their gradient, for NCHW images."""
    side = int((params["linear1"]["w"].shape[1] // 64) ** 0.5)  # of the pooled images
    rows = params["linear1"]["w"].reshape(-1, side, side, 64).transpose(0, 3, 1, 2)
    turned = {name: {**params[name], "w": params[name]["w"].transpose(3, 2, 0, 1)} for name in ("conv1", "conv2")}
    return {**params, **turned, "linear1": {**params["linear1"], "w": rows.reshape(len(rows), -1)}}


LINEN = {"conv1": "layers_0", "conv2": "layers_2", "linear1": "layers_7", "linear2": "layers_10"}


def to_linen(params: Any) -> Any:
    """Return the convnet's parameters, or their gradient, as Flax names and shapes them."""
    kernels = {name: p["w"].T if p["w"].ndim == 2 else p["w"] for name, p in params.items()}
    return {"params": {LINEN[name]: {"kernel": kernels[name], "bias": p["b"]} for name, p in params.items()}}


class Net(NamedTuple):
    """The convnet in JAX, one way: its loss, its parameters from jaxnn's, and its update."""

    side: str
    name: str
    loss: Loss
    convert: Callable[[Any], Any] = lambda params: params
    update: Callable[[Any, Any], Any] = sgd

    def step(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """Return the parameters after one step on (images, labels, key), and the loss."""
        value, gradient = jax.value_and_grad(self.loss)(params, *batch)
        return self.update(params, gradient), value


def cast(tree: Any, dtype: Any) -> Any:
    """Return the arrays in the dtype of the computation; gradients come back in the parameters' own."""
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def our_loss(dtype: Any) -> Loss:
    """Return the loss by jaxnn's rules."""

    def loss(params: Any, x: Any, y: Any, key: Any) -> Any:
        return jaxnn.cross_entropy(models.convnet.apply(cast(params, dtype), cast(x, dtype), key=key), y)

    return loss


def lax_loss(layout: str, dtype: Any) -> Loss:
    """Return the loss in plain lax and jax.nn, for autodiff."""
    conv, pool = lax_conv(layout), lax_pool(layout)

    def drop(h: Any, rate: float, key: Any) -> Any:
        return h if key is None else jnp.where(jax.random.bernoulli(key, 1 - rate, h.shape), h / (1 - rate), 0)

    def loss(params: Any, x: Any, y: Any, key: Any) -> Any:
        p, h = cast(params, dtype), cast(x, dtype)
        keys = (None, None) if key is None else jax.random.split(key)
        h = h.reshape(h.shape[0], 1, *h.shape[1:3]) if layout == "NCHW" else h
        h = jax.nn.relu(conv(h, p["conv1"]["w"], p["conv1"]["b"]))
        h = pool(jax.nn.relu(conv(h, p["conv2"]["w"], p["conv2"]["b"])))
        h = drop(h.reshape(h.shape[0], -1), 0.25, keys[0])
        h = drop(jax.nn.relu(h @ p["linear1"]["w"].T + p["linear1"]["b"]), 0.5, keys[1])
        return plain_cross_entropy(h @ p["linear2"]["w"].T + p["linear2"]["b"], y)

    return loss


def linen_loss(dtype: Any) -> Loss:
    """Return the loss of the network in Flax, with optax's cross entropy."""

    def network(still: bool) -> Any:
        nn = libraries.linen
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding="VALID", dtype=dtype)
        return nn.Sequential([
            conv(32), nn.relu, conv(64), nn.relu, lambda h: nn.max_pool(h, (2, 2), (2, 2)),
            lambda h: h.reshape(h.shape[0], -1), nn.Dropout(0.25, deterministic=still),
            nn.Dense(128, dtype=dtype), nn.relu, nn.Dropout(0.5, deterministic=still),
            nn.Dense(10, dtype=dtype),
        ])  # fmt: skip

    def loss(params: Any, x: Any, y: Any, key: Any) -> Any:
        keys = {} if key is None else {"dropout": key}
        return optax_cross_entropy(network(key is None).apply(params, cast(x, dtype), rngs=keys), y)

    return loss


def nets(dtype: Any) -> list[Net]:
    """Return the convnet by jaxnn's rules first, then in idiomatic JAX."""
    ours = Net("jaxnn", "NHWC", our_loss(dtype))
    plain = [Net("jax", "lax NHWC", lax_loss("NHWC", dtype)), Net("jax", "lax NCHW", lax_loss("NCHW", dtype), to_nchw)]
    flax = (
        [Net("jax", "Flax + Optax", linen_loss(dtype), to_linen, with_optax)]
        if libraries.linen and libraries.optax
        else []
    )
    return [ours, *plain, *flax]


def torch_loss(params: Any, x: Any, y: Any, training: bool) -> Any:
    """Return the convnet's loss in PyTorch."""
    F = libraries.torch.nn.functional
    w1, b1, w2, b2, w3, b3, w4, b4 = params
    h = F.max_pool2d(F.relu(F.conv2d(F.relu(F.conv2d(x, w1, b1)), w2, b2)), 2)
    h = F.dropout(h.flatten(1), 0.25, training)
    h = F.dropout(F.relu(F.linear(h, w3, b3)), 0.5, training)
    return F.cross_entropy(F.linear(h, w4, b4), y)


class TorchNet:
    """The convnet in PyTorch, in one form: eager, channels_last, compile, graphs, or several of them."""

    def __init__(self, name: str, params: Any, device: str, dtype: Any) -> None:
        """Copy jaxnn's parameters."""
        self.name, self.device, self.half = name, device, dtype == jnp.bfloat16
        turned = to_nchw(jax.tree.map(np.asarray, params))
        arrays = [turned[layer][key] for layer in ("conv1", "conv2", "linear1", "linear2") for key in ("w", "b")]
        self.params = [tensor(a, device, name).requires_grad_() for a in arrays]
        self.optimizer = libraries.torch.optim.SGD(self.params, LEARNING_RATE)
        self.f = libraries.torch.compile(torch_loss, dynamic=False) if "compile" in name else torch_loss

    def backward(self, x: Any, y: Any, training: bool) -> Any:
        """Compute the loss and its gradient."""
        with libraries.torch.autocast(self.device, libraries.torch.bfloat16, enabled=self.half):
            loss = self.f(self.params, x, y, training)
        loss.backward()
        return loss

    def step(self, x: Any, y: Any) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.backward(x, y, True)
        self.optimizer.step()

    def stepper(self, x: Any, y: Any) -> Callable[[Any, Any], None]:
        """Return the step, replayed from a CUDA graph where the form says so."""
        if "graphs" not in self.name:
            return self.step
        held = x.clone(), y.clone()
        side = libraries.torch.cuda.Stream()
        side.wait_stream(libraries.torch.cuda.current_stream())
        with libraries.torch.cuda.stream(side):  # PyTorch asks for a few steps on another stream before a capture
            for _ in range(3):
                self.step(*held)
        libraries.torch.cuda.current_stream().wait_stream(side)
        graph = libraries.torch.cuda.CUDAGraph()
        with libraries.torch.cuda.graph(graph):
            self.step(*held)

        def replay(x: Any, y: Any) -> None:
            held[0].copy_(x)
            held[1].copy_(y)
            graph.replay()

        return replay


def torch_forms(gpu: bool) -> list[str]:
    """Return the names of the forms that PyTorch's step is measured in."""
    forms = ["eager", "channels_last", "compile", "channels_last, compile"]
    return forms + (["channels_last, graphs", "channels_last, compile, graphs"] if gpu else [])
