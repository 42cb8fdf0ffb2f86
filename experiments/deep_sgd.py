"""A deep network trained one example at a time, θ ← θ + αΔ with Δ = −∇l(f(x; θ), y) − λ∇Ω(θ), as the lecture writes it.

Its algorithm needs four things: the loss l = −log f(x)_y; a procedure for its gradient (jaxnn's rules, compared with
back propagation in NumPy and with numeric derivatives); a regulariser Ω (none, Σ|θ| and Σθ²); and an initialisation.
The lecture's θ is every W and every b, so Ω(θ) penalises the biases, too. The examples are visited in their order in
every epoch, as in the lecture. It names no regulariser and no initialisation: these are ours. Zeros with ReLU leave
every hidden unit at 0 for ever, as its derivative is 0 there.

Source: Larochelle, Neural networks, "stochastic gradient descent (SGD)", "loss gradient at output", "loss gradient at
output pre-activation".
"""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

import jaxnn
from jaxnn.data import Split, load
from jaxnn.models import mlp

Theta = dict[str, Any]  # {"linear1": {"w": W⁽¹⁾, "b": b⁽¹⁾}, …}, on the device or in NumPy
Omega = Callable[[Theta], Float[Array, ""]]

RATE = 0.02  # α
STRENGTH = 3e-4  # λ
LAYERS = ("linear1", "linear2", "linear3")
OMEGAS: dict[str, Omega] = {"none": lambda theta: jnp.float32(0), "L1": jaxnn.l1_penalty, "L2": jaxnn.l2_penalty}
INITIALIZERS = {  # of a W with a row for each unit
    "glorot": jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2),
    "he": jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2),
    "zeros": jax.nn.initializers.zeros,
}
EPS = np.finfo(np.float32).eps
ROUNDINGS = 1000  # bound for one update: a path forward and back has some hundred sums and products
REACHED = 0.9  # of the validation digits: a linear model has 97% of them, with a standard error below 2%
SIZES = np.geomspace(1e-7, 3, 100)  # of |θ|, in the picture
UNITS = 14  # in the picture


def initialise(name: str, key: Array) -> Theta:
    """Return θ: every W drawn as named, every b zero."""
    theta = mlp.init(key, (8, 8, 1), 10)
    for k, layer in zip(jax.random.split(key, len(LAYERS)), LAYERS, strict=True):
        theta[layer]["w"] = INITIALIZERS[name](k, theta[layer]["w"].shape, jnp.float32)
    return theta


def loss(theta: Theta, x: Float[Array, "h w 1"], y: Int[Array, ""]) -> Float[Array, ""]:
    """Return l(f(x; θ), y) = −log f(x)_y of one example."""
    return jaxnn.cross_entropy(mlp.apply(theta, x[None]), y[None])


@functools.partial(jax.jit, static_argnames="omega")
def delta(theta: Theta, x: Array, y: Array, strength: float, omega: Omega) -> Theta:
    """Return Δ = −∇l − λ∇Ω."""
    gradients = jax.grad(loss)(theta, x, y), jax.grad(omega)(theta)
    return jax.tree.map(lambda of_loss, of_omega: -of_loss - strength * of_omega, *gradients)


@functools.partial(jax.jit, static_argnames="omega")
def epoch(theta: Theta, x: Float[Array, "n h w 1"], y: Int[Array, " n"], *, omega: Omega) -> Theta:
    """Visit each example once: θ ← θ + αΔ after each."""

    def visit(theta: Theta, example: tuple[Array, Array]) -> tuple[Theta, None]:
        return jax.tree.map(lambda p, d: p + RATE * d, theta, delta(theta, *example, STRENGTH, omega)), None

    return lax.scan(visit, theta, (x, y))[0]


@jax.jit
def score(theta: Theta, x: Float[Array, "n h w 1"], y: Int[Array, " n"]) -> Float[Array, "2"]:
    """Return the mean of l, and the share of right answers."""
    outputs = mlp.apply(theta, x)
    return jnp.stack([jaxnn.cross_entropy(outputs, y), jnp.mean(jnp.argmax(outputs, -1) == y)])


