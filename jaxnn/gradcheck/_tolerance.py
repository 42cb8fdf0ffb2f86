"""How far an element may be off: c · eps of its dtype · how far rounding moves it, whatever the arrays' sizes.

Rounding is modelled by relative perturbations of what the derivative is computed from: the arguments, the output's
cotangent, and what the rule has saved. An element's response is how far it moves, per unit of perturbation. At a kink
(a tie, a zero of relu) a perturbation makes the derivative jump: there the difference does not shrink with the
perturbation, and is left out.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

C = 8.0
COARSE, FINE = 2.0**-20, 2.0**-24


@dataclasses.dataclass(frozen=True)
class Truth:
    """A derivative in float64 and the response of each element to rounding."""

    gradients: list[Any]
    responses: list[Any]

    def allowed(self, leaf: int, rtol: float, dtype: Any) -> Any:
        """Return the absolute error that each element of a leaf may have."""
        finite = np.where(np.isfinite(self.responses[leaf]), self.responses[leaf], 0.0)
        return rtol * finite + smallest(dtype)


def finfo(dtype: Any) -> Any:
    """Return what is known of a floating-point dtype."""
    return jnp.finfo(dtype)  # type: ignore[no-untyped-call]


def smallest(dtype: Any) -> float:
    """Return the size below which underflow may take a product: backends flush what is smaller than a normal number."""
    return 2.0**10 * float(finfo(dtype).smallest_normal)


def signs(shape: tuple[int, ...], seed: int) -> Any:
    """Return random signs."""
    return 2 * np.random.default_rng((seed, 2)).integers(0, 2, shape, np.int8) - 1


def response(base: list[Any], at: Callable[[float], list[Any]]) -> list[Any]:
    """Return how far each element moves per unit of the perturbation that `at` takes; 0 where it jumps."""
    with np.errstate(all="ignore"):
        coarse, fine = at(COARSE), at(FINE)
        found = []
        for b, c, f in zip(base, coarse, fine, strict=True):
            far, near = np.abs(c - b) / COARSE, np.abs(f - b) / FINE
            moved = np.where(near > 4 * far, 0.0, np.maximum(far, near))
            found.append(np.where(np.isfinite(moved), moved, 0.0))
    return found


def largest(*responses: list[Any]) -> list[Any]:
    """Return the largest response of each element."""
    return [np.maximum.reduce(group) for group in zip(*responses, strict=True)]


def in_units(error: Any, scale: Any) -> float:
    """Return the largest error relative to the largest scale, NaN left out."""
    with np.errstate(all="ignore"):
        top = np.nanmax(np.where(np.isfinite(scale), scale, 0.0), initial=0.0)
        worst = np.nanmax(np.where(np.isfinite(error), error, 0.0), initial=0.0)
    return float(worst / top) if top > 0 else (0.0 if worst == 0 else float("inf"))


def worst(a: Any, b: Any, wrong: Any) -> tuple[int, ...]:
    with np.errstate(all="ignore"):
        off = np.where(wrong, np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf), -1.0)
    return tuple(int(k) for k in np.unravel_index(int(np.argmax(off)), off.shape))


def index_text(i: Any) -> str:
    return f"[{', '.join(str(int(k)) for k in i)}]" if len(i) else ""


def spacing(x: float, dtype: Any) -> float:
    """Return the distance from x to the next number of the dtype."""
    return float(finfo(dtype).eps) * 2.0 ** math.floor(math.log2(x)) if 0 < x < math.inf else math.nan


def largest_of(x: Any) -> float:
    return float(np.nanmax(np.where(np.isfinite(x), x, 0.0), initial=0.0))
