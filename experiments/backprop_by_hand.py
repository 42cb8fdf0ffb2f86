"""Back propagation by hand: a forward pass that stores every h_k, a backward pass of upstream × local, in NumPy.

The notes' digit network, x₁ = W₀ * x, x₂ = ReLU(x₁), x₃ = maxpool(x₂), x₄ = W₁x₃, y = softmax(x₄), ℓ = NLL(y, t), as a
computation graph. The derivatives of its nodes are the notes' formulas written out, once as sums over the variables
that an input directly affects (the index-free chain rule) and once as Jacobians (the textbook's). What they give is
compared with `jax.grad` of jaxnn's functions, element by element, and trains the network. One pixel is nudged and the
change followed, layer by layer, to the loss; a residual connection shows why the sum runs over all consumers.

Source: Neural Networks Basics, "Differentiating multivariable functions", "The Chain Rule", "The Chain Rule :
intuition", "Chain Rule and “Back Propagation”", "Back Propagation in Action"; 001, "Computation Graph", "Chain Rule on
a Deeper Neural Network", "Backpropagation: Layer Abstraction", "Dealing with Vectors".
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import _experiment as experiment
import jax
import numpy as np
from matplotlib.figure import Figure

import jaxnn
from jaxnn.data import Split, load

FILTERS, WINDOW, CLASSES = 4, 3, 10
RATE = 0.01  # of the training, one example at a time
NUDGES = np.geomspace(1e-6, 1, 61)
SMOOTH = (NUDGES > 1e-5) & (NUDGES < 1e-3)  # small enough for the first terms of Taylor's series, above rounding
EPS = np.finfo(np.float64).eps
ROUNDINGS = 1000  # at most: a path has some hundred sums and products, there and back, and exp multiplies those of x₄


# ------------------------------------------------------------------------------------------ layers
# Each is its forward function f(h, w); `…_to_h(dy, y, h, w)`, the upstream gradient dy times ∂y/∂h as the notes' sums;
# and `…_by_h(y, h, w)`, the Jacobian ∂y/∂h itself, rows outputs and columns inputs. The same for w.


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


# ------------------------------------------------------------------------------------------ the algorithm
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
    """Return ∂ℓ/∂h over one consumer more."""
    return sum_so_far + passed


def forget(sum_so_far, passed):
    """Return ∂ℓ/∂h over the last consumer alone: a mistake."""
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
    """Return the image whose true class has a probability near 1/2: there is something to learn from it."""
    images = [example(digits, i, weights) for i in range(len(digits.labels))]
    return min(images, key=lambda leaves: abs(forward(CNN, leaves)["y"][leaves["t"]] - 0.5))


def rounding(by_hand, truth, p_t):
    """Return the largest difference of an element, in eps times the largest element, over what −1 + p_t loses."""
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
    """Return shape, places and values of what is not zero, to keep results.json small."""
    places = np.flatnonzero(matrix)
    return {
        "shape": matrix.shape,
        "places": places.tolist(),
        "values": experiment.numbers(matrix.ravel()[places], 3),
    }


def pattern(graph, values):
    """Return on which side of each kink the values are: which x > 0, and which pixel of each patch is the largest."""
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


# ------------------------------------------------------------------------------------------ pictures


CAPTIONS = {
    "backprop_by_hand_jacobians": (
        "The chain of Jacobians from ℓ to x, to scale, and the row vector that comes out of each."
    ),
    "backprop_by_hand_nudge": (
        "A nudged pixel, followed to the loss; what the prediction leaves falls with Δx², unless a consumer is "
        "forgotten."
    ),
    "backprop_by_hand_upstream": "A digit on its way forward, and below it the gradient on its way back.",
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw the upstream gradients of one digit, the nudge, and the Jacobians."""
    return {
        "backprop_by_hand_upstream": draw_upstream(results["digit"]),
        "backprop_by_hand_nudge": draw_nudge(results["nudge"], results["residual"]),
        "backprop_by_hand_jacobians": draw_jacobians(results["jacobians"]),
    }


def side_by_side(maps):
    """Return a layer's maps in two rows, with gaps (NaN) between them."""
    framed = [np.pad(np.kron(each, np.ones((6, 6))), 1, constant_values=np.nan) for each in np.asarray(maps)]
    half = len(framed) // 2
    return np.vstack([np.hstack(framed[:half]), np.hstack(framed[half:])]) if half else np.asarray(maps[0])


