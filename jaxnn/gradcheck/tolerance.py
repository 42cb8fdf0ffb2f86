"""How far an element may be off: 8 eps of its dtype times its response to rounding, at every size of the arrays.

Rounding is modelled by small relative perturbations of everything from which the derivative is computed: the arguments,
the output's cotangent, and the rule's residuals. An element's response is how far it moves per unit of perturbation. At
a kink (a tie, a zero of relu) a perturbation makes the derivative jump. Such a change does not shrink with the
perturbation, and is left out.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

# A rule rounds each number several times. Chosen so that every right rule of the zoo passes (tests/zoo/right.py).
EPS_PER_RESPONSE = 8.0
# Perturbations for float64: far above its rounding, 2**-52, and so small that curvature hardly matters.
COARSE, FINE = 2.0**-20, 2.0**-24
# A rule may compute in float32 throughout: then its error in float64 is some dozens of roundings of float32.
FLOAT32_ROUNDING = 64 * 2.0**-23
# Of a smooth function both perturbations give the same response. A jump's is COARSE / FINE = 16 times as large at FINE.
# This is halfway between.
JUMP = 4.0


@dataclasses.dataclass(frozen=True)
class Truth:
    """A derivative in float64 and the response of each element to rounding."""

    gradients: list[Any]
    responses: list[Any]
    draws: int = 0  # how many random perturbations the responses are the largest of

    def allowed(self, leaf: int, rtol: float, dtype: Any) -> Any:
        """Return the absolute error that each element of a leaf may have."""
        finite = np.where(np.isfinite(self.responses[leaf]), self.responses[leaf], 0.0)
        return rtol * finite + underflow_limit(dtype)


def finfo(dtype: Any) -> Any:
    """Return the limits of a floating-point dtype."""
    return jnp.finfo(dtype)  # type: ignore[no-untyped-call]


def underflow_limit(dtype: Any) -> float:
    """Return the size below which an element may be lost, because a factor on the way to it underflows.

    Backends flush numbers below the smallest normal one to zero; 2**10 leaves room for other factors up to 1,000.
    """
    return 2.0**10 * float(finfo(dtype).smallest_normal)


def random_signs(shape: tuple[int, ...], seed: int) -> Any:
    """Return an array of +1 and −1."""
    return 2 * np.random.default_rng((seed, 2)).integers(0, 2, shape, np.int8) - 1


def with_relative_errors(x: Any, delta: float, seed: int) -> Any:
    """Return an array with relative errors of `delta`, of random sign."""
    factor = np.asarray(delta * random_signs(x.shape, seed))  # no scalar
    factor += 1  # in place: at 10**7 elements a new array costs more than the arithmetic
    return x * factor


def response(base: list[Any], at: Callable[[float], list[Any]]) -> list[Any]:
    """Return how far each element moves per unit of the perturbation that `at` takes; 0 where it jumps."""
    with np.errstate(all="ignore"):
        return [_change(b, c, f) for b, c, f in zip(base, at(COARSE), at(FINE), strict=True)]


def _change(base: Any, coarse: Any, fine: Any) -> Any:
    far, near = np.asarray(np.abs(coarse - base)), np.asarray(np.abs(fine - base))  # no scalars
    far /= COARSE  # in place, for the same reason
    near /= FINE
    jumps = near > JUMP * far
    change = np.maximum(far, near, out=far)
    change[jumps | ~np.isfinite(change)] = 0.0
    return change


def largest_response(*responses: list[Any]) -> list[Any]:
    """Return the largest of several responses, for each element."""
    return [functools.reduce(np.maximum, group) for group in zip(*responses, strict=True)]


def differs(a: Any, b: Any, allowed: Any) -> Any:
    """Return which elements differ by more than allowed. NaN equals NaN, and infinity itself."""
    with np.errstate(all="ignore"):
        apart = ~(np.abs(a - b) <= allowed)
    return apart & (a != b) & ~(np.isnan(a) & np.isnan(b)) if apart.any() else apart


def relative_to_largest(error: Any, scale: Any) -> float:
    """Return the largest finite error divided by the largest finite scale."""
    top, worst = largest_finite(scale), largest_finite(error)
    return worst / top if top > 0 else (0.0 if worst == 0 else float("inf"))


def largest_finite(x: Any) -> float:
    """Return the largest finite element; 0 if there is none."""
    with np.errstate(all="ignore"):
        return float(np.nanmax(np.where(np.isfinite(x), x, 0.0), initial=0.0))


def largest_per_response(error: Any, responses: Any) -> float:
    """Return the largest error per unit of response."""
    with np.errstate(all="ignore"):
        return largest_finite(np.where(responses > 0, error / responses, 0.0))


def worst_index(a: Any, b: Any, wrong: Any) -> tuple[int, ...]:
    """Return where, among the elements that are wrong, two arrays are farthest apart."""
    with np.errstate(all="ignore"):
        off = np.where(wrong, np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf), -1.0)
    return tuple(int(k) for k in np.unravel_index(int(np.argmax(off)), off.shape))


def index_text(i: Any) -> str:
    """Write an index: "[0, 2]"."""
    return f"[{', '.join(str(int(k)) for k in i)}]" if len(i) else ""


def unit_in_last_place(x: float, dtype: Any) -> float:
    """Return the distance from x to the next number of the dtype."""
    return float(finfo(dtype).eps) * 2.0 ** math.floor(math.log2(x)) if 0 < x < math.inf else math.nan
