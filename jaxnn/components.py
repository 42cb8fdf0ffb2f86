"""The table of components: every function with a rule, example arguments of any size, and what its rule keeps.

`jaxnn compare`, the tests' cases, the residuals, the graph, the ways to use many devices, the wheel's check and the
benchmarks read it. A component that is added here appears in all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxnn import layers, losses

Arrays = tuple[Any, ...]


class Size(NamedTuple):
    """How large the example arguments are."""

    images: tuple[int, int, int, int]  # N, H, W, C
    rows: int  # of logits, and of what the elementwise losses take
    classes: int
    filters: int  # of a convolution, and outputs of a linear layer
    vocabulary: tuple[int, int, int]  # rows, features and words of linear_cross_entropy

    @property
    def pixels(self) -> int:
        """The numbers in one image."""
        return int(np.prod(self.images[1:]))


TINY = Size((2, 6, 4, 2), 5, 4, 3, (5, 3, 7))  # small enough for loops in Python
# Large enough for ratios of time and memory to mean something.
SMALL = Size((16, 20, 20, 8), 256, 64, 16, (256, 64, 1000))
# The sizes of the benchmark on a CPU; the images are the activations of `models.convnet` on MNIST.
BENCHMARK = Size((64, 24, 24, 64), 1024, 1000, 128, (1024, 512, 32768))


class TableLine(NamedTuple):
    """A line of the table `COMPONENTS`: a function with a rule, called in one way."""

    name: str
    f: Any  # the function; `f.definition` is the plain form that its rule was derived from
    args: Callable[[np.random.Generator, Size], Arrays]  # NumPy arrays, float32 where they have a gradient
    residual_bytes: Callable[..., int]  # that the rule keeps beyond these arguments
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    keywords: tuple[str, ...] = ()  # the names of the last arguments, where they are passed by name
    by_row: tuple[bool, ...] = (True,)  # which arguments have a row for each sample
    is_random: bool = False  # the definition draws other random numbers: it is no reference for the rule

    def example(self, size: Size, seed: int = 0) -> Arrays:
        """Return example arguments."""
        return self.args(np.random.default_rng((seed, *self.name.encode())), size)

    def __call__(self, *args: Any) -> Any:
        """Call the function with these arguments and the options."""
        return self._call(self.f, args)

    def definition(self, *args: Any) -> Any:
        """Call its definition with these arguments and the options."""
        return self._call(self.f.definition, args)

    def _call(self, f: Any, args: Arrays) -> Any:
        positional = len(args) - len(self.keywords)
        return f(*args[:positional], **dict(zip(self.keywords, args[positional:], strict=True)), **self.options)


def _normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


def _images(rng: np.random.Generator, size: Size) -> Arrays:
    return (_normal(rng, *size.images),)


def _images_nchw(rng: np.random.Generator, size: Size) -> Arrays:
    n, h, w, c = size.images
    return (_normal(rng, n, c, h, w),)


def _linear(rng: np.random.Generator, size: Size) -> Arrays:
    n, inputs = size.images[0], size.pixels // 4  # of max-pooled images
    return _normal(rng, n, inputs), _normal(rng, size.filters, inputs), _normal(rng, size.filters)


def _conv2d(rng: np.random.Generator, size: Size) -> Arrays:
    """Images that a filter of 3x3 turns into those of `size`, from half as many channels."""
    n, h, w, c = size.images
    return _normal(rng, n, h + 2, w + 2, c // 2), _normal(rng, 3, 3, c // 2, c), _normal(rng, c)


def _conv2d_nchw(rng: np.random.Generator, size: Size) -> Arrays:
    x, w, b = _conv2d(rng, size)
    return x.transpose(0, 3, 1, 2).copy(), w.transpose(3, 2, 0, 1).copy(), b


def _logits(rng: np.random.Generator, size: Size) -> Arrays:
    return (_normal(rng, size.rows, size.classes),)


def _labels(rng: np.random.Generator, rows: int, classes: int) -> Any:
    return rng.integers(0, classes, rows, dtype=np.int32)


def _probabilities(rng: np.random.Generator, size: Size) -> Any:
    p = np.exp(_normal(rng, size.rows, size.classes))
    return p / p.sum(-1, keepdims=True)


def _labelled(make: Callable[[np.random.Generator, Size], Any]) -> Callable[[np.random.Generator, Size], Arrays]:
    return lambda rng, size: (make(rng, size), _labels(rng, size.rows, size.classes))


def _vocabulary(rng: np.random.Generator, size: Size) -> Arrays:
    n, features, words = size.vocabulary
    w = _normal(rng, words, features) / np.float32(features**0.5)
    return _normal(rng, n, features), w, _labels(rng, n, words)


def _answers(rng: np.random.Generator, size: Size) -> Arrays:
    return _normal(rng, size.rows, size.classes), rng.uniform(0.1, 0.9, (size.rows, size.classes)).astype(np.float32)


def _pairs(rng: np.random.Generator, size: Size) -> Arrays:
    return _normal(rng, size.rows, size.classes), _normal(rng, size.rows, size.classes)


def _weights(rng: np.random.Generator, size: Size) -> Arrays:
    return (_normal(rng, size.filters, size.pixels // 4),)


def _dropped(rng: np.random.Generator, size: Size) -> Arrays:
    return *_images(rng, size), rng.integers(0, 2**32, 2, dtype=np.uint32)


def _nothing(*_: Any) -> int:
    return 0


def _a_byte_for_each_window(x: Any) -> int:
    return int(x.size) // 4  # of 2x2; the tiny images, too, have an even height and width


NHWC, NCHW = {"layout": "NHWC"}, {"layout": "NCHW"}
TWO, ALL_SHARE = (True, True), (True, False, False)  # which arguments have a row for each sample
MEAN = 8  # bytes: a mean keeps its value, and what it divides by

COMPONENTS = [
    TableLine("linear", layers.linear, _linear, _nothing, by_row=ALL_SHARE),
    TableLine("conv2d NHWC", layers.conv2d, _conv2d, _nothing, NHWC, by_row=ALL_SHARE),
    TableLine("conv2d NCHW", layers.conv2d, _conv2d_nchw, _nothing, NCHW, by_row=ALL_SHARE),
    TableLine("relu", layers.relu, _images, lambda x: x.size),
    TableLine("sigmoid", layers.sigmoid, _images, _nothing),
    TableLine("tanh", layers.tanh, _images, _nothing),
    TableLine("max_pool2d NHWC", layers.max_pool2d, _images, _a_byte_for_each_window, NHWC),
    TableLine("max_pool2d NCHW", layers.max_pool2d, _images_nchw, _a_byte_for_each_window, NCHW),
    TableLine("max_pool2d_with_indices", layers.max_pool2d_with_indices, _images, _a_byte_for_each_window, NHWC),
    TableLine("dropout", layers.dropout, _dropped, _nothing, {"rate": 0.4}, ("key",), (True, False), is_random=True),
    TableLine("softmax", layers.softmax, _logits, lambda x: x.nbytes),
    TableLine("log_softmax", layers.log_softmax, _logits, lambda x: 4 * len(x)),
    TableLine("nll", losses.nll, _labelled(_probabilities), lambda p, t: 4 * len(p) + MEAN, by_row=TWO),
    TableLine("nll_loss", losses.nll_loss, _labelled(lambda *a: np.log(_probabilities(*a))), lambda p, t: MEAN,
              by_row=TWO),
    TableLine("cross_entropy", losses.cross_entropy, _labelled(lambda *a: _logits(*a)[0]),
              lambda x, t: 4 * len(x) + MEAN, by_row=TWO),
    # The gradient itself; or three numbers a row, and nothing of the vocabulary's size.
    TableLine("linear_cross_entropy fast", losses.linear_cross_entropy, _vocabulary,
              lambda x, w, t: x.nbytes + w.nbytes + 4 * len(x) + MEAN, by_row=(True, False, True)),
    TableLine("linear_cross_entropy lean", losses.linear_cross_entropy, _vocabulary,
              lambda x, w, t: 12 * len(x) + MEAN, {"memory": "lean"}, by_row=(True, False, True)),
    TableLine("binary_cross_entropy", losses.binary_cross_entropy, _answers, lambda x, t: MEAN, by_row=TWO),
    TableLine("squared_error", losses.squared_error, _pairs, lambda y, t: MEAN, by_row=TWO),
    TableLine("l1_penalty", losses.l1_penalty, _weights, _nothing),
    TableLine("l2_penalty", losses.l2_penalty, _weights, _nothing),
]  # fmt: skip