def draw_upstream(digit):
    """Draw h_k above and |∂ℓ/∂h_k| below, layer by layer."""
    columns = {name: f"{name} = {formula(layer, inputs)}" for name, layer, inputs in CNN}
    columns = {"x": f"x, a {digit['class']}", **columns}
    figure, axes = experiment.panels(2, len(columns), width=1.75, height=1.95)
    for row, which in enumerate(("values", "upstream")):
        for axis, (name, title) in zip(axes[row], columns.items(), strict=True):
            array = np.asarray(digit[which][name])
            array = array if row == 0 else np.abs(array)
            if array.ndim == 3:
                axis.set_facecolor(experiment.GREY)  # seen in the gaps
                limit = np.max(np.abs(array)) if array.min() < 0 else None
                experiment.picture(axis, side_by_side(array), limit=limit)
            elif array.ndim == 1:
                colours = [experiment.VERMILION if j == digit["class"] else experiment.BLUE for j in range(CLASSES)]
                axis.barh(range(CLASSES), array, color=colours)
                axis.set(yticks=range(CLASSES), ylim=(CLASSES - 0.4, -0.6))
                axis.tick_params(labelsize=7)
                axis.locator_params(axis="x", nbins=4)
                axis.grid(visible=False)
            else:
                axis.text(0.5, 0.5, f"{array:.3f}" if row == 0 else "1", ha="center", va="center", fontsize=16)
                axis.set_axis_off()
            axis.set_title(title if row == 0 else f"|∂ℓ/∂{name}|", fontsize=9, loc="center")
    y, x = divmod(digit["pixel"], len(digit["values"]["x"][0]))
    axes[0, 0].plot(
        x, y, "s", markersize=12, markeredgewidth=2, markerfacecolor="none", markeredgecolor=experiment.VERMILION
    )
    axes[0, 0].set_ylabel("forward: h →")
    axes[1, 0].set_ylabel("← backward: |upstream|")
    return figure


def formula(layer, inputs):
    """Return how a layer is written."""
    if layer in ("W * x", "Wx"):
        return layer.replace("W", inputs[1]).replace("x", inputs[0])
    return f"{layer}({', '.join(inputs)})"


def draw_nudge(nudged, residual):
    """Draw predicted and measured changes and what remains, over the size of the nudge."""
    figure, ((change, remainder, consumers),) = experiment.panels(1, 3, width=4.5, height=3.9)
    shown = {"x₁": experiment.GREEN, "x₄": experiment.SKY, "y": experiment.BLUE, "ℓ": experiment.VERMILION}
    for name, colour in shown.items():
        change.loglog(NUDGES, nudged["predicted"][name], color=colour, linewidth=1, label=f"|Δ{name}|")
        change.loglog(NUDGES[::4], nudged["measured"][name][::4], "o", color=colour, markersize=4)
        remainder.loglog(NUDGES, nudged["remainder"][name], color=colour, label=name)
    for (name, each), power in zip(residual["remainder"].items(), residual["slopes"], strict=True):
        consumers.loglog(NUDGES, each, label=f"{name}: slope {power:.2f}")
    for axes, kink in ((remainder, nudged["kink"]), (consumers, residual["kink"])):
        axes.set(ylim=(1e-18, 1e3))
        if kink:
            axes.axvline(kink, 0.2, color=experiment.GREY, linewidth=0.8, linestyle="--")  # not through the legend
            axes.annotate("first kink", (kink, 1e3), xytext=(-3, -12), textcoords="offset points", ha="right")
    for axes, place in ((change, "upper left"), (remainder, "upper left"), (consumers, "lower left")):
        axes.legend(loc=place)
    change.set(title="The nudge arrives: lines predicted, dots measured", xlabel="Δx, of one pixel")
    remainder.set(title=f"Measured less predicted (ℓ: slope {nudged['slope']:.2f})", xlabel="Δx, of one pixel")
    consumers.set(title="Two consumers: |Δℓ − (∂ℓ/∂x) Δx|", xlabel="Δx, of one pixel")
    return figure


def draw_jacobians(chain):
    """Draw the matrices to scale, and beneath each the row vector that has come out of it."""
    names = [name for name, *_ in reversed(CNN)] + ["x"]
    gap, foot, unit = 32, 58, 0.023  # elements, elements, inches an element
    shapes = [matrix["shape"] for matrix in chain["matrices"]]
    width = sum(n for _, n in shapes) + gap * len(shapes)
    height = foot + max(m for m, _ in shapes) + 28
    figure = Figure(figsize=(width * unit, height * unit))
    left = gap / 2
    for i, ((m, n), matrix, row) in enumerate(zip(shapes, chain["matrices"], chain["rows"], strict=True)):
        dense = np.zeros(m * n)
        dense[matrix["places"]] = matrix["values"]
        for array, bottom, tall in ((dense.reshape(m, n), foot, m), (np.array([row]), 26, 8)):
            axes = figure.add_axes((left / width, bottom / height, n / width, tall / height))
            experiment.picture(axes, array, limit=np.max(np.abs(array)))
            axes.set_aspect("auto")
            axes.spines[:].set(color=experiment.GREY)
        centre = {"x": (left + n / 2) / width, "ha": "center"}
        figure.text(y=(foot + m + 4) / height, s=f"∂{names[i]}/∂{names[i + 1]}\n{m}×{n}", **centre)
        figure.text(y=22 / height, s=f"∂ℓ/∂{names[i + 1]}\n1×{n}", va="top", **centre)
        left += n + gap
    left, right = chain["multiplications"]
    lines = (
        "Above: the Jacobians, to scale, rows outputs and columns inputs (blue −, white 0, red +).",
        "Below each: the row vector that comes out of it, the gradient on its way to x.",
        f"From the left, row × matrix: {left:,} multiplications. From the right, matrix × matrix: {right:,}.",
    )
    figure.text(gap / 2 / width, 0.95, "∂ℓ/∂x, a product of Jacobians", fontsize=13, va="top")
    figure.text(gap / 2 / width, 0.87, "\n".join(lines), linespacing=1.6, va="top", color=experiment.GREY)
    return figure


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--passes", type=experiment.positive, default=10, help="of the training (default 10)")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