def train(theta: Theta, seen: Split, unseen: Split, omega: Omega, epochs: int) -> tuple[Theta, np.ndarray]:
    """Return θ after the epochs, and its scores [epoch, seen or unseen, loss or accuracy], the first before them."""
    history = [np.stack([score(theta, *seen), score(theta, *unseen)])]
    for _ in range(epochs):
        theta = epoch(theta, *seen, omega=omega)
        history.append(np.stack([score(theta, *seen), score(theta, *unseen)]))
    return theta, np.stack(history)


# ------------------------------------------------------------------------------------------ the same in NumPy

OMEGAS_OF_THE_NOTES = {"none": lambda p: 0.0, "L1": lambda p: np.sum(np.abs(p)), "L2": lambda p: np.sum(p**2)}
THEIR_GRADIENTS = {"none": lambda p: 0 * p, "L1": np.sign, "L2": lambda p: 2 * p}


def in_float64(theta: Theta) -> Theta:
    """Return θ in NumPy."""
    return jax.tree.map(lambda p: np.asarray(p, np.float64), theta)


def flat(theta: Theta) -> np.ndarray:
    """Return every parameter, in one row."""
    return np.concatenate([p.ravel() for p in jax.tree.leaves(in_float64(theta))])


def forward_of_the_notes(theta: Theta, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return what each layer takes in (x, then the hidden layers), and f(x) = softmax(a)."""
    h = [np.float64(x.ravel())]
    for layer in LAYERS:
        a = theta[layer]["w"] @ h[-1] + theta[layer]["b"]
        h.append(np.maximum(a, 0))
    e = np.exp(a - np.max(a))
    return h[:-1], e / np.sum(e)


def objective_of_the_notes(theta: Theta, x: np.ndarray, y: int, strength: float, omega: str) -> float:
    """Return l + λΩ, of which Δ is the negative gradient."""
    return strength * OMEGAS_OF_THE_NOTES[omega](flat(theta)) - np.log(forward_of_the_notes(theta, x)[1][y])


def delta_of_the_notes(theta: Theta, x: np.ndarray, y: int, strength: float, omega: str) -> Theta:
    """Return Δ by back propagation, from −(e(y) − f(x)) at the output's pre-activation down to the first layer."""
    inputs, f = forward_of_the_notes(theta, x)
    da, gradients = -(np.eye(len(f))[y] - f), {}
    for layer, h in zip(reversed(LAYERS), reversed(inputs), strict=True):
        gradients[layer] = {"w": np.outer(da, h), "b": da}
        da = (theta[layer]["w"].T @ da) * (h > 0)
    return jax.tree.map(lambda p, of_loss: -of_loss - strength * THEIR_GRADIENTS[omega](p), theta, gradients)


# ------------------------------------------------------------------------------------------ measuring


def measure_output(theta: Theta, x: np.ndarray, y: np.ndarray):
    """Compare the loss gradient at the output and at its pre-activation with the lecture's."""
    a = mlp.apply(theta, x)
    f = jaxnn.softmax(a)
    at_output = in_float64(jax.grad(lambda f: jaxnn.nll(f, y, reduction="sum"))(f))
    before_it = in_float64(jax.grad(lambda a: jaxnn.cross_entropy(a, y, reduction="sum"))(a))
    a, f, e = in_float64(a), in_float64(f), np.eye(10)[y]
    f_y = f[np.arange(len(y)), y][:, None]
    exact = np.exp(a - np.max(a, axis=1, keepdims=True))
    exact /= np.sum(exact, axis=1, keepdims=True)
    return [
        experiment.at_most(
            "at the output ∇l = −e(y) / f(x)_y: largest relative difference, eps",
            np.max(np.abs(at_output + e / f_y) * f_y) / EPS,
            2,
        ),
        experiment.at_most(
            "before softmax ∇l = −(e(y) − f(x)): largest difference, eps",
            np.max(np.abs(before_it + (e - exact))) / EPS,
            8,
        ),
    ]


def measure_gradients(theta: Theta, x: np.ndarray, y: np.ndarray, seed: int):
    """Compare Δ with NumPy's and with numeric derivatives, with λ = 1 so that Ω counts, where no b is 0."""
    rng, claims = np.random.default_rng(seed), []
    theta = jax.tree.map(lambda p: p + jnp.asarray(rng.normal(0, 0.1, p.shape), jnp.float32), theta)
    exact = in_float64(theta)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), exact)
    step = 1e-8  # small, so that kinks of |θ| and of ReLU are rarely crossed
    nudged = [jax.tree.map(lambda p, d, by=by: p + by * d, exact, direction) for by in (step, -step)]
    for name, omega in OMEGAS.items():
        by_formula, by_numbers = 0.0, 0.0
        for xt, yt in zip(x, y, strict=True):
            by_rule = flat(delta(theta, xt, yt, 1.0, omega))
            by_hand = flat(delta_of_the_notes(exact, xt, yt, 1.0, name))
            up, down = (objective_of_the_notes(each, xt, yt, 1.0, name) for each in nudged)
            by_formula = max(by_formula, np.max(np.abs(by_rule - by_hand)) / np.max(np.abs(by_hand)))
            error = by_rule @ flat(direction) + (up - down) / (2 * step)
            by_numbers = max(by_numbers, abs(error) / np.linalg.norm(by_hand))
        claims += [
            experiment.at_most(f"Δ, Ω {name}: by rule and by back propagation in NumPy, relative", by_formula, 1e-5),
            experiment.at_most(f"Δ, Ω {name}: along a direction, and numeric −(l + λΩ)', relative", by_numbers, 1e-4),
        ]
    return claims


