"""Digit recognition as a race to a mean test accuracy over many seeds (MNIST: 99.04%), in as little time as possible.

    python experiments/speedrun.py --dataset mnist --data-dir DIR [--seeds N] [--rounds K] [--validate]

The notes' network with a second stage, y = softmax(W₂ ReLU(maxpool(W₁ * ReLU(maxpool(W₀ * x))))). The maximum comes
before ReLU: the result is the same, and ReLU has a quarter of the work. The whole training is one program, from the
seed to the parameters: Adam over shuffled mini-batches, with one cycle of the learning rate. Its time is measured after
compilation, with the images on the device, in turns with the same training differentiated by JAX (on a CPU as one
program for each step, which is faster there) and with PyTorch, where it is installed. The recipe was chosen on the
validation images (`--validate`). The test images are used once, at the end of each training on all others.

Source: Neural Networks Basics, "The digit recognition example", "Stochastic gradient descent"; one cycle of the
learning rate: Smith & Topin 2017, arXiv:1708.07120.
"""

import argparse
import contextlib
import functools
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from matplotlib.figure import Figure

import jaxnn
from jaxnn.data import Dataset, Split, load
from jaxnn.training import init_state, make_step

OURS, AUTODIFF = "jaxnn", "JAX's autodiff"
EPS = np.finfo(np.float64).eps


class Recipe(NamedTuple):
    """The network and its training, for images of 28x28 or 8x8 pixels."""

    floor: float  # of the mean test accuracy
    epochs: int
    batch_size: int
    learning_rate: float  # the peak of the cycle
    filters: tuple[int, int]
    window: int
    padding: int


RECIPES = {
    "mnist": Recipe(0.9904, 3, 256, 0.01, (32, 64), 5, 0),
    "digits": Recipe(0.97, 10, 64, 0.01, (16, 32), 3, 1),
}


class Race(NamedTuple):
    """One contestant: `train(seed)` returns the parameters, `share_right(parameters)` their accuracy."""

    train: Callable[[int], Any]
    share_right: Callable[[Any], float]
    compilation: float  # seconds


def init(recipe: Recipe, key: Array, size: int, classes: int) -> Any:
    """Return W₀, W₁ and W₂ with their biases, drawn as He et al. do."""
    he, k = jax.nn.initializers.he_normal(), recipe.window
    first, second = recipe.filters
    for _ in range(2):
        size = (size + 2 * recipe.padding - k + 1) // 2
    shapes = {"0": (k, k, 1, first), "1": (k, k, first, second), "2": (size * size * second, classes)}
    keys = jax.random.split(key, len(shapes))
    weights = {f"W{i}": he(each, shape) for each, (i, shape) in zip(keys, shapes.items(), strict=True)}
    weights["W2"] = weights["W2"].T
    return weights | {f"b{i}": jnp.zeros(shape[-1]) for i, shape in shapes.items()}


def logits(recipe: Recipe, params: Any, x: Array) -> Array:
    """Return x₄ of images x, normalised, in the dtype of the parameters."""
    for i in "01":
        x = jaxnn.conv2d(x, params[f"W{i}"], params[f"b{i}"], padding=recipe.padding, layout="NHWC")
        x = jaxnn.relu(jaxnn.max_pool2d(x, 2, layout="NHWC"))
    return jaxnn.linear(x.reshape(len(x), -1), params["W2"], params["b2"])


def normaliser(train: Split) -> Callable[[Any], Any]:
    """Return a function that gives images (of JAX, NumPy or PyTorch) the training images' mean 0 and variance 1."""
    mean, deviation = float(train.images.mean()), float(train.images.std())
    return lambda images: (images - mean) / deviation


def at_once(begin: Callable[..., Any], advance: Callable[..., Any], data: Any) -> Callable[[Array], Any]:
    """Compile a training as one program."""

    def train(key: Array, *data: Array) -> Any:
        state, batches = begin(key)
        return lax.scan(lambda state, rows: (advance(state, rows, *data), None), state, batches)[0]

    program = jax.jit(train).lower(jax.random.key(0), *data).compile()
    return lambda key: program(key, *data)


