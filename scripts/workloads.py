"""What `bench.py` measures of each component: its call by jaxnn, idiomatic JAX without it, and PyTorch.

Names, arguments and options come from the table in `jaxnn/components.py`. A component that has no peer here is measured
beside JAX's derivative of its definition. Arrays are held in NHWC, filters in HWIO, weights as (outputs, inputs). What
is marked `In` another layout gets them converted before the clock starts: every side works in the layout it likes.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import libraries
import numpy as np
from jax import lax
from libraries import In, torch_ways

from jaxnn import components as table
from jaxnn.components import Size, TableLine

Arrays = tuple[Any, ...]
SIZES = {
    "cpu": table.BENCHMARK,
    "gpu": Size((1024, 24, 24, 64), 8192, 8192, 128, (8192, 2304, 256000)),
}
BY_EXAMPLE_BYTES = 16e9  # an argument that all examples share gets a gradient for each of them: at most so much in all


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


def components(size: Size) -> Iterator[Work]:
    """Yield every line of the table at this size."""
    in_jax, in_torch = jax_peers(), torch_peers()
    for line in table.COMPONENTS:
        work = without_peers(line, size)
        of_definition = {"autodiff of the definition": work.ours._replace(f=line.definition)}
        yield work._replace(jax=in_jax.get(line.name, of_definition), torch=in_torch.get(line.name, {}))


def without_peers(line: TableLine, size: Size) -> Work:
    """Return the piece of work of a line of the table, by jaxnn alone."""
    ours, given = In(line.options.get("layout", ""), line), line.example(size)
    args = tuple(permuted(a, ours.axes(i), back=True) for i, a in enumerate(given))
    if line.name.startswith("max_pool2d"):
        args = (without_ties(*args),)
    if line.name == "relu":  # at 0 the gradient of `jnp.maximum` is another convention
        args = tuple(np.where(a == 0, np.ones_like(a), a) for a in args)
    flops = FLOPS.get(line.name, lambda *_: 0.0)(*args)
    digest = functools.partial(dropout_digest, line.options["rate"]) if line.name == "dropout" else None
    aux = isinstance(jax.eval_shape(line, *given), tuple)
    return Work(line.name, args, ours, {}, {}, mapped(line, args), flops, aux, digest)


def mapped(line: TableLine, args: Arrays) -> tuple[int | None, ...] | None:
    """Return the axes over which `vmap` takes single examples; None where the gradients would fill the memory."""
    examples = len(args[0])
    shared = sum(a.nbytes for a, by_row in zip(args, line.by_row, strict=True) if not by_row)
    fits = examples * shared <= BY_EXAMPLE_BYTES
    return tuple(0 if by_row else None for by_row in line.by_row) if fits else None


def permuted(a: Any, axes: tuple[int, ...] | None, *, back: bool = False) -> Any:
    """Return the array with its axes permuted, or permuted back."""
    return a if axes is None else np.ascontiguousarray(np.transpose(a, np.argsort(axes) if back else axes))


def without_ties(x: Any) -> Any:
    """Return the rank of each pixel in its window of 2x2: among equals the gradient's place would be a convention."""
    n, h, w, c = x.shape
    windows = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 4, 0, 1, 3, 5).reshape(4, n, h // 2, w // 2, c)
    ranks = windows.argsort(0).argsort(0).astype(np.float32)
    return ranks.reshape(2, 2, n, h // 2, w // 2, c).transpose(2, 3, 0, 4, 1, 5).reshape(n, h, w, c)


def dropout_digest(rate: float, args: Arrays, dy: Any, results: list[Any]) -> list[Any]:
    """Return what does not depend on the mask: 1 / (1 − P) where a value is kept, the gradient's mask, and P."""
    (x, *_), (y, dx), keep = args, results, 1 - rate
    kept = y != 0
    share = abs(kept.mean() - keep) < 6 * (keep * rate / kept[0].size) ** 0.5  # under vmap the rows share one mask
    return [np.where(kept, y / x, 1 / keep), np.where(kept, dx / dy, 1 / keep + dx), np.float64(share)]


FLOPS: dict[str, Callable[..., float]] = {  # of the matrix products of value and gradients
    "linear": lambda x, w, b: 6.0 * len(x) * w.size,
    **{f"conv2d {layout}": lambda x, w, b: 6.0 * len(x) * (x.shape[1] - 2) * (x.shape[2] - 2) * w.size
       for layout in ("NHWC", "NCHW")},
    **{f"linear_cross_entropy {memory}": lambda x, w, t: 6.0 * len(x) * w.size for memory in ("fast", "lean")},
}  # fmt: skip


# Idiomatic JAX --------------------------------------------------------------------------------------------------------


def each(f: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of a batch of images take a single one, too, as it is under `vmap`."""

    def single(x: Any, *rest: Any) -> Any:
        return f(x, *rest) if x.ndim == 4 else jax.tree.map(lambda y: y[0], f(x[None], *rest))

    return single


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


def bernoulli(implementation: str) -> Callable[..., Any]:
    """Return dropout by `jax.random.bernoulli`, from this kind of key."""
    keep = 1 - rate_of_dropout()

    def drop(x: Any, key: Any) -> Any:
        data = jnp.concatenate([key, key]) if implementation == "rbg" else key
        kept = jax.random.bernoulli(jax.random.wrap_key_data(data, impl=implementation), keep, x.shape)
        return jnp.where(kept, x / keep, jnp.zeros((), x.dtype))

    return drop


def rate_of_dropout() -> float:
    """Return the rate in the table."""
    return next(float(line.options["rate"]) for line in table.COMPONENTS if line.name == "dropout")


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
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return libraries.optax.softmax_cross_entropy_with_integer_labels(x, t).mean()


def of_optax(**ways: Callable[..., Any]) -> dict[str, Any]:
    """Return the ways that need optax, where it is installed."""
    return {f"optax.{name}": f for name, f in ways.items()} if libraries.optax else {}


def jax_peers() -> dict[str, dict[str, Any]]:
    """Return the ways to compute a component in JAX without jaxnn, by its name."""
    convs = {f"lax.conv {layout}": In(layout, lax_conv(layout)) for layout in ("NHWC", "NCHW")}
    pools = {
        f"{name} {layout}": In(layout, f(layout))
        for name, f in (("reduce_window", lax_pool), ("reshape, max", reshaped_pool))
        for layout in ("NHWC", "NCHW")
    }
    plain = {"plain loss": lambda x, w, t: plain_cross_entropy(x @ w.T, t),
             **of_optax(loss=lambda x, w, t: optax_cross_entropy(x @ w.T, t))}  # fmt: skip
    optax = libraries.optax
    return {
        "linear": {"x @ w.T + b": lambda x, w, b: x @ w.T + b, "x @ w + b": In("IO", lambda x, w, b: x @ w + b)},
        "conv2d NHWC": convs, "conv2d NCHW": convs,
        "max_pool2d NHWC": pools, "max_pool2d NCHW": pools,
        "max_pool2d_with_indices": {"argmax of windows": each(pool_with_indices)},
        "relu": {"jax.nn.relu": jax.nn.relu, "jnp.maximum": lambda x: jnp.maximum(x, 0)},
        "sigmoid": {"jax.nn.sigmoid": jax.nn.sigmoid, "1 / (1 + exp(-x))": lambda x: 1 / (1 + jnp.exp(-x))},
        "tanh": {"jnp.tanh": jnp.tanh},
        "dropout": {"bernoulli": bernoulli("threefry2x32"), "bernoulli, rbg": bernoulli("rbg")},
        "softmax": {"jax.nn.softmax": jax.nn.softmax},
        "log_softmax": {"jax.nn.log_softmax": jax.nn.log_softmax,
                        "x - logsumexp(x)": lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True)},
        "nll": {"take_along_axis": lambda p, t: -jnp.mean(jnp.log(picked(p, t))),
                "one_hot": lambda p, t: -jnp.mean(by_one_hot(jnp.log(p), t))},
        "nll_loss": {"take_along_axis": lambda y, t: -jnp.mean(picked(y, t)),
                     "one_hot": lambda y, t: -jnp.mean(by_one_hot(y, t))},
        "cross_entropy": {"log_softmax, take_along_axis": plain_cross_entropy,
                          "log_softmax, one_hot": lambda x, t: -jnp.mean(by_one_hot(jax.nn.log_softmax(x), t)),
                          **of_optax(softmax_cross_entropy_with_integer_labels=optax_cross_entropy)},
        "linear_cross_entropy fast": plain, "linear_cross_entropy lean": plain,
        "binary_cross_entropy": {
            "softplus(x) - x t": lambda x, t: jnp.mean(jax.nn.softplus(x) - x * t),
            **of_optax(sigmoid_binary_cross_entropy=lambda x, t: optax.sigmoid_binary_cross_entropy(x, t).mean())},
        "squared_error": {"mean((y - t)**2)": lambda y, t: jnp.mean((y - t) ** 2),
                          **of_optax(squared_error=lambda y, t: optax.squared_error(y, t).mean())},
        "l1_penalty": {"sum(abs(w))": lambda w: jnp.sum(jnp.abs(w))},
        "l2_penalty": {"sum(w**2)": lambda w: jnp.sum(w**2), "vdot(w, w)": lambda w: jnp.vdot(w, w)},
    }  # fmt: skip


# PyTorch --------------------------------------------------------------------------------------------------------------


def torch_peers() -> dict[str, dict[str, Any]]:
    """Return PyTorch's ways to compute a component, by its name."""
    rate = rate_of_dropout()
    convs = torch_ways(lambda F, x, w, b: F.conv2d(x, w, b), images=True)
    pools = torch_ways(lambda F, x: F.max_pool2d(x, 2), images=True)
    vocabulary = torch_ways(lambda F, x, w, t: F.cross_entropy(F.linear(x, w), t)) | in_chunks()
    return {
        "linear": torch_ways(lambda F, x, w, b: F.linear(x, w, b)),
        "conv2d NHWC": convs, "conv2d NCHW": convs,
        "max_pool2d NHWC": pools, "max_pool2d NCHW": pools,
        "max_pool2d_with_indices": torch_ways(lambda F, x: F.max_pool2d(x, 2, return_indices=True), images=True),
        "relu": torch_ways(lambda F, x: F.relu(x)),
        "sigmoid": torch_ways(lambda F, x: F.sigmoid(x)),
        "tanh": torch_ways(lambda F, x: F.tanh(x)),
        "dropout": torch_ways(lambda F, x, key: F.dropout(x, rate)),
        "softmax": torch_ways(lambda F, x: F.softmax(x, -1)),
        "log_softmax": torch_ways(lambda F, x: F.log_softmax(x, -1)),
        "nll": torch_ways(lambda F, p, t: F.nll_loss(p.log(), t)),
        "nll_loss": torch_ways(lambda F, y, t: F.nll_loss(y, t)),
        "cross_entropy": torch_ways(lambda F, x, t: F.cross_entropy(x, t)),
        "linear_cross_entropy fast": vocabulary, "linear_cross_entropy lean": vocabulary,
        "binary_cross_entropy": torch_ways(lambda F, x, t: F.binary_cross_entropy_with_logits(x, t)),
        "squared_error": torch_ways(lambda F, y, t: F.mse_loss(y, t)),
        "l1_penalty": torch_ways(lambda F, w: w.abs().sum()),
        "l2_penalty": torch_ways(lambda F, w: w.square().sum()),
    }  # fmt: skip


def in_chunks() -> dict[str, Any]:
    """Return PyTorch's own loss without the logits, where its version has one."""
    torch = libraries.torch
    if torch is None or not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return {}
    options = torch.nn.LinearCrossEntropyOptions()
    return {"linear_cross_entropy": functools.partial(torch.nn.functional.linear_cross_entropy, options=options)}