def measure_updates(theta: Theta, x: np.ndarray, y: np.ndarray):
    """Compare the first updates, scanned on the device in float64, with a loop in NumPy.

    In float32 one rounding at a kink of ReLU would grow with each of these updates.
    """
    claims, start, x = [], in_float64(theta), np.float64(x)
    for name, omega in OMEGAS.items():
        by_hand = start
        for xt, yt in zip(x, y, strict=True):
            change = delta_of_the_notes(by_hand, xt, yt, STRENGTH, name)
            by_hand = jax.tree.map(lambda p, d: p + RATE * d, by_hand, change)
        with jax.enable_x64(True):
            by_rule = epoch(jax.tree.map(jnp.asarray, start), jnp.asarray(x), y, omega=omega)
        error = np.max(np.abs(flat(by_rule) - flat(by_hand)))
        change = np.max(np.abs(flat(by_hand) - flat(start)))
        claim = f"{len(y)} updates, Ω {name}: as θ ← θ + αΔ in NumPy, relative to the change"
        claims.append(experiment.at_most(claim, error / change, len(y) * ROUNDINGS * np.finfo(np.float64).eps))
    return claims


def measure_blank(before: Theta, after: dict[str, Theta], x: np.ndarray, steps: int):
    """Follow the weights of pixels that are blank in every training image: Ω alone moves them, by known steps."""
    blank = ~np.any(x.reshape(len(x), -1), axis=0)
    start, end = (jax.tree.map(lambda w: w[:, blank], in_float64(each)) for each in (before, after))
    shrunk = np.sign(start) * np.maximum(np.abs(start) - RATE * STRENGTH * steps, 0)
    decayed = start * (1 - 2 * RATE * STRENGTH) ** steps
    worst = {
        name: np.max(np.abs(end[name] - expected))
        for name, expected in {"none": start, "L1": shrunk, "L2": decayed}.items()
    }
    rounding = steps * EPS * np.max(np.abs(start))  # each step rounds once
    return [
        experiment.at_most("blank pixels, Ω none: no weight moves", worst["none"], 0),
        experiment.at_most(
            "blank pixels, Ω L1: each step takes αλ, down to 0", worst["L1"], RATE * STRENGTH + rounding
        ),
        experiment.at_most("blank pixels, Ω L2: each step takes the share 2αλ", worst["L2"], rounding),
    ]


