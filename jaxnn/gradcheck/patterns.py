"""Patterns in a wrong derivative that name the mistake."""

import re
from typing import Any, NamedTuple

import numpy as np

from jaxnn.gradcheck._subject import Arrays

MINUS = "the sign: minus the derivative"


class Pattern(NamedTuple):
    """A typical mistake: its name, and a detail that may hold numbers."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        """Return the hint of a report."""
        return self.name + self.detail


NONE = Pattern("")


def match(a: Any, b: Any) -> bool:
    """Whether two arrays agree to a thousandth of the largest element, which is not 0."""
    if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
        return False
    top = np.abs(b).max(initial=0.0)
    return bool(top > 0 and np.abs(a - b).max(initial=0.0) <= 1e-3 * top)


def pattern(leaf: int, custom: Arrays, truth: Arrays, paths: list[str], point: Any, wrong: Any) -> Pattern:
    """Name the pattern by which the rule's cotangent of one argument differs from the truth; `NONE` if it fits none.

    Args:
      leaf: which of the arguments.
      custom: the rule's cotangents of all arguments.
      truth: the right ones.
      paths: the arguments' names.
      point: the argument's own values.
      wrong: which elements of the cotangent are wrong.
    """
    c, t = custom[leaf], truth[leaf]
    if c.size == 0:
        return NONE
    if not (known := np.isfinite(t)).all():
        c, t = np.where(known, c, 0.0), np.where(known, t, 0.0)
    if not np.isfinite(c).all():
        return Pattern("not finite where the derivative is: an overflow, 0/0 or inf − inf in the rule")
    if wrong.sum() < c.size and match(c, t):
        return _at_some(wrong)
    if not c.any() and t.any():
        return Pattern("zero everywhere: a None, a stop_gradient, or a missing term")
    if match(c, -t):
        return Pattern(MINUS)
    if np.iscomplexobj(t) and (match(c, np.conj(t)) or match(c, np.real(t))):
        part = "the complex conjugate of the derivative" if c.imag.any() else "only the real part of the derivative"
        return Pattern(part)
    # A factor must explain nine tenths of the error, so that no small error passes for a factor near 1.
    factor = np.vdot(t, c) / np.vdot(t, t) if t.any() else 0.0
    if factor and match(c, factor * t) and np.abs(c - factor * t).max() <= 0.1 * np.abs(c - t).max():
        factor = factor.real if abs(factor.imag) <= 1e-3 * abs(factor) else factor
        return Pattern("a constant factor", f": {factor:.4g} times the derivative")
    for other, path in enumerate(paths):
        if other != leaf and match(c, truth[other]):
            return Pattern(f"this is the derivative with respect to {path}: the order of the returned cotangents")
    if named := _along_axes(c, t) or _missing_term(c, t, point):
        return Pattern(named)
    return _by_sign(point, wrong)


def hint_of_output(custom: Any, truth: Any, outputs: Arrays) -> str:
    """Name the factor of f's own output by which an elementwise rule is wrong; "" if it fits none."""
    known = np.isfinite(truth)
    c, t = np.where(known, custom, 0.0), np.where(known, truth, 0.0)
    for y in (y for y in outputs if y.shape == c.shape and c.size > 1 and np.isfinite(y).all()):
        if match(c * (1 + y), t):
            return "1 − y in place of 1 − y², with y the output"
        if match(c * y, t):
            return "a factor is missing: y, the output"
        if match(c, t * y):
            return "a factor too many: y, the output"
        if y.ndim and y.shape[-1] > 2 and (t != c).any() and _is_along(t - c, y):
            return "a term is missing along the last axis, in proportion to the output: the derivative through a sum"
    return ""


def _missing_term(c: Any, t: Any, point: Any) -> str:
    """Name a term that is missing along an axis: what flows through a mean or a sum, or through a norm."""
    missing = t - c
    if c.ndim == 0 or c.shape[-1] < 3 or not missing.any():
        return ""
    if match(missing, np.broadcast_to(missing[..., :1], missing.shape)):
        return (
            "a term is missing that is the same along the last axis: the derivative through a mean, a sum or a maximum"
        )
    if _is_along(missing, point) or _is_along(missing, point - point.mean(-1, keepdims=True)):
        return "a term is missing along the last axis, in proportion to the argument: the derivative through a norm"
    return ""


def _is_along(missing: Any, x: Any) -> bool:
    """Whether each row is a multiple of the same row of x."""
    size = (x * x).sum(-1, keepdims=True)
    return match(missing, (missing * x).sum(-1, keepdims=True) / np.where(size == 0, 1.0, size) * x)


def _along_axes(c: Any, t: Any) -> str:
    """Name a transpose, a reversal or a sum of the truth t in the cotangent c."""
    if c.ndim >= 2 and c.shape[-1] == c.shape[-2] and match(c, np.swapaxes(t, -1, -2)):
        return "a transpose: the derivative with its last two axes swapped"
    for axis in (axis for axis in range(c.ndim) if c.shape[axis] > 1):
        if match(c, np.flip(t, axis)):
            return f"the derivative reversed along axis {axis}"
        summed = np.broadcast_to(t.sum(axis, keepdims=True), t.shape)
        if match(c, summed) or match(c, summed / t.shape[axis]):
            return f"the derivative summed (or averaged) over axis {axis}, which it must not be"
    if c.ndim >= 2 and match(c, np.flip(t, (-2, -1))):
        return "the derivative reversed along its last two axes"
    return ""


def _by_sign(point: Any, wrong: Any) -> Pattern:
    """Say whether the wrong elements are those where the argument is negative, positive or 0."""
    if wrong.all() or not wrong.any():
        return NONE
    for where, mask in (("< 0", point < 0), ("> 0", point > 0), ("== 0", point == 0)):
        # Some elements of a wrong formula may be right by chance.
        if mask.any() and (wrong & ~mask).sum() == 0 and wrong[mask].mean() > 0.8:
            return Pattern(f"wrong only where the argument is {where}")
    return _at_some(wrong)


def _at_some(wrong: Any) -> Pattern:
    return Pattern("wrong at", f" {int(wrong.sum())} of {wrong.size} elements")


def shape_hint(message: str) -> str:
    """Name the mistake behind JAX's message on a cotangent's shape; "" if the message is another one."""
    found = re.search(
        r"of type \w+\[([\d,]*)\][^\[]* (?:of type|input of type|to an input of type|expected type) \w+\[([\d,]*)\]",
        message,
    )
    if not found:
        return ""
    got, want = ([int(k) for k in group.split(",") if k] for group in found.groups())
    if sorted(got) == sorted(want) and got != want:
        return "a transpose: the axes are in another order"
    if len(got) > len(want) or any(g > 1 and w == 1 for g, w in zip(got, want, strict=False)):
        return "a broadcast axis: sum the cotangent over the axes that the argument was broadcast along"
    return ""