def by_steps(begin: Callable[..., Any], advance: Callable[..., Any], data: Any) -> Callable[[Array], Any]:
    """Compile a training as one program for each step: in a loop XLA is slow at JAX's derivative of conv2d on a CPU."""
    beginning = jax.jit(begin).lower(jax.random.key(0)).compile()
    state, batches = jax.eval_shape(begin, jax.random.key(0))
    rows = jax.ShapeDtypeStruct(batches.shape[1:], batches.dtype)
    step = jax.jit(advance, donate_argnums=0).lower(state, rows, *data).compile()

    def train(key: Array) -> Any:
        state, batches = beginning(key)
        for rows in batches:
            state = step(state, rows, *data)
        return state

    return train


def with_jax(
    recipe: Recipe,
    dtype: str,
    train: Split,
    test: Split,
    derivative: Callable[..., Any],
    form: Callable[..., Callable[[Array], Any]] = at_once,
) -> Race:
    """Return JAX as a contestant; `derivative` replaces the loss by the one to differentiate, `form` compiles all."""
    n, steps = len(train.labels), len(train.labels) // recipe.batch_size
    size, classes, normalised = train.images.shape[1], int(train.labels.max()) + 1, normaliser(train)
    schedule = optax.cosine_onecycle_schedule(recipe.epochs * steps, recipe.learning_rate)
    optimizer = optax.adam(schedule, b1=0.7, b2=0.9)

    def scores(params: Any, images: Array) -> Array:
        x = normalised(images.astype(jnp.float32)).astype(dtype)
        return logits(recipe, jax.tree.map(lambda w: w.astype(dtype), params), x)

    def loss(params: Any, batch: Any, _: Array) -> Any:
        images, labels = batch
        return jaxnn.cross_entropy(scores(params, images).astype(jnp.float32), labels), {}

    step = make_step(derivative(loss), optimizer)

    def begin(key: Array) -> tuple[Any, Array]:
        init_key, order_key = jax.random.split(key)
        state = init_state(init(recipe, init_key, size, classes), optimizer, key)
        orders = jax.vmap(lambda k: jax.random.permutation(k, n))(jax.random.split(order_key, recipe.epochs))
        return state, orders[:, : steps * recipe.batch_size].reshape(-1, recipe.batch_size)

    def advance(state: Any, rows: Array, images: Array, labels: Array) -> Any:
        return step(state, (images[rows], labels[rows]))[0]

    start = time.perf_counter()
    run = form(begin, advance, jax.device_put(tuple(train)))
    seconds = time.perf_counter() - start
    guesses = jax.jit(lambda params, images: jnp.argmax(scores(params, images), -1))

    def share_right(params: Any) -> float:
        parts = [guesses(params, test.images[i : i + 1000]) for i in range(0, len(test.labels), 1000)]
        return float(np.mean(np.concatenate(parts) == test.labels))

    return Race(lambda seed: jax.block_until_ready(run(jax.random.key(seed)).params), share_right, seconds)


def logits_in_torch(recipe: Recipe, params: Any, x: Any) -> Any:
    """Return x₄ of images x, normalised, as PyTorch computes it."""
    functional = importlib.import_module("torch.nn.functional")
    for i in "01":
        x = functional.conv2d(x, params[f"W{i}"], params[f"b{i}"], padding=recipe.padding)
        x = functional.max_pool2d(x, 2).relu()
    return functional.linear(x.flatten(1), params["W2"], params["b2"])


