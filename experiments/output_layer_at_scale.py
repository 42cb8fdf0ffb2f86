"""The output layer of a language model: the notes' softmax and −log p over a vocabulary of tens of thousands.

    python experiments/output_layer_at_scale.py [--rows N] [--features D] [--largest V] [--dtype float32|bfloat16]
                                                [--rounds K] [--seed N] [--output DIR]

Larochelle's output layer has the gradient ∂L/∂W = (p − e(y)) xᵀ, "Gradient computation" in his Neural networks lecture.
With V classes and N rows the plain loss holds N·V logits, several times over; the formula needs only a block of them at
a time. Memory and time of the loss with both gradients are measured as V grows: for both forms of
`jaxnn.linear_cross_entropy`, the plain loss, Optax's, and those of PyTorch, Liger and cut-cross-entropy where they are
installed. Times are medians of rounds in which all take turns; no claim depends on them.
"""

import argparse
import contextlib
import functools
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib.figure import Figure

import jaxnn

Gradient = Callable[[], Any]  # runs the loss and both gradients, and waits
FAST, LEAN, PLAIN, OPTAX = "jaxnn, fast", "jaxnn, lean", "plain loss", "Optax"
COARSER = 4  # each vocabulary is this many times the one before


def plain(x: Array, w: Array, t: Array) -> Array:
    """Mean of log Σ exp(z) − z_t, with the logits z = x Wᵀ held as they are."""
    z = jnp.matmul(x, w.T, preferred_element_type=jnp.float32)
    return jnp.mean(jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, t[:, None], -1)[:, 0])


def by_optax(x: Array, w: Array, t: Array) -> Array:
    """The same by Optax."""
    z = jnp.matmul(x, w.T, preferred_element_type=jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, t))


LOSSES: dict[str, Callable[[Array, Array, Array], Array]] = {
    FAST: lambda x, w, t: jaxnn.linear_cross_entropy(x, w, t, memory="fast"),
    LEAN: lambda x, w, t: jaxnn.linear_cross_entropy(x, w, t, memory="lean"),
    PLAIN: plain,
    OPTAX: by_optax,
}


def arguments(rows: int, features: int, classes: int, dtype: str, seed: int) -> tuple[Array, Array, Array]:
    """Return x, W and the labels: logits of variance 1."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (rows, features)).astype(dtype)
    w = (jax.random.normal(keys[1], (classes, features)) / np.sqrt(features)).astype(dtype)
    return x, w, jax.random.randint(keys[2], (rows,), 0, classes)


def compiled(loss: Callable[..., Array], x: Array, w: Array, t: Array) -> tuple[Gradient, int]:
    """Return the loss with its gradients by x and W as a program, and the bytes it sets aside for temporaries."""
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, w, t).compile()
    return lambda: jax.block_until_ready(program(x, w, t)), program.memory_analysis().temp_size_in_bytes


def torch_losses() -> dict[str, Callable[..., Any]]:
    """Return the losses of PyTorch and of its libraries that are installed: f(x, w, t) of tensors."""
    found: dict[str, Callable[..., Any]] = {}
    with contextlib.suppress(ImportError):
        functional = importlib.import_module("torch.nn.functional")
        found["PyTorch"] = lambda x, w, t: functional.cross_entropy(functional.linear(x, w), t)
        if hasattr(functional, "linear_cross_entropy"):
            found["PyTorch, linear_cross_entropy"] = functional.linear_cross_entropy
        with contextlib.suppress(ImportError):
            liger = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
            found["Liger"] = lambda x, w, t: liger(w, x, t)
        with contextlib.suppress(ImportError):
            found["cut-cross-entropy"] = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return found


def in_torch(loss: Callable[..., Any], x: Array, w: Array, t: Array) -> tuple[Gradient, float]:
    """Return a loss of tensors with its gradients, and its peak of bytes beyond them (known on a GPU alone)."""
    torch = importlib.import_module("torch")
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    dtype = getattr(torch, str(x.dtype))
    tensors = [torch.tensor(np.asarray(a, np.float32), dtype=dtype, device=device) for a in (x, w)]
    labels = torch.tensor(np.asarray(t), dtype=torch.int64, device=device)

    def run() -> None:
        inputs = [a.detach().requires_grad_() for a in tensors]
        loss(*inputs, labels).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    if device == "cpu":
        return run, np.nan
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    gradients = sum(a.numel() * a.element_size() for a in tensors)
    return run, torch.cuda.max_memory_allocated() - before - gradients


def medians(runs: dict[str, Gradient], rounds: int, seed: int) -> dict[str, float]:
    """Return the median seconds of each, all taking turns in another order each round."""
    rng, seconds = np.random.default_rng(seed), {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name in rng.permutation(list(runs)):
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def roundings(loss: Callable[..., Array], x: Array, w: Array, t: Array) -> float:
    """Return the largest error of ∂L/∂W = (p − e(y)) xᵀ against float64, in roundings of the element's terms."""
    got = np.asarray(jax.jit(jax.grad(loss, 1))(x, w, t), np.float64)
    x64, w64 = np.asarray(x, np.float64), np.asarray(w, np.float64)
    p = np.exp(x64 @ w64.T)
    difference = p / p.sum(-1, keepdims=True) - np.eye(len(w64))[np.asarray(t)]
    terms = np.abs(difference).T @ np.abs(x64) / len(x64)
    return float(np.max(np.abs(got - difference.T @ x64 / len(x64)) / terms) / jnp.finfo(x.dtype).eps)


