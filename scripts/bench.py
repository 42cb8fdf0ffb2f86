"""Speed and memory of jaxnn beside the fastest idiomatic JAX written without it, and beside PyTorch.

    python scripts/bench.py [GROUP ...] [--rounds N] [--json FILE] [--picture FILE.png]
    python scripts/bench.py --readme

The groups, all by default: `convnet` (whole training steps), `components` (forward and backward, of a batch and
vmapped per example), `memory` (compiled peak of the convnet's gradient), `compile` (time to compile its step) and
`tricks` (what is in the rules for speed or memory alone, with it and without).

Before anything is timed, each variant's value and gradients are compared with jaxnn's in float64; if one disagrees the
benchmark stops with exit code 1. Then the variants take turns, in another order each round, in this one process: what
else the machine does then meets all of them alike, and a ratio is the median of the rounds' own ratios, with its
quartiles. Where a round takes less than a second there are more of them, in the time of N such: a short call is
noisier. JAX and PyTorch have the same number of threads, and work of less than 50 ms is preceded by as many calls as
are timed, so that it finds caches its own and the other library's threads asleep. After three rounds only the variants
within a quarter of their side's best go on. A side's time is its best variant's.

Achieved bytes/s count each argument and result once, flop/s the matrix products alone. Peak memory is what XLA sets
aside for temporaries; PyTorch's is counted on a GPU only. `--json scripts/speed/NAME.json` is where committed figures
lie; `--readme` writes the README's section from those, and a NAME.png beside them is shown there.
"""

import argparse
import datetime
import functools
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import workloads
from jax import lax
from residuals import of_floats, saved
from speed_tables import README, SIDES, Row, cells, draw, print_table, readme, targets
from workloads import In, Net, Sizes, TorchNet, Work, on_gpu, torch, torch_device, torch_facts, torch_run

from jaxnn import models

QUALIFYING, MARGIN = 3, 1.25  # rounds that every variant has; how far behind its side's best one goes on
SHORT, SLICE, ENOUGH = 0.05, 0.01, 50e-6  # seconds: an untimed call first; one sample; what a target asks for
ROUND = 1.0  # seconds: shorter rounds are repeated until the asked for number of such has passed
STEPS = UNROLL = 5  # unrolled, no loop is left: XLA's CPU convolutions are slow inside one
MODES = {"cpu": ("float32",), "gpu": ("TF32", "bfloat16")}
TOLERANCE = {"float32": 2e-5, "TF32": 1e-2, "bfloat16": 5e-2}  # roundings of sums of up to 10⁵ terms, in norm
# In a network rounding by eps carries a share of about eps of the activations over a kink of ReLU or of a maximum, and
# the norm of what that changes in the gradient goes with the root.
NET_TOLERANCE = {"float32": 4 * 2**-11.5, "TF32": 4 * 2**-5, "bfloat16": 4 * 2**-4}


class Disagreement(Exception):
    """A variant computes something else than jaxnn, in one line."""


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass
class Variant:
    """One way to do a piece of work: `run(n)` does it n times `steps` times, and waits for the end."""

    side: str
    name: str
    run: Callable[[int], Any]
    steps: int = 1
    repeats: int = 1
    warm: bool = False
    facts: dict[str, float] = field(default_factory=dict)  # compile_seconds, temporary_bytes, residual_bytes
    samples: list[float] = field(default_factory=list)

    def calibrated(self) -> "Variant":
        """Choose how many calls one sample has."""
        before = time.perf_counter()
        self.run(1)
        once = time.perf_counter() - before
        self.repeats, self.warm = max(1, min(100, int(SLICE / once))), once < SHORT
        return self

    def sample(self) -> float:
        """Return the seconds of one step."""
        if self.warm:
            self.run(self.repeats)
        before = time.perf_counter()
        self.run(self.repeats)
        return (time.perf_counter() - before) / (self.repeats * self.steps)

    @property
    def median(self) -> float:
        """The median of the samples."""
        return float(np.median(self.samples))


