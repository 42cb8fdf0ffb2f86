"""The groups `components` and `optimisations`: forward and backward of every component, optimisations on and off."""

import functools
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import convolutions
import jax
import jax.numpy as jnp
import libraries
import numpy as np
import workloads
from bench_timing import (
    Variant,
    agree,
    compiled,
    dtype_of,
    jax_run,
    measure,
    row,
    unless_it_fails,
)
from libraries import In, device, on_gpu, torch_device, torch_facts, torch_run
from optimisations import optimisations
from residuals import of_floats, saved
from speed_tables import QUICK, Row, targets
from workloads import SIZES, Work, permuted


class Problem:
    """A component's arguments, cotangent and true results in one mode, for a batch or for single examples."""

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
        """Return the function, under vmap for single examples."""
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

        # One copy for all ways: an array's place in memory can change a time by a third.
        layout = (*map(way.axes, range(len(args))), way.axes("y"), *(a.dtype for a in args))
        if layout not in self.on_device:
            placed = tuple(jnp.asarray(a) for a in self.placed(way, args))
            self.on_device[layout] = placed, jnp.asarray(permuted(self.dy, way.axes("y")))
        placed, dy = self.on_device[layout]
        y = jax.eval_shape(self.function(way), *placed)
        dy = dy.astype((y[0] if self.work.aux else y).dtype)
        return jax.jit(jax.vmap(both, (self.work.mapped, 0)) if self.by_example else both), (placed, dy)

    def canonical(self, way: In, results: Any) -> list[Any]:
        """Return y and the gradients in float64 and the canonical layout, or their digest where they are random."""
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
        args = [libraries.tensor(a, torch_device(), name) for a in self.placed(way, self.args)]
        leaves = [a.requires_grad_() for a in args if a.is_floating_point()]
        dy = libraries.tensor(permuted(self.dy, way.axes("y")), torch_device(), name)

        def call() -> tuple[Any, Any]:
            y = way.f(*args)
            y = y[0] if self.work.aux else y
            return y, libraries.torch.autograd.grad(y, leaves, dy.to(y.dtype))

        facts = torch_facts(name, call)
        y, gradients = call()
        found = [a.detach().double().cpu().numpy() for a in (y, *gradients)]
        agree(
            f"{self.work.name} by PyTorch's {name}", self.mode, self.canonical(way, (found[0], found[1:])), self.truth
        )
        return Variant("torch", name, torch_run(call), facts=facts).calibrated()

    def variants(self) -> list[Variant]:
        """Return all ways, checked; PyTorch's only for the batch."""
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


def components(mode: str, rounds: int, quick: bool = False) -> Iterator[Row]:
    """Measure every component of the table; a quick run measures the batch of some."""
    for work in workloads.components(SIZES[device()]):
        if on_gpu() and work.name.startswith("linear_cross_entropy") and mode != "bfloat16":
            continue  # its target is in bfloat16
        if quick and work.name not in QUICK:
            continue
        for by_example in (False, True) if work.mapped and not quick else (False,):
            name = f"{work.name}, per example" if by_example else work.name
            limits = targets(on_gpu()).get(name, {"of JAX": 1.05})
            torch = {way: f for way, f in work.torch.items() if not quick or "compile" not in way}
            yield compared("components", work._replace(name=name, torch=torch), mode, rounds, limits, by_example)


def compared(
    group: str,
    work: Work,
    mode: str,
    rounds: int,
    limits: dict[str, float],
    by_example: bool = False,
    floor: Callable[[], Sequence[Variant]] = tuple,
) -> Row:
    """Measure jaxnn, its peers, and what is known as the floor; leave nothing behind in memory."""
    problem = Problem(work, mode, by_example)
    variants = [*problem.variants(), *floor()]
    measure(variants, rounds)
    measured = row(group, work.name, mode, variants, limits, nbytes=problem.nbytes(), flops=work.flops)
    del problem, variants
    gc.collect()
    jax.clear_caches()  # type: ignore[no-untyped-call]
    if libraries.torch:
        libraries.torch._dynamo.reset()  # otherwise it compiles only the first few functions
    return measured


def with_and_without(mode: str, rounds: int) -> Iterator[Row]:
    """Measure what each optimisation of the rules gains: the component with it on, and off."""

    def variant(problem: Problem, side: str, name: str) -> Variant:
        program, args = problem.program(problem.ours, problem.args)
        executable, facts = compiled(program, *args)
        agree(f"{problem.work.name}, {name}", mode, problem.canonical(problem.ours, executable(*args)), problem.truth)
        return Variant(side, name, jax_run(lambda: executable(*args)), facts=facts).calibrated()

    for work in itertools.chain(workloads.components(SIZES[device()]), convolutions.in_the_middle()):
        for each in (o for o in optimisations(on_gpu()) if o.work == work.name):
            problem = Problem(work, mode, False)
            with each.off():
                off = variant(problem, "off", each.instead)
            variants = [variant(problem, "jaxnn", each.name), off]
            measure(variants, rounds)
            yield row("optimisations", f"{work.name}: `{each.name}` instead of {each.instead}", mode, variants, {})
