"""Judging a hand-in: which gradients are right, what property of the others fails, and which typical mistake it is.

What is found has four levels, each of which tells more: passed or not; the property; the typical mistake, without a
number; the worst element. The levels below 3 hold no number of a gradient, and no part of a formula.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from jaxnn.exercises.exercise import BASE, Arrays, Case, Exercise, rounded
from jaxnn.exercises.hand_in import Result, Returned
from jaxnn.gradcheck.patterns import MINUS, match, pattern
from jaxnn.gradcheck.tolerance import EPS_PER_RESPONSE, Truth, differs, finfo, index_text, worst_index

SCALED = "for another upstream gradient"  # the base case with its upstream gradient times −2
ONE_ROW = "for a batch of one row"
UNWRITTEN, WRONG = "not written yet", "its values are wrong"
FOLLOWS = "may be wrong only because"  # of a gradient that is made from a wrong one
FACTOR, STEP_FACTOR = "a constant factor", "the step has a wrong factor"


class Finding(NamedTuple):
    """What was found of one gradient: passed or not, then what each level adds, "" where there is nothing to add."""

    name: str
    passed: bool
    property: str = ""
    mistake: str = ""
    worst: str = ""
    shape: bool = True  # for the table of a network: whether the shape is right, the numbers equal, and close
    exact: bool = True
    close: bool = True


class Trial(NamedTuple):
    """A case with the values that the hand-in is given there, and what is right."""

    case: Case
    values: Arrays
    truth: Truth


class Judged(NamedTuple):
    """A gradient that came back at a case, against the right one."""

    trial: Trial
    given: Any  # None if nothing came back
    right: Any
    failed: str  # what fails: "", "error", "shape", "dtype", "finite" or "values"
    wrong: Any  # which elements differ
    detail: str = ""


@functools.lru_cache(maxsize=64)
def trials(exercise: Exercise) -> tuple[Trial, ...]:
    """Return the cases of an exercise, with two more that are made from its base."""
    base = exercise.cases[0]
    cases = [base]
    if exercise.upstream:
        cases.append(dataclasses.replace(base, name=SCALED, upstream=-2 * exercise.values(base)[exercise.upstream]))
    if exercise.batched:
        first = {name: v[:1] if name in exercise.batched else v for name, v in base.inputs.items()}
        cases.append(dataclasses.replace(base, name=ONE_ROW, inputs=first))
    return tuple(
        Trial(case, rounded(exercise.values(case), case.dtype), exercise.truth(case))
        for case in [*cases, *exercise.cases[1:]]
    )


def judge(exercise: Exercise, result: Result) -> list[Finding]:
    """Return what is found of each gradient, the first wrong one of a network first.

    A wrong intermediate gradient spreads to those that are made from it: these are only said to follow from it.
    """
    tried = trials(exercise)
    findings, spread = [], ""
    for i, name in enumerate(exercise.gradients):
        judged = [_judged(name, i, trial, each) for trial, each in zip(tried, result.cases, strict=True)]
        found = _finding(exercise, name, judged)
        spreads = not found.passed and found.property != UNWRITTEN
        if spreads and spread:
            found = found._replace(property=f"{FOLLOWS} {spread} is wrong: correct {spread} first", mistake="")
        elif spreads and exercise.stages and name[1:] in exercise.outputs:
            spread = name
        findings.append(found)
    if changed := sorted({exercise.takes[i] for each in result.cases for i in each.changed}):
        findings.append(Finding("arguments", False, f"{', '.join(changed)} changed in place: make a copy first"))
    return sorted(findings, key=lambda f: f.passed or f.property.startswith(FOLLOWS)) if exercise.stages else findings


def _judged(name: str, i: int, trial: Trial, returned: Returned) -> Judged:
    right = trial.truth.gradients[i]
    none = np.zeros(right.shape, bool)
    if returned.error:
        return Judged(trial, None, right, "error", none, returned.error)
    if (given := returned.gradients.get(name)) is None:
        return Judged(trial, None, right, "error", none, UNWRITTEN)
    if given.shape != right.shape:
        detail = f"shape {_shape(given)}, and must be {_shape(right)}"
        return Judged(trial, given, right, "shape", none, detail)
    dtype = returned.dtypes[name]
    if not _holds(dtype, trial.case.dtype):
        return Judged(trial, given, right, "dtype", none, f"dtype {dtype}, and must be {trial.case.dtype}")
    given = given.astype(np.float64)
    eps = float(finfo(trial.case.dtype).eps)
    wrong = differs(given, right, trial.truth.allowed(i, EPS_PER_RESPONSE * eps, trial.case.dtype))
    if (~np.isfinite(given) & np.isfinite(right)).any():
        return Judged(trial, given, right, "finite", wrong)
    return Judged(trial, given, right, "values" if wrong.any() else "", wrong)


def _holds(dtype: str, wanted: str) -> bool:
    """Whether a dtype is floating-point and as wide: NumPy makes float64 of many things, and JAX float32."""
    return dtype.startswith("float") and np.dtype(dtype).itemsize >= np.dtype(wanted).itemsize


def _shape(array: Any) -> str:
    return str(tuple(int(n) for n in array.shape))


def _finding(exercise: Exercise, name: str, judged: list[Judged]) -> Finding:
    base = judged[0]
    failed = next((each for each in judged if each.failed), None)
    if failed is None:
        return Finding(name, True, exact=_is_exact(base))
    by_case = {each.trial.case.name: each for each in judged}
    return Finding(
        name,
        False,
        _property(exercise, name, failed, by_case),
        _mistake(exercise, name, failed, by_case),
        _worst(name, failed),
        base.failed != "shape" and base.given is not None,
        _is_exact(base),
        not base.failed,
    )


def _is_exact(judged: Judged) -> bool:
    if judged.given is None or judged.given.shape != judged.right.shape or judged.given.dtype.kind == "c":
        return False
    dtype = judged.trial.case.dtype
    return bool(np.array_equal(np.asarray(judged.given, dtype), np.asarray(judged.right, dtype)))


def _property(exercise: Exercise, name: str, failed: Judged, by_case: dict[str, Judged]) -> str:
    """Say what kind of property fails."""
    case = failed.trial.case.name
    where = "" if case == BASE else f" {case}"
    if failed.failed in ("error", "shape", "dtype"):
        return f"{where.strip()}: {failed.detail}".removeprefix(": ")
    if failed.failed == "finite":
        return f"not finite{where}: an overflow, or a division by zero"
    if case == SCALED:
        return f"not linear in {exercise.upstream}"
    if case != BASE:
        return f"wrong only {case}"
    scaled, one_row = by_case.get(SCALED), by_case.get(ONE_ROW)
    depends = scaled is not None and not match(scaled.right, failed.right)  # a Jacobian does not
    if scaled is not None and depends and scaled.given is not None and scaled.given.shape == failed.given.shape:
        if match(scaled.given, failed.given):
            return f"it does not depend on {exercise.upstream}"
        if not match(scaled.given, -2 * failed.given) and failed.given.any():
            return f"not linear in {exercise.upstream}"
    if one_row is not None and not one_row.failed:
        return "wrong only for a batch above 1"
    return (
        _part(exercise, by_case)
        or _by_sign(name, failed)
        or (WRONG if failed.wrong.all() else f"{WRONG} at some elements")
    )


def _part(exercise: Exercise, by_case: dict[str, Judged]) -> str:
    """Name the part of the elements in which alone the gradient is wrong."""
    for part in exercise.parts:
        judged = by_case[part.case]
        mask = part.mask(judged.trial.values)
        if judged.wrong.shape == mask.shape and judged.wrong[mask].any() and not judged.wrong[~mask].any():
            return f"wrong only {part.name}"
    return ""


def _by_sign(name: str, failed: Judged) -> str:
    """Say that the wrong elements are those where the argument has one sign."""
    named = pattern(0, [failed.given], [failed.right], [""], _point(name, failed), failed.wrong).name
    return named.replace("the argument is", name[1:]).replace("== 0", "is 0") if named.startswith("wrong only") else ""


def _point(name: str, judged: Judged) -> Any:
    """Return the value whose gradient it is."""
    return np.asarray(judged.trial.values.get(name[1:], np.zeros_like(judged.right)), np.float64)


def _mistake(exercise: Exercise, name: str, failed: Judged, by_case: dict[str, Judged]) -> str:
    """Name the typical mistake; "" if none is recognised."""
    given, i = failed.given, exercise.gradients.index(name)
    if given is None or failed.failed in ("dtype", "finite"):
        return ""
    values, right = failed.trial.values, dict(zip(exercise.gradients, failed.trial.truth.gradients, strict=True))
    given = given.astype(np.float64)
    if failed.failed == "shape":
        return _of_shape(given, i, exercise.gradients, failed.trial.truth.gradients)
    truths, one_row = failed.trial.truth.gradients, by_case.get(ONE_ROW)
    named = _special(exercise, name, given, values, right)
    if named and named != STEP_FACTOR:
        return named
    found = pattern(i, [given if j == i else t for j, t in enumerate(truths)], truths, list(exercise.gradients),
                    _point(name, failed), failed.wrong).name  # fmt: skip
    if (named or found == FACTOR) and one_row is not None and not one_row.failed:
        return "a mean over the batch in the place of a sum, or a sum in the place of a mean"
    if named:
        return named
    if found.startswith("this is the derivative with respect to"):
        other = next(o for o, t in right.items() if o != name and match(given, t))
        return f"{other} is in its place: the order of what is returned"
    if found.startswith("wrong "):
        return ""
    found = found.replace(MINUS, "the sign").replace("a term is missing", "a term is missing, or has a wrong factor,")
    return found.partition(": a None")[0]


def _special(exercise: Exercise, name: str, given: Any, values: Arrays, right: Arrays) -> str:
    """Name a mistake that the exercise knows, or one that its values show."""

    def at(**changes: Any) -> Arrays:
        with_changes = exercise.gradients_at(values | changes)
        return dict(zip(exercise.gradients, with_changes, strict=True))

    for each in exercise.mistakes:
        if each.of == name and match(given, each.value(values, right, at)):
            return each.name
    if exercise.upstream and match(given, at(**{exercise.upstream: np.ones_like(values[exercise.upstream])})[name]):
        return f"{exercise.upstream} is forgotten"
    if exercise.upstream and match(given, values[exercise.upstream]):
        return f"this is {exercise.upstream} itself: nothing is done with it"
    if not exercise.upstream and (named := _of_step(given, values[name.removesuffix("_new")], right[name])):
        return named
    for value in exercise.outputs:
        if value in values and match(given, values[value]):
            return f"this is {value}, a value of the forward pass, and no gradient"
    if exercise.batched and len(values[exercise.batched[0]]) > 1:
        last = {
            k: values[k][-1:]
            for k in (*exercise.batched, *exercise.outputs, exercise.upstream)
            if k in values and values[k].ndim
        }
        if exercise.function == "backward" and not exercise.stages and match(given, at(**last)[name]):
            return "only the last row of the batch counts: a sum over the rows is missing"
    return ""


def _of_step(given: Any, old: Any, new: Any) -> str:
    """Name the mistake of an update, from the step that it takes."""
    if np.array_equal(given, old):
        return "nothing is updated"
    for named, step in ((STEP_FACTOR, given - old),
                        ("the step or the gradient is returned, and not the new value", given)):  # fmt: skip
        factor = np.vdot(new - old, step) / np.vdot(new - old, new - old)
        if factor and match(step, factor * (new - old)):
            return named
    return ""


def _of_shape(given: Any, i: int, names: tuple[str, ...], truths: list[Any]) -> str:
    """Name the mistake behind a wrong shape."""
    right = truths[i]
    if [n for n in given.shape if n > 1] == [n for n in right.shape if n > 1] and given.ndim > right.ndim:
        return "an axis of length 1 too many: from keepdims, or a list around it"
    if given.ndim == right.ndim and sorted(given.shape) == sorted(right.shape):
        return "a transpose: the axes are in another order"
    if len(given.shape) > len(right.shape) or any(
        g > 1 and r == 1 for g, r in zip(given.shape, right.shape, strict=False)
    ):
        return "a sum is missing, over an axis that is broadcast or over the batch"
    for name, other in zip(names, truths, strict=True):
        if other.shape == given.shape and match(given, other):
            return f"{name} is in its place: the order of what is returned"
    return "a sum too many, over an axis that must stay" if given.ndim < right.ndim else ""


def _worst(name: str, failed: Judged) -> str:
    """Return the worst element, with the value given and how far it is off."""
    if failed.failed not in ("values", "finite"):
        return ""
    i = worst_index(failed.given, failed.right, failed.wrong)
    value = failed.given[i]
    off = f" and off by {abs(value - failed.right[i]):.4g}" if np.isfinite(value) else ""
    where = "" if failed.trial.case.name == BASE else f", {failed.trial.case.name}"
    return f"{name}{index_text(i)} is {value:.6g}{off}{where}"
