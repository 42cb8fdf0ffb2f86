"""What `bench.py` measures: each piece of work by jaxnn, in idiomatic JAX without it, and in PyTorch.

Arrays are made in NHWC, filters in HWIO, weights as (outputs, inputs). What is marked `In` another layout gets them
converted before the clock starts: every side works in the layout it likes.
"""

import functools
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxnn
from jaxnn import models

Arrays = tuple[Any, ...]


def optional(name: str) -> Any:
    """Return the module, or None where it is not installed."""
    return importlib.import_module(name) if importlib.util.find_spec(name.partition(".")[0]) else None


torch, linen, optax = (optional(name) for name in ("torch", "flax.linen", "optax"))


class Sizes(NamedTuple):
    """The sizes of one device: large enough that every component has more than 50 µs of work."""

    batch: int  # of the convnet's activations
    rows: int  # of logits
    classes: int
    weights: tuple[int, int]  # of the penalties
    vocabulary: tuple[int, int, int]  # rows, features and vocabulary of linear_cross_entropy
    convnet: tuple[int, ...]  # batch sizes of the training step


SIZES = {
    "cpu": Sizes(64, 1024, 1000, (9216, 128), (1024, 512, 32768), (64,)),
    "gpu": Sizes(1024, 8192, 8192, (8192, 4096), (8192, 2304, 256000), (64, 1024, 8192)),
}


class In(NamedTuple):
    """A function that takes and returns its arrays in another layout."""

    layout: str
    f: Callable[..., Any]

    def axes(self, argument: int | str, *, shifted: bool = False) -> tuple[int, ...] | None:
        """Return how the canonical axes of an argument, or of "y", are permuted; shifted by one axis in front."""
        axes = AXES.get(self.layout, {}).get(argument)
        return (0, *(i + 1 for i in axes)) if axes and shifted else axes


AXES: dict[str, dict[int | str, tuple[int, ...]]] = {
    "NCHW": {0: (0, 3, 1, 2), 1: (3, 2, 0, 1), "y": (0, 3, 1, 2)},
    "IO": {1: (1, 0)},  # weights as (inputs, outputs), Flax's way
}


class Work(NamedTuple):
    """One component at one size, and the ways to compute it; its value and gradients by them must agree."""

    name: str
    args: Arrays  # the gradient is taken with respect to the floating ones
    ours: Any
    jax: dict[str, Any]
    torch: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    mapped: tuple[int | None, ...] | None = None  # the arguments that have a row an example; None: not by example
    flops: float = 0.0  # of value and gradients, for what is made of matrix products
    aux: bool = False  # returns (y, what has no gradient)
    digest: Callable[..., list[Any]] | None = None  # what must agree, where the results themselves are random


