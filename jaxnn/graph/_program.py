"""A traced function as a program: a list of instructions, one for each box that a reader of the notes would draw.

A jaxpr has more equations than that: axes of size 1 come and go, constants are computed, the user's jitted functions
are calls. Here calls of the user's functions are written out, what depends on no input is computed, and an equation
that is only bookkeeping is folded into those that read its result.
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
from jaxnn.tracing.functions import is_inexact

View = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Operand:
    """What an instruction reads: the value of another, through the bookkeeping that was folded into `view`."""

    index: int  # of the other instruction in the program
    view: View


@dataclasses.dataclass
class Instruction:
    """One box: an input, a constant, or one output of an equation."""

    kind: str  # "input", "constant", "rule", "operation"
    operation: str  # "conv2d", "add"
    operands: tuple[Operand, ...] = ()
    eqn: Any = None
    output: int = 0  # which of the equation's outputs
    call: int = 0  # the same number for all outputs of one equation
    view: View = lambda x: x  # of the value: f's result may have lost an axis of size 1
    constant: Any = None
    name: str = ""  # given by the user, with jax.ad_checkpoint.checkpoint_name
    source: str = ""  # the user's line, "model.py:12"
    dtype: Any = None
    active: bool = False  # whether a gradient flows from here to an input

    def __call__(self, *values: Any) -> Any:
        """Compute the value from the values of the operands' instructions."""
        outputs = run_equation(self.eqn, [o.view(x) for o, x in zip(self.operands, values, strict=True)])
        return self.view(outputs[self.output])


@dataclasses.dataclass(frozen=True)
class Constant:
    """A value that depends on no input."""

    value: Any


def run_equation(eqn: Any, operands: list[Any]) -> list[Any]:
    """Run one equation of a jaxpr."""
    with eqn.ctx.manager:
        result = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(result) if eqn.primitive.multiple_results else [result]


def program_of(closed: Any) -> tuple[list[Instruction], int]:
    """Return the program of a trace with one output, and the index of the output in it.

    Inputs come first, and each instruction after those that it reads.
    """
    flattening = _Flattening()
    inputs = [
        flattening.add(Instruction("input", "input", dtype=v.aval.dtype, active=is_inexact(v.aval)))
        for v in closed.jaxpr.invars
    ]
    (output,) = flattening.run(closed.jaxpr, [Constant(c) for c in closed.consts], inputs)
    if isinstance(output, Constant):
        output = flattening.constant(output.value)
    program = flattening.program
    if program[output.index].eqn is not None:
        program[output.index].view = output.view
    return program, output.index


def needed(program: list[Instruction], output: int) -> list[int]:
    """Return the indices of all inputs, and of the instructions from which the output is computed, in order."""
    found = {i for i, instruction in enumerate(program) if instruction.kind == "input"}
    waiting = [output]
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            waiting += [o.index for o in program[i].operands]
    return sorted(found | {output})


def compute(program: list[Instruction], order: list[int], inputs: Sequence[Any]) -> dict[int, Any]:
    """Run the instructions in `order`, and return their values."""
    values: dict[int, Any] = dict(enumerate(inputs))
    for i in order:
        instruction = program[i]
        if instruction.kind == "constant":
            values[i] = instruction.constant
        elif instruction.kind != "input":
            values[i] = instruction(*(values[o.index] for o in instruction.operands))
    return values


