"""Back-propagation, as the notes do it: upstream × local = downstream, summed over all that read a value.

Upstream gradients are row vectors, so upstream × local is a vector-Jacobian product, which is what a rule computes.
The local derivative itself is the Jacobian, one row an output: its rows are the products with the unit vectors.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.graph._program import Step
from jaxnn.tracing.functions import first_line

LARGEST_JACOBIAN = 4096  # elements

Array = Any


class Flow(NamedTuple):
    """What flows through a graph: by step, and by edge (step, operand), where a gradient flows."""

    values: dict[int, Array]
    upstream: dict[int, Array]
    downstream: dict[tuple[int, int], Array]
    local: dict[tuple[int, int], Array]


def back_propagate(steps: Sequence[Step], order: Sequence[int], output: int, inputs: Sequence[Array]) -> Flow:
    """Run the steps in `order` forwards, and backwards from the output."""
    values: dict[int, Array] = dict(enumerate(inputs))
    pulls: dict[int, Callable[[Array], tuple[Array, ...]]] = {}
    for i in order:
        if steps[i].kind == "constant":
            values[i] = steps[i].constant
        elif steps[i].kind != "input":
            values[i], pulls[i] = _forward(steps, i, values)

    flow = Flow(values, {i: jnp.zeros_like(values[i]) for i in order if steps[i].active}, {}, {})
    if steps[output].active:
        flow.upstream[output] = jnp.ones_like(values[output])
    for i in reversed(order):
        if i in pulls and steps[i].active:
            _backward(steps, i, flow, pulls[i])
    return flow


def active_operands(steps: Sequence[Step], i: int) -> list[int]:
    """Return the operands of a step that a gradient goes on to."""
    return [k for k, o in enumerate(steps[i].operands) if steps[i].active and steps[o.step].active]


def _forward(steps: Sequence[Step], i: int, values: dict[int, Array]) -> Any:
    """Return a step's value, and its vector-Jacobian product."""
    step, active = steps[i], active_operands(steps, i)
    operands = [values[o.step] for o in step.operands]

    def of_active(*moved: Array) -> Array:
        filled = list(operands)
        for k, x in zip(active, moved, strict=True):
            filled[k] = x
        return step(*filled)

    with _blamed(step):
        return jax.vjp(of_active, *(operands[k] for k in active))


def _backward(steps: Sequence[Step], i: int, flow: Flow, pull: Callable[[Array], tuple[Array, ...]]) -> None:
    """Send a step's upstream gradient on to what it reads."""
    y = flow.values[i]
    with _blamed(steps[i]):
        gradients = pull(flow.upstream[i])
    for n, (k, dx) in enumerate(zip(active_operands(steps, i), gradients, strict=True)):
        source = steps[i].operands[k].step
        flow.upstream[source] = flow.upstream[source] + dx
        flow.downstream[i, k] = dx
        if y.size * dx.size <= LARGEST_JACOBIAN:
            unit = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
            # One row after another: a rule need not work under vmap.
            flow.local[i, k] = jax.lax.map(lambda dy, n=n: pull(dy)[n].reshape(-1), unit)


@contextlib.contextmanager
def _blamed(step: Step) -> Iterator[None]:
    """Say in one line which step it was that could not be differentiated."""
    try:
        yield
    except Exception as error:
        at = f" ({step.source})" if step.source else ""
        raise ValueError(
            f"`{step.operation}`{at} must have a derivative, but jax.vjp raises {first_line(error)}; give it a rule "
            f"with jax.custom_vjp, or stop the gradient before it with jax.lax.stop_gradient"
        ) from error
