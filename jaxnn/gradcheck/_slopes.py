"""The rule beside the numeric derivative along directions in one argument."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxnn.gradcheck import _numeric
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import LARGE, Trial

# How many single elements are differentiated numerically, by level: each costs a sweep of up to 21 evaluations of f.
# An argument with more elements is differentiated along random directions.
ELEMENTS = {"rule": 6, "full": 32}
DIRECTIONS, DIRECTIONS_OF_LARGE = 3, 1
# How accurate a function that iterates until it converges is taken to be, beside its largest gradient.
ITERATION = 1e-3
TIES_TRIED = 8  # random directions, of which any may miss a tie
LOOSE = 0.3  # if more is allowed, beside the terms of the rule's, only a closer agreement proves anything


class Along(NamedTuple):
    """The rule and the numeric derivative along the direction where they differ; along the last one if they agree."""

    found: float  # the rule's derivative along the direction
    slope: _numeric.Slope
    direction: Arrays
    agrees: bool
    settled: bool  # whether the numeric derivative decides, along every direction tried

    @property
    def text(self) -> str:
        relative = abs(self.found - self.slope.value) / (abs(self.slope.value) or math.inf)
        numeric = f"numeric {self.slope.value:.6g} ± {self.slope.error:.2g}"
        return f"{self.found:.6g}, {numeric} (relative error {relative:.2g})"

    @property
    def within_interval(self) -> bool:
        low, high = self.slope.interval
        return low <= self.found <= high


def along_directions(t: Trial, leaf: int) -> Along:
    """Compare the rule with the numeric derivative along directions in one argument."""
    in_float64 = t.rule_in_float64 is not None and not t.no_float64
    custom = (t.rule_in_float64 if in_float64 else t.custom)[leaf]  # type: ignore[index]
    # The allowed error of the sum over a direction's elements: independent roundings add up as a root of squares.
    allowed = np.square(np.nan_to_num(t.allowed_in_float64(leaf) if in_float64 else t.allowed(leaf)))
    settled = True
    for v in _directions(t, leaf):
        slope = t.slope(t.subject.points, t.dy, v)
        found = _numeric.dot([custom], [v[leaf]])
        if leaf == 0 and not t.sweep:
            scale = abs(found) or 1.0
            t.sweep = tuple((h, abs(c - found) / scale) for h, c in slope.sweep if math.isfinite(c))
        error = abs(found - slope.value)
        t.note_error("numeric", error / (abs(slope.value) or 1.0))
        terms = math.sqrt(_numeric.dot([np.square(np.abs(custom))], [np.square(np.abs(v[leaf]))]))
        rounding = math.sqrt(_numeric.dot([np.square(np.abs(v[leaf]))], [allowed]))
        limit = 3 * slope.error + 4 * rounding + 1e-6 * abs(slope.value) + 1e-300
        sharp = error <= max(3 * slope.error, 0.01 * abs(slope.value)) or limit <= max(LOOSE * terms, 3 * slope.floor)
        settled &= slope.is_settled(terms) and sharp
        if not error <= limit and not (t.iterates and error <= ITERATION * _largest_gradient(t)):
            return Along(found, slope, v, False, slope.is_settled(terms))
    return Along(found, slope, v, True, settled)


def is_linear_along(t: Trial, leaf: int, direction: Arrays) -> bool:
    """Whether the numeric derivatives along the sum of two directions add up, as they do where f has a derivative.

    At a tie, as of the numbers around a median, they do not, though no single direction shows a kink.
    """
    rng = np.random.default_rng((t.seed, 9, leaf))
    x = [as64(p) for p in t.subject.points]
    one = t.slope(t.subject.points, t.dy, direction)
    for _ in range(TIES_TRIED):
        other = _numeric.random_direction(x, leaf, rng)
        two = t.slope(t.subject.points, t.dy, other)
        both = t.slope(t.subject.points, t.dy, [a + b for a, b in zip(direction, other, strict=True)])
        error = 10 * (one.error + two.error + both.error) + 1e-3 * (abs(one.value) + abs(two.value))
        if abs(both.value - one.value - two.value) > error:
            return False
    return True


def _largest_gradient(t: Trial) -> float:
    """Return the largest derivative by an argument, per relative change of it."""
    sizes = (np.nan_to_num(g) * np.nan_to_num(as64(p)) for g, p in zip(t.custom, t.subject.points, strict=True))
    return max(float(np.sqrt(np.sum(np.square(np.abs(s))))) for s in sizes)


def _directions(t: Trial, leaf: int) -> Iterator[Arrays]:
    """Yield the directions for one argument: each element if there are few, else random ones."""
    x = [as64(p) for p in t.subject.points]
    if x[leaf].size > ELEMENTS[t.level]:
        rng = np.random.default_rng((t.seed, 3, leaf))
        for _ in range(DIRECTIONS_OF_LARGE if t.size > LARGE else DIRECTIONS):
            yield _numeric.random_direction(x, leaf, rng)
        return
    finite = np.flatnonzero(np.isfinite(x[leaf]))
    directions = [_numeric.element_direction(x, leaf, int(i)) for i in (finite if finite.size else [0])]
    yield from directions
    if np.iscomplexobj(x[leaf]):
        yield from map(_numeric.imaginary, directions)
