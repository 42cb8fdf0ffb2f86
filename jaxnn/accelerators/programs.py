"""What a compiled program does: bytes moved, matrix products, kernels, collectives, and memory.

A kernel is an instruction of the entry computation, or of a loop, a branch or a function that it calls; a fusion is one
kernel. It reads its operands and writes its results, each array once:

- where a kernel takes only slices of an operand, or rows by index, it reads only these;
- an update in place (dynamic-update-slice, scatter) writes the update, and leaves the rest where it is;
- a loop counts as often as it runs; if only its data say how often, it counts once, and `Facts.open_loops` names it;
- a conditional counts as the branch that moves most;
- constants, tuples and changes of type alone (bitcast) move nothing.

Bytes are those of the arrays as they lie in memory: a TPU pads them to tiles of 8 x 128. `main_bytes` leaves out what
stays in the memory on a TPU's chip, where the compiler keeps what fits.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxnn.accelerators.hlo import Array, Computation, Instruction, Module, UnknownProgram, parse
from jaxnn.accelerators.loops import trips
from jaxnn.accelerators.products import flops_of

_FREE = frozenset((
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "opt-barrier",
    "optimization-barrier", "partition-id", "replica-id", "get-dimension-size", "domain",
))  # fmt: skip
_COLLECTIVES = frozenset((
    "all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast",
    "ragged-all-to-all", "send", "recv",
))  # fmt: skip
_WHOLE = _COLLECTIVES | frozenset((
    "abs", "add", "and", "atan2", "cbrt", "ceil", "clamp", "clz", "collective-broadcast", "compare", "complex",
    "concatenate", "convert", "convolution", "copy", "cosine", "divide", "dot", "erf", "exponential",
    "exponential-minus-one", "fft", "floor", "imag", "infeed", "iota", "is-finite", "log", "log-plus-one",
    "logistic", "map", "maximum", "minimum", "multiply", "negate", "not", "or", "outfeed", "pad", "popcnt", "power",
    "real", "reduce", "reduce-precision", "reduce-window", "remainder", "reshape", "reverse", "rng",
    "rng-bit-generator", "rng-get-and-update-state", "round-nearest-afz", "round-nearest-even", "rsqrt",
    "scaled-dot", "select", "select-and-scatter", "shift-left", "shift-right-arithmetic", "shift-right-logical",
    "sign", "sine", "sort", "sqrt", "stochastic-convert", "subtract", "tan", "tanh", "topk", "transpose",
    "triangular-solve", "cholesky", "xor", "broadcast", "bitcast-convert", "custom-call", "set-dimension-size",
    "dynamic-reshape",
))  # fmt: skip
_SLICES = frozenset(("slice", "dynamic-slice", "gather"))
_IN_PLACE = frozenset(("dynamic-update-slice", "scatter"))
_KNOWN = _FREE | _WHOLE | _SLICES | _IN_PLACE | {"fusion", "while", "conditional", "call", "async"}
_SAME_ELEMENTS = frozenset(("bitcast", "reshape", "copy", "transpose", "convert", "get-tuple-element"))
_FREE_CALLS = frozenset(("ConcatBitcast", "AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"))
MOST = 5  # how many of the largest kernels are reported
ON_CHIP = {"tpu": frozenset((1, 2, 6))}  # memory spaces of vectors, semaphores and scalars; others lie in main memory


class Kernel(NamedTuple):
    """One instruction that moves bytes, and how often it runs."""

    name: str
    opcode: str
    source: str  # the JAX function it comes from
    read: float
    written: float
    main: float  # of both, what lies in the main memory
    flops: float
    times: int
    in_open_loop: bool  # that runs as often as its data say

    @property
    def bytes(self) -> float:
        """Bytes of all its runs."""
        return self.times * (self.read + self.written)


class Collective(NamedTuple):
    """A communication between devices."""

    kind: str
    bytes: int  # of one device's operands, without padding
    times: int
    in_loop: bool


class Facts(NamedTuple):
    """What a compiled program does, on each device."""

    bytes: float
    main_bytes: float
    flops: float  # of matrix products and convolutions
    launches: int  # kernels, each as often as it runs
    kernels: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]
    open_loops: tuple[str, ...]  # that run as often as their data say; counted once
    opaque: tuple[str, ...]  # kernels of libraries, whose products are not known
    temporary_bytes: int = 0
    argument_bytes: int = 0
    output_bytes: int = 0
    alias_bytes: int = 0

    def of_a_turn(self) -> "Facts":
        """Return what one turn of the open loops does, without what is done once; the memory is the program's."""
        kernels = tuple(k for k in self.kernels if k.in_open_loop)
        return self._replace(kernels=kernels, **_sums(kernels))

    @property
    def largest(self) -> list[Kernel]:
        """The `MOST` kernels that move most bytes, largest first."""
        return sorted(self.kernels, key=lambda k: -k.bytes)[:MOST]

    @property
    def memory(self) -> int:
        """Bytes that the program needs at once: arguments, results and temporaries."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temporary_bytes


def facts(compiled: Any, platform: str) -> Facts:
    """Return the facts of a program.

    Args:
        compiled: what `jax.jit(f).lower(*args).compile()` returns.
        platform: that it was compiled for: "tpu", "cuda" or "cpu".

    Raises:
        UnknownProgram: the program has something that is not understood.
    """
    memory = compiled.memory_analysis()
    return facts_of_text(compiled.as_text(), platform)._replace(
        temporary_bytes=memory.temp_size_in_bytes, argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes, alias_bytes=memory.alias_size_in_bytes,
    )  # fmt: skip


def facts_of_text(text: str, platform: str) -> Facts:
    """Return the facts of a program's text, without its memory."""
    module = parse(text)
    counted = _Counted(module, ON_CHIP.get(platform, frozenset()))
    found, collectives, open_loops = counted.computation(module.entry, _Place())
    opaque = tuple(k.name for k in found if math.isnan(k.flops))
    kernels = tuple(k._replace(flops=0.0) if math.isnan(k.flops) else k for k in found)
    return Facts(**_sums(kernels), kernels=kernels, collectives=tuple(collectives), open_loops=tuple(open_loops),
                 opaque=opaque)  # fmt: skip


