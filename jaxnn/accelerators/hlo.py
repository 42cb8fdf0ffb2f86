"""The text of a compiled program (HLO) as data: computations, instructions, and shapes with their bytes in memory.

Text that this file does not know raises `UnknownProgram`: a program read in part would be counted in part.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bits of one element; tokens and opaque values have none.
_BITS = {
    "pred": 8, "s1": 1, "u1": 1, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32,
    "u32": 32, "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f4e2m1fn": 4, "f8e3m4": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e4m3fnuz": 8, "f8e5m2": 8,
    "f8e5m2fnuz": 8, "f8e8m0fnu": 8, "token": 0, "opaque": 0,
}  # fmt: skip
_SHAPE = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<dims>[^\]]*)\](?:\{(?P<layout>[^}]*)\})?")
_LAYOUT = re.compile(r"(?P<order>[\d,]*)(?::(?P<tiles>T(?:\([\d,*]+\))+)?(?P<more>(?:(?:SC|[ELSDPMH])\([^)]*\))*))?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"\s*(?P<root>ROOT )?%(?P<name>[\w.\-]+) = ")
_OPCODE = re.compile(r"\s*(?P<opcode>[a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_CALLED = re.compile(
    r"\b(calls|to_apply|condition|body|true_computation|false_computation|branch_computations|called_computations"
    r"|async_execution_thread_computation)=(\{[^}]*\}|%[\w.\-]+)"
)


class UnknownProgram(ValueError):
    """A compiled program has something that is not understood; nothing about it is reported then."""


class Array(NamedTuple):
    """One array: its elements, its bytes as it lies in memory, and in which memory."""

    dtype: str
    dims: tuple[int, ...]
    nbytes: int  # with the padding of the layout's tiles
    space: int = 0  # 0 is the main memory; the platform gives the others a meaning

    @property
    def logical_bytes(self) -> int:
        """The bytes of the elements alone."""
        return -(-math.prod(self.dims) * _BITS[self.dtype] // 8)


class Instruction(NamedTuple):
    """One instruction. A result that is a tuple has several arrays."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # the leaves of the result
    parts: tuple[int, ...]  # how many leaves each element of the result has; an array is one part
    operands: tuple[str, ...]
    called: dict[str, tuple[str, ...]]  # the computations it refers to, by the attribute's name
    literal: str  # what stands in the brackets
    attributes: str

    @property
    def nbytes(self) -> int:
        """The bytes of all its arrays."""
        return sum(a.nbytes for a in self.arrays)

    def attribute(self, name: str) -> str:
        """Return an attribute in {} or without brackets; "" if it is not there."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|\"([^\"]*)\"|([^\s,]+))", self.attributes)
        return next((g for g in found.groups() if g is not None), "") if found else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """Instructions by their names, in an order in which they can run."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """Each instruction's users, with the position among their operands."""
        users: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for position, name in enumerate(instruction.operands):
                users[name].append((instruction, position))
        return users

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """The parameters, in the order of their numbers."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.literal))


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A program: its computations by their names, and the one it begins with."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Return the program.

    Args:
        text: a compiled program in HLO, `compiled.as_text()`.

    Raises:
        UnknownProgram: the text has something that is not understood.
    """
    computations: dict[str, Computation] = {}
    entry, lines = None, iter(text.splitlines())
    for line in lines:
        if (head := _COMPUTATION.match(line.split(", execution_thread=")[0].rstrip())) is None:
            if line.startswith(("%", "ENTRY")):
                raise UnknownProgram(f"a computation of the compiled program is not understood: {line[:160]}")
            continue  # the module's head, and the tables of source lines
        body = _computation(head["name"], lines)
        computations[body.name] = body
        entry = body if head["entry"] else entry
    if entry is None:
        raise UnknownProgram("the compiled program has no entry computation")
    return Module(computations, entry)


def _computation(name: str, lines: Iterator[str]) -> Computation:
    """Return the computation whose lines follow, up to its closing bracket."""
    instructions, root = {}, None
    for line in lines:
        if line.startswith("}"):
            break
        instruction, is_root = _instruction(line)
        instructions[instruction.name] = instruction
        root = instruction if is_root else root
    if root is None:
        raise UnknownProgram(f"computation {name} of the compiled program has no root")
    return Computation(name, instructions, root)


