"""Back-propagation as in the notes: upstream × local = downstream, summed over all that read a value.

Upstream gradients are row vectors, so upstream × local is a vector-Jacobian product, which is what a rule computes.
The local derivative itself is the Jacobian, with a row for each output: the products with the unit vectors.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.graph._program import Instruction
from jaxnn.tracing.errors import first_line

LARGEST_JACOBIAN = 4096  # elements, 64 × 64: what a reader can look at, and a page can hold


class Flow(NamedTuple):
    """What flows through a graph: by instruction, and by edge (instruction, operand) where a gradient passes."""

    values: dict[int, Array]
    upstream: dict[int, Array]
    downstream: dict[tuple[int, int], Array]
    local: dict[tuple[int, int], Array]


def back_propagate(program: Sequence[Instruction], order: Sequence[int], output: int, inputs: Sequence[Array]) -> Flow:
    """Run the instructions in `order` forwards, then send the gradient back from the output."""
    values: dict[int, Array] = dict(enumerate(inputs))
    pullbacks: dict[int, Callable[[Array], tuple[Array, ...]]] = {}
    for i in order:
        if program[i].kind == "constant":
            values[i] = program[i].constant
        elif program[i].kind != "input":
            values[i], pullbacks[i] = _forward(program, i, values)

    flow = Flow(values, {i: jnp.zeros_like(values[i]) for i in order if program[i].active}, {}, {})
    if program[output].active:
        flow.upstream[output] = jnp.ones_like(values[output])
    for i in reversed(order):
        if i in pullbacks and program[i].active:
            _backward(program, i, flow, pullbacks[i])
    return flow


def _active_operands(program: Sequence[Instruction], i: int) -> list[int]:
    """Return which operands of an instruction the gradient goes on to."""
    return [k for k, o in enumerate(program[i].operands) if program[i].active and program[o.index].active]


def _forward(program: Sequence[Instruction], i: int, values: dict[int, Array]) -> Any:
    """Return an instruction's value, and its vector-Jacobian product."""
    instruction, active = program[i], _active_operands(program, i)
    operands = [values[o.index] for o in instruction.operands]

    def of_active(*arrays: Array) -> Array:
        filled = list(operands)
        for k, x in zip(active, arrays, strict=True):
            filled[k] = x
        value: Array = instruction(*filled)
        return value

    with _named_in_errors(instruction):
        return jax.vjp(of_active, *(operands[k] for k in active))


def _backward(
    program: Sequence[Instruction], i: int, flow: Flow, pullback: Callable[[Array], tuple[Array, ...]]
) -> None:
    """Send an instruction's upstream gradient on to its operands."""
    y = flow.values[i]
    with _named_in_errors(program[i]):
        gradients = pullback(flow.upstream[i])
    for n, (k, dx) in enumerate(zip(_active_operands(program, i), gradients, strict=True)):
        read = program[i].operands[k].index
        flow.upstream[read] = flow.upstream[read] + dx
        flow.downstream[i, k] = dx
        if y.size * dx.size <= LARGEST_JACOBIAN:
            unit = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
            # One row after another: a rule need not work under vmap.
            flow.local[i, k] = jax.lax.map(lambda dy, n=n: pullback(dy)[n].reshape(-1), unit)


@contextlib.contextmanager
def _named_in_errors(instruction: Instruction) -> Iterator[None]:
    """Say in one line which operation could not be differentiated."""
    try:
        yield
    except Exception as error:
        at = f" ({instruction.source})" if instruction.source else ""
        cure = "give it a rule with jax.custom_vjp, or stop the gradient before it with jax.lax.stop_gradient"
        if instruction.kind == "rule":
            cure = "its rule raises, or cannot be transposed: jaxnn.gradcheck.check says why"
        raise ValueError(
            f"`{instruction.operation}`{at} must have a derivative, but jax.vjp raises {first_line(error)}; {cure}"
        ) from error
