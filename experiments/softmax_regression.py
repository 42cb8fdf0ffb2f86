"""Softmax regression on real digits: linear → softmax → cross entropy, trained by the notes' Δw_ji = α (y_j − p_j) x_i.

One update by `jax.grad` of jaxnn's rules is compared with the formula in NumPy, and softmax's derivative on one digit
with its two cases. Then full-batch gradient descent with momentum is compared with scikit-learn's solver: both find the
one minimum. There is no bias, as in the notes' update. L(W) = mean of −log p_a + λ Σ w²: the notes have no penalty;
here it makes the minimum unique.

Source: Multi-class classification and backpropagation, "Recap: Cross Entropy Loss (for Multi-class classification)",
"The Softmax Function", "The Chain Rule in Our Network", "Derivative for Cross Entropy Loss Layer", "Chain Rule for
Linear Layer", "Gradient Descent: Conclusion".
"""

import argparse
import functools
import sys

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

import jaxnn
from jaxnn.data import DATASETS, Split, load

RATE = 0.1  # α of the single updates
PENALTY = 1e-3  # λ
CLOSE = 1e-3  # ‖W − W*‖ relative to ‖W‖ at which the descent ends
BLOCK = 100  # steps between two tests of convergence
MOST = 20_000  # steps at most
EPS = np.finfo(np.float32).eps


def logits(w: Float[Array, "classes pixels"], x: Float[Array, "*n pixels"]) -> Float[Array, "*n classes"]:
    """Return l = Wx in full float32, also on devices that round the factors by default."""
    return jaxnn.linear(x, w, precision="highest")


def loss(w: Float[Array, "classes pixels"], x: Float[Array, "*n pixels"], a: Int[Array, "*n"]) -> Float[Array, ""]:
    """Return −log p_a, a the right class: the mean over the examples."""
    return jaxnn.cross_entropy(logits(w, x), a)


def objective(w: Float[Array, "classes pixels"], x: Float[Array, "n pixels"], a: Int[Array, " n"]) -> Float[Array, ""]:
    """Return what is minimised."""
    return loss(w, x, a) + PENALTY * jaxnn.l2_penalty(w)


@jax.jit
def update(w: Array, x: Float[Array, " pixels"], a: Int[Array, ""]) -> Array:
    """Make one update on one example, w_ji + Δw_ji with Δw_ji = −α ∂L/∂w_ji."""
    return w - RATE * jax.grad(loss)(w, x, a)


@functools.partial(jax.jit, static_argnames="optimizer")
def descend(w, state, x, a, *, optimizer: optax.GradientTransformation):
    """Make a block of steps over all examples; return where they end, and the objective before each."""

    def step(carry, _):
        w, state = carry
        value, gradient = jax.value_and_grad(objective)(w, x, a)
        change, state = optimizer.update(gradient, state)
        return (w + change, state), value

    (w, state), values = lax.scan(step, (w, state), length=BLOCK)
    return w, state, values, jnp.linalg.norm(jax.grad(objective)(w, x, a))


