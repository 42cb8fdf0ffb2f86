"""How the benchmark measures: variants of a piece of work, turns in random order, ratios of the rounds, agreement."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from speed_tables import SIDES, Row

QUALIFYING = 3  # rounds that every variant has
MARGIN = 1.25  # after these rounds a variant goes on if its time is at most so many times the best one
SHORT = 0.05  # seconds: a shorter call is preceded by untimed calls
SLICE = 0.01  # seconds: the length of a sample
ENOUGH = 50e-6  # seconds: a shorter time has no target
ROUND = 1.0  # seconds: shorter rounds are repeated until as many seconds have passed as rounds are wanted
TOLERANCE = {"float32": 2e-5, "TF32": 1e-2, "bfloat16": 5e-2}  # roundings of sums of up to 10⁵ terms, in norm
# In a network, rounding by eps moves a share of about eps of the activations across a kink of ReLU or of a maximum. The
# norm of what that changes in the gradient is proportional to the root of eps.
NET_TOLERANCE = {"float32": 4 * 2**-11.5, "TF32": 4 * 2**-5, "bfloat16": 4 * 2**-4}


class Disagreement(Exception):
    """A variant's results differ from jaxnn's."""


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
    """Let the variants take turns in random order; slow ones stop after the qualifying rounds.

    In a fixed order one variant would always follow PyTorch, whose threads keep spinning for a while.
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
    """Return a function that calls n times; on a CPU, where calls may overlap, each call waits for the last one."""
    serial = jax.default_backend() == "cpu"

    def run(n: int) -> None:
        for _ in range(n):
            out = call()
            if serial:
                jax.block_until_ready(out)  # type: ignore[no-untyped-call]
        jax.block_until_ready(out)  # type: ignore[no-untyped-call]

    return run


def compiled(program: Any, *args: Any) -> tuple[Any, dict[str, float]]:
    """Compile a jitted function; return it, with the seconds that took and its bytes of temporaries."""
    before = time.perf_counter()
    executable = program.lower(*args).compile()
    seconds, held = time.perf_counter() - before, executable.memory_analysis().temp_size_in_bytes
    return executable, {"compile_seconds": seconds, "temporary_bytes": float(held)}


def unless_it_fails(what: str, make: Callable[[], Variant]) -> list[Variant]:
    """Return PyTorch's variant; none, with a line on stderr, where PyTorch's compiler fails on this machine."""
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
    """Require arrays to equal the truth, in norm, up to the mode's rounding."""
    for a, b in zip(found, truth, strict=True):
        error = np.linalg.norm((np.asarray(a, np.float64) - b).ravel()) / (np.linalg.norm(np.ravel(b)) or 1.0)
        if not error <= within[mode]:
            raise Disagreement(f"{what}: differs from jaxnn in float64 by {error:.2g}, relative; {mode}")


def dtype_of(mode: str) -> Any:
    """Return the arrays' dtype."""
    return jnp.bfloat16 if mode == "bfloat16" else jnp.float32
