"""The notes' digit recogniser, y = softmax(W₁ maxpool(ReLU(W₀ * x))), and the larger network of the same exercise.

Both are trained by the rules of jaxnn, from several seeds, with the settings of `jaxnn train`. The test images are used
once, at the end. The figures show what the first layer has learned, how it transforms a digit, and the mistakes. The
trained network is compared with the notes' formula in NumPy, and its gradient with JAX's own.

    python experiments/digit_cnn.py --dataset mnist --data-dir DIR

Source: Neural Networks Basics, "A more realistic example: digit recognition", "A handwritten digits recognition", "The
digit recognition example", "Stochastic gradient descent"; the second network is that of PyTorch's MNIST example.
"""

import argparse
import sys
from typing import Any, NamedTuple

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxnn
from jaxnn.cli.train import DEFAULTS
from jaxnn.data import Dataset, load
from jaxnn.models import MODELS, Classifier
from jaxnn.training import fit, init_state, make_optimizer, make_step

FLOORS = {  # of the mean test accuracy; softmax regression, the last layer alone, reaches 97.3% and 92.7%
    ("digits", "cnn"): 0.98,  # a quarter fewer mistakes than softmax regression
    ("digits", "convnet"): 0.98,
    ("mnist", "cnn"): 0.98,  # nearly three quarters fewer
    ("mnist", "convnet"): 0.99,  # half of those that remain
}
FILTERS = 64  # of the notes' network: 3x3 for digits, 5x5 for MNIST
ROWS = 64  # images for the comparisons with NumPy and with JAX's derivative
SHOWN = 8  # mistakes, feature maps
EPS = np.finfo(np.float64).eps


class Run(NamedTuple):
    """What came out of one seed."""

    params: Any
    losses: list[float]  # of each epoch, mean over the training images
    validation: np.ndarray  # probabilities of the classes, a row an image
    test: np.ndarray


def train(name: str, classifier: Classifier, dataset: Dataset, seeds: range, epochs: int) -> list[Run]:
    """Train one model from each seed, with the settings of `jaxnn train`."""
    settings = DEFAULTS[dataset.name, name]
    images, labels = jax.device_put((dataset.train.images, dataset.train.labels))
    steps = epochs * -(-len(labels) // settings.batch_size)
    optimizer = make_optimizer(settings.optimizer, settings.learning_rate, steps, schedule=settings.schedule)
    step = make_step(classifier.loss(l2=settings.l2, dropout=settings.dropout), optimizer)
    runs = []
    for seed in seeds:
        init_key, run_key = jax.random.split(jax.random.key(seed))
        params = classifier.model.init(init_key, images.shape[1:], len(dataset.classes))
        state, losses = init_state(params, optimizer, run_key), []
        passes = fit(step, state, images, labels, epochs=epochs, batch_size=settings.batch_size)
        for epoch in experiment.progress(passes, f"{name}, seed {seed}", epochs):
            losses.append(epoch.metrics["nll"] / epoch.metrics["count"])
        params = jax.tree.map(np.asarray, epoch.state.params)
        parts = [probabilities(classifier, params, split.images) for split in (dataset.validation, dataset.test)]
        runs.append(Run(params, losses, *parts))
    return runs


def probabilities(classifier: Classifier, params: Any, images: np.ndarray) -> np.ndarray:
    """Return y of images, a thousand at a time."""
    y = jax.jit(lambda params, images: jaxnn.softmax(classifier.logits(params, images)))
    return np.concatenate([y(params, images[i : i + 1000]) for i in range(0, len(images), 1000)])


def network(x: np.ndarray, W0: np.ndarray, W1: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return x₁, x₂, x₃ and y of images (n, height, width, channel): the notes' formula, in NumPy."""
    patches = np.lib.stride_tricks.sliding_window_view(x, W0.shape[:2], axis=(1, 2))
    x1 = np.einsum("nijcab,abco->nijo", patches, W0, optimize=True)
    x2 = np.maximum(x1, 0)
    n, height, width, filters = x2.shape
    x3 = x2.reshape(n, height // 2, 2, width // 2, 2, filters).max(axis=(2, 4))
    x4 = x3.reshape(n, -1) @ W1.T
    e = np.exp(x4 - x4.max(axis=1, keepdims=True))
    return x1, x2, x3, e / e.sum(axis=1, keepdims=True)


def claims_of_training(name: str, dataset: Dataset, runs: list[Run]) -> list[experiment.Results]:
    """Claim what the training reaches."""
    test = np.mean([share_right(run.test, dataset.test) for run in runs])
    last = max(run.losses[-1] for run in runs) / np.log(len(dataset.classes))
    return [
        experiment.at_least(f"{name}: mean test accuracy", test, FLOORS[dataset.name, name]),
        experiment.at_most(f"{name}: the loss falls, last epoch over that of guessing, log 10, worst seed", last, 0.1),
    ]


def share_right(y: np.ndarray, split: Any) -> float:
    """Return the accuracy."""
    return float(np.mean(np.argmax(y, axis=1) == split.labels))


def claim_of_gradient(name: str, classifier: Classifier, dataset: Dataset, params: Any) -> experiment.Results:
    """Claim that the rules give JAX's derivative of the training loss, dropout included, at the trained parameters.

    In float64, relative to the largest element of each array. An element of ∂L/∂W₀ is a sum over images and pixels.
    """
    settings, labels = DEFAULTS[dataset.name, name], dataset.train.labels[:ROWS]
    with jax.enable_x64(True):
        x = jnp.asarray((dataset.train.images[:ROWS] - classifier.mean) / classifier.std)
        params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), params)

        def loss(params: Any) -> jax.Array:
            logits = classifier.model.apply(params, x, key=jax.random.key(0), dropout=settings.dropout)
            return jaxnn.cross_entropy(logits, labels) + settings.l2 * jaxnn.l2_penalty(params)

        by_rule = jax.jit(jax.grad(loss))(params)
        by_jax = jax.jit(jax.grad(jaxnn.automatic(loss)))(params)
        worst = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), by_rule, by_jax)
    largest = max(map(float, jax.tree.leaves(worst)))
    return experiment.at_most(f"{name}: gradient by rule is JAX's own, of the largest element", largest, EPS * x.size)