def _instruction(line: str) -> tuple[Instruction, bool]:
    """Return a line's instruction, and whether it is its computation's root."""
    head = _HEAD.match(line)
    if head is None:
        raise UnknownProgram(f"an instruction of the compiled program is not understood: {line.strip()[:160]}")
    shape, at = _balanced(line, head.end()) if line[head.end()] == "(" else _word(line, head.end())
    opcode = _OPCODE.match(line, at)
    if opcode is None:
        raise UnknownProgram(f"an instruction of the compiled program is not understood: {line.strip()[:160]}")
    inside, end = _balanced(line, opcode.end() - 1)
    attributes, kind = line[end:], opcode["opcode"]
    literal = inside[1:-1] if kind in ("constant", "parameter") else ""
    parts = [_arrays(part) for part in _elements(shape)]
    called = {key: tuple(_NAME.findall(names)) for key, names in _CALLED.findall(attributes)}
    instruction = Instruction(
        head["name"], kind, tuple(a for part in parts for a in part), tuple(map(len, parts)),
        () if literal else tuple(_NAME.findall(inside)), called, literal, attributes,
    )  # fmt: skip
    return instruction, bool(head["root"])


def _word(line: str, start: int) -> tuple[str, int]:
    """Return the shape of one array, which ends at the first blank outside of brackets."""
    end = line.index(" ", start)
    return line[start:end], end


def _balanced(line: str, start: int) -> tuple[str, int]:
    """Return the text from a bracket to the one that closes it, and where it ends."""
    depth, quoted = 0, False
    for at in range(start, len(line)):
        character = line[at]
        if character == '"' and line[at - 1] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (character in "({[") - (character in ")}]")
            if depth == 0:
                return line[start : at + 1], at + 1
    raise UnknownProgram(f"a bracket of the compiled program is not closed: {line.strip()[:160]}")


def _elements(shape: str) -> list[str]:
    """Return the shapes of a tuple's elements; of an array, its own shape."""
    if not shape.startswith("("):
        return [shape]
    found, depth, begin, inside = [], 0, 0, re.sub(r"/\*.*?\*/", "", shape[1:-1])
    for at, character in enumerate(inside):
        depth += (character in "({[") - (character in ")}]")
        if character == "," and depth == 0:
            found.append(inside[begin:at])
            begin = at + 1
    return [part.strip() for part in [*found, inside[begin:]] if part.strip()]


def _arrays(shape: str) -> list[Array]:
    """Return the arrays of a shape."""
    if shape.startswith("("):
        return [a for part in _elements(shape) for a in _arrays(part)]
    found = _SHAPE.fullmatch(shape)
    if found is None or found["dtype"] not in _BITS:
        raise UnknownProgram(f"a shape of the compiled program is not understood: {shape[:160]}")
    dims = tuple(int(d.removeprefix("<=")) for d in found["dims"].split(",") if d)
    return [_array(found["dtype"], dims, found["layout"] or "", shape)]


def _array(dtype: str, dims: tuple[int, ...], layout: str, shape: str) -> Array:
    """Return an array with its bytes in memory, in tiles that are padded to their full size."""
    found = _LAYOUT.fullmatch(layout)
    if found is None:
        raise UnknownProgram(f"a layout of the compiled program is not understood: {shape[:160]}")
    order = [int(d) for d in found["order"].split(",") if d]
    physical = [dims[d] for d in reversed(order)] if order else list(dims)
    for tile in re.findall(r"\(([\d,*]+)\)", found["tiles"] or ""):
        if "*" in tile:
            raise UnknownProgram(f"a layout of the compiled program is not understood: {shape[:160]}")
        sizes = [int(t) for t in tile.split(",")]
        physical = [1] * (len(sizes) - len(physical)) + physical
        kept, tiled = physical[: len(physical) - len(sizes)], physical[len(physical) - len(sizes) :]
        physical = [*kept, *(-(-d // t) for d, t in zip(tiled, sizes, strict=True)), *sizes]
    more = dict(re.findall(r"([A-Z])\(([^)]*)\)", found["more"] or ""))
    bits = int(more.get("E", _BITS[dtype]))
    return Array(dtype, dims, -(-math.prod(physical) * bits // 8), int(more.get("S", 0)))
