"""Numeric derivatives along a direction, by a sweep of steps, with the error of the answer, and with the kinks.

For a direction v the central difference (φ(x + hv) − φ(x − hv)) / 2h misses φ'(x)·v by a term in h² and by rounding,
which grows as 1/h. The best step h is not known beforehand, so the sweep tries many. Where two neighbouring steps agree
best, their distance bounds the error of either. At a kink the two one-sided derivatives stay apart as h shrinks.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

Vector = Any  # a list of float64 arrays

# Powers of two around the best step, the cube root of eps: 2**-17 in float64, 2**-7.6 in float32.
STEPS_FLOAT64 = [2.0 ** (-4 - 3 * k) for k in range(7)]
STEPS_FLOAT32 = [2.0 ** (-1 - k) for k in range(10)]
EPS_FLOAT64, EPS_FLOAT32, EPS_FLOAT16 = 2.0**-52, 2.0**-23, 2.0**-10
# A smooth function's one-sided differences approach each other as the step shrinks: their gap falls to 1/8 from one
# step of float64's sweep to the next, to 1/2 in float32's. At a kink it stays.
GAP_OF_A_KINK = 0.6
UNSETTLED = 0.05  # relative error above which a numeric derivative decides nothing
COARSE = 1e-6  # relative rounding from which a derivative that seems to be 0 may be hidden
# At a kink a one-sided difference changes by less than this share of their distance from one step to the next.
SIDES = 0.1
# Where steps this small change a function by more, or by less, than they should, it rounds coarser than float64.
PROBE, LONGER_PROBE, LONGEST_PROBE = 2.0**-30, 2.0**-10, 0.5


@dataclasses.dataclass(frozen=True)
class Slope:
    """φ'(x; v): the derivative along a direction."""

    value: float
    error: float  # how far `value` can be off
    left: float  # −φ'(x; −v)
    right: float
    kinked: bool
    sweep: tuple[tuple[float, float], ...]  # (step, central difference)
    drift: float  # how far the one-sided differences still move from one step to the next
    uneven: float  # how far the one-sided differences stay apart; 0 if they approach each other
    floor: float  # an error so small, beside φ itself, counts as none

    def is_settled(self, size: float) -> bool:
        """Whether the error is small beside a derivative of this size, or so small that the derivative is 0."""
        size = max(abs(self.value), size)
        error = self.error if self.kinked else max(self.error, self.uneven)
        return bool(np.isfinite([self.value, size]).all() and error <= max(UNSETTLED * size, self.floor))

    @property
    def has_sides(self) -> bool:
        """Whether the one-sided derivatives have settled, as at a kink; at a jump they grow as the step shrinks."""
        return self.drift <= SIDES * abs(self.right - self.left)

    @property
    def interval(self) -> tuple[float, float]:
        """The one-sided derivatives, widened by three times the error, the drift and a thousandth of their distance."""
        margin = 3 * self.error + self.drift + 1e-3 * abs(self.right - self.left)
        return min(self.left, self.right) - margin, max(self.left, self.right) + margin


def dot(a: Vector, b: Vector) -> float:
    """Return the real part of the sum of the products of two lists of arrays: how JAX pairs complex cotangents."""
    with np.errstate(all="ignore"):
        products = (np.where((x == 0) | (y == 0), 0.0, x * y) for x, y in zip(a, b, strict=True))
        return float(np.real(sum(np.sum(p) for p in products)))


def slope(f: Callable[[Vector], Vector], x: Vector, dy: Vector, direction: Vector, eps: float) -> Slope:
    """Differentiate φ = Σ dy f along `direction`; `eps` is the relative rounding error of f."""
    steps = STEPS_FLOAT64 if eps <= EPS_FLOAT64 else STEPS_FLOAT32

    def at(h: float) -> Vector:
        return f([a + h * v for a, v in zip(x, direction, strict=True)])

    base = f(x)
    dy = [np.where(np.isfinite(y), d, 0.0) for d, y in zip(dy, base, strict=True)]
    with np.errstate(all="ignore"):
        scale = float(sum(np.sqrt(np.nansum(np.square(np.abs(d * y)))) for d, y in zip(dy, base, strict=True)))
        rounding = [4 * eps * scale / h for h in steps]  # a difference of two values, each off by an eps or two
        right, left = [], []
        for h in steps:
            ahead, behind = at(h), at(-h)
            right.append(dot(dy, [p - y for p, y in zip(ahead, base, strict=True)]) / h)
            left.append(dot(dy, [y - m for m, y in zip(behind, base, strict=True)]) / h)
        central = [(r + l) / 2 for r, l in zip(right, left, strict=True)]
        errors = [
            abs(central[k + 1] - central[k]) + rounding[k + 1] if np.isfinite([central[k], central[k + 1]]).all()
            else np.inf
            for k in range(len(steps) - 1)
        ]  # fmt: skip
        k = int(np.argmin(errors))
        errors[k] = max(errors[k], _conflict(central, k))
        gap, next_gap = abs(right[k] - left[k]), abs(right[k + 1] - left[k + 1])
        noise = 20 * rounding[k + 1] + 1e-6 * abs(central[k + 1])  # a gap must stand out from rounding
        apart = [max(abs(r - l) - 20 * e, 0.0) for r, l, e in zip(right, left, rounding, strict=True)]
        kinked = next_gap > GAP_OF_A_KINK * gap and next_gap > noise
    return Slope(
        central[k + 1], float(errors[k]), left[k + 1], right[k + 1], bool(kinked),
        tuple(zip(steps, central, strict=True)), max(abs(right[k + 1] - right[k]), abs(left[k + 1] - left[k])),
        _remaining_gap(apart), max(1e-9, 16 * eps) * scale if eps < COARSE else 0.0,
    )  # fmt: skip


