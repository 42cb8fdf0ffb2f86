"""The digit network as a computation graph in NumPy: its layers, their derivatives, and back propagation over it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jaxnn

FILTERS, WINDOW, CLASSES = 4, 3, 10
NUDGES = np.geomspace(1e-6, 1, 61)  # by which a pixel is changed


# A layer is its forward function f(h, w); `…_to_h(dy, y, h, w)`, the upstream gradient dy times ∂y/∂h as the notes'
# sums; and `…_by_h(y, h, w)`, the Jacobian ∂y/∂h itself, rows outputs and columns inputs. The same for w.


def patches(x: np.ndarray) -> np.ndarray:
    """Return x_ic,i+i',j+j' at [ic, i, j, i', j']."""
    return np.lib.stride_tricks.sliding_window_view(x, (WINDOW, WINDOW), axis=(1, 2))


def conv(x, w):
    return np.einsum("ocab,cijab->oij", w, patches(x))


def conv_to_x(dy, y, x, w):
    dx = np.zeros_like(x)
    for a, b in np.ndindex(WINDOW, WINDOW):
        dx[:, a : a + y.shape[1], b : b + y.shape[2]] += np.einsum("oij,oc->cij", dy, w[:, :, a, b])
    return dx


def conv_to_w(dy, y, x, w):
    return np.einsum("oij,cijab->ocab", dy, patches(x))


def conv_by_x(y, x, w):
    jacobian = np.zeros(y.shape + x.shape)
    for o, i, j in np.ndindex(y.shape):
        jacobian[o, i, j, :, i : i + WINDOW, j : j + WINDOW] = w[o]
    return jacobian


def conv_by_w(y, x, w):
    jacobian = np.zeros(y.shape + w.shape)
    for o, i, j in np.ndindex(y.shape):
        jacobian[o, i, j, o] = x[:, i : i + WINDOW, j : j + WINDOW]
    return jacobian


def relu(x):
    return np.maximum(x, 0)


def relu_to_x(dy, y, x):
    return np.where(x > 0, dy, 0)


def relu_by_x(y, x):
    return np.diag(np.where(x.ravel() > 0, 1.0, 0.0))


def blocks(x):
    """Return the four pixels of each 2x2 patch at [c, i, j, :]."""
    c, height, width = x.shape
    return x.reshape(c, height // 2, 2, width // 2, 2).swapaxes(2, 3).reshape(c, height // 2, width // 2, 4)


def maxpool(x):
    return blocks(x).max(axis=-1)


def maxpool_to_x(dy, y, x):
    largest = np.arange(4) == blocks(x).argmax(axis=-1)[..., None]  # the first of equals
    c, height, width = y.shape
    spread = (largest * dy[..., None]).reshape(c, height, width, 2, 2)
    return spread.swapaxes(2, 3).reshape(x.shape)


def maxpool_by_x(y, x):
    jacobian = np.zeros(y.shape + x.shape)
    for (c, i, j), place in np.ndenumerate(blocks(x).argmax(axis=-1)):
        jacobian[c, i, j, c, 2 * i + place // 2, 2 * j + place % 2] = 1
    return jacobian


def linear(x, w):
    return w @ x.ravel()


def linear_to_x(dy, y, x, w):
    return (dy @ w).reshape(x.shape)


def linear_to_w(dy, y, x, w):
    return np.outer(dy, x)


def linear_by_x(y, x, w):
    return w


def linear_by_w(y, x, w):
    return np.kron(np.eye(len(y)), x.ravel())


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def softmax_to_x(dp, p, x):
    return p * (dp - dp @ p)


def softmax_by_x(p, x):
    return np.array([[(1 - p[j]) * p[a] if a == j else -p[j] * p[a] for j in range(len(p))] for a in range(len(p))])


def nll(p, t):
    return -np.log(p[t])


def nll_to_p(dy, y, p, t):
    return np.where(np.arange(len(p)) == t, -dy / p[t], 0)


def nll_by_p(y, p, t):
    return nll_to_p(1.0, y, p, t)[None]


class Layer(NamedTuple):
    """A component: its function, upstream × local and Jacobian for each input that has them, and jaxnn's function."""

    forward: Callable[..., Any]
    to: tuple[Callable[..., Any], ...]
    by: tuple[Callable[..., Any], ...]
    library: Callable[..., Any]