def tell_apart(theta: Theta) -> float:
    """Return the largest difference between two hidden units of a layer, over their weights and bias."""
    return max(np.max(np.ptp(np.asarray(p), axis=0)) for layer in LAYERS[:-1] for p in theta[layer].values())


def describe(name: str, theta: Theta, history: np.ndarray) -> list[Any]:
    """Return a row of a table: the last scores, ‖θ‖, and the share of θ that one step of L1 can bring to 0."""
    (training, _), validation = history[-1]
    return [name, training, *validation, np.linalg.norm(flat(theta)), np.mean(np.abs(flat(theta)) <= RATE * STRENGTH)]


def scaled(split: Split) -> Split:
    """Return the images with pixels from 0 to 1."""
    return Split(split.images / np.float32(16), split.labels)


def measure(options: argparse.Namespace) -> experiment.Results:
    """Run the experiment in full float32, also on devices that round the factors of products by default."""
    with jax.default_matmul_precision("highest"):
        return measure_in_float32(options)


def measure_in_float32(options: argparse.Namespace) -> experiment.Results:
    """Train, and compare."""
    digits = load("digits")
    (x, y), unseen = scaled(digits.train), scaled(digits.validation)
    on_device = jax.device_put((Split(x, y), unseen))
    starts = {name: initialise(name, jax.random.key(options.seed)) for name in INITIALIZERS}
    runs = dict.fromkeys([(options.init, name) for name in OMEGAS] + [(name, "none") for name in starts])
    ends = {
        (init, omega): train(starts[init], *on_device, OMEGAS[omega], options.epochs)
        for init, omega in experiment.progress(runs, "training")
    }
    by_omega = {name: ends[options.init, name] for name in OMEGAS}
    by_init = {name: ends[name, "none"] for name in starts}
    of_omega, of_init = ([describe(name, *end) for name, end in group.items()] for group in (by_omega, by_init))
    accuracy, norm, small = ({row[0]: row[column] for row in of_omega} for column in (3, 4, 5))
    start, first_layers = starts[options.init], {name: theta["linear1"]["w"] for name, (theta, _) in by_omega.items()}
    claims = [
        *measure_output(by_omega["none"][0], *unseen),
        *measure_gradients(start, x[:10], y[:10], options.seed),
        *measure_updates(start, x[:100], y[:100]),
        *measure_blank(start["linear1"]["w"], first_layers, x, options.epochs * len(y)),
        experiment.at_least("L1: share of θ within αλ of 0, above that of none", small["L1"] - small["none"], 0.1),
        experiment.at_most("L2: ‖θ‖ relative to that of none", norm["L2"] / norm["none"], 0.9),
        *(experiment.at_least(f"Ω {name}: validation accuracy", accuracy[name], REACHED) for name in OMEGAS),
        experiment.at_most("zeros: difference between two hidden units", tell_apart(by_init["zeros"][0]), 0),
        experiment.at_most(
            "zeros: validation accuracy, against the commonest class's share",
            by_init["zeros"][1][-1, 1, 1],
            np.max(np.bincount(unseen.labels)) / len(unseen.labels) + EPS,
        ),
    ]
    chosen = min(by_omega, key=lambda name: by_omega[name][1][-1, 1, 0])
    columns = ["training loss", "validation loss", "validation accuracy", "‖θ‖", "within αλ of 0"]
    title = f"{options.epochs} epochs of {len(y)} updates, α = {RATE:g}, λ = {STRENGTH:g}, {options.init}"
    test = [chosen, *score(by_omega[chosen][0], *scaled(digits.test))]
    last = {"before": start, **{f"Ω {name}": by_omega[name][0] for name in OMEGAS}, "zeros": by_init["zeros"][0]}
    return {
        "claims": claims,
        "tables": [
            experiment.table(title, ["Ω", *columns], of_omega),
            experiment.table("The same without Ω, by initialisation", ["initialisation", *columns], of_init),
            experiment.table("The Ω of least validation loss, on the test split", ["Ω", "loss", "accuracy"], [test]),
        ],
        "curves": {
            group: {name: experiment.numbers(history, 4) for name, (_, history) in each.items()}
            for group, each in {"Ω": by_omega, "initialisation": by_init}.items()
        },
        "sizes": {
            name: experiment.numbers(
                np.searchsorted(np.sort(np.abs(flat(theta))), SIZES, "right") / len(flat(theta)), 4
            )
            for name, (theta, _) in by_omega.items()
        },
        "units": {name: experiment.numbers(theta["linear1"]["w"][:UNITS], 3) for name, theta in last.items()},
    }


