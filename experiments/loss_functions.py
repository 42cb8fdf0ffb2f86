"""Why the notes' loss is −log p: its gradient, its training and its arithmetic beside those of 1 − p and −p.

Five parts. The gradient of each loss by p and by the logit, as a function of p. Softmax regression on the digits by
each loss, with the same start, order and step size, and with the best step size of each; also from a start that is
certainly wrong, and with 40% of the labels drawn at random. The logits at which −log of a softmax loses its digits in
float32, bfloat16 and float16, while the fused form keeps them. A product of probabilities against the sum of their
logarithms. The notes' example p = (.3, .2, .5), worked out.

Source: Neural Networks Basics, "A handwritten digits recognition", "Note: why NLL softmax?", "NLL softmax (Back
propagation)"; Multi-class classification and backpropagation, "Recap: Cross Entropy Loss", "A Better Loss", "Inverse
Probability", "Derivative for Cross Entropy Loss Layer". A bounded loss is better with wrong labels: Ghosh, Kumar &
Sastry 2017, arXiv:1712.09482.
"""

import argparse
import functools
import math
import sys

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
from _loss_functions_arithmetic import (
    DTYPES,
    EPS,
    GAPS,
    INVERSE,
    LOG,
    LOSSES,
    MINUS,
    RIGHT,
    VALUES,
    measure_differences,
    measure_precision,
    measure_product,
    of_true,
)
from jax import lax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

import jaxnn
from jaxnn.data import Split, load

COLOURS = {LOG: experiment.BLUE, INVERSE: experiment.VERMILION, MINUS: experiment.INK}
DRAWN = {"float32": (4, experiment.SKY), "bfloat16": (2.5, experiment.VERMILION), "float16": (1.2, experiment.INK)}
CLASSES, BATCH = 10, 32
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SHARED = 0.1  # the step size of the curves
STARTS = ("weights 0", "wrong start", "wrong labels")
WRONG_SCALE, WRONG_SHARE = 0.3, 0.4  # standard deviation of the wrong start's weights; share of the random labels
SURELY_WRONG = 1e-3  # p_t below it
P, TRUE = (0.3, 0.2, 0.5), 2  # the notes' example
LOGS_IN_THE_NOTES = {0.9: -0.04, 0.5: -0.3, 0.001: -3.0}


SLOPES = {LOG: lambda p: -1 / p, INVERSE: lambda p: -np.ones_like(p), MINUS: lambda p: -np.ones_like(p)}  # by p_t