def measure(variants: Sequence[Variant], rounds: int) -> None:
    """Let the variants take turns in random order; the hopeless stop after the qualifying rounds.

    In any fixed order one of them would always follow PyTorch, whose threads go on spinning for a while.
    """
    live, rng, began, done = list(variants), np.random.default_rng(0), time.perf_counter(), 0
    while done < rounds or time.perf_counter() - began < rounds * ROUND:
        if done == QUALIFYING:
            live = [v for v in variants if v.median <= MARGIN * best(variants, v.side).median]
        for j in rng.permutation(len(live)):
            live[j].samples.append(live[j].sample())
        done += 1


def best(variants: Iterable[Variant], side: str) -> Variant:
    """Return the side's variant with the least median."""
    return min((v for v in variants if v.side == side), key=lambda v: v.median)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the rounds' ratios, and their quartiles."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
    median, low, high = (float(q) for q in np.quantile(ratios, (0.5, 0.25, 0.75)))
    return median, low, high


def row(group: str, name: str, mode: str, variants: Sequence[Variant], limits: dict[str, float], *,
        unit: str = "s", nbytes: float = 0, flops: float = 0) -> Row:  # fmt: skip
    """Return what was measured, as JSON holds it."""
    winners = {side: best(variants, side) for side in dict.fromkeys(v.side for v in variants)}
    ours = winners["jaxnn"]
    values = {
        f"of {SIDES.get(side, side)}": ratio(ours.samples, v.samples) for side, v in winners.items() if v is not ours
    }
    held, theirs = (winners[s].facts.get("temporary_bytes") if s in winners else None for s in ("jaxnn", "jax"))
    if held is not None:
        values["MB"] = (held / 1e6,) * 3
    if held is not None and theirs:
        values["memory of JAX"] = (held / theirs,) * 3
    if unit == "s":
        median, low, high = (1e3 * float(q) for q in np.quantile(ours.samples, (0.5, 0.25, 0.75)))
        values["ms"] = median, low, high
    large = unit != "s" or "jax" not in winners or winners["jax"].median >= ENOUGH
    figures = [
        {"figure": key, "value": value, "low": low, "high": high,
         **({"limit": limits[key], "met": value <= limits[key]} if key in limits and large else {})}
        for key, (value, low, high) in values.items()
    ]  # fmt: skip
    return {
        "group": group, "name": name, "mode": mode, "unit": unit, "large": large, "figures": figures,
        "best": {side: v.name for side, v in winners.items()},
        "bytes_per_second": nbytes / ours.median, "flop_per_second": flops / ours.median,
        "variants": [
            {"side": v.side, "name": v.name, "median": v.median, "low": float(np.quantile(v.samples, 0.25)),
             "high": float(np.quantile(v.samples, 0.75)), "samples": len(v.samples), **v.facts}
            for v in variants
        ],
    }  # fmt: skip


def jax_run(call: Callable[[], Any]) -> Callable[[int], Any]:
    """Return a function that calls n times; on a CPU, where calls may overlap, each waits for the one before."""
    serial = jax.default_backend() == "cpu"

    def run(n: int) -> None:
        for _ in range(n):
            out = call()
            if serial:
                jax.block_until_ready(out)  # type: ignore[no-untyped-call]
        jax.block_until_ready(out)  # type: ignore[no-untyped-call]

    return run


def compiled(program: Any, *args: Any) -> tuple[Any, dict[str, float]]:
    """Compile a jitted function, for its later calls too, and return the seconds and the bytes of temporaries."""
    before = time.perf_counter()
    executable = program.lower(*args).compile()
    seconds, held = time.perf_counter() - before, executable.memory_analysis().temp_size_in_bytes
    return executable, {"compile_seconds": seconds, "temporary_bytes": float(held)}


