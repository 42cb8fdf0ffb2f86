"""Back-propagation in action: the page on which the notes' digit network can be stepped through, value by value.

The network softmax(W₁ maxpool(ReLU(W₀ * x))) is trained briefly on the 8 × 8 digits, then one digit goes through it.
The page shows each node's value, the upstream gradient that arrives, the local derivative of each edge, and their
product. The claims: these numbers are the gradient.

Source: Neural Networks Basics, "Back Propagation in Action", "Backpropagation"; Multi-class classification and
backpropagation, "Computation Graph".
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

import jaxnn
from jaxnn.data import load

FILTERS, STEPS, BATCH, RATE = 4, 200, 32, 0.3
PAGE = "backprop_in_action.html"
ROUNDING = 64 * float(jnp.finfo(jnp.float32).eps)  # of the largest element: a path has some dozen sums and products


def loss(
    W0: Float[Array, "f 1 3 3"], W1: Float[Array, "10 u"], x: Float[Array, "n 1 8 8"], t: Int[Array, " n"]
) -> Float[Array, ""]:
    """Return ℓ, the notes' network and loss, a line a component."""
    x1 = jaxnn.conv2d(x, W0)
    x2 = jaxnn.relu(x1)
    x3 = jaxnn.max_pool2d(x2)
    x4 = jaxnn.linear(x3.reshape(x3.shape[0], -1), W1)
    y = jaxnn.softmax(x4)
    return jaxnn.nll(y, t, reduction="sum")


