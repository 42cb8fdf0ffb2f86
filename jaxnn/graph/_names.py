"""The names of the nodes: f's own for its inputs, then x1, x2, … as in the notes, y for the prediction and ℓ."""

import collections
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.graph._program import Step

OUTPUT, PREDICTION = "ℓ", "y"
PREDICTIONS = ("y", "p", "log_p")  # what a loss calls the argument that it holds against the truth
ROW_LOSSES = "l"  # what a mean over rows calls its argument
REARRANGED = ("reshape", "transpose", "convert_element_type")  # the same numbers: x3' is x3 in another shape


def input_names(f: Callable[..., Any], paths: Sequence[tuple[Any, ...]]) -> list[str]:
    """Name the leaves of f's arguments: "params.conv1.w" by the shortest end that no other has, "conv1.w" or "w"."""
    heads = _parameters(f)
    whole = []
    for position, *path in paths:
        head = heads[position.idx] if position.idx < len(heads) else f"args.{position.idx}"
        rest = jax.tree_util.keystr(tuple(path), simple=True, separator=".").strip(".")
        whole.append(f"{head}.{rest}" if rest else head)
    ends = [_ends(name) for name in whole]
    count = collections.Counter(end for each in ends for end in each)
    return [next(end for end in (*each, name) if count[end] <= 1) for each, name in zip(ends, whole, strict=True)]


def _ends(path: str) -> list[str]:
    """Return the ends of a dotted path that can be names, the shortest first."""
    parts = path.split(".")
    return [".".join(parts[k:]) for k in reversed(range(len(parts))) if parts[k].isidentifier()]


def _parameters(f: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def node_names(
    steps: Sequence[Step], order: Sequence[int], output: int, inputs: Sequence[str], arguments: dict[int, list[str]]
) -> dict[int, str]:
    """Name the steps in `order`; `arguments` are the names that each step's operation has for its operands."""
    names: dict[int, str] = dict(enumerate(inputs))
    taken = set(names.values())
    count, arrays = 0, 0

    def name(i: int, wanted: str) -> None:
        names[i] = wanted
        for k in range(2, len(order) + 2):
            if names[i] not in taken:
                break
            names[i] = f"{wanted}_{k}"
        taken.add(names[i])

    own = {i: steps[i].name for i in order if steps[i].name and i not in names}
    taken_later = set(own.values())
    prediction = _prediction(steps, output, arguments)
    if output not in names and output not in own:
        name(output, OUTPUT)
    if prediction is not None and prediction not in own and PREDICTION not in taken | taken_later:
        name(prediction, PREDICTION)
    for i in order:
        step = steps[i]
        if i in names:
            continue
        if i in own:
            name(i, own[i])
        elif step.kind == "constant":
            arrays += step.constant.ndim > 0
            name(i, f"c{arrays}" if step.constant.ndim else _number(step.constant))
        elif step.operation in REARRANGED:
            name(i, names[step.operands[0].step] + "'")
        else:
            count += 1
            while f"x{count}" in taken | taken_later:
                count += 1
            name(i, f"x{count}")
    return names


def _prediction(steps: Sequence[Step], output: int, arguments: dict[int, list[str]]) -> int | None:
    """Return the step whose value goes into the loss: what a rule before the output calls its `y` or `p`.

    From the output back, through what only sums and scales; not past a rule of another kind, as fused cross entropy.
    """
    i = output
    while steps[i].operands:
        step = steps[i]
        for argument, operand in zip(arguments[i], step.operands, strict=True):
            if step.kind == "rule" and argument in PREDICTIONS:
                found = operand.step
                while steps[found].operation in REARRANGED:
                    found = steps[found].operands[0].step
                return found if steps[found].operands and steps[found].active else None
        if step.kind == "rule" and arguments[i][0] != ROW_LOSSES:
            return None
        active = [o.step for o in step.operands if steps[o.step].active]
        if not active:
            return None
        i = active[0]
    return None


def _number(x: Any) -> str:
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return "key"
    value = np.asarray(x).item()
    return f"{value:.6g}" if isinstance(value, float) and not value.is_integer() else str(value)