# ------------------------------------------------------------------------------------------ pictures


CAPTIONS = {
    "deep_sgd": "Loss, accuracy and sizes of the parameters, without a regulariser, with Σ|θ| and with Σθ².",
    "deep_sgd_initialisation": "What each initialisation leads to.",
    "deep_sgd_units": "Weights of the first layer's units, by regulariser.",
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw the regularisers, the initialisations, and hidden units."""
    return {
        "deep_sgd": draw_regularisers(results["curves"]["Ω"], results["sizes"]),
        "deep_sgd_initialisation": draw_initialisations(results["curves"]["initialisation"]),
        "deep_sgd_units": draw_units(results["units"]),
    }


def draw_curves(losses, accuracies, curves):
    """Draw loss and accuracy after each epoch, training solid and validation dashed."""
    for column, axes in enumerate((losses, accuracies)):
        for (name, history), colour in zip(curves.items(), experiment.COLOURS, strict=False):
            for part, line in enumerate(("-", "--")):
                label = name if line == "-" else None
                axes.plot(np.asarray(history)[:, part, column], line, color=colour, label=label)
        axes.plot([], "-", color=experiment.GREY, label="training")
        axes.plot([], "--", color=experiment.GREY, label="validation")
        axes.set(xlabel="epochs")
    losses.set(title="Mean of l, without Ω", yscale="log")
    accuracies.set(title="Right answers")


def draw_regularisers(curves, sizes):
    """Draw the curves by Ω, and how large the parameters are."""
    figure, ((losses, accuracies, distribution),) = experiment.panels(1, 3)
    draw_curves(losses, accuracies, curves)
    losses.legend(ncols=2)
    accuracies.set(ylim=(0.85, 1.005))
    for share in sizes.values():
        distribution.semilogx(SIZES, share)
    distribution.axvline(RATE * STRENGTH, color=experiment.GREY, linewidth=0.8, linestyle="--")
    distribution.text(1.2 * RATE * STRENGTH, 0.9, "αλ", color=experiment.GREY)
    distribution.set(title="Share of θ with |θ| below", xlabel="|θ|")
    return figure


def draw_initialisations(curves):
    """Draw the curves by initialisation."""
    figure, ((losses, accuracies),) = experiment.panels(1, 2)
    draw_curves(losses, accuracies, curves)
    accuracies.set(ylim=(0, 1.03))
    accuracies.legend(loc="center right")
    return figure


def draw_units(units):
    """Draw the weights of the same units of the first hidden layer before the training and at the end of each run."""
    figure, axes = experiment.panels(len(units), UNITS, width=0.72, height=0.76)
    limit = np.percentile(np.abs(np.concatenate(list(units.values()))), 99.5)
    for line, (name, weights) in zip(axes, units.items(), strict=True):
        for axis, w in zip(line, weights, strict=True):
            experiment.picture(axis, np.reshape(w, (8, 8)), limit=limit)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    about = "of the runs with and without Ω (default he); zeros cannot learn, so the claims that it learns fail"
    parser.add_argument("--init", choices=INITIALIZERS, default="he", help=about)
    parser.add_argument("--epochs", type=experiment.positive, default=30, help="(default 30)")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