def minimise(x: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Descend from W = 0 until it converges; return W and the objective before each step.

    No curvature of the objective is above L = λ_max(XᵀX/n) / 2 + 2λ (softmax's Jacobian has no eigenvalue above ½) or
    below 2λ, the penalty's own. So α = 1/L descends, (√L − √2λ) / (√L + √2λ) is the momentum that suits both, and
    ‖W − W*‖ ≤ ‖∇‖ / 2λ tells when the minimum is near.
    """
    low = 2 * PENALTY
    high = np.linalg.eigvalsh(x.T @ x / len(x))[-1] / 2 + low
    momentum = (high**0.5 - low**0.5) / (high**0.5 + low**0.5)
    optimizer = optax.sgd(1 / float(high), momentum=float(momentum), nesterov=True)
    w = jnp.zeros((10, x.shape[1]))
    state, history = optimizer.init(w), []
    device_x, device_a = jnp.asarray(x, jnp.float32), jnp.asarray(a)
    for _ in experiment.progress(range(0, MOST, BLOCK), "descending"):
        w, state, values, slope = descend(w, state, device_x, device_a, optimizer=optimizer)
        history.append(np.asarray(values))
        if float(slope) <= low * CLOSE * float(jnp.linalg.norm(w)):
            break
    return np.asarray(w, np.float64), np.concatenate(history)


# ------------------------------------------------------------------------------------------ the same in NumPy


def softmax_of_the_notes(l: np.ndarray) -> np.ndarray:
    """Return p_j = exp(l_j) / Σ_k exp(l_k), in float64."""
    e = np.exp(l - np.max(l, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def update_of_the_notes(w: np.ndarray, x: np.ndarray, a: int) -> np.ndarray:
    """Return w_ji + α (y_j − p_j) x_i, y one-hot."""
    y, p = np.eye(len(w))[a], softmax_of_the_notes(w @ x)
    return w + RATE * np.outer(y - p, x)


def jacobian_of_the_notes(p: np.ndarray) -> np.ndarray:
    """Return ∂p_a/∂l_j: (1 − p_j) p_a where j = a, −p_j p_a elsewhere."""
    return np.array([[(1 - p[j]) * p[a] if a == j else -p[j] * p[a] for j in range(len(p))] for a in range(len(p))])


def objective_of_the_notes(w: np.ndarray, x: np.ndarray, a: np.ndarray) -> float:
    """Return the objective."""
    return -np.mean(np.log(softmax_of_the_notes(x @ w.T)[np.arange(len(a)), a])) + PENALTY * np.sum(w**2)


# ------------------------------------------------------------------------------------------ measuring


def flat(split: Split, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images as rows of numbers from 0 to 1, and the labels."""
    return split.images.reshape(len(split.labels), -1) / largest, split.labels


def measure_update(x, a, seed):
    """Compare single updates of random weights, on one example of each class, with the formula."""
    w = np.random.default_rng(seed).normal(0, 0.1, (10, x.shape[1])).astype(np.float32)
    worst = 0.0
    for row in (np.argmax(a == label) for label in range(10)):
        by_rule = np.asarray(update(jnp.asarray(w), jnp.asarray(x[row], jnp.float32), jnp.asarray(a[row])), np.float64)
        by_hand = update_of_the_notes(w.astype(np.float64), x[row].astype(np.float32).astype(np.float64), a[row])
        worst = max(worst, np.max(np.abs(by_rule - by_hand)) / np.max(np.abs(w)))
    return [experiment.at_most("one update is W + α (y − p) xᵀ: largest difference, eps of max |W|", worst / EPS, 4)]


def measure_example(w, x, a):
    """Compare softmax's derivative with the notes' at the digit of which the classifier is least certain."""
    row = int(np.argmin(np.max(softmax_of_the_notes(x @ w.T), axis=1)))
    l, right = jnp.asarray(x[row] @ w.T, jnp.float32), jnp.asarray(a[row])
    p, jacobian = softmax_of_the_notes(np.asarray(l, np.float64)), np.asarray(jax.jacrev(jaxnn.softmax)(l))
    y, same = np.eye(10)[a[row]], np.eye(10, dtype=bool)
    chain = jax.grad(lambda l: jaxnn.nll(jaxnn.softmax(l), right))(l)
    fused = jax.grad(lambda l: jaxnn.cross_entropy(l, right))(l)
    gap = lambda one, other: np.max(np.abs(np.asarray(one, np.float64) - other)) / EPS  # noqa: E731
    claims = [
        experiment.at_least("softmax, j = a: positive ones of the 10 derivatives", np.sum(jacobian[same] > 0), 10),
        experiment.at_least("softmax, j ≠ a: negative ones of the 90 derivatives", np.sum(jacobian[~same] < 0), 90),
        experiment.at_most(
            "softmax: ∂p_a/∂l_j by rule is p_a (1 − p_a), −p_j p_a: largest difference, eps",
            gap(jacobian, jacobian_of_the_notes(p)),
            8,
        ),
        experiment.at_most(
            "(−1/p_a) ∂p_a/∂l_j, layer by layer, is p − y: largest difference, eps", gap(chain, p - y), 8
        ),
        experiment.at_most("cross entropy's own ∂L/∂l_j is p − y: largest difference, eps", gap(fused, p - y), 8),
    ]
    return claims, {
        "image": experiment.numbers(x[row], 3),
        "class": int(a[row]),
        "p": experiment.numbers(p, 5),
        "jacobian": experiment.numbers(jacobian, 4),
    }


def measure(options: argparse.Namespace) -> experiment.Results:
    """Run the experiment."""
    data = load(options.dataset, options.data_dir)
    largest = int(data.train.images.max())
    (x, a), (x_validation, a_validation) = flat(data.train, largest), flat(data.validation, largest)
    w, history = minimise(x, a)
    # scikit-learn minimises C Σ −log p_a + ½ Σ w², which is ours times C n.
    peer = LogisticRegression(C=1 / (2 * PENALTY * len(a)), fit_intercept=False, tol=1e-7, max_iter=10_000).fit(x, a)
    least = objective_of_the_notes(peer.coef_, x, a)
    p, p_peer = softmax_of_the_notes(x_validation @ w.T), softmax_of_the_notes(x_validation @ peer.coef_.T)
    # ‖Δp‖ ≤ ½ ‖ΔW‖ ‖x‖, as no eigenvalue of softmax's Jacobian is above ½.
    apart = CLOSE * np.linalg.norm(peer.coef_) * np.max(np.linalg.norm(x_validation, axis=1))
    claims = measure_update(x, a, options.seed)
    claims_of_example, example = measure_example(w, x_validation, a_validation)
    claims += [
        *claims_of_example,
        experiment.at_most(
            "descent arrives at scikit-learn's minimum: difference of the objectives",
            abs(objective_of_the_notes(w, x, a) - least),
            1e-4,
        ),
        experiment.at_most(
            "… ‖W − W*‖ relative to ‖W*‖", np.linalg.norm(w - peer.coef_) / np.linalg.norm(peer.coef_), 2 * CLOSE
        ),
        experiment.at_most("… largest difference of a validation digit's p", np.max(np.abs(p - p_peer)), apart),
    ]
    splits = [flat(split, largest) for split in (data.train, data.validation, data.test)]
    accuracy = lambda w, x, a: np.mean(np.argmax(x @ w.T, axis=1) == a)  # noqa: E731
    rows = [
        [name, steps, objective_of_the_notes(w, x, a), *(accuracy(w, *split) for split in splits)]
        for name, steps, w in (
            ("gradient descent with momentum", len(history), w),
            ("scikit-learn, L-BFGS", int(peer.n_iter_[0]), peer.coef_),
        )
    ]
    shown = np.unique(np.geomspace(1, len(history), 150).astype(int)) - 1
    return {
        "claims": claims,
        "tables": [
            experiment.table(
                f"Softmax regression on {data.name}, λ = {PENALTY:g}: two ways to one minimum",
                ["way", "steps", "objective", "training accuracy", "validation", "test"],
                rows,
            )
        ],
        "shape": list(data.train.images.shape[1:3]),
        "classes": list(data.classes),
        "weights": experiment.numbers(w, 3),
        "curve": {
            "step": shown.tolist(),
            "objective": experiment.numbers(history[shown], 7),
            "least": float(least),
        },
        "example": example,
    }


# ------------------------------------------------------------------------------------------ pictures


CAPTIONS = {
    "softmax_regression_descent": ("Gradient descent towards the one minimum, which scikit-learn's solver finds, too."),
    "softmax_regression_example": (
        "One digit: p before training, y − p, and the two cases of softmax's derivative, positive only where j = a."
    ),
    "softmax_regression_weights": "The learned weights of each class, as images.",
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw the weights, the descent, and one digit's p, y − p and Jacobian."""
    return {
        "softmax_regression_weights": draw_weights(results),
        "softmax_regression_descent": draw_descent(results["curve"]),
        "softmax_regression_example": draw_example(results["example"], results["shape"], results["classes"]),
    }


def draw_weights(results):
    """Draw each class's row of W as an image, all on one scale about 0."""
    figure, axes = experiment.panels(2, 5, width=1.5, height=1.7)
    limit = np.max(np.abs(results["weights"]))
    for axis, row, name in zip(axes.flat, results["weights"], results["classes"], strict=True):
        experiment.picture(axis, np.reshape(row, results["shape"]), limit=limit)
        axis.set_title(name, loc="center")
    figure.suptitle("The weights of each class: red speaks for it, blue against it")
    figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.9, aspect=30).outline.set_visible(False)
    return figure


def draw_descent(curve):
    """Draw the objective above scikit-learn's minimum."""
    figure, ((axes,),) = experiment.panels(1, 1, width=5.4)
    above = np.asarray(curve["objective"]) - curve["least"]
    axes.loglog(np.asarray(curve["step"]) + 1, np.maximum(above, 1e-7))
    axes.set(
        title="The objective above scikit-learn's minimum", xlabel="step of full-batch descent", ylim=(0.7e-7, None)
    )
    axes.annotate("float32 shows no less", (1, 1e-7), xytext=(2, 4), textcoords="offset points", color=experiment.GREY)
    axes.axhline(1e-7, color=experiment.GREY, linewidth=0.8, linestyle="--")
    return figure


def draw_example(example, shape, classes):
    """Draw one digit, its p and y − p, and the derivatives of every p_a by every l_j."""
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    digit, probability, error, matrix = figure.subplots(1, 4, width_ratios=(0.8, 0.9, 0.9, 1.5))
    p, places, right = np.asarray(example["p"]), np.arange(10), example["class"]
    colours = np.where(places == right, experiment.VERMILION, experiment.BLUE)
    experiment.picture(digit, np.reshape(example["image"], shape))
    digit.set_title(f"x, of class a = {classes[right]}", fontsize=11)
    probability.barh(places, p, color=colours)
    probability.set_title("p")
    error.barh(places, np.eye(10)[right] - p, color=colours)
    error.axvline(0, color=experiment.GREY, linewidth=0.8)
    error.set_title("y − p: up for a, down for the others")
    for axes in (probability, error):
        axes.set(yticks=places, yticklabels=classes, ylim=(9.5, -0.5), axisbelow=True)
        axes.grid(visible=False, axis="y")
    jacobian = np.asarray(example["jacobian"])
    limit = np.max(np.abs(jacobian))
    experiment.picture(matrix, jacobian, limit=limit)
    for (a, j), value in np.ndenumerate(jacobian):
        sign, ink = "−" if value < 0 else "+", "white" if abs(value) > limit / 2 else experiment.INK
        number = f"{abs(value):.2f}".lstrip("0") if abs(value) >= 0.005 else ""
        matrix.text(j, a, sign + number, ha="center", va="center", fontsize=6.5, color=ink)
    matrix.set(xticks=places, yticks=places, xticklabels=classes, yticklabels=classes, xlabel="j", ylabel="a")
    matrix.set_title("∂p_a/∂l_j: positive only where j = a", fontsize=11)
    figure.colorbar(matrix.images[0], ax=matrix).outline.set_visible(False)
    return figure


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--dataset", choices=DATASETS, default="digits", help="(default digits)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the four IDX files of mnist or fashion_mnist")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