class _Flattening:
    """A program while it is written from jaxprs."""

    def __init__(self) -> None:
        self.program: list[Instruction] = []
        self.constants: dict[Any, Operand] = {}  # by type and bits

    def add(self, instruction: Instruction) -> Operand:
        self.program.append(instruction)
        return Operand(len(self.program) - 1, _unchanged)

    def run(self, jaxpr: Any, consts: list[Any], args: list[Any]) -> list[Any]:
        """Write out a jaxpr, and return where its outputs are."""
        where = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(atom: Any) -> Operand | Constant:
            return Constant(atom.val) if isinstance(atom, jex.Literal) else where[atom]

        for eqn in jaxpr.eqns:
            if eqn.effects and not eqn.outvars and eqn.primitive.name.startswith("debug"):
                continue  # jax.debug.print
            if eqn.effects:
                raise TypeError(f"must be a pure function, without `{eqn.primitive.name}`")
            where.update(zip(eqn.outvars, self.results(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def results(self, eqn: Any, operands: list[Operand | Constant]) -> list[Any]:
        """Return where the outputs of an equation are."""
        if all(isinstance(o, Constant) for o in operands):
            return [Constant(y) for y in run_equation(eqn, [o.value for o in operands if isinstance(o, Constant)])]
        if eqn.primitive.name == "jit" and _is_user_code(eqn.params["jaxpr"]):
            inner = eqn.params["jaxpr"]
            return self.run(inner.jaxpr, [Constant(c) for c in inner.consts], operands)
        if eqn.primitive.name == "name":
            (operand,) = operands
            named = self.program[operand.index]  # type: ignore[union-attr]
            named.name = named.name or str(eqn.params["name"])
            return operands
        if self.is_folded(eqn, operands):
            (index,) = {o.index for o in operands if isinstance(o, Operand)}
            return [Operand(index, functools.partial(_folded, eqn, operands, i)) for i in range(len(eqn.outvars))]
        return self.instructions(eqn, operands)

    def instructions(self, eqn: Any, operands: list[Operand | Constant]) -> list[Any]:
        """Add an instruction for each output of an equation."""
        reads = tuple(self.constant(o.value) if isinstance(o, Constant) else o for o in operands)
        active = eqn.primitive.name != "stop_gradient" and any(self.program[o.index].active for o in reads)
        call = len(self.program)
        return [
            self.add(
                Instruction(
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
        """Whether an equation is bookkeeping, folded into its consumers.

        It reads one instruction, and either changes only the axes of its value, or has no gradient: arithmetic of
        labels, indices and keys, and what a component computes from these beside its rule.
        """
        indices = {o.index for o in operands if isinstance(o, Operand)}
        has_box = kind_of(eqn) == "rule" or eqn.primitive.name in ("scan", "while", "cond")
        if has_box or len(indices) != 1:
            return False
        if len(operands) == 1 and _is_bookkeeping(eqn):
            return True
        if self.program[min(indices)].active:
            return False
        return not any(is_inexact(v.aval) for v in eqn.outvars) or _source.is_in_component(eqn)

    def constant(self, value: Any) -> Operand:
        """Return where a constant is. An array of equal elements is held as one number."""
        value = jnp.asarray(value)
        host, shape, view = on_host(value), value.shape, _unchanged
        if host.shape == shape and host.size > 1 and np.all(host == host.flat[0]):
            host, value, view = host.flat[0], value.reshape(-1)[0], lambda x: jnp.broadcast_to(x, shape)
        key = str(value.dtype), host.shape, host.tobytes()
        if key not in self.constants:
            self.constants[key] = self.add(Instruction("constant", "constant", constant=value, dtype=value.dtype))
        return Operand(self.constants[key].index, view)


def _unchanged(x: Any) -> Any:
    return x


def _folded(eqn: Any, operands: list[Operand | Constant], output: int, x: Any) -> Any:
    return run_equation(eqn, [o.value if isinstance(o, Constant) else o.view(x) for o in operands])[output]


def on_host(x: Any) -> np.ndarray[Any, Any]:
    """Return an array as NumPy's; of a random key its bits."""
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


_IDENTITIES = ("copy", "copy_p", "pvary", "pcast", "optimization_barrier", "sharding_constraint")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
_RESHAPING = ("reshape", "squeeze", "broadcast_in_dim", "convert_element_type", *_REDUCTIONS)


def _is_bookkeeping(eqn: Any) -> bool:
    """Whether an equation of one operand returns the same numbers in the same order, up to axes of size 1."""
    if eqn.primitive.name in _IDENTITIES:
        return True
    if eqn.primitive.name not in _RESHAPING:
        return False
    x, y = eqn.invars[0].aval, eqn.outvars[0].aval
    return x.dtype == y.dtype and [n for n in x.shape if n != 1] == [n for n in y.shape if n != 1]


def operation_of(eqn: Any) -> str:
    """Return the common name of what an equation does."""
    if (call := kinds.rule_call(eqn)) is not None:
        return call.name.strip("_<>")
    if eqn.primitive.name == "jit":
        return str(eqn.params["name"]).strip("_<>")
    primitive = str(eqn.primitive.name)
    return {"remat2": "remat", "checkpoint": "remat"}.get(primitive, primitive)


def _is_user_code(jaxpr: Any) -> bool:
    place = _source.place_of(jaxpr)
    return place is None or not _source.is_library_function(place)


def kind_of(eqn: Any) -> str:
    """Return "rule" for what has a hand-written derivative, else "operation"."""
    call = kinds.rule_call(eqn)
    own = call is None or (call.is_jaxs_own and call.kind != "custom_vjp")
    return "operation" if own else "rule"
