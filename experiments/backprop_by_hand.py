"""Back propagation by hand: a forward pass that stores every h_k, a backward pass of upstream × local, in NumPy.

The notes' digit network, x₁ = W₀ * x, x₂ = ReLU(x₁), x₃ = maxpool(x₂), x₄ = W₁x₃, y = softmax(x₄), ℓ = NLL(y, t), is a
computation graph. The derivatives of its nodes are the notes' formulas, written out twice: as sums over the variables
that an input directly affects (the index-free chain rule), and as Jacobians (the textbook's chain rule). Both gradients
are compared with `jax.grad` of jaxnn's functions, element by element, and the first trains the network. Then one pixel
is nudged, and the change is followed through all layers to the loss. A residual connection shows why the sum runs over
all consumers.

Source: Neural Networks Basics, "Differentiating multivariable functions", "The Chain Rule", "The Chain Rule :
intuition", "Chain Rule and “Back Propagation”", "Back Propagation in Action"; Multi-class classification and
backpropagation, "Computation Graph", "Chain Rule on a Deeper Neural Network", "Backpropagation: Layer Abstraction",
"Dealing with Vectors".
"""

import argparse
import sys

import _experiment as experiment
import jax
import numpy as np
from _backprop_by_hand_network import (
    CLASSES,
    CNN,
    FILTERS,
    LAYERS,
    NUDGES,
    RESIDUAL,
    WINDOW,
    arrive,
    backward,
    blocks,
    by_jacobians,
    by_sums,
    forget,
    forward,
    jacobian,
)
from _backprop_by_hand_pictures import CAPTIONS, draw

from jaxnn.data import Split, load

__all__ = ["CAPTIONS", "add_options", "draw", "measure"]  # what the gallery looks for

RATE = 0.01  # of the training, one example at a time
SMOOTH = (NUDGES > 1e-5) & (NUDGES < 1e-3)  # small enough for Taylor's first terms, large enough for rounding
EPS = np.finfo(np.float64).eps
ROUNDINGS = 1000  # bound: a path forward and back has a few hundred sums and products, and exp amplifies those of x₄


def library_loss(nudges, leaves, graph):
    """Return ℓ by jaxnn's functions; each variable is nudged by 0, and the gradient by the nudge is ∂ℓ/∂h."""
    values = {name: leaf + nudges[name] if name in nudges else leaf for name, leaf in leaves.items()}
    for name, layer, inputs in graph:
        values[name] = LAYERS[layer].library(*(values[i] for i in inputs)) + nudges[name]
    return values["ℓ"]


library_gradient = jax.jit(jax.grad(library_loss), static_argnames="graph")


# ------------------------------------------------------------------------------------------ measurements


def example(digits: Split, number: int, weights):
    """Return the leaves of the graph for one image."""
    return {"x": digits.images[number, :, :, 0][None] / 16, "t": digits.labels[number], **weights}


def train(digits: Split, passes: int, rng: np.random.Generator):
    """Return W₀ and W₁ after per-example SGD with the gradient by hand."""
    pooled = FILTERS * 9
    weights = {
        "W₀": rng.normal(0, np.sqrt(2 / WINDOW**2), (FILTERS, 1, WINDOW, WINDOW)),
        "W₁": rng.normal(0, np.sqrt(2 / (pooled + CLASSES)), (CLASSES, pooled)),
    }
    for _ in experiment.progress(range(passes), "training by hand"):
        for number in rng.permutation(len(digits.labels)):
            gradient = backward(CNN, forward(CNN, example(digits, number, weights)))
            weights = {name: w - RATE * gradient[name] for name, w in weights.items()}
    return weights


def unsure(digits: Split, weights):
    """Return the image whose true class has a probability near 1/2: it can still be learned."""
    images = [example(digits, i, weights) for i in range(len(digits.labels))]
    return min(images, key=lambda leaves: abs(forward(CNN, leaves)["y"][leaves["t"]] - 0.5))