def with_torch(recipe: Recipe, dtype: str, train: Split, test: Split, form: str) -> Race:
    """Return PyTorch as a contestant: the same network, optimizer and cycle, in one of its forms."""
    torch = importlib.import_module("torch")
    gpu = jax.default_backend() == "gpu"
    device = "cuda" if gpu else "cpu"
    layout = torch.channels_last if "channels_last" in form else torch.contiguous_format

    def placed(images: np.ndarray) -> Any:
        x = torch.tensor(np.moveaxis(images, -1, 1)).to(device)
        return x.contiguous(memory_format=layout)

    images, labels = placed(train.images), torch.tensor(train.labels, dtype=torch.int64, device=device)
    n, steps, normalised = len(labels), len(labels) // recipe.batch_size, normaliser(train)
    classes = int(train.labels.max()) + 1

    def network(params: Any, images: Any) -> Any:
        return logits_in_torch(recipe, params, normalised(images.float()))

    def loss_of(params: Any, images: Any, labels: Any) -> Any:
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            z = network(params, images)
        return torch.nn.functional.cross_entropy(z.float(), labels)

    loss = torch.compile(loss_of, mode="max-autotune") if "compiled" in form else loss_of

    def fresh(seed: int) -> Any:
        key = jax.random.split(jax.random.key(seed))[0]
        same = jax.device_get(init(recipe, key, train.images.shape[1], classes))
        params = {name: torch.tensor(w, device=device) for name, w in same.items()}
        for name in ("W0", "W1"):  # HWIO to OIHW
            params[name] = params[name].permute(3, 2, 0, 1).contiguous(memory_format=layout)
        return {name: w.requires_grad_() for name, w in params.items()}

    def run(seed: int, most: int | None = None) -> Any:
        params, generator = fresh(seed), torch.Generator(device).manual_seed(seed)
        optimizer = torch.optim.Adam(params.values(), lr=1.0, betas=(0.7, 0.9), fused=True)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps + 1, cycle_momentum=False
        )
        for _ in range(recipe.epochs):
            order = torch.randperm(n, generator=generator, device=device)
            for rows in order[: steps * recipe.batch_size].split(recipe.batch_size)[:most]:
                optimizer.zero_grad(set_to_none=True)
                loss(params, images[rows], labels[rows]).backward()
                optimizer.step()
                cycle.step()
        if gpu:
            torch.cuda.synchronize()
        return params

    def share_right(params: Any) -> float:
        with torch.no_grad():
            parts = [network(params, placed(test.images[i : i + 1000])) for i in range(0, len(test.labels), 1000)]
        return float(np.mean(torch.cat(parts).argmax(1).cpu().numpy() == test.labels))

    start = time.perf_counter()
    run(0, most=3)
    return Race(run, share_right, time.perf_counter() - start)


def torch_forms() -> list[str]:
    """Return the forms of PyTorch to race with: none if it is not installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")
        gpu = jax.default_backend() == "gpu"
        return ["eager", "eager, channels_last", *(["compiled, channels_last"] if gpu else [])]
    return []


def claim_of_gradient(recipe: Recipe, train: Split) -> experiment.Results:
    """Claim that the rules give JAX's derivative of the loss, in float64, relative to each array's largest element."""
    labels = train.labels[: recipe.batch_size]
    with jax.enable_x64(True):
        x = jnp.asarray(normaliser(train)(train.images[: recipe.batch_size].astype(np.float64)))
        params = init(recipe, jax.random.key(0), train.images.shape[1], int(train.labels.max()) + 1)
        params = jax.tree.map(lambda w: w.astype(jnp.float64), params)

        def loss(params: Any) -> Array:
            return jaxnn.cross_entropy(logits(recipe, params, x), labels)

        by_rule, by_jax = jax.jit(jax.grad(loss))(params), jax.jit(jax.grad(jaxnn.automatic(loss)))(params)
        worst = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), by_rule, by_jax)
    off = max(map(float, jax.tree.leaves(worst)))
    return experiment.at_most("gradient by rule is JAX's own, of the largest element", off, EPS * x.size)


def raced(races: dict[str, Race], seeds: range, rounds: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds and accuracies, all taking turns: of ours for all seeds, of the others for the first `rounds`."""
    rng = np.random.default_rng(seed)
    results: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "accuracy": []} for name in races}
    for i, each in enumerate(experiment.progress(seeds, "seeds", len(seeds))):
        for name in rng.permutation([name for name in races if name == OURS or i < rounds]):
            start = time.perf_counter()
            params = races[name].train(each)
            results[name]["seconds"].append(time.perf_counter() - start)
            results[name]["accuracy"].append(races[name].share_right(params))
    return results