def unless_it_fails(what: str, make: Callable[[], Variant]) -> list[Variant]:
    """Return PyTorch's variant, or none and a line: its compiler needs what not every machine has."""
    try:
        return [make()]
    except Disagreement:
        raise
    except Exception as error:
        print(f"left out, PyTorch fails: {what}: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
        return []


def agree(
    what: str, mode: str, found: Sequence[Any], truth: Sequence[Any], within: dict[str, float] = TOLERANCE
) -> None:
    """Require arrays to be the truth's, in norm, up to the mode's roundings."""
    for a, b in zip(found, truth, strict=True):
        error = np.linalg.norm((np.asarray(a, np.float64) - b).ravel()) / (np.linalg.norm(np.ravel(b)) or 1.0)
        if not error <= within[mode]:
            raise Disagreement(f"{what}: differs from jaxnn in float64 by {error:.2g}, relative; {mode}")


def dtype_of(mode: str) -> Any:
    """Return the arrays' dtype."""
    return jnp.bfloat16 if mode == "bfloat16" else jnp.float32


# Components -----------------------------------------------------------------------------------------------------------


class Problem:
    """A component's arguments and cotangent in one mode, for a batch or by example, and its true results."""

    def __init__(self, work: Work, mode: str, by_example: bool) -> None:
        """Compute value and gradients in float64."""
        self.work, self.mode, self.by_example = work, mode, by_example
        self.on_device: dict[Any, Any] = {}
        self.args = [self.cast(a, dtype_of(mode)) for a in work.args]
        self.ours = as_in(work.ours)
        with jax.enable_x64(True):
            wide = [self.cast(a, np.float64) for a in self.args]
            y = jax.eval_shape(self.function(self.ours), *self.placed(self.ours, wide))
            shape = permuted(np.empty((y[0] if work.aux else y).shape), self.ours.axes("y"), back=True).shape
            self.dy = np.asarray(np.random.default_rng(1).standard_normal(shape), dtype_of(mode))
            program, args = self.program(self.ours, wide)
            self.truth = self.canonical(self.ours, program(*args))

    def cast(self, a: Any, dtype: Any) -> Any:
        """Return the argument, in `dtype` if it is floating."""
        return a if np.issubdtype(a.dtype, np.integer) else a.astype(dtype)

    def function(self, way: In) -> Callable[..., Any]:
        """Return the function, mapped if it is taken by example."""
        return jax.vmap(way.f, self.work.mapped) if self.by_example else way.f

    def placed(self, way: In, args: Sequence[Any]) -> list[Any]:
        """Return the arguments in the way's layout."""
        return [permuted(a, way.axes(i)) for i, a in enumerate(args)]

    def program(self, way: In, args: Sequence[Any]) -> tuple[Any, tuple[Any, Any]]:
        """Return value and gradients as a jitted function, and its arguments."""

        def both(args: Any, dy: Any) -> Any:
            f, floats = of_floats(way.f, args)
            y, vjp, *aux = jax.vjp(f, *floats, has_aux=self.work.aux)  # type: ignore[call-overload]
            return y, vjp(dy), aux

        # One copy for all ways: where in memory an array lies can change a time by a third.
        layout = (*map(way.axes, range(len(args))), way.axes("y"), *(a.dtype for a in args))
        if layout not in self.on_device:
            placed = tuple(jnp.asarray(a) for a in self.placed(way, args))
            self.on_device[layout] = placed, jnp.asarray(permuted(self.dy, way.axes("y")))
        placed, dy = self.on_device[layout]
        y = jax.eval_shape(self.function(way), *placed)
        dy = dy.astype((y[0] if self.work.aux else y).dtype)
        return jax.jit(jax.vmap(both, (self.work.mapped, 0)) if self.by_example else both), (placed, dy)

    def canonical(self, way: In, results: Any) -> list[Any]:
        """Return y and the gradients in float64 and the canonical layout, or what does not depend on chance."""
        y, gradients, *_ = results
        floats = [i for i, a in enumerate(self.args) if not np.issubdtype(a.dtype, np.integer)]
        wide = [permuted(np.asarray(y, np.float64), way.axes("y"), back=True)]
        for i, gradient in zip(floats, gradients, strict=True):
            shared = self.by_example and self.work.mapped is not None and self.work.mapped[i] is None
            axes = way.axes(i, shifted=shared)
            wide.append(permuted(np.asarray(gradient, np.float64), axes, back=True))
        digest = self.work.digest
        return digest([np.asarray(a, np.float64) for a in self.args], self.dy, wide) if digest else wide

    def jax_variant(self, side: str, name: str, way: In) -> Variant:
        """Return a way in JAX, compiled and checked."""
        program, args = self.program(way, self.args)
        _, facts = compiled(program, *args)
        agree(f"{self.work.name} by {name}", self.mode, self.canonical(way, program(*args)), self.truth)
        if not self.by_example:
            facts["residual_bytes"] = float(saved(way.f, tuple(args[0]))[1])
        return Variant(side, name, jax_run(lambda: program(*args)), facts=facts).calibrated()

    def torch_variant(self, name: str, way: In) -> Variant:
        """Return a way in PyTorch, compiled if its name says so, and checked."""
        args = [workloads.tensor(a, torch_device(), name) for a in self.placed(way, self.args)]
        leaves = [a.requires_grad_() for a in args if a.is_floating_point()]
        dy = workloads.tensor(permuted(self.dy, way.axes("y")), torch_device(), name)

        def call() -> tuple[Any, Any]:
            y = way.f(*args)
            y = y[0] if self.work.aux else y
            return y, torch.autograd.grad(y, leaves, dy.to(y.dtype))

        facts = torch_facts(name, call)
        y, gradients = call()
        found = [a.detach().double().cpu().numpy() for a in (y, *gradients)]
        agree(
            f"{self.work.name} by PyTorch's {name}", self.mode, self.canonical(way, (found[0], found[1:])), self.truth
        )
        return Variant("torch", name, torch_run(call), facts=facts).calibrated()

    def variants(self) -> list[Variant]:
        """Return all ways, checked; PyTorch's for the batch only."""
        found = [self.jax_variant("jaxnn", self.ours.layout or "rule", self.ours)]
        found += [self.jax_variant("jax", name, as_in(way)) for name, way in self.work.jax.items()]
        ways = {} if self.by_example else self.work.torch
        for name, way in ways.items():
            found += unless_it_fails(
                f"{self.work.name}, {name}", functools.partial(self.torch_variant, name, as_in(way))
            )
        return found

    def nbytes(self) -> float:
        """Return the bytes of the arguments and the results, each counted once."""
        program, args = self.program(self.ours, self.args)
        results = jax.eval_shape(program, *args)
        return float(sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((args, results))))