def rounding(by_hand, truth, p_t):
    """Return the largest difference, in eps of the largest element, times 1 − p_t: −1 + p_t loses digits."""
    return np.max(np.abs(by_hand - truth)) / np.max(np.abs(truth)) * (1 - p_t) / EPS


def measure_gradients(examples):
    """Compare ∂ℓ/∂h of every variable h with `jax.grad` of jaxnn's functions in float64, in both graphs."""
    ways = {"the notes' sums": by_sums, "rows times Jacobians": by_jacobians}
    claims, rows = [], []
    for title, graph in {"digit network": CNN, "residual network": RESIDUAL}.items():
        worst = {way: {} for way in ways}
        for leaves in examples:
            values = forward(graph, leaves)
            zeros = {name: np.zeros(np.shape(value)) for name, value in values.items() if name != "t"}
            with jax.enable_x64(True):
                truth = library_gradient(zeros, leaves, graph)
            for way, local in ways.items():
                gradients = backward(graph, values, local)
                for name, gradient in gradients.items():
                    error = rounding(gradient, np.asarray(truth[name]), values["y"][leaves["t"]])
                    worst[way][name] = max(error, worst[way].get(name, 0.0))
        rows += [[title, name, np.size(values[name]), *(worst[way][name] for way in ways)] for name in gradients]
        claims += [
            experiment.at_most(f"{title}: ∂ℓ/∂h by {way} is jax.grad's, eps", max(errors.values()), ROUNDINGS)
            for way, errors in worst.items()
        ]
    title = "Largest difference of an element of ∂ℓ/∂h from jax.grad of jaxnn, ten digits, in eps of the largest"
    return {"claims": claims, "table": experiment.table(title, ["graph", "h", "elements", *ways], rows)}


def multiply(matrices, from_left: bool):
    """Return the products on the way to the product of all matrices, and the number of multiplications."""
    products, count = [matrices[0] if from_left else matrices[-1]], 0
    for other in matrices[1:] if from_left else matrices[-2::-1]:
        a, b = (products[-1], other) if from_left else (other, products[-1])
        products.append(a @ b)
        count += a.shape[0] * a.shape[1] * b.shape[1]
    return products, count


def measure_jacobians(values):
    """Multiply the Jacobians of the digit network, ∂ℓ/∂y first, from the left and from the right."""
    layers = [(layer, values[name], [values[i] for i in inputs]) for name, layer, inputs in reversed(CNN)]
    jacobians = [jacobian(layer, 0, y, inputs) for layer, y, inputs in layers]
    with jax.enable_x64(True):
        truths = [np.asarray(jax.jacrev(LAYERS[layer].library)(*inputs)) for layer, _, inputs in layers]
    worst = max(np.max(np.abs(J - T.reshape(J.shape))) for J, T in zip(jacobians, truths, strict=True))
    rows, from_left = multiply(jacobians, from_left=True)
    matrices, from_right = multiply(jacobians, from_left=False)
    not_zero = sum(np.count_nonzero(J) for J in jacobians[1:])
    pixels = values["x"].size
    title = "∂ℓ/∂x = ∂ℓ/∂y · ∂y/∂x₄ · ∂x₄/∂x₃ · ∂x₃/∂x₂ · ∂x₂/∂x₁ · ∂x₁/∂x, multiplied out"
    return {
        "claims": [
            experiment.at_most("every Jacobian is jax.jacrev's of jaxnn's layer: difference, eps", worst / EPS, 100),
            experiment.at_most(
                "the Jacobians' product is the same from the left and from the right, eps",
                rounding(rows[-1], matrices[-1], 0),
                ROUNDINGS,
            ),
            experiment.at_least(
                f"multiplications, from the right over from the left (one column or {pixels}, for most of the work)",
                from_right / from_left,
                pixels / 2,
            ),
        ],
        "table": experiment.table(
            title,
            ["order", "multiplications", "largest product"],
            [
                ["from the right: Jacobian × Jacobian", from_right, max(m.size for m in matrices)],
                ["from the left: row × Jacobian", from_left, max(row.size for row in rows)],
                ["from the left, zeros skipped, as the notes' sums", not_zero, max(row.size for row in rows)],
            ],
        ),
        "jacobians": {
            "matrices": [sparse(J) for J in jacobians],
            "rows": [experiment.numbers(row[0], 3) for row in rows],
            "multiplications": [from_left, from_right],
        },
    }


