"""Whether a derivative at a kink is a convention, or wrong: between the one-sided derivatives, or not."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck import _numeric
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Trial
from jaxnn.tracing.contexts import float64_mode


def inside(t: Trial, points: Arrays, leaf: int, flat: int) -> bool:
    """Whether the rule's derivative of each output that the element moves lies between the one-sided derivatives.

    Along coordinates alone (1, 1) would pass for the maximum at a tie; along (1, 1) it does not. Directions of many
    elements are a test only where the output bends one way in all of them (a maximum, a norm).
    """
    s, x = t.subject, [as64(p) for p in points]
    step = 2.0**-20
    towards = _numeric.coordinate(x, leaf, flat)
    with float64_mode():
        outputs = [
            [as64(y) for y in s.run("value", "custom" if s.reference is None else "automatic",
                                    [jnp.asarray(a + k * step * v) for a, v in zip(x, towards, strict=True)], t.rest64)]
            for k in (-1, 0, 1)
        ]  # fmt: skip
    moved = [
        (k, int(j)) for k in range(len(s.outputs))
        for j in np.flatnonzero((outputs[0][k] != outputs[1][k]) | (outputs[2][k] != outputs[1][k]))[:3]
    ]  # fmt: skip
    if not moved:
        return _is_nothing(t, points, leaf, flat, [as64(y) for y in outputs[1]], step * towards[leaf].reshape(-1)[flat])
    rng = np.random.default_rng((t.seed, 5))
    return all(_between(t, points, x, towards, k, j, rng) for k, j in moved[:4])


def _is_nothing(t: Trial, points: Arrays, leaf: int, flat: int, outputs: Arrays, step: float) -> bool:
    """Whether the rule says so where no output moves: its derivative is 0, but for rounding."""
    try:  # in float64, where the rule loses no digits that the function keeps
        found = t.gradients64("custom", [as64(p) for p in points], [as64(d) for d in t.dy])
    except Exception:  # a rule, or a kernel, for other dtypes only
        found = t.gradients("custom", points, t.dy)
    size = sum(float(np.sum(np.abs(np.nan_to_num(as64(d) * y)))) for d, y in zip(t.dy, outputs, strict=True))
    return bool(abs(found[leaf].reshape(-1)[flat] * step) <= 2.0**-40 * size)


def _between(t: Trial, points: Arrays, x: Arrays, towards: Arrays, output: int, element: int, rng: Any) -> bool:
    dy = [np.zeros(d.shape) for d in t.dy]
    dy[output].reshape(-1)[element] = 1.0
    row = t.gradients("custom", points, [jnp.asarray(d).astype(o.dtype) for d, o in zip(dy, t.dy, strict=True)])
    support = [(r != 0) | (v != 0) for r, v in zip(row, towards, strict=True)]
    joint = [[s * 1.0 for s in support], [np.nan_to_num(r) for r in row]]
    joint += [[s * rng.choice([-1.0, 1.0], s.shape) for s in support] for _ in range(3)]
    slopes = [t.slope(points, dy, v) for v in (towards, *joint)]
    bends = [slope.right - slope.left for slope in slopes if slope.kinked]
    one_way = all(b >= 0 for b in bends) or all(b <= 0 for b in bends)
    for v, slope in list(zip([towards, *joint], slopes, strict=True))[: None if one_way else 1]:
        low, high = slope.interval
        found = _numeric.dot(row, v)
        margin = 8 * t.factor * math.sqrt(_numeric.dot(row, row) * _numeric.dot(v, v)) + 1e-6 * (abs(low) + abs(high))
        if not low - margin <= found <= high + margin:
            return False
    return True