def as_in(way: Any) -> In:
    """Return a way with its layout."""
    return way if isinstance(way, In) else In("", way)


def permuted(a: Any, axes: tuple[int, ...] | None, *, back: bool = False) -> Any:
    """Return the array with its axes permuted, or permuted back."""
    return a if axes is None else np.ascontiguousarray(np.transpose(a, np.argsort(axes) if back else axes))


def components(sizes: Sizes, mode: str, rounds: int) -> Iterator[Row]:
    """Measure every public component."""
    for work in workloads.components(sizes):
        if on_gpu() and work.name.startswith("linear_cross_entropy") and mode != "bfloat16":
            continue  # its target is in bfloat16
        for by_example in (False, True) if work.mapped else (False,):
            problem = Problem(work, mode, by_example)
            variants = problem.variants()
            measure(variants, rounds)
            name = f"{work.name}, per example" if by_example else work.name
            limits = targets(on_gpu()).get(name, {"of JAX": 1.05})
            yield row("components", name, mode, variants, limits, nbytes=problem.nbytes(), flops=work.flops)
            del problem, variants
            gc.collect()
            jax.clear_caches()  # type: ignore[no-untyped-call]
            if torch:
                torch._dynamo.reset()  # else it would compile the first few functions, and no more


# The convnet ----------------------------------------------------------------------------------------------------------

IMAGE = (28, 28, 1)