def _remaining_gap(distances: list[float]) -> float:
    """Return the least distance of the one-sided differences, or 0 if it is small beside the largest one."""
    finite = [d for d in distances if np.isfinite(d)]
    least = min(finite, default=np.inf)
    return 0.0 if least <= 0.01 * max(finite, default=0.0) else least


def _conflict(central: list[float], k: int) -> float:
    """Return how far another two neighbouring steps that agree well are from the chosen ones, if they are far off.

    Where a formula cancels, its value is a constant error for the smallest steps, and has a slope of its own.
    """
    pairs = itertools.pairwise(central[: k + 1])
    plateaus = (b for a, b in pairs if abs(a - b) <= 0.01 * abs(b))
    distances = (abs(b - central[k + 1]) for b in plateaus if abs(b - central[k + 1]) > 0.5 * abs(b))
    return max(distances, default=0.0)


def rounding_of(f: Callable[[Vector], Vector], x: Vector, direction: Vector) -> float:
    """Estimate the relative error with which f computes its values: 2⁻⁵², or more where it rounds coarser inside.

    A host function may compute in float32 although it takes and returns float64. Over a tiny step the values of a
    smooth function change in proportion to the step. Rounded values stay as they are, or jump.
    """

    def distance(h: float) -> float:
        """How far the values move from one side to the other: where the slope is 0, curvature cancels."""
        ahead, behind = (f([a + k * v for a, v in zip(x, direction, strict=True)]) for k in (h, -h))
        return float(np.sqrt(sum(np.nansum(np.square(np.abs(p - y))) for p, y in zip(ahead, behind, strict=True))))

    base = f(x)
    with np.errstate(all="ignore"):
        size = float(np.sqrt(sum(np.nansum(np.square(np.abs(y[np.isfinite(y)]))) for y in base)))
        expected, found = distance(LONGER_PROBE) * PROBE / LONGER_PROBE, distance(PROBE)
    if not expected and not found and not distance(LONGEST_PROBE):
        return EPS_FLOAT16  # constant, or rounded so coarsely that nothing is seen of it
    visible = 64 * EPS_FLOAT64 * size
    if not size or (found <= 16 * expected + visible and (found >= expected / 16 or expected <= visible)):
        return EPS_FLOAT64
    return max(EPS_FLOAT32, found / size)


def random_direction(x: Vector, leaf: int, rng: np.random.Generator) -> Vector:
    """Return a random direction in one leaf. It is proportional to the elements, so positive ones stay positive."""
    direction = [np.zeros_like(a) for a in x]
    size = x[leaf].shape
    finite = np.where(np.isfinite(x[leaf]), x[leaf], 0.0)
    direction[leaf] = np.abs(finite) * rng.choice([-1.0, 1.0], size) * rng.uniform(0.5, 1.0, size)
    if np.iscomplexobj(finite):
        direction[leaf] = direction[leaf] * np.exp(2j * np.pi * rng.uniform(size=size))
    return direction


def element_direction(x: Vector, leaf: int, index: int) -> Vector:
    """Return a direction along one element.

    Its length is the element's magnitude, or the median magnitude if the element is 0 or not finite.
    """
    direction = [np.zeros_like(a) for a in x]
    values = np.abs(x[leaf].reshape(-1))
    usable = values[np.isfinite(values) & (values > 0)]
    typical = float(np.median(usable)) if usable.size else 1.0
    direction[leaf].reshape(-1)[index] = values[index] if np.isfinite(values[index]) and values[index] > 0 else typical
    return direction


def imaginary(direction: Vector) -> Vector:
    """Turn a direction along the real axis into one along the imaginary axis."""
    return [1j * v if np.iscomplexobj(v) else v for v in direction]
