"""Derivatives at a kink: any value between the one-sided derivatives is a convention, any other is wrong."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck import _numeric
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Trial
from jaxnn.tracing.contexts import float64_mode

STEP = 2.0**-20  # relative to the element: far above float64's rounding, and too small to reach another kink
MOST_OUTPUTS = 3  # elements of each output that are tried, and
MOST_TRIED = 4  # of all outputs together: each costs six sweeps
ROUNDING = 2.0**-40  # a derivative that counts as 0: 2**12 roundings of float64


def within_one_sided_derivatives(t: Trial, points: Arrays, leaf: int, flat: int) -> bool:
    """Whether the rule's derivative by one element lies between the one-sided derivatives, for each output it changes.

    Directions along one element are not enough: at a tie they accept (1, 1) as the derivative of the maximum, which is
    wrong along (1, 1). Directions of many elements count only if all kinks along them are convex, or all are concave (a
    maximum, a norm).
    """
    x = [as64(p) for p in points]
    direction = _numeric.element_direction(x, leaf, flat)
    before, here, after = (_outputs_at(t, [a + k * STEP * v for a, v in zip(x, direction, strict=True)])
                           for k in (-1, 0, 1))  # fmt: skip
    changed = [
        (k, int(j)) for k in range(len(here))
        for j in np.flatnonzero((before[k] != here[k]) | (after[k] != here[k]))[:MOST_OUTPUTS]
    ]  # fmt: skip
    if not changed:
        return _is_zero_up_to_rounding(t, points, leaf, flat, here, STEP * direction[leaf].reshape(-1)[flat])
    rng = np.random.default_rng((t.seed, 5))
    return all(_is_between(t, points, direction, k, j, rng) for k, j in changed[:MOST_TRIED])


def _outputs_at(t: Trial, x: Arrays) -> Arrays:
    with float64_mode():
        return [as64(y) for y in t.subject.run("value", t.differentiated, [jnp.asarray(a) for a in x], t.rest64)]


def _is_zero_up_to_rounding(t: Trial, points: Arrays, leaf: int, flat: int, outputs: Arrays, step: float) -> bool:
    """Whether the rule's derivative is 0, up to rounding, as it must be where no output changes."""
    try:  # in float64, where the rule loses no digits that the function keeps
        found = t.gradients64("custom", [as64(p) for p in points], [as64(d) for d in t.dy])
    except Exception:  # a rule, or a kernel, for other dtypes only
        found = t.gradients("custom", points, t.dy)
    size = sum(float(np.sum(np.abs(np.nan_to_num(as64(d) * y)))) for d, y in zip(t.dy, outputs, strict=True))
    return bool(abs(found[leaf].reshape(-1)[flat] * step) <= ROUNDING * size)


def _is_between(t: Trial, points: Arrays, direction: Arrays, output: int, element: int, rng: Any) -> bool:
    """Whether the rule's derivative of one element of an output lies between the one-sided ones, along directions.

    The directions are the given one, the sum of all elements that matter, the derivative itself, and three random ones.
    """
    dy = [np.zeros(d.shape) for d in t.dy]
    dy[output].reshape(-1)[element] = 1.0
    row = t.gradients("custom", points, [jnp.asarray(d).astype(o.dtype) for d, o in zip(dy, t.dy, strict=True)])
    support = [(r != 0) | (v != 0) for r, v in zip(row, direction, strict=True)]
    directions = [direction, [s * 1.0 for s in support], [np.nan_to_num(r) for r in row]]
    directions += [[s * rng.choice([-1.0, 1.0], s.shape) for s in support] for _ in range(3)]
    slopes = [t.slope(points, dy, v) for v in directions]
    bends = [slope.right - slope.left for slope in slopes if slope.kinked]
    one_way = all(b >= 0 for b in bends) or all(b <= 0 for b in bends)
    for v, slope in list(zip(directions, slopes, strict=True))[: None if one_way else 1]:
        low, high = slope.interval
        found = _numeric.dot(row, v)
        rounding = (
            8 * t.factor(t.dtype) * math.sqrt(_numeric.dot(row, row) * _numeric.dot(v, v))
        )  # of sums in low precision
        margin = rounding + 1e-6 * (abs(low) + abs(high))
        if not low - margin <= found <= high + margin:
            return False
    return True