def batches(size: int) -> tuple[Any, Any, Any]:
    """Return the images, labels and keys of STEPS steps."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((STEPS, size, *IMAGE), np.float32))
    return (
        images,
        jnp.asarray(rng.integers(0, 10, (STEPS, size)), jnp.int32),
        jax.random.split(jax.random.key(0), STEPS),
    )


def check_net(net: Net, mode: str, params: Any, x: Any, y: Any, truth: Any) -> None:
    """Require a network's loss and gradient, without dropout, to be jaxnn's."""
    value, gradient = jax.jit(jax.value_and_grad(net.loss))(net.convert(params), x, y, None)
    agree(
        f"convnet by {net.name}", mode, (value, flat(gradient)), (truth[0], flat(net.convert(truth[1]))), NET_TOLERANCE
    )


def flat(gradient: Any) -> Any:
    """Return a gradient as one vector."""
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(gradient)])


def truth_of_net(params: Any, x: Any, y: Any) -> Any:
    """Return the loss and its gradient by jaxnn in float64, without dropout."""
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
        found = jax.jit(jax.value_and_grad(workloads.our_loss(jnp.float64)))(params, x, y, None)
        return jax.tree.map(np.asarray, found)


def forms(net: Net, mode: str, params: Any, data: tuple[Any, Any, Any]) -> Iterator[Variant]:
    """Yield a network's training: step by step, in a scan, and in an unrolled scan; all take the same steps."""
    split = [jax.tree.map(lambda a, i=i: a[i], data) for i in range(STEPS)]
    one = jax.jit(net.step, donate_argnums=0)

    def stepwise(params: Any) -> Any:
        for batch in split:
            params, _ = one(params, batch)
        return params

    def scan(unroll: int) -> Any:
        run = jax.jit(lambda p, data: lax.scan(net.step, p, data, unroll=unroll), donate_argnums=0)
        return run, lambda params: run(params, data)[0]

    programs = {"stepwise": (one, split[0], stepwise)}
    for name, unroll in (("scan", 1), (f"unroll {UNROLL}", UNROLL)):
        run, call = scan(unroll)
        programs[name] = (run, data, call)
    first = None
    for name, (program, argument, call) in programs.items():
        state = jax.tree.map(jnp.copy, net.convert(params))
        _, facts = compiled(program, state, argument)
        chain = functools.partial(chained, call, [state])
        moved = flat(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, chain(), net.convert(params)))
        first = moved if first is None else first
        agree(f"convnet by {net.name}, {name}, beside step by step", mode, [moved], [first], NET_TOLERANCE)
        yield Variant(net.side, f"{net.name}, {name}", jax_run(chain), STEPS, facts=facts).calibrated()


def chained(call: Callable[[Any], Any], state: list[Any]) -> Any:
    """Train on from the state that the last call left."""
    state[0] = call(state[0])
    return state[0]


def torch_form(name: str, mode: str, params: Any, data: tuple[Any, Any, Any], truth: Any) -> Variant:
    """Return PyTorch's training in one form."""
    net = TorchNet(name, params, torch_device(), dtype_of(mode))
    images = [workloads.tensor(np.asarray(x).reshape(len(x), 1, *IMAGE[:2]), net.device, name) for x in data[0]]
    labels = [workloads.tensor(np.asarray(y), net.device, name) for y in data[1]]
    value = net.backward(images[0], labels[0], False)
    gradient, turned = [p.grad.double().cpu().numpy() for p in net.params], workloads.to_nchw(truth[1])
    expected = [turned[layer][key] for layer in workloads.LINEN for key in ("w", "b")]
    agree(
        f"convnet by PyTorch's {name}", mode, (value.item(), flat(gradient)), (truth[0], flat(expected)), NET_TOLERANCE
    )
    facts = torch_facts(name, lambda: net.step(images[0], labels[0]))
    step = net.stepper(images[0], labels[0])

    def train() -> None:
        for x, y in zip(images, labels, strict=True):
            step(x, y)

    return Variant("torch", name, torch_run(train), STEPS, facts=facts).calibrated()


def convnet(sizes: Sizes, mode: str, rounds: int) -> Iterator[Row]:
    """Measure the training step, update included, in every form."""
    for size in sizes.convnet:
        data, params = batches(size), models.convnet.init(jax.random.key(0), IMAGE, 10)
        truth = truth_of_net(params, data[0][0], data[1][0])
        variants: list[Variant] = []
        for net in workloads.nets(dtype_of(mode)):
            check_net(net, mode, params, data[0][0], data[1][0], truth)
            variants += forms(net, mode, params, data)
        for name in workloads.torch_forms(on_gpu()) if torch else ():
            variants += unless_it_fails(name, functools.partial(torch_form, name, mode, params, data, truth))
        measure(variants, rounds)
        limits, name = targets(on_gpu()), f"training step, batch {size}"
        yield row("convnet", name, mode, variants, limits["convnet"], flops=step_flops(size))
        scans = [v for v in variants if v.name.endswith(", scan")]
        yield row("convnet", f"{name}, in a plain scan", mode, scans, limits["convnet in a plain scan"])
        del variants
        gc.collect()
    yield product_alone(sizes.convnet[0], mode, rounds)