def _sums(kernels: tuple[Kernel, ...]) -> dict[str, Any]:
    """Return the sums over kernels, by the names that they have in `Facts`."""
    return {
        "bytes": sum(k.bytes for k in kernels), "main_bytes": sum(k.times * k.main for k in kernels),
        "flops": sum(k.times * k.flops for k in kernels), "launches": sum(k.times for k in kernels),
    }  # fmt: skip


class _Place(NamedTuple):
    """Where an instruction stands: how often it runs, and in which loops."""

    times: int = 1
    in_loop: bool = False
    in_open_loop: bool = False


_Found = tuple[list[Kernel], list[Collective], list[str]]


class _Counted:
    """The count of one program."""

    def __init__(self, module: Module, on_chip: frozenset[int]) -> None:
        self.module, self.on_chip = module, on_chip

    def computation(self, inside: Computation, place: _Place) -> _Found:
        """Return the kernels of a computation, its collectives, and its loops of unknown length."""
        found: _Found = ([], [], [])
        for instruction in inside.instructions.values():
            for all_of, more in zip(found, self.instruction(inside, instruction, place), strict=True):
                all_of += more  # type: ignore[operator]
        return found

    def instruction(self, inside: Computation, i: Instruction, place: _Place) -> _Found:
        """Return what one instruction adds."""
        opcode = re.sub("-(start|update|done)$", "", i.opcode)
        if opcode not in _KNOWN:
            raise UnknownProgram(f"instruction {i.opcode} ({i.name}) of the compiled program is not known")
        if i.opcode.endswith(("-update", "-done")):  # its `-start` moved the bytes
            return [], [], []
        if opcode in _FREE or (opcode == "custom-call" and i.attribute("custom_call_target") in _FREE_CALLS):
            return [], [], []
        if opcode == "while":
            return self.loop(inside, i, place)
        if opcode in ("call", "async"):
            return self.computation(self.called(i, "to_apply", "calls", "called_computations"), place)
        if opcode == "conditional":
            return self.largest_branch(i, place)
        collectives = [
            Collective(c.opcode.removesuffix("-start"), self.operand_bytes(where, c), place.times, place.in_loop)
            for where, c in self.within(inside, i) if c.opcode.removesuffix("-start") in _COLLECTIVES
        ]  # fmt: skip
        return [self.kernel(inside, i, place)], collectives, []

    def loop(self, inside: Computation, i: Instruction, place: _Place) -> _Found:
        """Return what a loop adds."""
        count = trips(self.module, inside, i)
        within = _Place(place.times * (1 if count is None else count), True, place.in_open_loop or count is None)
        body, condition = (self.computation(self.called(i, part), within) for part in ("body", "condition"))
        open_loops = [i.name] if count is None else []
        return body[0] + condition[0], body[1] + condition[1], open_loops + body[2] + condition[2]

    def largest_branch(self, i: Instruction, place: _Place) -> _Found:
        """Return what a conditional adds: that of the branch that moves most."""
        names = [n for key in ("branch_computations", "true_computation", "false_computation")
                 for n in i.called.get(key, ())]  # fmt: skip
        branches = [self.computation(self.module.computations[n], place) for n in names]
        return max(branches, key=lambda found: sum(k.bytes for k in found[0]))

    def called(self, i: Instruction, *attributes: str) -> Computation:
        """Return the computation that an instruction calls."""
        name = next((i.called[a][0] for a in attributes if a in i.called), None)
        if name is None:
            raise UnknownProgram(f"instruction {i.opcode} ({i.name}) of the compiled program calls nothing")
        return self.module.computations[name]

    def within(self, inside: Computation, i: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yield an instruction and, of a fusion, all that it fuses."""
        yield inside, i
        if i.opcode.removesuffix("-start") == "fusion":
            fused = self.called(i, "calls")
            for other in fused.instructions.values():
                yield from self.within(fused, other)

    def operand_bytes(self, inside: Computation, i: Instruction) -> int:
        """Return the bytes of an instruction's operands, without padding."""
        return sum(a.logical_bytes for name in i.operands for a in inside.instructions[name].arrays)

    def kernel(self, inside: Computation, i: Instruction, place: _Place) -> Kernel:
        """Return one kernel with its bytes."""
        read, written = self.read(inside, i), self.written(inside, i)
        main = sum(b for a, b in (*read, *written) if a.space not in self.on_chip)
        flops = sum(flops_of(where, p) for where, p in self.within(inside, i))
        return Kernel(i.name, i.opcode, i.attribute("op_name"), sum(b for _, b in read), sum(b for _, b in written),
                      main, flops, place.times, place.in_open_loop)  # fmt: skip

    def read(self, inside: Computation, i: Instruction) -> list[tuple[Array, float]]:
        """Return the arrays that a kernel reads, each with the bytes of it that it touches."""
        opcode, found = i.opcode.removesuffix("-start"), []
        fused = self.called(i, "calls") if opcode == "fusion" else None
        for position, name in enumerate(i.operands):
            arrays = inside.instructions[name].arrays
            if fused is not None:
                share = self.share(fused, fused.parameters[position].name)
            else:
                share = _share_of_operand(inside, i, position)
            found += [(a, share * a.nbytes) for a in arrays]
        return found

    def share(self, fused: Computation, name: str) -> float:
        """Return which part of an array its users in a fusion touch."""
        whole, share = fused.instructions[name].nbytes, 0.0
        if fused.root.name == name or not whole:
            return 1.0
        for user, position in fused.users[name]:
            if user.opcode in _SAME_ELEMENTS and (user.name != fused.root.name):
                share += self.share(fused, user.name)
            elif user.opcode == "fusion":
                nested = self.called(user, "calls")
                share += self.share(nested, nested.parameters[position].name)
            else:
                in_place = user.opcode in _IN_PLACE and user.name in self.outputs_in_place(fused)
                share += 1.0 if user.opcode in _IN_PLACE and not in_place else _share_of_operand(fused, user, position)
        return min(1.0, share)

    @functools.cache  # noqa: B019 (an object for each program)
    def outputs_in_place(self, fused: Computation) -> dict[str, list[str]]:
        """Return a fusion's updates of a parameter in place, with the outputs that they are."""
        found: dict[str, list[str]] = {}
        for output in fused.root.operands if fused.root.opcode == "tuple" else (fused.root.name,):
            update = _through(fused, output)
            if update.opcode in _IN_PLACE and _through(fused, update.operands[0]).opcode == "parameter":
                found.setdefault(update.name, []).append(output)
        return found

    def written(self, inside: Computation, i: Instruction) -> list[tuple[Array, float]]:
        """Return the arrays that a kernel writes, each with the bytes of it that it touches."""
        opcode = i.opcode.removesuffix("-start")
        arrays = _results(i) if i.opcode.endswith("-start") else i.arrays
        if opcode in _IN_PLACE:
            return [(a, _updates(inside, i) / len(arrays)) for a in arrays]
        if opcode != "fusion":
            return [(a, a.nbytes) for a in arrays]
        fused = self.called(i, "calls")
        outputs = fused.root.operands if fused.root.opcode == "tuple" else (fused.root.name,)
        updates = {output: fused.instructions[name]
                   for name, of in self.outputs_in_place(fused).items() for output in of}  # fmt: skip
        if len(outputs) != len(arrays):
            return [(a, a.nbytes) for a in arrays]
        return [(a, min(a.nbytes, _updates(fused, updates[o])) if o in updates else a.nbytes)
                for a, o in zip(arrays, outputs, strict=True)]  # fmt: skip


def _through(fused: Computation, name: str) -> Instruction:
    """Return where an array in a fusion comes from, before changes of type."""
    i = fused.instructions[name]
    while i.opcode in ("bitcast", "reshape", "copy"):
        i = fused.instructions[i.operands[0]]
    return i


def _updates(inside: Computation, i: Instruction) -> float:
    """Return the bytes of an update in place: what it writes."""
    if i.opcode.removesuffix("-start") == "dynamic-update-slice":
        return inside.instructions[i.operands[1]].nbytes
    arrays = len(i.operands) // 2  # a scatter's operands: arrays, indices, updates
    return sum(inside.instructions[name].nbytes for name in i.operands[arrays + 1 :])


def _share_of_operand(inside: Computation, i: Instruction, position: int) -> float:
    """Return which part of an operand one instruction touches."""
    opcode, operand = i.opcode.removesuffix("-start"), inside.instructions[i.operands[position]]
    if opcode in _SLICES and position == 0:
        taken = sum(a.nbytes for a in (_results(i) if i.opcode.endswith("-start") else i.arrays))
        return min(1.0, taken / (operand.nbytes or 1))
    if opcode == "dynamic-update-slice" and position == 0:
        return 0.0
    if opcode == "scatter" and position < len(i.operands) // 2:  # it adds to what is there
        return min(1.0, _updates(inside, i) / (len(i.operands) // 2) / (operand.nbytes or 1))
    return 1.0


def _results(i: Instruction) -> list[Array]:
    """Return what the operation of a `-start` instruction writes: the tuple holds its operands and contexts, too."""
    if i.opcode == "all-reduce-start":
        return list(i.arrays)
    element = 0 if i.opcode == "copy-start" else 1
    if len(i.parts) <= element:
        raise UnknownProgram(f"instruction {i.opcode} ({i.name}) of the compiled program has an unknown result")
    begin = sum(i.parts[:element])
    return list(i.arrays[begin : begin + i.parts[element]])