def measure(options: argparse.Namespace) -> experiment.Results:
    """Run the experiment."""
    dataset, recipe = load(options.dataset, options.data_dir), RECIPES[options.dataset]
    train, judged = splits(dataset, options.validate)
    gpu = jax.default_backend() == "gpu"
    make = functools.partial(with_jax, recipe, options.dtype, train, judged)
    races = {OURS: make(lambda loss: loss), AUTODIFF: make(jaxnn.automatic, form=at_once if gpu else by_steps)}
    races |= {f"PyTorch, {f}": with_torch(recipe, options.dtype, train, judged, f) for f in torch_forms()}
    results = raced(races, range(options.seed, options.seed + options.seeds), options.rounds, options.seed)

    mean = {name: float(np.mean(each["accuracy"])) for name, each in results.items()}
    ours = np.median(results[OURS]["seconds"])
    part = "validation" if options.validate else "test"
    claims = [experiment.at_least(f"mean {part} accuracy", mean[OURS], recipe.floor), claim_of_gradient(recipe, train)]
    chance = 3 * np.sqrt(2 * recipe.floor * (1 - recipe.floor) / len(judged.labels))  # of two accuracies
    claims += [
        experiment.at_most(f"{name}: mean {part} accuracy is ours, difference", abs(mean[name] - mean[OURS]), chance)
        for name in races if name != OURS
    ]  # fmt: skip
    rows = []
    for name, each in results.items():
        seconds, shares = float(np.median(each["seconds"])), 100 * np.array(each["accuracy"])
        deviation = f" ± {shares.std(ddof=1):.3f}" if len(shares) > 1 else ""
        ratio = "" if name == OURS else f"{ours / seconds:.2f}"
        rows.append([name, len(shares), f"{shares.mean():.3f}{deviation} %", f"{seconds:.3f} s", ratio,
                     f"{races[name].compilation:.1f} s"])  # fmt: skip
    title = (
        f"{dataset.name}: {recipe.epochs} epochs, batches of {recipe.batch_size}, {options.dtype},"
        f" {len(train.labels)} images"
    )
    columns = ["training", "seeds", f"{part} accuracy", "median time", "jaxnn's time of it", "compilation or warm-up"]
    return {
        "claims": claims,
        "tables": [experiment.table(title, columns, rows)],
        "races": {name: {**each, "seconds": experiment.numbers(each["seconds"], 4)} for name, each in results.items()},
        "floor": recipe.floor,
    }


def splits(dataset: Dataset, validate: bool) -> tuple[Split, Split]:
    """Return the images to train on, and those whose accuracy is measured: the test images for a finished recipe."""
    if validate:
        return dataset.train, dataset.validation
    both = zip(dataset.train, dataset.validation, strict=True)
    return Split(*(np.concatenate(parts) for parts in both)), dataset.test


CAPTIONS = {"speedrun": "Accuracy and time of each training, from compiled program to parameters: a dot a seed."}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw the accuracy of each training against its seconds."""
    figure, ((axes,),) = experiment.panels(1, 1, width=7.2, height=4)
    for name, each in results["races"].items():
        axes.plot(each["seconds"], 100 * np.array(each["accuracy"]), "o", alpha=0.7, label=name)
    axes.axhline(100 * results["floor"], color=experiment.GREY, linestyle=":", label="claimed of jaxnn's mean")
    axes.set(xlim=(0, None), xlabel="seconds of training", ylabel="accuracy (%)")
    axes.legend(fontsize=8)
    return {"speedrun": figure}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    gpu = jax.default_backend() == "gpu"
    seeds, rounds, dtype = (50, 10, "bfloat16") if gpu else (5, 3, "float32")
    parser.add_argument("--dataset", choices=tuple(RECIPES), default="digits", help="digits (default) or mnist")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST's four IDX files, .gz or raw")
    parser.add_argument("--seeds", type=experiment.positive, default=seeds, help=f"trainings (default {seeds})")
    parser.add_argument(
        "--rounds", type=experiment.positive, default=rounds, help=f"trainings by the others (default {rounds})"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=dtype, help=f"default {dtype}")
    parser.add_argument("--validate", action="store_true", help="judge by the validation images, to choose a recipe")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
