"""Numeric derivatives, element by element: (f(x + h) − f(x − h)) / 2h.

The step h is the cube root of the dtype's eps, relative to the element. In float64 rounding and curvature then each
cause an error of about 1e-10. A kink within a step spoils the quotient, so each quotient is also taken at a hundredth
of the step, and where the two disagree the smaller step is used. If the quotients to the left and to the right still
differ at that step, the kink is at x itself: f has no derivative there, and rules follow conventions.

The elements change one after another, in one compiled loop. Batches were no faster: for the weights of a large layer, a
batch of 64 elements took ten times as long.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.graph._program import compute, needed, program_of
from jaxnn.tracing.contexts import float64_mode

MOST_ELEMENTS = 2000  # of one input: each costs four evaluations of f
FINER = 100  # the second step is that much smaller

Floats = np.ndarray[Any, Any]


class Differences(NamedTuple):
    """Numeric derivatives by each input."""

    gradients: list[np.ma.MaskedArray[Any, Any]]  # masked where not computed
    kinks: list[np.ndarray[Any, Any]]
    step: float
    dtype: str  # the coarsest that f computes in
    reason: str = ""  # why it does not run in float64, if so


def differences(f: Callable[..., Any], inputs: Sequence[Any], which: Sequence[int], value: float) -> Differences:
    """Differentiate the scalar f by the inputs `which`, in float64; in float32 if f is another function in float64."""
    with float64_mode():
        try:
            here, result = _differences(f, _in_dtype(inputs, which, jnp.float64), which)
            reason = "f has another value in float64 (does it draw random numbers?)"
            if _is_close(here, value, inputs, which):
                return result
        except Exception:  # whatever f raises here, it does not raise in the inputs' own dtypes
            reason = "f does not run in float64"
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        try:
            result = _differences(f, _in_dtype(inputs, which, jnp.float32), which)[1]
        except Exception:  # as above
            result = _differences(f, list(inputs), which)[1]
    return result._replace(reason=reason)


def _in_dtype(inputs: Sequence[Any], which: Sequence[int], dtype: Any) -> list[Any]:
    return [jnp.asarray(np.asarray(x), dtype) if i in which else x for i, x in enumerate(inputs)]


def _is_close(in_float64: float, value: float, inputs: Sequence[Any], which: Sequence[int]) -> bool:
    eps = max(_eps(inputs[i].dtype) for i in which)
    return bool(np.isclose(in_float64, value, rtol=eps**0.5, atol=eps**0.5, equal_nan=True))


def _differences(f: Callable[..., Any], inputs: list[Any], which: Sequence[int]) -> tuple[float, Differences]:
    """Return f's value in the inputs' dtypes, and the differences."""
    program, output = program_of(jax.make_jaxpr(f)(*inputs))
    order = needed(program, output)
    coarsest = max((program[i].dtype for i in order if program[i].active), key=_eps)
    eps = _eps(coarsest)
    step = float(f"{eps ** (1 / 3):.0e}")
    chosen = [_chosen(inputs[i].size) for i in which]
    h = np.concatenate([step * _size(inputs[i])[elements] for i, elements in zip(which, chosen, strict=True)])
    offsets = np.cumsum([0, *(inputs[i].size for i in which)])
    at = np.concatenate([elements + offset for elements, offset in zip(chosen, offsets[:-1], strict=True)])

    def value(flat: Any) -> Any:
        filled = list(inputs)
        for i, start, stop in zip(which, offsets[:-1], offsets[1:], strict=True):
            filled[i] = flat[start:stop].reshape(inputs[i].shape).astype(inputs[i].dtype)
        return compute(program, order, filled)[output].reshape(())

    def values_around(flat: Any, element: Any, h: Any) -> Any:
        return jnp.stack([value(flat.at[element].add(h * k)) for k in (1, -1, 1 / FINER, -1 / FINER)])

    def run(flat: Any, at: Any, h: Any) -> Any:
        return value(flat), jax.lax.map(lambda element: values_around(flat, *element), (at, h))

    flat = jnp.concatenate([inputs[i].reshape(-1) for i in which])
    here, around = jax.jit(run)(flat, jnp.asarray(at), jnp.asarray(h, flat.dtype))
    gradient, kinked = _quotients(np.asarray(here, np.float64), np.asarray(around, np.float64), h, eps)
    ends = np.cumsum([len(elements) for elements in chosen])[:-1]
    scattered = [
        (
            _scatter(g.astype(flat.dtype), elements, inputs[i].shape),
            _scatter(k, elements, inputs[i].shape).filled(False),
        )
        for i, elements, g, k in zip(which, chosen, np.split(gradient, ends), np.split(kinked, ends), strict=True)
    ]
    gradients, kinks = map(list, zip(*scattered, strict=True))
    return float(here), Differences(gradients, kinks, step, str(coarsest))


def _quotients(here: Floats, around: Floats, h: Floats, eps: float) -> tuple[Floats, np.ndarray[Any, Any]]:
    """Return the central differences, and where those to the left and to the right disagree."""
    ahead, behind, near_ahead, near_behind = around.T
    near = h / FINER
    with np.errstate(all="ignore"):
        # Two values, each off by a few eps, divided by the finer step.
        rounding = 8 * eps * np.maximum(np.abs(here), np.abs(ahead)) / near
        far_slope, slope = (ahead - behind) / (2 * h), (near_ahead - near_behind) / (2 * near)
        right, left = (near_ahead - here) / near, (here - near_behind) / near
        agree = np.abs(far_slope - slope) <= 1e-3 * np.abs(slope) + rounding  # false where f is NaN
        gap, far_gap = np.abs(right - left), np.abs((ahead - here) - (here - behind)) / h
        # A kink's gap is as large at every step. A smooth f's, at its minimum say, is FINER times smaller at the finer.
        curved = gap <= 0.1 * far_gap
        kinked = ~curved & (gap > 1e-2 * np.maximum(np.abs(right), np.abs(left)) + 2 * rounding)
    return np.where(agree, far_slope, slope), kinked


def _scatter(values: Floats, elements: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ma.MaskedArray[Any, Any]:
    """Put values into an array of the given shape, masked elsewhere."""
    size = int(np.prod(shape))
    everywhere, missing = np.zeros(size, values.dtype), np.ones(size, bool)
    everywhere[elements], missing[elements] = values, False
    return np.ma.MaskedArray(everywhere.reshape(shape), missing.reshape(shape))


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def _chosen(size: int) -> np.ndarray[Any, Any]:
    if size <= MOST_ELEMENTS:
        return np.arange(size)
    return np.sort(np.random.default_rng(0).choice(size, MOST_ELEMENTS, replace=False))


def _size(x: Any) -> np.ndarray[Any, Any]:
    """Return the size of each element, but no less than a tenth of the median."""
    magnitude = np.abs(np.asarray(x, np.float64)).reshape(-1)
    usable = magnitude[np.isfinite(magnitude) & (magnitude > 0)]
    typical = float(np.median(usable)) if usable.size else 1.0
    return np.where(np.isfinite(magnitude), np.maximum(magnitude, 0.1 * typical), typical)