def loss_of_logits(name: str, x: Float[Array, "*n c"], t: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Return a loss of softmax(x); −log p in its fused form."""
    return jaxnn.cross_entropy(x, t, reduction="none") if name == LOG else LOSSES[name](jaxnn.softmax(x), t)


def measure_gradients():
    """Differentiate each loss by p_t and by the true logit; the other classes share 1 − p_t equally."""
    wanted = np.concatenate([np.geomspace(1e-4, 0.5, 60), 1 - np.geomspace(0.5, 1e-3, 40)])
    logit = np.log(wanted / (1 - wanted) * (CLASSES - 1)).astype(np.float32)
    x, t = jnp.zeros((len(logit), CLASSES)).at[:, 0].set(logit), jnp.zeros(len(logit), jnp.int32)
    p = jaxnn.softmax(x)
    exact = 1 / (1 + (CLASSES - 1) * np.exp(-logit.astype(np.float64)))  # p_t in float64
    by_p, by_logit, error_p, error_logit = {}, {}, 0.0, 0.0
    for name in LOSSES:
        to_p = jax.grad(lambda p, name=name: jnp.sum(LOSSES[name](p, t)))(p)[:, 0]
        to_logit = jax.grad(lambda x, name=name: jnp.sum(loss_of_logits(name, x, t)))(x)[:, 0]
        by_p[name], by_logit[name] = (np.abs(np.float64(g)) for g in (to_p, to_logit))
        slope = SLOPES[name](exact)
        error_p = max(error_p, np.max(np.abs(to_p / slope - 1)))
        error_logit = max(error_logit, np.max(np.abs(to_logit - slope * exact * (1 - exact)) / np.abs(slope * exact)))
    near_0 = {name: np.interp(1e-3, exact, size) for name, size in by_logit.items()}
    claims = [
        experiment.at_most("∂l/∂p_t is −1/p, −1 and −1: largest relative error", error_p, 8 * EPS["float32"]),
        experiment.at_most(
            "∂l/∂logit is −(1 − p), −p (1 − p) and −p (1 − p): largest error, relative to its terms",
            error_logit, 16 * EPS["float32"],
        ),
        experiment.at_least("−log p's gradient by the logit stays large: its size at p = 0.001", near_0[LOG], 0.99),
        experiment.at_most(
            "that of 1 − p and −p vanishes: its size at p = 0.001", max(near_0[INVERSE], near_0[MINUS]), 0.01
        ),
    ]  # fmt: skip
    sizes = {"by p": by_p, "by logit": by_logit}
    return claims, {"p": experiment.numbers(exact, 7)} | {
        by: {name: experiment.numbers(size, 4) for name, size in curves.items()} for by, curves in sizes.items()
    }


# ------------------------------------------------------------------------------------------ training


def probabilities(w: Float[Array, "c d"], images: Float[Array, "n d"]) -> Float[Array, "n c"]:
    """Return softmax(Wx)."""
    return jaxnn.softmax(jaxnn.linear(images, w))


def accuracy(w: Float[Array, "c d"], images: Float[Array, "n d"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Return the share of images whose likeliest class is the true one."""
    return jnp.mean(jnp.argmax(jaxnn.linear(images, w), -1) == labels, dtype=jnp.float32)


accuracies = jax.jit(jax.vmap(jax.vmap(accuracy, (0, None, None)), (0, None, None)))  # of each repeat and step size


@functools.partial(jax.jit, static_argnames=("name", "passes"))
def descend(w, images, labels, truth, keys, rates, *, name, passes):
    """Descend for each repeat and each step size; return W at the end, and the accuracy after each pass."""

    def loss(w: Array, x: Array, t: Array) -> Array:
        return jnp.mean(loss_of_logits(name, jaxnn.linear(x, w), t))

    def run(w: Array, labels: Array, key: Array, rate: Array) -> tuple[Array, Array]:
        def one_pass(w: Array, number: Array) -> tuple[Array, Array]:
            order = jax.random.permutation(jax.random.fold_in(key, number), len(images))
            batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
            w, _ = lax.scan(lambda w, b: (w - rate * jax.grad(loss)(w, images[b], labels[b]), None), w, batches)
            return w, accuracy(w, images, truth)

        return lax.scan(one_pass, w, jnp.arange(passes))

    return jax.vmap(jax.vmap(run, (None, None, None, 0)), (0, 0, 0, None))(w, labels, keys, rates)


def inputs(split: Split, mean: float, deviation: float) -> tuple[Array, Array]:
    """Return standardised pixels, with a 1 for the bias, and labels."""
    pixels = (split.images.reshape(len(split.images), -1) - mean) / deviation
    return jnp.asarray(np.c_[pixels, np.ones(len(pixels))], jnp.float32), jnp.asarray(split.labels)


def starts(seed: int, repeats: int, labels: Array, inputs: int) -> dict[str, tuple[Array, Array]]:
    """Return the weights and labels that the trainings start with, one of each for every repeat."""
    rng = np.random.default_rng(seed)
    zeros, true = np.zeros((repeats, CLASSES, inputs)), np.tile(labels, (repeats, 1))
    wrong = np.where(rng.random(true.shape) < WRONG_SHARE, rng.integers(0, CLASSES, true.shape), true)
    scattered = WRONG_SCALE * rng.standard_normal(zeros.shape)
    made = dict(zip(STARTS, ((zeros, true), (scattered, true), (zeros, wrong)), strict=True))
    return {name: (jnp.asarray(w, jnp.float32), jnp.asarray(t, jnp.int32)) for name, (w, t) in made.items()}


def first_pass(curve: np.ndarray, level: float) -> int:
    """Return the first pass after which the accuracy is at least `level`; if none is, one more than all passes."""
    return int(np.argmax(np.append(curve, 1) >= level)) + 1


def measure_training(seed: int, repeats: int, passes: int):
    """Train by each loss from each start at each step size."""
    digits = load("digits")
    scale = digits.train.images.mean(), digits.train.images.std()
    (x, t), *held_out = (inputs(split, *scale) for split in (digits.train, digits.validation, digits.test))
    begun = starts(seed, repeats, digits.train.labels, x.shape[1])
    keys, shared = jax.random.split(jax.random.key(seed), repeats), RATES.index(SHARED)
    rows, weights, best, to_90, curves = [], {}, {}, {}, {}
    for start in experiment.progress(STARTS, "training"):
        w0, labels = begun[start]
        for name in LOSSES:
            w, after = descend(w0, x, labels, t, keys, jnp.array(RATES), name=name, passes=passes)
            validation, test = (np.asarray(accuracies(w, *split)) for split in held_out)
            picked = np.argmax(validation, axis=1)  # the step size, by validation, of each repeat
            best[start, name] = test[range(repeats), picked]
            weights[start, name], after = np.asarray(w[:, shared]), np.asarray(after[:, shared])
            to_90[start, name] = np.mean([first_pass(curve, 0.9) for curve in after])
            steps = " ".join(f"{RATES[i]:g}" for i in sorted(set(picked)))
            tested, reached = best[start, name], to_90[start, name]
            shown = experiment.shown(reached) if reached <= passes else "never"
            rows.append([start, name, shown, after[:, -1].mean(), steps, tested.mean(), tested.min(), tested.max()])
            curves.setdefault(start, {})[name] = {
                "accuracy": [experiment.numbers(each(after, axis=0), 4) for each in (np.mean, np.min, np.max)],
                "validation": experiment.numbers(validation.mean(0), 4),
            }
    gap = {start: np.mean(best[start, LOG] - best[start, INVERSE]) for start in STARTS}
    lost = np.stack([of_true(probabilities(w, x), t) for w in begun["wrong start"][0]]) < SURELY_WRONG
    right = {
        name: np.mean(np.stack([jnp.argmax(probabilities(w, x), -1) == t for w in weights["wrong start", name]])[lost])
        for name in LOSSES
    }
    apart = max(np.max(np.abs(weights[start, INVERSE] - weights[start, MINUS])) for start in STARTS)
    claims = [
        experiment.at_most("1 − p and −p differ by a constant and train the same: largest difference in W", apart, 0),
        experiment.at_least(
            "from weights 0: passes to 90% of the training images, 1 − p over −log p",
            to_90["weights 0", INVERSE] / to_90["weights 0", LOG], 3,
        ),
        experiment.at_least(
            "wrong start: right at the end, of the images with p_t < 0.001 at first, by −log p", right[LOG], 0.9
        ),
        experiment.at_most("the same by 1 − p", right[INVERSE], 0.5),
        experiment.at_least(
            "wrong start, each at its best step size: test accuracy, −log p less 1 − p", gap["wrong start"], 0.03
        ),
        experiment.at_most(
            "not so from weights 0: the two at their best step sizes are as good: difference in test accuracy",
            abs(gap["weights 0"]), 0.03,
        ),
        experiment.at_most("nor with 40% random labels: test accuracy, −log p less 1 − p", gap["wrong labels"], 0),
    ]  # fmt: skip
    columns = ["start", "loss", "passes to 90%", f"train, η = {SHARED}", "best η", "test", "least", "most"]
    title = f"Softmax regression on the digits, {repeats} repeats of {passes} passes: accuracy against the true labels"
    p = of_true(probabilities(jnp.asarray(weights["weights 0", LOG][0]), x), t)
    return claims, experiment.table(title, columns, rows), curves, p


# ------------------------------------------------------------------------------------------ the notes' numbers


def measure_example():
    """Work p = (.3, .2, .5) with the third class true, and the notes' three logarithms."""
    p, t = jnp.array(P), jnp.int32(TRUE)
    x, e = jnp.log(p), np.eye(3)[TRUE]
    rows, worst = [], 0.0
    values = {LOG: -math.log(0.5), INVERSE: 0.5, MINUS: -0.5}
    for name, value in values.items():
        slope = float(SLOPES[name](np.float64(0.5)))
        by_hand = [value, *(slope * e), *(slope * 0.5 * (e - np.array(P)))]
        by_rule = [LOSSES[name](p, t), *jax.grad(LOSSES[name])(p, t), *jax.grad(loss_of_logits, 1)(name, x, t)]
        worst = max(worst, np.max(np.abs(np.array(by_rule, np.float64) - by_hand)))
        rows.append([name, *map(float, by_rule)])
    slope = (math.log(0.5 + 1e-6) - math.log(0.5 - 1e-6)) / 2e-6
    slope_10 = (math.log10(0.5 + 1e-6) - math.log10(0.5 - 1e-6)) / 2e-6
    by_rule = -float(jax.grad(LOSSES[LOG])(p, t)[TRUE])
    logs = [[q, math.log(q), math.log10(q), written] for q, written in LOGS_IN_THE_NOTES.items()]
    claims = [
        experiment.at_most("p = (.3, .2, .5): losses and gradients by rule and by hand: difference", worst, 1e-6),
        experiment.at_most("1/p is log's slope at 0.5: relative difference", abs(by_rule / slope - 1), 1e-6),
        experiment.at_most(
            "log₁₀'s is log 10 times smaller: relative difference", abs(by_rule / slope_10 / math.log(10) - 1), 1e-6
        ),
        experiment.at_most(
            "the notes' three logarithms are log₁₀, to two decimals: largest difference",
            max(abs(row[2] - row[3]) for row in logs), 0.01,
        ),
    ]  # fmt: skip
    gradients = [f"∂l/∂{of}{i}" for of in "px" for i in "₀₁₂"]
    return claims, [
        experiment.table("p = (.3, .2, .5), the third class true; x = log p", ["loss", "l", *gradients], rows),
        experiment.table("The notes' examples are to base 10", ["p", "log p", "log₁₀ p", "in the notes"], logs),
    ]


# ------------------------------------------------------------------------------------------ all of it


def measure(options: argparse.Namespace) -> experiment.Results:
    """Run the experiment."""
    claims_of_gradients, gradients = measure_gradients()
    claims_of_training, training, curves, trained = measure_training(options.seed, options.repeats, options.passes)
    claims_of_precision, precision, errors = measure_precision()
    claims_of_differences, differences = measure_differences()
    claims_of_product, product, products = measure_product(trained)
    claims_of_example, example = measure_example()
    claims = [claims_of_example, claims_of_gradients, claims_of_training, claims_of_precision, claims_of_differences]
    return {
        "claims": [claim for each in [*claims, claims_of_product] for claim in each],
        "tables": [*example, training, precision, differences, product],
        "gradients": gradients, "training": curves, "errors": errors, "products": products,
    }  # fmt: skip


CAPTIONS = {
    "loss_functions": (
        "Three losses of p and the size of their gradients: −log p corrects a wrong answer, the others hardly move it."
    ),
    "loss_functions_precision": "Where −log of a softmax loses its digits, by dtype, and the fused form keeps them.",
    "loss_functions_training": (
        "Softmax regression by each loss: from weights 0, from a start that is certainly wrong, and with wrong labels."
    ),
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw the losses and their gradients, the training, and the arithmetic."""
    return {
        "loss_functions": draw_gradients(results["gradients"]),
        "loss_functions_training": draw_training(results["training"]),
        "loss_functions_precision": draw_precision(results["errors"], results["products"]),
    }


def style(name: str) -> dict[str, object]:
    """Return how a loss is drawn: −p is dashed, as its curves lie on those of 1 − p."""
    return {"color": COLOURS[name], "label": name, "linestyle": (0, (4, 4)) if name == MINUS else "-"}


def draw_gradients(gradients: experiment.Results) -> Figure:
    """Draw each loss and the sizes of its gradients, against p."""
    figure, ((values, by_p, by_logit),) = experiment.panels(1, 3)
    p = np.array(gradients["p"])
    for name in LOSSES:
        values.plot(p, VALUES[name](p), **style(name))
        by_p.loglog(p, gradients["by p"][name], **style(name))
        by_logit.loglog(p, gradients["by logit"][name], **style(name))
    values.set(title="The loss", xlabel="p of the true class", ylim=(-1.2, 6))
    by_p.set(title="Size of its gradient by p", xlabel="p of the true class")
    by_logit.set(title="… and by the true class's logit", xlabel="p of the true class", ylim=(5e-5, 3))
    for axes in (values, by_p, by_logit):
        axes.legend()
    return figure


def draw_training(training: experiment.Results) -> Figure:
    """Draw the accuracy against the passes, and against the step size."""
    figure, (above, below) = experiment.panels(2, 3, sharey="row")
    titles = ("From weights 0", "From a start that is surely wrong", "From weights 0, 40% of the labels random")
    for curve, by_step, start, title in zip(above, below, STARTS, titles, strict=True):
        for name, run in training[start].items():
            mean, least, most = run["accuracy"]
            passes = np.arange(1, len(mean) + 1)
            curve.plot(passes, mean, **style(name))
            if name != MINUS:
                curve.fill_between(passes, least, most, color=COLOURS[name], alpha=0.2, linewidth=0)
            by_step.semilogx(RATES, run["validation"], marker=".", **style(name))
        curve.set(title=title, xlabel=f"passes at η = {SHARED}", xlim=(0, None), ylim=(0, 1.02))
        by_step.set(xlabel="step size η", ylim=(0, 1.02))
    above[0].set_ylabel("accuracy, training images")
    below[0].set_ylabel("accuracy at the end, validation images")
    above[0].legend(loc="lower right")
    return figure


def draw_precision(errors: experiment.Results, products: experiment.Results) -> Figure:
    """Draw the relative error of −log p against the gap; products and sums against the number of terms."""
    figure, (above, below) = experiment.panels(2, 3)
    for axes, (dtype, curves) in zip(above, errors.items(), strict=True):
        axes.semilogy(GAPS, curves["naive"], color=experiment.VERMILION, label="−log softmax")
        axes.semilogy(GAPS, curves["fused"], color=experiment.BLUE, label="cross_entropy", linestyle=(0, (4, 2)))
        axes.axhline(RIGHT, color=experiment.GREY, linewidth=0.8, linestyle=":")
        axes.set(title=f"−log p in {dtype}", xlabel="the other logit less the true one", ylim=(5e-10, 10))
    above[0].set_ylabel("relative error (2: inf)")
    above[0].legend(loc="center right")
    for axes, case in zip(below, ("p = 1/10", "trained"), strict=False):
        curves = products[case]
        longest = max(len(curves[dtype]["product"]) for dtype in DTYPES)
        shown = min(longest + 10, len(curves["truth"]))
        axes.plot(
            np.arange(shown) + 1,
            -np.array(curves["truth"][:shown]) / np.log(10),
            color=experiment.GREY,
            label="Σ log₁₀ p",
        )
        for dtype, (width, color) in DRAWN.items():
            log_product = curves[dtype]["product"]
            axes.plot(np.arange(len(log_product)) + 1, log_product, linewidth=width, color=color, label=dtype)
            if len(log_product) < len(curves["truth"]):
                axes.plot(len(log_product), log_product[-1], "X", color=color, markersize=9)
        axes.set(xlabel="factors")
    below[0].set(title="log₁₀ of a product of p = 1/10 (X: 0 from here)")
    below[1].set(title="… of p_t of the training images, after training")
    below[2].set(title="Σ −log p, p = 1/10, added up in the dtype", xlabel="terms")
    terms = np.arange(len(products["p = 1/10"]["truth"])) + 1
    below[2].plot(terms, products["p = 1/10"]["truth"], color=experiment.GREY, label="float64")
    for dtype, (width, color) in DRAWN.items():
        below[2].plot(terms, products["p = 1/10"][dtype]["sum"], linewidth=width, color=color, label=dtype)
    for axes in below:
        axes.legend()
    return figure


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--repeats", type=experiment.positive, default=5, help="trainings of each kind (default 5)")
    parser.add_argument("--passes", type=experiment.positive, default=60, help="passes over the digits (default 60)")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
