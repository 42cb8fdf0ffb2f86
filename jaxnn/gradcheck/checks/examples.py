"""What the checks under transformations share: examples, the gradients expected of them, and their comparison."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Trial
from jaxnn.gradcheck.report import FAIL, PASS, UNSUPPORTED, Row
from jaxnn.gradcheck.tolerance import index_text, worst_index
from jaxnn.tracing.errors import TRACING_ERRORS, first_line, is_missing_in_jax, missing_method

TWO_GRADIENTS = 2.0  # times the error of one: those with and without the transformation are compared
# Up to so many arguments every subset is batched, in 7 programs; of more, all together and each alone.
MOST_SUBSETS_OF = 3
NEARBY = 1 + 2.0**-6  # an example that differs a little: in all dtypes another number, and a point of the same kind

Mask = tuple[bool, ...]  # which of the arguments


class Expected(NamedTuple):
    """The gradients that a transformed rule must return: of the arguments, or of examples by turns.

    The examples' cotangents are the trial's first and second ones in turn. An argument of which every example has its
    own (its `batched` is true) has stacked gradients; one that they share has the sum of theirs.
    """

    gradients: Arrays
    examples: int = 1
    batched: Mask | None = None

    def allowed(self, t: Trial, leaf: int) -> Any:
        """Return the error allowed for an argument's gradients."""
        if self.batched is None:
            return TWO_GRADIENTS * t.allowed(leaf)
        each = [t.allowed(leaf, second=k % 2 == 1) for k in range(self.examples)]
        return TWO_GRADIENTS * (np.stack(each) if self.batched[leaf] else np.sum(each, 0))


def compare(t: Trial, check: str, name: str, found: Arrays, expected: Expected) -> Row:
    """Compare the gradients of a transformed rule with those expected."""
    for leaf, path in enumerate(t.subject.paths):
        ours, want = found[leaf], expected.gradients[leaf]
        if ours.shape != want.shape:
            return Row(check, name, FAIL, f"{path} has shape {ours.shape}, must be {want.shape}")
        wrong = t.differing(ours, want, functools.partial(expected.allowed, t, leaf))
        if wrong.any():
            i = worst_index(ours, want, wrong)
            message = f"{path}{index_text(i)} is {ours[i]:.6g}, without the transformation {want[i]:.6g}"
            return Row(check, name, FAIL, message)
    return Row(check, name, PASS, "the same gradient")


def attempt(t: Trial, check: str, name: str, run: Callable[[str], Arrays], expected: Expected) -> Row:
    """Run a transformation of the rule. If it raises, try the definition, to see whether the rule is the cause."""
    try:
        found = [as64(g) for g in run("custom")]
    except Exception as error:
        try:
            run("definition")
        except Exception:
            return Row(check, name, UNSUPPORTED, f"neither the rule nor its definition runs: {first_line(error)}")
        if _is_vma_error(error):
            message = "the cotangent of an argument that is equal on all devices must be summed over the devices"
            cure = "in bwd, psum over the axes that the cotangent varies over and the primal does not"
            return Row(check, name, UNSUPPORTED, f"{message}: {cure} (jax.typeof(x).manual_axis_type.varying)")
        if missing := missing_method(error):
            return Row(check, name, UNSUPPORTED, missing)
        if is_missing_in_jax(error):
            return Row(check, name, UNSUPPORTED, f"the rule does not run, its definition does: {first_line(error)}")
        return Row(check, name, FAIL, f"the rule raises, its definition does not: {first_line(error)}")
    return compare(t, check, name, found, expected)


def _is_vma_error(error: Exception) -> bool:
    """Whether JAX complains of a cotangent that varies over other mesh axes than its argument."""
    return not isinstance(error, TRACING_ERRORS) and any(
        words in str(error) for words in ("bwd rule must produce", "varying manual axes", "{V:")
    )


def all_and_each(count: int) -> list[Mask]:
    """Return the set of all arguments, and each argument alone."""
    return list(dict.fromkeys([(True,) * count, *(tuple(i == j for j in range(count)) for i in range(count))]))


def subsets(count: int) -> list[Mask]:
    """Return every non-empty subset of a few arguments; of many, all together and each alone."""
    if count > MOST_SUBSETS_OF:
        return all_and_each(count)
    return [mask for mask in itertools.product((True, False), repeat=count) if any(mask)]


def label(t: Trial, mask: Mask) -> str:
    """Name the arguments of a mask."""
    return "all" if all(mask) else ", ".join(path for path, m in zip(t.subject.paths, mask, strict=True) if m)


def examples(t: Trial, count: int) -> tuple[list[Arrays], list[Arrays]]:
    """Return examples, the arguments and a point nearby in turn, and a cotangent for each."""
    near = [(x * NEARBY).astype(x.dtype) for x in t.subject.points]
    dys = [t.dy, t.second_dy]
    return [near if k % 2 else t.subject.points for k in range(count)], [dys[k % 2] for k in range(count)]


def stacked(t: Trial, mask: Mask, examples: list[Arrays]) -> Arrays:
    """Stack the arguments that are batched; the others are the first example's."""
    return [
        jnp.stack([e[i] for e in examples]) if m else p
        for i, (p, m) in enumerate(zip(t.subject.points, mask, strict=True))
    ]  # fmt: skip


def one_by_one(t: Trial, mask: Mask, examples: list[Arrays], dys: list[Arrays]) -> Expected:
    """Return the examples' cotangents: stacked for a batched argument, summed for one that all examples share."""
    parts = [
        t.gradients("custom", [e if m else p for e, p, m in zip(example, t.subject.points, mask, strict=True)], dy)
        for example, dy in zip(examples, dys, strict=True)
    ]  # fmt: skip
    groups = zip(zip(*parts, strict=True), mask, strict=True)
    return Expected([np.stack(g) if m else np.sum(g, 0) for g, m in groups], len(examples), mask)