def sparse(matrix):
    """Return shape, places and values of the elements that are not zero: results.json stays small."""
    places = np.flatnonzero(matrix)
    return {
        "shape": matrix.shape,
        "places": places.tolist(),
        "values": experiment.numbers(matrix.ravel()[places], 3),
    }


def pattern(graph, values):
    """Return the side of each kink on which the values are: which x > 0, and the largest pixel of each patch."""
    sides = []
    for _, layer, inputs in graph:
        if layer == "ReLU":
            sides.append(values[inputs[0]] > 0)
        if layer == "maxpool":
            sides.append(blocks(values[inputs[0]]).argmax(axis=-1))
    return np.concatenate([side.ravel() for side in sides])


def nudge(graph, leaves, pixel: int):
    """Nudge one pixel by each of `NUDGES`; return every variable's change, and how many nudges cross no kink."""
    before, direction = forward(graph, leaves), np.eye(leaves["x"].size)[pixel].reshape(leaves["x"].shape)
    after = [forward(graph, {**leaves, "x": leaves["x"] + size * direction}) for size in NUDGES]
    changes = {name: np.array([np.ravel(values[name] - before[name]) for values in after]) for name, *_ in graph}
    crossed = [np.any(pattern(graph, values) != pattern(graph, before)) for values in after]
    return before, direction, changes, int(np.argmax([*crossed, True]))


def slope(remainder, kink: int):
    """Return the power of the nudge's size with which a remainder falls, away from kinks and from rounding."""
    used = SMOOTH & (np.arange(len(NUDGES)) < kink)
    return np.polyfit(np.log(NUDGES[used]), np.log(remainder[used]), 1)[0] if used.sum() > 1 else np.nan


def measure_nudge(leaves, pixel: int):
    """Follow the nudge through the digit network: Δh_k predicted by the Jacobians, and measured."""
    values, direction, changes, kink = nudge(CNN, leaves, pixel)
    predicted = {name: np.outer(NUDGES, change) for name, change in arrive(CNN, values, direction).items()}
    size = lambda change: np.max(np.abs(change), axis=1)  # noqa: E731
    remainder = {name: size(changes[name] - predicted[name]) for name in changes}
    linear_part = max(
        np.max(remainder[name][:kink], initial=0) / np.max(np.abs(values[name])) for name in ("x₁", "x₂", "x₃", "x₄")
    )
    shown = np.searchsorted(NUDGES, 1e-3)
    by_gradient = backward(CNN, values)["x"].ravel()[pixel] * NUDGES
    rows = [
        [name, size(predicted[name])[shown], size(changes[name])[shown], remainder[name][shown]] for name in changes
    ]
    title = f"A pixel nudged by {NUDGES[shown]:.3g}: largest |Δh| of each layer"
    return {
        "claims": [
            experiment.at_most(
                "nudge: up to the first kink x₁, …, x₄ change as predicted, eps", linear_part / EPS, ROUNDINGS
            ),
            experiment.at_most(
                "nudge: |slope − 2| of the remainder of Δℓ, away from kinks", abs(slope(remainder["ℓ"], kink) - 2), 0.1
            ),
            experiment.at_most(
                "nudge: what arrives at ℓ is (∂ℓ/∂x) Δx, relative difference",
                np.max(np.abs(by_gradient / predicted["ℓ"][:, 0] - 1)),
                ROUNDINGS * EPS,
            ),
        ],
        "table": experiment.table(title, ["h", "predicted", "measured", "remainder"], rows),
        "nudge": {
            "kink": float(NUDGES[kink]) if kink < len(NUDGES) else None,
            "slope": slope(remainder["ℓ"], kink),
            "predicted": {name: experiment.numbers(size(predicted[name]), 4) for name in changes},
            "measured": {name: experiment.numbers(size(changes[name]), 4) for name in changes},
            "remainder": {name: experiment.numbers(remainder[name], 4) for name in changes},
        },
    }


