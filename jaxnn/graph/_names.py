"""The names of the nodes: f's own for its inputs, x1, x2, … as in the notes, y for the prediction, ℓ for the loss."""

import collections
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.graph._program import Instruction

OUTPUT, PREDICTION = "ℓ", "y"
PREDICTIONS = ("y", "p", "log_p")  # names that losses give to the argument that they compare with the truth
ROW_LOSSES = "l"  # the name that a mean over rows gives to its argument
REARRANGED = ("reshape", "transpose", "convert_element_type")  # the same numbers: x3' is x3 rearranged


def input_names(f: Callable[..., Any], paths: Sequence[tuple[Any, ...]]) -> list[str]:
    """Name the leaves of f's arguments by the shortest unique ends of their paths, "conv1.w" or "w"."""
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
    program: Sequence[Instruction],
    order: Sequence[int],
    output: int,
    inputs: Sequence[str],
    arguments: dict[int, list[str]],
) -> dict[int, str]:
    """Name the instructions in `order`; `arguments` are the names that each operation has for its operands."""
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

    own = {i: program[i].name for i in order if program[i].name and i not in names}
    taken_later = set(own.values())
    prediction = _prediction(program, output, arguments)
    if output not in names and output not in own:
        name(output, OUTPUT)
    if prediction is not None and prediction not in own and PREDICTION not in taken | taken_later:
        name(prediction, PREDICTION)
    for i in order:
        instruction = program[i]
        if i in names:
            continue
        if i in own:
            name(i, own[i])
        elif instruction.kind == "constant":
            arrays += instruction.constant.ndim > 0
            name(i, f"c{arrays}" if instruction.constant.ndim else _constant_name(instruction.constant))
        elif instruction.operation in REARRANGED:
            name(i, names[instruction.operands[0].index] + "'")
        else:
            count += 1
            while f"x{count}" in taken | taken_later:
                count += 1
            name(i, f"x{count}")
    return names


def _prediction(program: Sequence[Instruction], output: int, arguments: dict[int, list[str]]) -> int | None:
    """Return the instruction whose value goes into the loss: the operand that a rule calls `y`, `p` or `log_p`.

    The search goes back from the output through sums and scalings. It stops at any other rule, such as the fused cross
    entropy, which has logits and no prediction.
    """
    i = output
    while program[i].operands:
        instruction = program[i]
        for argument, operand in zip(arguments[i], instruction.operands, strict=True):
            if instruction.kind == "rule" and argument in PREDICTIONS:
                found = _before_rearranging(program, operand.index)
                return found if program[found].operands and program[found].active else None
        if instruction.kind == "rule" and arguments[i][0] != ROW_LOSSES:
            return None
        active = [o.index for o in instruction.operands if program[o.index].active]
        if not active:
            return None
        i = active[0]
    return None


def _before_rearranging(program: Sequence[Instruction], i: int) -> int:
    while program[i].operation in REARRANGED:
        i = program[i].operands[0].index
    return i


def _constant_name(x: Any) -> str:
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return "key"
    value = np.asarray(x).item()
    return f"{value:.6g}" if isinstance(value, float) and not value.is_integer() else str(value)
