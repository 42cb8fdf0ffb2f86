"""Numeric derivatives along a direction: every step size at once, how sure the answer is, and the kinks.

For a direction v the central difference (φ(x + hv) − φ(x − hv)) / 2h misses φ'(x)·v by a term in h² and by rounding,
which grows as 1/h. Neither is known beforehand, so all steps of a sweep are taken: where two neighbouring steps agree
best, their distance says how far either can be off. At a kink the two one-sided derivatives stay apart as h shrinks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

Vector = Any  # a list of float64 arrays


@dataclasses.dataclass(frozen=True)
class Slope:
    """φ'(x; v): the derivative along a direction."""

    value: float
    error: float  # how far it can be off
    left: float  # −φ'(x; −v)
    right: float
    kinked: bool
    sweep: tuple[tuple[float, float], ...]  # (step, central difference)
    bend: float  # how far the one-sided differences still move with the step

    @property
    def interval(self) -> tuple[float, float]:
        """The one-sided derivatives, widened by the error."""
        margin = 3 * self.error + self.bend + 1e-3 * abs(self.right - self.left)
        return min(self.left, self.right) - margin, max(self.left, self.right) + margin


def dot(a: Vector, b: Vector) -> float:
    """Return the real part of the sum of the products of two lists of arrays: how JAX pairs complex cotangents."""
    with np.errstate(all="ignore"):
        products = (np.where((x == 0) | (y == 0), 0.0, x * y) for x, y in zip(a, b, strict=True))
        return float(np.real(sum(np.sum(p) for p in products)))


def slope(
    f: Callable[[Vector], Vector], x: Vector, dy: Vector, direction: Vector, steps: list[float], eps: float
) -> Slope:
    """Differentiate φ = Σ dy f along `direction`; `eps` is the relative rounding error of f."""

    def moved(h: float) -> Vector:
        return [a + h * v for a, v in zip(x, direction, strict=True)]

    base = f(x)
    dy = [np.where(np.isfinite(y), d, 0.0) for d, y in zip(dy, base, strict=True)]
    with np.errstate(all="ignore"):
        scale = float(sum(np.sqrt(np.nansum(np.square(np.abs(d * y)))) for d, y in zip(dy, base, strict=True)))
        rounding = [4 * eps * scale / h for h in steps]
        right, left = [], []
        for h in steps:
            ahead, behind = f(moved(h)), f(moved(-h))
            right.append(dot(dy, [p - y for p, y in zip(ahead, base, strict=True)]) / h)
            left.append(dot(dy, [y - m for m, y in zip(behind, base, strict=True)]) / h)
        central = [(r + l) / 2 for r, l in zip(right, left, strict=True)]
        unsure = [
            abs(central[k + 1] - central[k]) + rounding[k + 1] if np.isfinite([central[k], central[k + 1]]).all()
            else np.inf
            for k in range(len(steps) - 1)
        ]  # fmt: skip
        k = int(np.argmin(unsure))
        jump, next_jump = abs(right[k] - left[k]), abs(right[k + 1] - left[k + 1])
        # A smooth function's jump shrinks with the step.
        kinked = next_jump > 0.6 * jump and next_jump > 20 * rounding[k + 1] + 1e-6 * abs(central[k + 1])
    return Slope(
        central[k + 1], float(unsure[k]), left[k + 1], right[k + 1], bool(kinked),
        tuple(zip(steps, central, strict=True)), max(abs(right[k + 1] - right[k]), abs(left[k + 1] - left[k])),
    )  # fmt: skip


def relative_direction(x: Vector, leaf: int, rng: np.random.Generator) -> Vector:
    """Make a random direction in one leaf, in proportion to its elements: positive ones stay positive."""
    direction = [np.zeros_like(a) for a in x]
    size = x[leaf].shape
    finite = np.where(np.isfinite(x[leaf]), x[leaf], 0.0)
    direction[leaf] = np.abs(finite) * rng.choice([-1.0, 1.0], size) * rng.uniform(0.5, 1.0, size)
    if np.iscomplexobj(finite):
        direction[leaf] = direction[leaf] * np.exp(2j * np.pi * rng.uniform(size=size))
    return direction


def coordinate(x: Vector, leaf: int, index: int) -> Vector:
    """Make the direction of one element, as long as the element is large (or as its neighbours are, if it is 0)."""
    direction = [np.zeros_like(a) for a in x]
    values = np.abs(x[leaf].reshape(-1))
    usable = values[np.isfinite(values) & (values > 0)]
    typical = float(np.median(usable)) if usable.size else 1.0
    direction[leaf].reshape(-1)[index] = values[index] if np.isfinite(values[index]) and values[index] > 0 else typical
    return direction


def turned(direction: Vector) -> Vector:
    """Turn a direction from the real axis to the imaginary one."""
    return [1j * v if np.iscomplexobj(v) else v for v in direction]
