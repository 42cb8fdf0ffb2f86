"""A traced function as a list of steps, one a notion: what a reader of the notes would draw as one box.

A jaxpr says more than that: an axis of size 1 comes and goes, a constant is computed, a jitted function of the user's
has a box of its own around it. Steps are what is left when calls of jitted functions are written out, what no input
reaches is computed, and what only changes how an array is held is done where the array is read.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxnn.graph import _source
from jaxnn.tracing import kinds

Array = Any
View = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Operand:
    """What a step reads: another step's value, as `view` holds it."""

    step: int
    view: View


@dataclasses.dataclass
class Step:
    """One box. An input has its value from outside, a constant its own; any other one output of an equation."""

    kind: str  # "input", "constant", "rule", "operation"
    operation: str  # "conv2d", "add"
    operands: tuple[Operand, ...] = ()
    eqn: Any = None
    output: int = 0  # which of the equation's
    call: int = 0  # the same for all outputs of one equation
    view: View = lambda x: x  # how the value is held: f's result may have lost an axis of size 1
    constant: Array = None
    name: str = ""  # given by the user, with jax.ad_checkpoint.checkpoint_name
    source: str = ""
    dtype: Any = None
    active: bool = False  # whether a gradient flows from here to an input

    def __call__(self, *values: Array) -> Array:
        """Compute the value from those of the steps that `operands` names."""
        outputs = evaluate(self.eqn, [o.view(x) for o, x in zip(self.operands, values, strict=True)])
        return self.view(outputs[self.output])


@dataclasses.dataclass(frozen=True)
class Constant:
    """A value that no input reaches."""

    value: Array


def evaluate(eqn: Any, operands: list[Array]) -> list[Array]:
    """Run one equation."""
    with eqn.ctx.manager:
        result = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(result) if eqn.primitive.multiple_results else [result]


def steps_of(closed: Any) -> tuple[list[Step], int]:
    """Return the steps of a trace with one output, inputs first, each after those it reads, and which is the output."""
    flattening = _Flattening()
    inputs = [
        flattening.add(Step("input", "input", dtype=v.aval.dtype, active=is_inexact(v.aval)))
        for v in closed.jaxpr.invars
    ]
    (output,) = flattening.run(closed.jaxpr, [Constant(c) for c in closed.consts], inputs)
    if isinstance(output, Constant):
        output = flattening.constant(output.value)
    steps = flattening.steps
    if steps[output.step].eqn is not None:
        steps[output.step].view = output.view
    return steps, output.step


def needed(steps: list[Step], output: int) -> list[int]:
    """Return the steps that the output is computed from, and all inputs."""
    found = {i for i, step in enumerate(steps) if step.kind == "input"}
    waiting = [output]
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            waiting += [o.step for o in steps[i].operands]
    return sorted(found | {output})


def compute(steps: list[Step], order: list[int], inputs: Sequence[Array]) -> dict[int, Array]:
    """Run the steps in `order` forwards."""
    values: dict[int, Array] = dict(enumerate(inputs))
    for i in order:
        step = steps[i]
        if step.kind == "constant":
            values[i] = step.constant
        elif step.kind != "input":
            values[i] = step(*(values[o.step] for o in step.operands))
    return values