def measure_residual(leaves, pixel: int):
    """Nudge the same pixel below the residual connection, and forget one of the two consumers of x₃."""
    values, direction, changes, kink = nudge(RESIDUAL, leaves, pixel)
    gradients = {
        "summed over both consumers": backward(RESIDUAL, values)["x"],
        "one consumer forgotten": backward(RESIDUAL, values, combine=forget)["x"],
    }
    remainder = {
        name: np.abs(changes["ℓ"][:, 0] - np.sum(gradient * direction) * NUDGES) for name, gradient in gradients.items()
    }
    slopes = {name: slope(each, kink) for name, each in remainder.items()}
    summed, forgotten = slopes.values()
    shown = np.searchsorted(NUDGES, 1e-3)
    return {
        "claims": [
            experiment.at_most(
                "residual: |slope − 2| of the remainder, summed over both consumers", abs(summed - 2), 0.1
            ),
            experiment.at_most(
                "residual: |slope − 1| of the remainder, one consumer forgotten", abs(forgotten - 1), 0.1
            ),
        ],
        "table": experiment.table(
            f"x₃ with two consumers, x₃ + ReLU(A x₃): a pixel nudged by {NUDGES[shown]:.3g}",
            ["∂ℓ/∂x₃", "‖∂ℓ/∂x‖", "Δℓ predicted", "Δℓ measured", "remainder", "its slope"],
            [
                [
                    name,
                    np.linalg.norm(gradient),
                    np.sum(gradient * direction) * NUDGES[shown],
                    changes["ℓ"][shown, 0],
                    remainder[name][shown],
                    slopes[name],
                ]
                for name, gradient in gradients.items()
            ],
        ),
        "residual": {
            "kink": float(NUDGES[kink]) if kink < len(NUDGES) else None,
            "slopes": list(slopes.values()),
            "remainder": {name: experiment.numbers(each, 4) for name, each in remainder.items()},
        },
    }


def measure(options: argparse.Namespace) -> experiment.Results:
    """Run the experiment."""
    rng, digits = np.random.default_rng(options.seed), load("digits")
    weights = train(digits.train, options.passes, rng)
    weights["A"] = rng.normal(0, 1 / 6, (36, 36))
    guesses = [np.argmax(forward(CNN, example(digits.test, i, weights))["y"]) for i in range(len(digits.test.labels))]
    accuracy = np.mean(guesses == digits.test.labels)
    first = [int(np.argmax(digits.validation.labels == t)) for t in range(CLASSES)]
    leaves = unsure(digits.validation, weights)
    values = forward(CNN, leaves)
    upstream = backward(CNN, values)
    pixel = int(np.argmax(np.abs(upstream["x"]) * (leaves["x"] > 0)))
    results = {
        "claims": [
            experiment.at_least("trained by hand, one example at a time: test accuracy (guessing: 0.1)", accuracy, 0.8)
        ],
        "tables": [],
        "digit": {
            "class": int(leaves["t"]),
            "pixel": pixel,
            "values": {name: experiment.numbers(value, 4) for name, value in values.items() if name in upstream},
            "upstream": {name: experiment.numbers(value, 4) for name, value in upstream.items()},
        },
    }
    for measured in (
        measure_gradients([example(digits.validation, i, weights) for i in first]),
        measure_jacobians(values),
        measure_nudge(leaves, pixel),
        measure_residual(leaves, pixel),
    ):
        results["claims"] += measured.pop("claims")
        results["tables"].append(measured.pop("table"))
        results |= measured
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--passes", type=experiment.positive, default=10, help="of the training (default 10)")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