def measure(options: argparse.Namespace) -> experiment.Results:
    """Run the experiment."""
    vocabularies = [options.largest // COARSER**i for i in (2, 1, 0)]
    make = functools.partial(arguments, options.rows, options.features, dtype=options.dtype, seed=options.seed)
    curves: dict[str, Any] = {}
    for classes in experiment.progress(vocabularies, "vocabularies"):
        xwt = make(classes)
        runs = {name: compiled(loss, *xwt) for name, loss in LOSSES.items()}
        runs |= {name: in_torch(loss, *xwt) for name, loss in torch_losses().items()}
        seconds = medians({name: run for name, (run, _) in runs.items()}, options.rounds, options.seed)
        for name, (_, memory) in runs.items():
            curve = curves.setdefault(name, {"bytes": [], "seconds": []})
            curve["bytes"].append(None if np.isnan(memory) else int(memory))
            curve["seconds"].append(seconds[name])

    logits = 4 * options.rows * options.largest
    xwt = arguments(min(options.rows, 64), min(options.features, 64), min(vocabularies[0], 1000), options.dtype, 1)
    claims = [
        experiment.at_least(
            f"bytes the {PLAIN} sets aside, in arrays of all logits", curves[PLAIN]["bytes"][-1] / logits, 1
        )
    ]
    for name in (FAST, LEAN):
        off = roundings(LOSSES[name], *xwt)
        claims += [
            experiment.at_most(f"{name}: ∂L/∂W off from (p − e(y)) xᵀ, in roundings of its terms", off, 16),
            experiment.at_most(f"{name}: bytes set aside, of the {PLAIN}'s, at the largest vocabulary",
                               curves[name]["bytes"][-1] / curves[PLAIN]["bytes"][-1], 0.25),
            experiment.at_most(f"{name}: bytes it sets aside, of an array of all logits",
                               curves[name]["bytes"][-1] / logits, 0.5),
        ]  # fmt: skip
    rows = [
        (name, v, "–" if size is None else f"{size / 1e6:.1f} MB", f"{1e3 * s:.1f} ms", f"{s / base:.2f}")
        for name, curve in curves.items()
        for v, size, s, base in zip(
            vocabularies, curve["bytes"], curve["seconds"], curves[PLAIN]["seconds"], strict=True
        )
    ]
    columns = ("loss and both gradients", "vocabulary", "temporary memory", "time", f"of the {PLAIN}'s")
    title = f"{options.rows} rows of {options.features} features, {options.dtype}, median of {options.rounds} rounds"
    return {
        "claims": claims,
        "tables": [experiment.table(title, columns, rows)],
        "vocabularies": vocabularies,
        "logits": [4 * options.rows * v for v in vocabularies],
        "curves": curves,
    }


CAPTIONS = {
    "output_layer_at_scale": (
        "Temporary memory and time of the loss and its two gradients against the size of the vocabulary: the plain "
        "loss holds the logits (dashed: one array of them), `linear_cross_entropy` a block of them."
    ),
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw memory and time against the vocabulary."""
    figure, ((memory, seconds),) = experiment.panels(1, 2, width=5.6)
    v = results["vocabularies"]
    for name, curve in results["curves"].items():
        width = 4 if name == PLAIN else 1.5  # another loss that holds the logits lies on it
        (line,) = seconds.loglog(v, 1e3 * np.array(curve["seconds"]), "o-", linewidth=width, label=name)
        if None not in curve["bytes"]:
            memory.loglog(v, np.array(curve["bytes"]) / 1e6, "o-", linewidth=width, color=line.get_color(), label=name)
    memory.loglog(v, np.array(results["logits"]) / 1e6, "--", color=experiment.GREY, label="the logits, once")
    memory.set(title="Temporary memory [MB]")
    seconds.set(title="Time [ms]")
    for axes in (memory, seconds):
        axes.set_xticks(v, [f"{n:,}" for n in v])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("vocabulary")
        axes.legend(fontsize=8)
    return {"output_layer_at_scale": figure}


def vocabulary(text: str) -> int:
    """Parse the largest vocabulary."""
    if (number := experiment.positive(text)) < 2 * COARSER**2:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least {2 * COARSER**2}: two smaller ones are measured")
    return number


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    gpu = jax.default_backend() != "cpu"
    sizes = {"rows": 8192 if gpu else 1024, "features": 2304 if gpu else 256, "rounds": 20 if gpu else 5}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=experiment.positive, default=size, help=f"{name} (default {size})")
    largest, dtype = (256_000, "bfloat16") if gpu else (32_768, "float32")
    parser.add_argument("--largest", type=vocabulary, default=largest, help=f"vocabulary (default {largest})")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=dtype, help=f"default {dtype}")


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
