"""The numeric derivative by one element, and the evidence that a report shows for it."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxnn.gradcheck import _numeric
from jaxnn.gradcheck._subject import as64
from jaxnn.gradcheck._trial import Trial
from jaxnn.gradcheck.report import Evidence
from jaxnn.gradcheck.tolerance import unit_in_last_place


class NumericElement(NamedTuple):
    """The numeric derivative by one element."""

    value: complex
    error: float
    kinked: bool
    settled: bool

    def is_close(self, derivative: Any, allowed: float) -> bool:
        """Whether a derivative agrees with it, up to the error of both."""
        finite = np.isfinite(self.value)
        margin = 3 * self.error + allowed + 1e-5 * abs(self.value) if finite else 0.0
        return bool(derivative == self.value or abs(derivative - self.value) <= margin)


def numeric_element(t: Trial, leaf: int, flat: int) -> NumericElement:
    """Differentiate numerically by one element of an argument."""
    direction = _numeric.element_direction([as64(p) for p in t.subject.points], leaf, flat)
    slope, length = t.slope(t.subject.points, t.dy, direction), float(np.real(direction[leaf].reshape(-1)[flat]))
    value: complex = slope.value / length
    settled = slope.is_settled(0.0)
    if np.iscomplexobj(as64(t.subject.points[leaf])):  # Re(g v) along v, and along i v
        along_imaginary = t.slope(t.subject.points, t.dy, _numeric.imaginary(direction))
        value -= 1j * along_imaginary.value / length
        settled &= along_imaginary.is_settled(abs(slope.value))
    return NumericElement(value, slope.error / length, slope.kinked and slope.has_sides, settled)


def evidence(t: Trial, leaf: int, i: Any, custom: Any, numeric: NumericElement, like_numeric: str) -> Evidence:
    """Return what the report shows of one wrong element; `like_numeric` is the derivative that numeric agrees with."""
    automatic = t.truth.gradients[leaf][i]
    truth = automatic if np.isfinite(automatic) or not np.isfinite(numeric.value) else numeric.value
    absolute = float(abs(custom - truth)) if np.isfinite(truth) else math.inf
    unit = unit_in_last_place(float(abs(truth)), t.subject.points[leaf].dtype)
    return Evidence(
        index=tuple(int(k) for k in i),
        custom=custom.item(),
        automatic=automatic.item(),
        numeric=numeric.value,
        absolute=absolute,
        relative=absolute / float(abs(truth)) if truth else math.inf,
        ulp=absolute / unit if unit else math.nan,
        tolerance=float(t.allowed(leaf)[i]),
        agree=f"{like_numeric} and numeric agree" if like_numeric else "no two agree",
    )