def each(f: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of a batch of images take a single one, too, as it is under `vmap`."""

    def single(x: Any, *rest: Any) -> Any:
        return f(x, *rest) if x.ndim == 4 else jax.tree.map(lambda y: y[0], f(x[None], *rest))

    return single


# Idiomatic JAX --------------------------------------------------------------------------------------------------------


def lax_conv(layout: str) -> Callable[..., Any]:
    """Return the convolution in `layout`."""
    filters = "OIHW" if layout == "NCHW" else "HWIO"

    def conv(x: Any, w: Any, b: Any) -> Any:
        y = lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=(layout, filters, layout))
        return y + (b[:, None, None] if layout == "NCHW" else b)

    return each(conv)


def lax_pool(layout: str) -> Callable[..., Any]:
    """Return max-pooling by 2x2 in `layout`."""
    window = (1, 1, 2, 2) if layout == "NCHW" else (1, 2, 2, 1)
    return each(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID"))


def reshaped_pool(layout: str) -> Callable[..., Any]:
    """Return max-pooling by 2x2 as a maximum over two axes; equal maxima share the gradient."""

    def pool(x: Any) -> Any:
        axis = 2 if layout == "NCHW" else 1
        n, h, w = x.shape[:axis], x.shape[axis], x.shape[axis + 1]
        return x.reshape(*n, h // 2, 2, w // 2, 2, *x.shape[axis + 2 :]).max((axis + 1, axis + 3))

    return each(pool)


def pool_with_indices(x: Any) -> tuple[Any, Any]:
    """Return the maxima of 2x2 windows, and their places h·W + w."""
    n, h, w, c = x.shape
    windows = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)
    k = jnp.argmax(windows, -1)
    row, column = 2 * jnp.arange(h // 2)[:, None, None] + k // 2, 2 * jnp.arange(w // 2)[:, None] + k % 2
    return jnp.take_along_axis(windows, k[..., None], -1)[..., 0], row * w + column


def bernoulli(impl: str) -> Callable[..., Any]:
    """Return dropout of a quarter by `jax.random.bernoulli`, from this kind of key."""

    def drop(x: Any, key: Any) -> Any:
        data = jnp.concatenate([key, key]) if impl == "rbg" else key
        keep = jax.random.bernoulli(jax.random.wrap_key_data(data, impl=impl), 0.75, x.shape)
        return jnp.where(keep, x / 0.75, jnp.zeros((), x.dtype))

    return drop


def picked(x: Any, t: Any) -> Any:
    """Return x_t of each row."""
    return jnp.take_along_axis(x, t[..., None], -1)[..., 0]


def by_one_hot(x: Any, t: Any) -> Any:
    """Return x_t of each row, as a product with e(t)."""
    return jnp.sum(x * jax.nn.one_hot(t, x.shape[-1], dtype=x.dtype), -1)


def plain_cross_entropy(x: Any, t: Any) -> Any:
    """Return the mean cross entropy, in float32 at least, as one writes it in JAX."""
    return -jnp.mean(picked(jax.nn.log_softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32))), t))


def optax_cross_entropy(x: Any, t: Any) -> Any:
    """Return optax's mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(x.astype(jnp.promote_types(x.dtype, jnp.float32)), t).mean()


def of_optax(**ways: Callable[..., Any]) -> dict[str, Any]:
    """Return the ways that need optax, where it is installed."""
    return {f"optax.{name}": f for name, f in ways.items()} if optax else {}


# PyTorch --------------------------------------------------------------------------------------------------------------


def torch_run(call: Callable[[], Any]) -> Callable[[int], Any]:
    """Return a function that calls n times and waits."""

    def run(n: int) -> None:
        for _ in range(n):
            call()
        if torch_device() == "cuda":
            torch.cuda.synchronize()

    return run


def on_gpu() -> bool:
    """Return whether JAX's default device is a GPU."""
    return jax.default_backend() == "gpu"


def torch_device() -> str:
    """Return PyTorch's name of the device that JAX uses."""
    return "cuda" if on_gpu() else "cpu"


def torch_facts(name: str, call: Callable[[], Any]) -> dict[str, float]:
    """Call twice, and return the seconds to compile, and the peak of the GPU's memory above what was held."""
    before = time.perf_counter()
    call()
    facts = {"compile_seconds": time.perf_counter() - before} if "compile" in name else {}
    if torch_device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        facts["temporary_bytes"] = float(torch.cuda.max_memory_allocated() - held)
    return facts


IMAGE_FORMS = ("eager", "channels_last", "channels_last, compile")


def torch_ways(f: Callable[..., Any], *, images: bool = False) -> dict[str, Any]:
    """Return a function of `torch.nn.functional` and tensors in PyTorch's forms: layouts of images, compiled or not."""
    if torch is None:
        return {}
    eager = functools.partial(f, torch.nn.functional)
    if not images:
        return {"eager": eager, "compile": torch.compile(eager, dynamic=False)}
    compiled = torch.compile(eager, dynamic=False)
    return {name: In("NCHW", compiled if "compile" in name else eager) for name in IMAGE_FORMS}


def tensor(a: Any, device: str, name: str) -> Any:
    """Return the array as a tensor, in the memory order that the form's name tells."""
    kept = np.asarray(a, np.float32 if a.dtype == jnp.bfloat16 else a.dtype)  # NumPy and PyTorch share no bfloat16
    t = torch.tensor(kept.astype(np.int64) if kept.dtype == np.int32 else kept, device=device)
    t = t.to(torch.bfloat16) if a.dtype == jnp.bfloat16 else t
    return t.contiguous(memory_format=torch.channels_last) if "channels_last" in name and t.ndim == 4 else t


# Components -----------------------------------------------------------------------------------------------------------


def dropout_digest(args: Arrays, dy: Any, results: list[Any]) -> list[Any]:
    """Return what does not depend on the mask: 1 / (1 − P) where a value is kept, the gradient's mask, and P."""
    (x, *_), (y, dx) = args, results
    kept = y != 0
    share = abs(kept.mean() - 0.75) < 6 * (0.75 * 0.25 / kept[0].size) ** 0.5  # under vmap the rows share one mask
    return [np.where(kept, y / x, 1 / 0.75), np.where(kept, dx / dy, 1 / 0.75 + dx), np.float64(share)]


def components(s: Sizes) -> Iterator[Work]:
    """Yield every public component; activations are those of the convnet."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    b = s.batch
    x, w, c = normal(b, 9216), normal(128, 9216) / 96, normal(128)
    yield Work(
        "linear", (x, w, c), jaxnn.linear,
        {"x @ w.T + b": lambda x, w, b: x @ w.T + b, "x @ w + b": In("IO", lambda x, w, b: x @ w + b)},
        torch_ways(lambda F, x, w, b: F.linear(x, w, b)), (0, None, None), 6.0 * x.shape[0] * w.size,
    )  # fmt: skip
    image, filters, bias = normal(b, 26, 26, 32), normal(3, 3, 32, 64) / 17, normal(64)
    convs = {f"lax.conv {layout}": In(layout, lax_conv(layout)) for layout in ("NHWC", "NCHW")}
    for layout in ("NHWC", "NCHW"):
        ours = In(layout, functools.partial(jaxnn.conv2d, layout=layout))
        torch_conv = torch_ways(lambda F, x, w, b: F.conv2d(x, w, b), images=True)
        flops = 6.0 * b * 24 * 24 * filters.size
        yield Work(f"conv2d {layout}", (image, filters, bias), ours, convs, torch_conv, (0, None, None), flops)
    ranks = rng.random((4, b, 12, 12, 64), np.float32).argsort(0).astype(np.float32)  # no ties: their gradient is free
    windows = ranks.reshape(2, 2, b, 12, 12, 64).transpose(2, 3, 0, 4, 1, 5).reshape(b, 24, 24, 64)
    pools = {
        f"{name} {layout}": In(layout, f(layout))
        for name, f in (("reduce_window", lax_pool), ("reshape, max", reshaped_pool))
        for layout in ("NHWC", "NCHW")
    }
    for layout in ("NHWC", "NCHW"):
        pool = In(layout, functools.partial(jaxnn.max_pool2d, layout=layout))
        torch_pool = torch_ways(lambda F, x: F.max_pool2d(x, 2), images=True)
        yield Work(f"max_pool2d {layout}", (windows,), pool, pools, torch_pool, (0,))
    yield Work(
        "max_pool2d_with_indices", (windows,), functools.partial(jaxnn.max_pool2d_with_indices, layout="NHWC"),
        {"argmax of windows": each(pool_with_indices)},
        torch_ways(lambda F, x: F.max_pool2d(x, 2, return_indices=True), images=True), (0,), aux=True,
    )  # fmt: skip
    image = normal(b, 24, 24, 64)
    relu = {"jax.nn.relu": jax.nn.relu, "jnp.maximum": lambda x: jnp.maximum(x, 0)}
    yield Work("relu", (image,), jaxnn.relu, relu, torch_ways(lambda F, x: F.relu(x)), (0,))
    sigmoid = {"jax.nn.sigmoid": jax.nn.sigmoid, "1 / (1 + exp(-x))": lambda x: 1 / (1 + jnp.exp(-x))}
    yield Work("sigmoid", (image,), jaxnn.sigmoid, sigmoid, torch_ways(lambda F, x: F.sigmoid(x)), (0,))
    yield Work("tanh", (image,), jaxnn.tanh, {"jnp.tanh": jnp.tanh}, torch_ways(lambda F, x: F.tanh(x)), (0,))
    yield Work(
        "dropout", (image, np.array([1, 2], np.uint32)), lambda x, key: jaxnn.dropout(x, 0.25, key),
        {"bernoulli": bernoulli("threefry2x32"), "bernoulli, rbg": bernoulli("rbg")},
        torch_ways(lambda F, x, key: F.dropout(x, 0.25)), (0, None), digest=dropout_digest,
    )  # fmt: skip
    yield from of_rows(s, normal(s.rows, s.classes), rng.integers(0, s.classes, s.rows).astype(np.int32))
    other = normal(s.rows, s.classes)
    logits, p = normal(s.rows, s.classes), np.asarray(jax.nn.sigmoid(normal(s.rows, s.classes)))
    yield Work(
        "binary_cross_entropy", (logits, p), jaxnn.binary_cross_entropy,
        {"softplus(x) - x t": lambda x, t: jnp.mean(jax.nn.softplus(x) - x * t),
         **of_optax(sigmoid_binary_cross_entropy=lambda x, t: optax.sigmoid_binary_cross_entropy(x, t).mean())},
        torch_ways(lambda F, x, t: F.binary_cross_entropy_with_logits(x, t)), (0, 0),
    )  # fmt: skip
    yield Work(
        "squared_error", (logits, other), jaxnn.squared_error,
        {"mean((y - t)**2)": lambda y, t: jnp.mean((y - t) ** 2),
         **of_optax(squared_error=lambda y, t: optax.squared_error(y, t).mean())},
        torch_ways(lambda F, y, t: F.mse_loss(y, t)), (0, 0),
    )  # fmt: skip
    weights = normal(*s.weights)
    l1 = {"sum(abs(w))": lambda w: jnp.sum(jnp.abs(w))}
    yield Work("l1_penalty", (weights,), jaxnn.l1_penalty, l1, torch_ways(lambda F, w: w.abs().sum()), (0,))
    l2 = {"sum(w**2)": lambda w: jnp.sum(w**2), "vdot(w, w)": lambda w: jnp.vdot(w, w)}
    yield Work("l2_penalty", (weights,), jaxnn.l2_penalty, l2, torch_ways(lambda F, w: w.square().sum()), (0,))
    yield from output_layers(*s.vocabulary)


def of_rows(s: Sizes, x: Any, t: Any) -> Iterator[Work]:
    """Yield the components that act on rows of logits or probabilities."""
    softmax = {"jax.nn.softmax": jax.nn.softmax}
    yield Work("softmax", (x,), jaxnn.softmax, softmax, torch_ways(lambda F, x: F.softmax(x, -1)), (0,))
    log_softmax = {
        "jax.nn.log_softmax": jax.nn.log_softmax,
        "x - logsumexp(x)": lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True),
    }
    yield Work("log_softmax", (x,), jaxnn.log_softmax, log_softmax, torch_ways(lambda F, x: F.log_softmax(x, -1)), (0,))
    nll = {
        "take_along_axis": lambda p, t: -jnp.mean(jnp.log(picked(p, t))),
        "one_hot": lambda p, t: -jnp.mean(by_one_hot(jnp.log(p), t)),
    }
    p, log_p = np.asarray(jax.nn.softmax(x)), np.asarray(jax.nn.log_softmax(x))
    yield Work("nll", (p, t), jaxnn.nll, nll, torch_ways(lambda F, p, t: F.nll_loss(p.log(), t)), (0, 0))
    nll_loss = {
        "take_along_axis": lambda y, t: -jnp.mean(picked(y, t)),
        "one_hot": lambda y, t: -jnp.mean(by_one_hot(y, t)),
    }
    yield Work("nll_loss", (log_p, t), jaxnn.nll_loss, nll_loss, torch_ways(lambda F, y, t: F.nll_loss(y, t)), (0, 0))
    entropy = {
        "log_softmax, take_along_axis": plain_cross_entropy,
        "log_softmax, one_hot": lambda x, t: -jnp.mean(by_one_hot(jax.nn.log_softmax(x), t)),
        **of_optax(softmax_cross_entropy_with_integer_labels=optax_cross_entropy),
    }
    torch_entropy = torch_ways(lambda F, x, t: F.cross_entropy(x, t))
    yield Work("cross_entropy", (x, t), jaxnn.cross_entropy, entropy, torch_entropy, (0, 0))


def output_layers(n: int, d: int, v: int) -> Iterator[Work]:
    """Yield `linear_cross_entropy` in its two forms, against losses that hold the logits."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((n, d), np.float32), rng.standard_normal((v, d), np.float32) / np.float32(d**0.5)
    t = rng.integers(0, v, n).astype(np.int32)
    plain = {"plain loss": lambda x, w, t: plain_cross_entropy(x @ w.T, t),
             **of_optax(loss=lambda x, w, t: optax_cross_entropy(x @ w.T, t))}  # fmt: skip
    peers = torch_ways(lambda F, x, w, t: F.cross_entropy(F.linear(x, w), t))
    if torch is not None and hasattr(torch.nn.functional, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        chunked = functools.partial(torch.nn.functional.linear_cross_entropy, options=options)
        peers |= {"linear_cross_entropy": chunked}
    for memory in ("fast", "lean"):
        ours = functools.partial(jaxnn.linear_cross_entropy, memory=memory)
        yield Work(f"linear_cross_entropy {memory}", (x, w, t), ours, plain, peers, flops=6.0 * n * d * v)


# What makes the rules fast --------------------------------------------------------------------------------------------


class Trick(NamedTuple):
    """A function of jaxnn's that is there for speed or memory alone, and what would be in its place without it."""

    work: str  # the component to measure it on
    module: str
    name: str
    instead: str  # what is there without it, in words, and as a function of the trick and its arguments
    without: Callable[..., Any]

    def left_out(self) -> Any:
        """Return the context in which to trace without it."""
        module = importlib.import_module(self.module)
        return mock.patch.object(module, self.name, functools.partial(self.without, getattr(module, self.name)))


def tricks(gpu: bool) -> list[Trick]:
    """Return those of the device."""
    cpu, loss = "jaxnn.layers._conv2d_cpu", "jaxnn.losses._linear_cross_entropy_inputs"
    convolutions = "jaxnn.layers._conv2d_convolutions"

    def by_convolution(_: Any, *args: Any) -> Any:
        return importlib.import_module(convolutions).weight_gradient_by_convolution(*args)

    def random_bits(_: Any, threshold: int, shape: tuple[int, ...], key: Any) -> Any:
        return jax.random.bits(key, shape) >= threshold

    def times_rows(factor: float) -> Callable[..., Any]:
        def sizes(kept: Any, *args: Any) -> Any:
            rows, *classes = kept(*args)
            return (min(args[4], int(rows * factor)), *classes)

        return sizes

    def transposed(_: Any, x: Any, given: str, wanted: str) -> Any:
        return x.transpose([given.index(axis) for axis in wanted])

    on_cpu = [
        Trick("conv2d NHWC", cpu, "weight_gradient_by_products", "a convolution", by_convolution),
        Trick("conv2d NHWC", cpu, "_splits_taps", "patches", lambda *_: False),
        Trick("conv2d NHWC", cpu, "_samples_in", "all samples at once", lambda *_: 1 << 30),
        Trick("conv2d NCHW", convolutions, "in_layout", "one transposition of four axes", transposed),
    ]
    if jax.__version_info__ < (0, 11):
        on_cpu.append(Trick("conv2d NHWC", cpu, "rows_more", "as many as asked for", lambda *_: 0))
    return [
        *([] if gpu else on_cpu),
        *(Trick(f"max_pool2d {layout}", "jax.lax", "optimization_barrier", "none", lambda _, x: x)
          for layout in ("NHWC", "NCHW")),
        Trick("dropout", "jaxnn.layers.dropout", "_keep", "threefry", random_bits),
        Trick("linear_cross_entropy fast", loss, "_block_sizes", "half the rows", times_rows(0.5)),
        Trick("linear_cross_entropy fast", loss, "_block_sizes", "four times the rows", times_rows(4)),
    ]  # fmt: skip


# The convnet ----------------------------------------------------------------------------------------------------------

LEARNING_RATE = 1e-3
Loss = Callable[[Any, Any, Any, Any], Any]  # of parameters, images, labels, and a key or None for no dropout


def sgd(params: Any, gradient: Any) -> Any:
    """Return θ − η ∇L."""
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)


def with_optax(params: Any, gradient: Any) -> Any:
    """Return θ − η ∇L as optax computes it."""
    optimizer = optax.sgd(LEARNING_RATE)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


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
        conv = functools.partial(linen.Conv, kernel_size=(3, 3), padding="VALID", dtype=dtype)
        return linen.Sequential([
            conv(32), linen.relu, conv(64), linen.relu, lambda h: linen.max_pool(h, (2, 2), (2, 2)),
            lambda h: h.reshape(h.shape[0], -1), linen.Dropout(0.25, deterministic=still),
            linen.Dense(128, dtype=dtype), linen.relu, linen.Dropout(0.5, deterministic=still),
            linen.Dense(10, dtype=dtype),
        ])  # fmt: skip

    def loss(params: Any, x: Any, y: Any, key: Any) -> Any:
        keys = {} if key is None else {"dropout": key}
        return optax_cross_entropy(network(key is None).apply(params, cast(x, dtype), rngs=keys), y)

    return loss


def nets(dtype: Any) -> list[Net]:
    """Return the convnet by jaxnn's rules first, then in idiomatic JAX."""
    ours = Net("jaxnn", "NHWC", our_loss(dtype))
    plain = [Net("jax", "lax NHWC", lax_loss("NHWC", dtype)), Net("jax", "lax NCHW", lax_loss("NCHW", dtype), to_nchw)]
    flax = [Net("jax", "Flax + Optax", linen_loss(dtype), to_linen, with_optax)] if linen and optax else []
    return [ours, *plain, *flax]


def torch_loss(params: Any, x: Any, y: Any, training: bool) -> Any:
    """Return the convnet's loss in PyTorch."""
    F = torch.nn.functional
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
        self.optimizer = torch.optim.SGD(self.params, LEARNING_RATE)
        self.f = torch.compile(torch_loss, dynamic=False) if "compile" in name else torch_loss

    def backward(self, x: Any, y: Any, training: bool) -> Any:
        """Compute the loss and its gradient."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
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
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # PyTorch asks for a few steps on another stream before a capture
            for _ in range(3):
                self.step(*held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
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