def train(images: Array, labels: Array, key: Array) -> tuple[Array, Array]:
    """Return W₀ and W₁ after a moment of stochastic gradient descent."""
    keys = jax.random.split(key, 3)
    weights = 0.5 * jax.random.normal(keys[0], (FILTERS, 1, 3, 3)), 0.2 * jax.random.normal(keys[1], (10, 9 * FILTERS))

    def step(weights: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
        rows = jax.random.randint(key, (BATCH,), 0, len(images))
        gradient = jax.grad(lambda w: loss(*w, images[rows], labels[rows]))(weights)
        return jax.tree.map(lambda w, g: w - RATE / BATCH * g, weights, gradient), None

    return jax.lax.scan(step, weights, jax.random.split(keys[2], STEPS))[0]


def image_of(path: Path) -> Float[np.ndarray, "8 8"]:
    """Return the user's own digit: an array of 8 × 8 numbers from 0, white, to 16, ink."""
    try:
        image = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--image {path} cannot be read ({error}): save an array with numpy.save") from None
    if image.shape != (8, 8) or image.dtype.kind not in "fiu" or not (np.isfinite(image) & (image >= 0)).all():
        raise ValueError(f"--image {path} ({image.dtype}, shape {image.shape}) must be 8 × 8 numbers from 0 to 16")
    return image


def measure(options: argparse.Namespace) -> experiment.Results:
    """Train, trace one digit, save the page, and compare its numbers with each other and with jax.grad."""
    own = None if options.image is None else image_of(options.image)
    data = load("digits", None)
    images = lambda split: jnp.asarray(split.images[..., 0], jnp.float32)[:, None] / 16  # noqa: E731
    labels = lambda split: jnp.asarray(split.labels, jnp.int32)  # noqa: E731
    weights = train(images(data.train), labels(data.train), jax.random.key(options.seed))
    number = options.digit % len(data.test.labels)
    x = images(data.test)[number] if own is None else jnp.asarray(own, jnp.float32)[None] / 16
    t = labels(data.test)[number] if options.label is None else jnp.int32(options.label)
    graph = jaxnn.graph.trace(loss, *weights, x[None], t[None])
    graph.save(options.output / PAGE)
    inputs = [graph[name] for name in ("W0", "W1", "x")]
    truth = jax.grad(loss, (0, 1, 2))(*weights, x[None], t[None])
    rows = [
        [n.name, n.value.size, n.by_rule.ravel()[i], n.by_autodiff.ravel()[i], n.by_difference.ravel()[i]]
        for n in inputs
        for i in [int(np.argmax(np.abs(n.by_rule)))]
    ]
    columns = ["input", "elements", "by rule", "by autodiff", "by difference"]
    return {
        "claims": [*claims_of_inputs(inputs, truth), *claims_of_edges(graph)],
        "tables": [experiment.table("The largest element of each gradient, three ways", columns, rows)],
        "gradients": {
            n.name: {
                "rule": experiment.numbers(n.by_rule.ravel(), 5),
                "difference": experiment.numbers(n.by_difference.ravel(), 5),
            }
            for n in inputs
        },
    }


def claims_of_inputs(inputs: list[Any], truth: Any) -> list[experiment.Results]:
    """Claim that the gradients by rule are jax.grad's, autodiff's and the numeric difference's."""
    return [
        experiment.at_most(
            "∂ℓ/∂W₀, ∂ℓ/∂W₁, ∂ℓ/∂x are jax.grad's, of the largest element",
            max(apart(node.by_rule, g) for node, g in zip(inputs, truth, strict=True)),
            ROUNDING,
        ),
        experiment.at_most(
            "and autodiff's of the definitions, where there is no kink",
            max(apart(np.where(n.kinks, n.by_autodiff, n.by_rule), n.by_autodiff) for n in inputs),
            ROUNDING,
        ),
        experiment.at_most(
            "and the numeric difference's in float64, where no kink is within its step",
            max(apart(np.where(n.kinks, n.by_difference, n.by_rule), n.by_difference) for n in inputs),
            ROUNDING,
        ),
    ]


def claims_of_edges(graph: Any) -> list[experiment.Results]:
    """Claim that downstream is upstream × local on each edge, and that a node's readers add up to its upstream."""
    nodes = [node for node in graph.nodes if node.upstream is not None]
    total, products = {node.name: np.zeros(node.value.shape) for node in nodes}, []
    for edge, upstream in ((edge, node.upstream) for node in graph.nodes for edge in node.inputs):
        if edge.downstream is not None:
            total[edge.node] += edge.downstream
        if edge.local is not None:
            row = upstream.reshape(1, -1).astype(np.float64) @ edge.local
            products.append(apart(row.reshape(edge.downstream.shape), edge.downstream))
    return [
        experiment.at_most("downstream is upstream × the Jacobian, where an edge has one", max(products), ROUNDING),
        experiment.at_most(
            "the downstream gradients of all readers of a node add up to its upstream",
            max(apart(total[node.name], node.upstream) for node in nodes if node.name != graph.output),
            ROUNDING,
        ),
    ]


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference relative to the largest element."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b), initial=0) / (np.max(np.abs(b), initial=0) or 1))


CAPTIONS = {
    "backprop_in_action": "Every element of the three gradients on the page, by rule against by numeric difference.",
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw every element of the gradients, by rule against by difference."""
    figure, (axes,) = experiment.panels(1, 3, height=3.8)
    for panel, (name, gradient) in zip(axes, results["gradients"].items(), strict=True):
        limit = 1.1 * np.max(np.abs(gradient["rule"]))
        panel.plot([-limit, limit], [-limit, limit], color=experiment.GREY, linewidth=0.8)
        panel.plot(gradient["difference"], gradient["rule"], ".", alpha=0.6)
        panel.set(
            title=f"∂ℓ/∂{name}",
            xlabel="by numeric difference",
            ylabel="by rule",
            xlim=(-limit, limit),
            ylim=(-limit, limit),
        )
    return {"backprop_in_action": figure}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--digit", type=experiment.natural, default=1, help="number of the test image (default 1)")
    parser.add_argument("--image", type=Path, metavar="FILE.npy", help="a digit of your own: 8 × 8 numbers, 0 to 16")
    parser.add_argument("--label", type=int, choices=range(10), help="the class t of your digit")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