LAYERS = {
    "W * x": Layer(conv, (conv_to_x, conv_to_w), (conv_by_x, conv_by_w), jaxnn.conv2d),
    "ReLU": Layer(relu, (relu_to_x,), (relu_by_x,), jaxnn.relu),
    "maxpool": Layer(maxpool, (maxpool_to_x,), (maxpool_by_x,), jaxnn.max_pool2d),
    "Wx": Layer(
        linear, (linear_to_x, linear_to_w), (linear_by_x, linear_by_w), lambda x, w: jaxnn.linear(x.reshape(-1), w)
    ),
    "softmax": Layer(softmax, (softmax_to_x,), (softmax_by_x,), jaxnn.softmax),
    "NLL": Layer(nll, (nll_to_p,), (nll_by_p,), jaxnn.nll),
    "+": Layer(
        lambda a, b: a.ravel() + b,
        (lambda dy, y, a, b: dy.reshape(a.shape), lambda dy, y, a, b: dy),
        (lambda y, a, b: np.eye(y.size), lambda y, a, b: np.eye(y.size)),
        lambda a, b: a.reshape(-1) + b,
    ),
}
# A computation graph: (variable, layer, inputs) in an order in which every input comes before its consumers.
CNN = (
    ("x₁", "W * x", ("x", "W₀")),
    ("x₂", "ReLU", ("x₁",)),
    ("x₃", "maxpool", ("x₂",)),
    ("x₄", "Wx", ("x₃", "W₁")),
    ("y", "softmax", ("x₄",)),
    ("ℓ", "NLL", ("y", "t")),
)
RESIDUAL = (  # x₃ has two consumers: r = ReLU(A x₃), and x₃ + r
    *CNN[:3],
    ("Ax₃", "Wx", ("x₃", "A")),
    ("r", "ReLU", ("Ax₃",)),
    ("x₃ + r", "+", ("x₃", "r")),
    ("x₄", "Wx", ("x₃ + r", "W₁")),
    *CNN[4:],
)


def forward(graph, leaves):
    """Return all variables of the graph: the leaves (x, t and weights) and every h_k = f_k(h_k−1, w_k)."""
    values = dict(leaves)
    for name, layer, inputs in graph:
        values[name] = LAYERS[layer].forward(*(values[i] for i in inputs))
    return values


def by_sums(layer, which, dy, y, inputs):
    """Return upstream × local as the notes' sums."""
    return LAYERS[layer].to[which](dy, y, *inputs)


def by_jacobians(layer, which, dy, y, inputs):
    """Return upstream × local as a row vector times a matrix."""
    return (np.ravel(dy) @ jacobian(layer, which, y, inputs)).reshape(inputs[which].shape)


def jacobian(layer, which, y, inputs):
    """Return ∂y/∂input, M×N: rows outputs, columns inputs."""
    return LAYERS[layer].by[which](y, *inputs).reshape(np.size(y), np.size(inputs[which]))


def add(sum_so_far, passed):
    """Return ∂ℓ/∂h with one more consumer."""
    return sum_so_far + passed


def forget(sum_so_far, passed):
    """Return ∂ℓ/∂h of the last consumer alone: a mistake."""
    return passed


def backward(graph, values, upstream_times_local=by_sums, combine=add):
    """Return ∂ℓ/∂h for every variable h: upstream × local, summed over the consumers of h."""
    upstream = {"ℓ": np.ones(())}
    for name, layer, inputs in reversed(graph):
        for which in range(len(LAYERS[layer].to)):
            passed = upstream_times_local(layer, which, upstream[name], values[name], [values[i] for i in inputs])
            variable = inputs[which]
            upstream[variable] = combine(upstream[variable], passed) if variable in upstream else passed
    return upstream


def arrive(graph, values, change):
    """Return Δh for every h after a small change of x: Δy ≈ Σ (∂y/∂h) Δh, from the input to the loss."""
    changes = {"x": change.ravel()}
    for name, layer, inputs in graph:
        arrays = [values[i] for i in inputs]
        changes[name] = sum(
            jacobian(layer, which, values[name], arrays) @ changes[i] for which, i in enumerate(inputs) if i in changes
        )
    return changes