def product_alone(size: int, mode: str, rounds: int) -> Row:
    """Measure the bare matrix product of conv2's weight gradient, 3 rows of x by 3 columns of dy: the rule's floor.

    The rule has smaller ones for the columns at both ends, in place of as many of these columns.
    """
    height, width = (n - 4 for n in IMAGE[:2])
    pixels, inputs, filters = size * height * width, 3 * 32, 3 * 64
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.standard_normal((pixels, n), np.float32), dtype_of(mode)) for n in (inputs, filters))
    program = jax.jit(lambda x, dy: x.T @ dy)
    variants = [Variant("jaxnn", "XLA", jax_run(lambda: program(x, dy)))]
    if torch:
        a, b = (workloads.tensor(np.asarray(z), torch_device(), "") for z in (x, dy))
        variants.append(Variant("torch", "mm", torch_run(lambda: torch.mm(a.T, b))))
    measure([v.calibrated() for v in variants], rounds)
    name = f"alone the product {inputs}×{pixels}×{filters} of conv2's weight gradient"
    return row("convnet", name, mode, variants, {}, flops=2.0 * pixels * inputs * filters)


def step_flops(batch: int) -> float:
    """Return the operations of the matrix products; the first convolution has no gradient of its input."""
    products = 2 * 26 * 26 * 9 * 32, 3 * 24 * 24 * 9 * 32 * 64, 3 * 9216 * 128, 3 * 128 * 10
    return 2.0 * batch * sum(products)


def memory(sizes: Sizes, mode: str, rounds: int) -> Iterator[Row]:
    """Compile the convnet's gradient at its batch for memory, without running it."""
    x, y = jax.eval_shape(lambda: (jnp.zeros((1024, *IMAGE)), jnp.zeros(1024, jnp.int32)))
    variants = []
    for net in workloads.nets(dtype_of(mode)):
        params = jax.eval_shape(lambda net=net: net.convert(models.convnet.init(jax.random.key(0), IMAGE, 10)))
        _, facts = compiled(jax.jit(jax.value_and_grad(net.loss)), params, x, y, jax.eval_shape(jax.random.key, 0))
        variants.append(Variant(net.side, net.name, lambda n: None, samples=[facts["temporary_bytes"]]))
    limits = targets(on_gpu())["memory"]
    yield row("memory", "convnet's gradient, batch 1024", mode, variants, limits, unit="B")


def compilation(sizes: Sizes, mode: str, rounds: int) -> Iterator[Row]:
    """Compile the convnet's step anew, in turns."""
    data, params = batches(sizes.convnet[0]), models.convnet.init(jax.random.key(0), IMAGE, 10)
    batch = jax.tree.map(lambda a: a[0], data)

    def anew(net: Net, params: Any, _: int) -> None:
        jax.clear_caches()  # type: ignore[no-untyped-call]
        jax.jit(net.step, donate_argnums=0).lower(params, batch).compile()

    variants = [
        Variant(n.side, n.name, functools.partial(anew, n, n.convert(params))) for n in workloads.nets(dtype_of(mode))
    ]
    measure(variants, rounds)
    limits = targets(on_gpu())["compile"]
    yield row("compile", f"convnet's step, batch {sizes.convnet[0]}", mode, variants, limits)


def tricks(sizes: Sizes, mode: str, rounds: int) -> Iterator[Row]:
    """Measure what each trick of the rules gains."""

    def variant(problem: Problem, side: str, name: str) -> Variant:
        program, args = problem.program(problem.ours, problem.args)
        executable, facts = compiled(program, *args)
        agree(f"{problem.work.name}, {name}", mode, problem.canonical(problem.ours, executable(*args)), problem.truth)
        return Variant(side, name, jax_run(lambda: executable(*args)), facts=facts).calibrated()

    for work in workloads.components(sizes):
        for trick in (t for t in workloads.tricks(on_gpu()) if t.work == work.name):
            problem = Problem(work, mode, False)
            with trick.left_out():
                without = variant(problem, "without", trick.instead)
            variants = [variant(problem, "jaxnn", trick.name), without]
            measure(variants, rounds)
            yield row("tricks", f"{work.name}: `{trick.name}`, not {trick.instead}", mode, variants, {})


GROUPS: dict[str, Callable[[Sizes, str, int], Iterator[Row]]] = {
    "convnet": convnet, "components": components, "memory": memory, "compile": compilation,
    "tricks": tricks,
}  # fmt: skip