class _Flattening:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.constants: dict[Any, Operand] = {}  # by type and bits

    def add(self, step: Step) -> Operand:
        self.steps.append(step)
        return Operand(len(self.steps) - 1, _as_it_is)

    def run(self, jaxpr: Any, consts: list[Any], args: list[Any]) -> list[Any]:
        where = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(atom: Any) -> Operand | Constant:
            return Constant(atom.val) if isinstance(atom, jex.Literal) else where[atom]

        for eqn in jaxpr.eqns:
            if eqn.effects and not eqn.outvars and eqn.primitive.name.startswith("debug"):
                continue  # a print
            if eqn.effects:
                raise TypeError(f"must be a pure function, without `{eqn.primitive.name}`")
            where.update(zip(eqn.outvars, self.results(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def results(self, eqn: Any, operands: list[Operand | Constant]) -> list[Any]:
        """Return where the outputs of an equation are."""
        if all(isinstance(o, Constant) for o in operands):
            return [Constant(y) for y in evaluate(eqn, [o.value for o in operands if isinstance(o, Constant)])]
        if eqn.primitive.name == "jit" and _is_users(eqn.params["jaxpr"]):
            inner = eqn.params["jaxpr"]
            return self.run(inner.jaxpr, [Constant(c) for c in inner.consts], operands)
        if eqn.primitive.name == "name":
            (operand,) = operands
            step = self.steps[operand.step]  # type: ignore[union-attr]
            step.name = step.name or str(eqn.params["name"])
            return operands
        if self.is_folded(eqn, operands):
            (source,) = {o.step for o in operands if isinstance(o, Operand)}
            return [Operand(source, functools.partial(_folded, eqn, operands, i)) for i in range(len(eqn.outvars))]
        reads = tuple(self.constant(o.value) if isinstance(o, Constant) else o for o in operands)
        active = eqn.primitive.name != "stop_gradient" and any(self.steps[o.step].active for o in reads)
        call = len(self.steps)
        return [
            self.add(
                Step(
                    kind=kind_of(eqn),
                    operation=operation_of(eqn),
                    operands=reads,
                    eqn=eqn,
                    output=i,
                    call=call,
                    source=_source.line_of(eqn),
                    dtype=v.aval.dtype,
                    active=active and is_inexact(v.aval),
                )
            )
            for i, v in enumerate(eqn.outvars)
        ]

    def is_folded(self, eqn: Any, operands: list[Operand | Constant]) -> bool:
        """Whether an equation carries no notion, so that it is done where its result is read.

        It has one source, and only changes how an array is held; or it is without gradient and arithmetic of labels,
        indices and keys, or what a component computes from them beside its rule.
        """
        read = {o.step for o in operands if isinstance(o, Operand)}
        own = kind_of(eqn) == "rule" or eqn.primitive.name in ("scan", "while", "cond")
        if own or len(read) != 1:
            return False
        if len(operands) == 1 and _is_bookkeeping(eqn):
            return True
        if self.steps[min(read)].active:
            return False
        return not any(is_inexact(v.aval) for v in eqn.outvars) or _source.is_components(eqn)

    def constant(self, value: Array) -> Operand:
        """Return where a constant is; a number, where all elements are the same."""
        value = jnp.asarray(value)
        host, shape, view = on_host(value), value.shape, _as_it_is
        if host.shape == shape and host.size > 1 and np.all(host == host.flat[0]):
            host, value, view = host.flat[0], value.reshape(-1)[0], lambda x: jnp.broadcast_to(x, shape)
        key = str(value.dtype), host.shape, host.tobytes()
        if key not in self.constants:
            self.constants[key] = self.add(Step("constant", "constant", constant=value, dtype=value.dtype))
        return Operand(self.constants[key].step, view)


def _as_it_is(x: Array) -> Array:
    return x


def _folded(eqn: Any, operands: list[Operand | Constant], output: int, x: Array) -> Array:
    return evaluate(eqn, [o.value if isinstance(o, Constant) else o.view(x) for o in operands])[output]


def on_host(x: Array) -> np.ndarray[Any, Any]:
    """Return an array as NumPy's; of a random key its bits."""
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def is_inexact(x: Any) -> bool:
    """Whether an array, or its type, is of floating-point or complex numbers."""
    return bool(jnp.issubdtype(x.dtype, np.inexact))


_SAME = ("copy", "copy_p", "pvary", "pcast", "optimization_barrier", "sharding_constraint")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
_SHAPE = ("reshape", "squeeze", "broadcast_in_dim", "convert_element_type", *_REDUCTIONS)


def _is_bookkeeping(eqn: Any) -> bool:
    """Whether an equation of one operand gives the same numbers in the same order, but for axes of size 1."""
    if eqn.primitive.name in _SAME:
        return True
    if eqn.primitive.name not in _SHAPE:
        return False
    x, y = eqn.invars[0].aval, eqn.outvars[0].aval
    return x.dtype == y.dtype and [n for n in x.shape if n != 1] == [n for n in y.shape if n != 1]


def operation_of(eqn: Any) -> str:
    """Return the name under which people know what an equation does."""
    if kinds.is_custom_vjp(eqn) or kinds.is_custom_jvp(eqn):
        return kinds.rule_name(eqn).strip("_<>")
    if eqn.primitive.name == "jit":
        return str(eqn.params["name"]).strip("_<>")
    primitive = str(eqn.primitive.name)
    return {"remat2": "remat", "checkpoint": "remat"}.get(primitive, primitive)


def _is_users(jaxpr: Any) -> bool:
    place = _source.place_of(jaxpr)
    return place is None or not _source.is_librarys(place)


def kind_of(eqn: Any) -> str:
    """Return "rule" for what has a hand-written derivative, else "operation"."""
    if kinds.is_custom_vjp(eqn) or (kinds.is_custom_jvp(eqn) and not kinds.written_in_jax(eqn)):
        return "rule"
    return "operation"
