"""How often the loops of a compiled program run, where the program says so."""

import re
from typing import NamedTuple

from jaxnn.accelerators.hlo import Computation, Instruction, Module

_SAME_VALUE = ("copy", "bitcast", "convert", "copy-start", "copy-done", "reshape")


class _Slot(NamedTuple):
    """The value of one element of a loop's state, plus a number."""

    element: int
    plus: int = 0


class _State(NamedTuple):
    """The state of a loop, as the parameter of its body or condition."""


_Value = _Slot | _State | int | None  # None: not known


def trips(module: Module, around: Computation, loop: Instruction) -> int | None:
    """Return how often a loop's body runs; None where that is only known when the program runs.

    The compilers for CPU and GPU write it beside the loop. The one for TPU does not. There it follows from three
    things: the condition, which compares a counter with a constant; the counter's step in the body; its first value.
    """
    written = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if written:
        return int(written[1])
    body, condition = (module.computations[loop.called[name][0]] for name in ("body", "condition"))
    comparison = _comparison(module, condition)
    if comparison is None:
        return None
    direction, left, right = comparison
    start = around.instructions[loop.operands[0]]
    left, right = (_resolved(module, around, start, body, value) for value in (left, right))
    if isinstance(left, int) and isinstance(right, _Slot):
        left, right, direction = right, left, {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}.get(direction, direction)
    if not isinstance(left, _Slot) or not isinstance(right, int):
        return None
    step = _value(module, body, _element(body, left.element), {0: _State()})
    first = _initial(module, around, start, left.element)
    if not isinstance(step, _Slot) or step.element != left.element or not isinstance(first, int):
        return None
    return _count(direction, first + left.plus, right, step.plus)


def _count(direction: str, first: int, last: int, step: int) -> int | None:
    """Return how many of first, first + step, … come before the comparison with `last` fails."""
    if direction in ("LT", "LE") and step > 0:
        return max(0, -(-(last + (direction == "LE") - first) // step))
    if direction in ("GT", "GE") and step < 0:
        return max(0, -(-(first - last + (direction == "GE")) // -step))
    if direction == "NE" and step and (last - first) % step == 0 and (last - first) // step >= 0:
        return (last - first) // step
    return None


def _comparison(module: Module, condition: Computation) -> tuple[str, _Value, _Value] | None:
    """Return the comparison that a loop's condition is, and what it compares."""
    inside, root = condition, condition.root
    bound: dict[int, _Value] = {0: _State()}
    while root.opcode in ("fusion", *_SAME_VALUE):
        if root.opcode == "fusion":
            bound = {n: _value(module, inside, name, bound) for n, name in enumerate(root.operands)}
            inside = module.computations[root.called["calls"][0]]
            root = inside.root
        else:
            root = inside.instructions[root.operands[0]]
    if root.opcode != "compare":
        return None
    left, right = (_value(module, inside, name, bound) for name in root.operands)
    return root.attribute("direction"), left, right


def _value(module: Module, inside: Computation, name: str, bound: dict[int, _Value]) -> _Value:
    """Return the value of a scalar instruction; `bound` has the values of the parameters."""
    instruction = inside.instructions[name]
    if instruction.opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if instruction.opcode == "parameter":
        return bound.get(int(instruction.literal))
    operands = [_value(module, inside, operand, bound) for operand in instruction.operands]
    if instruction.opcode == "get-tuple-element" and isinstance(operands[0], _State):
        return _Slot(int(instruction.attribute("index")))
    if instruction.opcode in _SAME_VALUE:
        return operands[0]
    if instruction.opcode == "fusion":
        called = module.computations[instruction.called["calls"][0]]
        return _value(module, called, called.root.name, dict(enumerate(operands)))
    if instruction.opcode in ("add", "subtract"):
        return _sum(operands[0], operands[1], -1 if instruction.opcode == "subtract" else 1)
    return None


def _sum(a: _Value, b: _Value, sign: int) -> _Value:
    if isinstance(a, int) and isinstance(b, int):
        return a + sign * b
    if isinstance(a, int) and sign == 1:
        a, b = b, a
    return _Slot(a.element, a.plus + sign * b) if isinstance(a, _Slot) and isinstance(b, int) else None


def _resolved(module: Module, around: Computation, start: Instruction, body: Computation, value: _Value) -> _Value:
    """Return the number that an element of the state has throughout the loop; else the value itself."""
    if not isinstance(value, _Slot):
        return value
    if _value(module, body, _element(body, value.element), {0: _State()}) != _Slot(value.element):
        return value
    first = _initial(module, around, start, value.element)
    return first + value.plus if isinstance(first, int) else value


def _element(body: Computation, index: int) -> str:
    """Return the name of an element of the state after the body; the root's where that is no tuple."""
    return body.root.operands[index] if body.root.opcode == "tuple" else body.root.name


def _initial(module: Module, around: Computation, start: Instruction, index: int) -> _Value:
    return _value(module, around, start.operands[index], {}) if start.opcode == "tuple" else None