def ceilings(mode: str, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return each library's bytes/s of a copy and flop/s of a matrix product of `size`."""
    dtype = dtype_of(mode)
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    held = [jnp.ones(16 * size * size, dtype)]
    product, negative = jax.jit(jnp.matmul), jax.jit(jnp.negative, donate_argnums=0)
    products = [Variant("jax", "product", jax_run(lambda: product(a, a)))]
    copies = [Variant("jax", "copy", jax_run(functools.partial(chained, negative, held)))]
    if torch:
        b = workloads.tensor(np.asarray(a), torch_device(), "")
        source = torch.ones(held[0].size, dtype=b.dtype, device=b.device)
        target = torch.empty_like(source)
        products.append(Variant("torch", "product", torch_run(lambda: torch.mm(b, b))))
        copies.append(Variant("torch", "copy", torch_run(lambda: target.copy_(source))))
    for variants in (products, copies):
        measure([v.calibrated() for v in variants], rounds)
    moved = 2.0 * 16 * size * size * dtype.dtype.itemsize
    return {
        SIDES[p.side]: {"flop_per_second": 2.0 * size**3 / p.median, "bytes_per_second": moved / c.median}
        for p, c in zip(products, copies, strict=True)
    }


def machine() -> dict[str, Any]:
    """Return hardware, versions, date and load."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    modules = {"jax": jax, "torch": torch, "optax": workloads.optax, "flax": workloads.optional("flax")}
    return {
        "versions": {"Python": platform.python_version()} | {k: m.__version__ for k, m in modules.items() if m},
        "device": jax.devices()[0].device_kind, "cpu": names[0] if names else platform.processor(),
        "cores": cores, "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


# Command line ---------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked options."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=25, help="how often each variant is timed at least (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the ratios")
    parser.add_argument("--readme", action="store_true", help="write the README's section, and measure nothing")
    options = parser.parse_args(argv)
    if unknown := [g for g in options.groups if g not in GROUPS]:
        parser.error(f"unknown group {unknown[0]!r}, must be one of {', '.join(GROUPS)}")
    if options.rounds < 1:
        parser.error(f"--rounds ({options.rounds}) must be at least 1")
    for path in filter(None, (options.json, options.picture)):
        if not path.absolute().parent.is_dir():
            parser.error(f"{path} must lie in a folder that exists")
    if options.picture and options.picture.suffix != ".png":
        parser.error(f"--picture ({options.picture}) must end in .png")
    for module in ("rich", *(["matplotlib"] if options.picture else [])):
        if workloads.optional(module) is None:
            parser.error(f"{module} is missing; it is in the extra `train`")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit code."""
    options = options_of(argv)
    try:
        if options.readme:
            README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
            return 0
        results = measured(options.groups or list(GROUPS), options.rounds)
    except Disagreement as error:
        print(f"bench.py: error: {error}", file=sys.stderr)
        return 1
    print_table(results)
    if options.json:
        options.json.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if options.picture:
        draw(results, options.picture)
    return 0


def measured(groups: Sequence[str], rounds: int) -> dict[str, Any]:
    """Run the groups, and return everything that is reported."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is PyTorch's, too
    device = "gpu" if on_gpu() else "cpu"
    # Compile times are those of a first run.
    jax.config.update("jax_enable_compilation_cache", False)  # type: ignore[no-untyped-call]
    command = " ".join(["python scripts/bench.py", *groups, f"--rounds {rounds}"])
    results: dict[str, Any] = {"command": command, "machine": machine(), "ceilings": {}, "rows": []}
    missing = [
        name for name, module in (("torch", torch), ("flax", workloads.linen), ("optax", workloads.optax)) if not module
    ]
    if missing:
        print(f"not installed, and left out: {', '.join(missing)}", file=sys.stderr)
    if torch:
        torch.set_num_threads(results["machine"]["cores"])
        if on_gpu():
            torch.set_float32_matmul_precision("high")  # TF32, as JAX's default
    for mode in MODES[device]:
        results["ceilings"][mode] = ceilings(mode, 8192 if device == "gpu" else 2048, rounds)
        for group in groups:
            for r in GROUPS[group](workloads.SIZES[device], mode, rounds):
                results["rows"].append(r)
                told = (f"{f['value']:.3g} {f['figure']}" for f in r["figures"] if f["figure"][:2] == "of")
                print(f"{group}: {cells(r, {})[0]}: {', '.join(told)}", file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