def claims_of_notes(classifier: Classifier, dataset: Dataset, params: Any) -> list[experiment.Results]:
    """Claim that the trained cnn is the notes' formula, and has no bias."""
    height, width, channels = dataset.train.images.shape[1:]
    window = 3 if dataset.name == "digits" else 5
    pooled = ((height - window + 1) // 2) * ((width - window + 1) // 2) * FILTERS
    weights = window**2 * channels * FILTERS + len(dataset.classes) * pooled
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
        x = (dataset.validation.images[:ROWS] - classifier.mean) / classifier.std
        by_library = np.asarray(jaxnn.softmax(classifier.model.apply(wide, jnp.asarray(x))))
        of_nothing = np.asarray(classifier.model.apply(wide, jnp.zeros_like(x)))
    difference = np.max(np.abs(by_library - network(x, wide["W0"], wide["W1"])[-1]))
    return [
        experiment.at_most(
            "cnn: y is softmax(W₁ maxpool(ReLU(W₀ * x))) in NumPy, largest difference", difference, EPS * pooled
        ),
        experiment.at_most(
            "cnn: parameters that are not in W₀ and W₁", sum(map(np.size, jax.tree.leaves(params))) - weights, 0
        ),
        experiment.at_most("cnn: without biases x = 0 gives x₄ = 0, largest element", np.max(np.abs(of_nothing)), 0),
    ]


def worst_mistakes(y: np.ndarray, split: Any) -> list[experiment.Results]:
    """Return the wrongly classified images, the smallest probability of the true class first."""
    wrong = np.flatnonzero(np.argmax(y, axis=1) != split.labels)
    order = wrong[np.argsort(y[wrong, split.labels[wrong]])]
    return [
        {
            "image": split.images[i, :, :, 0].tolist(),
            "true": int(split.labels[i]),
            "predicted": int(np.argmax(y[i])),
            "p_true": float(y[i, split.labels[i]]),
            "p_predicted": float(np.max(y[i])),
        }
        for i in order[:SHOWN]
    ]


def what_it_sees(classifier: Classifier, dataset: Dataset, params: Any) -> experiment.Results:
    """Return W₀, and what the filters that add most to the logit of one digit's class make of it."""
    image, label = dataset.validation.images[:1], int(dataset.validation.labels[0])
    W0, W1 = params["W0"], params["W1"]
    x1, _, x3, _ = network((image - classifier.mean) / classifier.std, W0, W1)
    spoken = np.sum(x3[0] * W1[label].reshape(x3[0].shape), axis=(0, 1))
    most = np.argsort(-spoken)[:SHOWN]
    return {
        "filters": experiment.numbers(np.moveaxis(W0[:, :, 0], -1, 0), 3),
        "image": image[0, :, :, 0].tolist(),
        "class": label,
        "most": most.tolist(),
        "spoken": experiment.numbers(spoken[most], 3),
        "x1": experiment.numbers(np.moveaxis(x1[0][:, :, most], -1, 0), 3),
    }


def measure(options: argparse.Namespace) -> experiment.Results:
    """Run the experiment."""
    dataset = load(options.dataset, options.data_dir)
    seeds = range(options.seed, options.seed + options.seeds)
    results: experiment.Results = {"claims": [], "tables": [], "curves": {}, "accuracy": {}, "mistakes": {}}
    rows = []
    for name in ("cnn", "convnet"):
        classifier = Classifier(MODELS[name], float(dataset.train.images.mean()), float(dataset.train.images.std()))
        epochs = options.epochs or DEFAULTS[dataset.name, name].epochs
        runs = train(name, classifier, dataset, seeds, epochs)
        first = runs[0].params
        results["claims"] += claims_of_training(name, dataset, runs)
        results["claims"].append(claim_of_gradient(name, classifier, dataset, first))
        if name == "cnn":
            results["claims"] += claims_of_notes(classifier, dataset, first)
            results["sees"] = what_it_sees(classifier, dataset, first)
        shares = {
            "validation": [share_right(run.validation, dataset.validation) for run in runs],
            "test": [share_right(run.test, dataset.test) for run in runs],
        }
        results["curves"][name] = [experiment.numbers(run.losses, 4) for run in runs]
        results["accuracy"][name] = {**shares, "floor": FLOORS[dataset.name, name]}
        results["mistakes"][name] = worst_mistakes(runs[0].test, dataset.test)
        wrong = [round(len(dataset.test.labels) * (1 - share)) for share in shares["test"]]
        size = f"{sum(map(np.size, jax.tree.leaves(first))):,}"
        rows.append(
            [name, size, epochs, spread(shares["validation"]), spread(shares["test"]), ", ".join(map(str, wrong))]
        )
    title = f"{dataset.name}: accuracy, mean ± standard deviation (seeds: {len(seeds)})"
    columns = ["network", "parameters", "epochs", "validation", "test", f"wrong of {len(dataset.test.labels)}"]
    results["tables"].append(experiment.table(title, columns, rows))
    return results


def spread(shares: list[float]) -> str:
    """Return the mean and, where there is more than one, the standard deviation, in percent."""
    deviation = f" ± {100 * np.std(shares, ddof=1):.2f}" if len(shares) > 1 else ""
    return f"{100 * np.mean(shares):.2f}{deviation} %"


CAPTIONS = {
    "digit_cnn": "Training of both networks, and their test accuracies over the seeds.",
    "digit_cnn_features": (
        "All filters of the notes' network, and how eight of them transform a digit on the way to its logit."
    ),
    "digit_cnn_mistakes": "The most confident mistakes on test images: true class, predicted class, probability.",
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw the training, the features, and the mistakes."""
    return {
        "digit_cnn": draw_training(results["curves"], results["accuracy"]),
        "digit_cnn_features": draw_features(results["sees"]),
        "digit_cnn_mistakes": draw_mistakes(results["mistakes"]),
    }


def draw_training(curves, accuracies):
    """Draw the loss of each epoch, and the accuracies at the end."""
    figure, ((loss, accuracy),) = experiment.panels(1, 2, width=5.2, height=3.8)
    labels = []
    for (name, runs), colour in zip(curves.items(), experiment.COLOURS, strict=False):
        for i, losses in enumerate(runs):
            loss.semilogy(
                range(1, len(losses) + 1), losses, ".-", markersize=3, color=colour, alpha=0.8, label="" if i else name
            )
        for part in ("validation", "test"):
            place, values = len(labels), 100 * np.array(accuracies[name][part])
            labels.append(f"{name}\n{part}")
            aside = place + 0.1 * (np.arange(len(values)) - (len(values) - 1) / 2)  # equal ones side by side
            accuracy.plot(aside, values, "o", color=colour, alpha=0.7)
            accuracy.hlines(np.mean(values), place - 0.2, place + 0.2, color=experiment.INK)
            accuracy.annotate(f"{np.mean(values):.2f}", (place + 0.22, np.mean(values)), va="center")
        accuracy.hlines(100 * accuracies[name]["floor"], place - 0.2, place + 0.2, color=experiment.GREY, linestyle=":")
        accuracy.annotate("claimed", (place + 0.22, 100 * accuracies[name]["floor"]), va="center")
    loss.axhline(np.log(10), color=experiment.GREY, linestyle=":", label="guessing, log 10")
    loss.set(title="Training loss, a line a seed", xlabel="epoch", ylabel="mean of −log y_t, with dropout")
    loss.legend()
    accuracy.set(title="Accuracy (%), a dot a seed, and the mean", xticks=range(len(labels)), xlim=(-0.5, len(labels)))
    accuracy.set_xticklabels(labels)
    return figure


def draw_features(sees):
    """Draw all filters, and beside them what some make of a digit."""
    filters, x1 = np.array(sees["filters"]), np.array(sees["x1"])
    count, height, width = x1.shape
    x2 = np.maximum(x1, 0)
    x3 = x2.reshape(count, height // 2, 2, width // 2, 2).max(axis=(2, 4))
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.75))
    limit = np.max(np.abs(filters))
    for axes, each in zip(left.subplots(8, 8).flat, filters, strict=True):
        experiment.picture(axes, each, limit=limit)
    left.suptitle("All of W₀ (red +, blue −)", fontsize=11)
    grid = right.subplots(4, count + 1)
    rows = {"W₀": filters[sees["most"]], "W₀ * x": x1, "ReLU": x2, "maxpool": x3}
    experiment.picture(grid[0, 0], sees["image"], title=f"x, a {sees['class']}")
    for axis in grid[1:, 0]:
        axis.set_axis_off()
    for row, (name, images) in enumerate(rows.items()):
        for axis, image in zip(grid[row, 1:], images, strict=True):
            signed = {"limit": np.max(np.abs(images))} if row < 2 else {}
            experiment.picture(axis, image, **signed)
        grid[row, 1].set_ylabel(name)
    for axis, spoken in zip(grid[3, 1:], sees["spoken"], strict=True):
        axis.set_xlabel(f"+{spoken:.1f}", fontsize=9)
    right.suptitle(f"The filters that add most to the logit of {sees['class']}, and by how much", fontsize=11)
    return figure


def draw_mistakes(mistakes):
    """Draw the worst mistakes of each network."""
    columns = max(3, *map(len, mistakes.values()))
    figure, axes = experiment.panels(len(mistakes), columns, width=1.8, height=2.3)
    for row, (name, images) in zip(axes, mistakes.items(), strict=True):
        for axis in row[len(images) :]:
            axis.set_axis_off()
        for axis, each in zip(row, images, strict=False):
            experiment.picture(axis, each["image"])
            axis.set_title(f"a {each['true']}: y = {each['p_true']:.2g}", fontsize=10, loc="center")
            sure = f"= {each['p_predicted']:.2g}" if each["p_predicted"] < 0.99 else "≥ 0.99"
            axis.set_xlabel(f"said {each['predicted']}: y {sure}")
        row[0].set_ylabel(name)
    figure.suptitle("The worst mistakes of the first seed")
    return figure


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits", help="digits (default) or mnist")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST's four IDX files, .gz or raw")
    parser.add_argument("--seeds", type=experiment.positive, default=3, help="trainings of each network (default 3)")
    parser.add_argument("--epochs", type=experiment.positive, help="passes over the images (default: as `jaxnn train`)")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
