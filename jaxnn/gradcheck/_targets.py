"""The check `targets`: f and both passes of its rule, compiled for accelerators that need not be there.

Each target gets a child process, because its compiler starts only with settings that JAX reads once. The child traces
f with the shapes of the arguments, and runs nothing.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any

from jaxnn.accelerators import programs
from jaxnn.accelerators.hlo import UnknownProgram
from jaxnn.accelerators.targets import Target, Unavailable, compiled_for, only_libtpu, target
from jaxnn.gradcheck._child import answer, child
from jaxnn.gradcheck._subject import Subject
from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Row
from jaxnn.gradcheck.tolerance import finfo
from jaxnn.tracing.errors import first_line

SECONDS = 600.0  # for one target: its compiler may have to wait for its turn
TWICE = 2.0  # times the temporaries of JAX's derivative: from here on the rule's are too many


def targets(t: Trial) -> Findings:
    """The gradient compiles wherever f does; with narrow arguments it needs less than twice autodiff's temporaries."""
    for name in t.targets:
        wanted = target(name)
        try:
            wanted.require()
        except Unavailable as error:
            yield _unsupported(wanted, error)
            continue
        if wanted.platform == "tpu" and _has_libtpu():
            message = "libtpu allows one process at a time, and this one has it; start Python with JAX_PLATFORMS=cpu"
            yield Row("targets", wanted.name, UNSUPPORTED, message)
            continue
        with child(__name__, wanted.environment(), name, *t.sent) as started:
            rows, cause = started.rows("targets", SECONDS)
        yield from rows or [Row("targets", wanted.name, INCONCLUSIVE, f"no result from the child process: {cause}")]


def _unsupported(wanted: Target, error: Unavailable) -> Row:
    return Row("targets", wanted.name, UNSUPPORTED, str(error).removeprefix(f"{wanted.name}: "))


def _has_libtpu() -> bool:
    """Whether this process has loaded libtpu, as JAX does at its first use, also where there is no TPU."""
    return "/libtpu.so" in Path("/proc/self/maps").read_text()


# --- in the child ---


def main() -> None:
    """Compile what standard input holds, and write the rows to standard output."""
    answer(_compiled)


def _compiled(
    name: str, f: Any, args: Any, kwargs: dict[str, Any], reference: Any, argnums: tuple[int, ...] | None
) -> list[Row]:
    wanted = target(name)
    with only_libtpu() if wanted.platform == "tpu" else contextlib.nullcontext():
        try:
            device = wanted.devices()[0]
        except Unavailable as error:
            return [_unsupported(wanted, error)]
        subject = Subject(f, args, kwargs, reference, argnums)
        subject.find_outputs()
        subject.find_automatic()
        return [_row(wanted, device, subject)]


def _row(wanted: Target, device: Any, s: Subject) -> Row:
    """Compile f, its rule's gradient, and JAX's gradient of the definition; compare the memory of the gradients."""
    row = functools.partial(Row, "targets", wanted.name)
    dy = s.cotangents(0)

    def compiled(kind: str, gradient: bool = True) -> Any:
        def both_passes(points: Any, rest: Any, dy: Any) -> Any:
            return s.vjp(kind, points, rest, dy) if gradient else s.value(kind, points, rest)

        return compiled_for(device, both_passes, (s.points, s.rest, dy))

    try:
        compiled("custom", gradient=False)
    except Exception as error:
        return row(UNSUPPORTED, f"f itself does not compile for it: {first_line(error)}")
    try:
        by_rule = compiled("custom")
    except Exception as error:
        message = f"f compiles for it, its gradient does not: {first_line(error)}"
        return row(FAIL, message, "the backward rule must run wherever the forward rule does")
    try:
        automatic = compiled("automatic")
    except Exception:  # a kernel without a derivative, a while_loop
        return row(PASS, f"both passes compile: {_amounts(by_rule, wanted)}")
    said = f"both passes compile: {_amounts(by_rule, wanted)} (JAX's derivative: {_amounts(automatic, wanted)})"
    rules, automatics = (_temporaries(program) for program in (by_rule, automatic))
    copy = _float32_copy(s)
    if copy and rules >= max(TWICE * automatics, copy):
        hint = "the rule makes float32 arrays from narrower arguments: convert the result of each sum, not its operands"
        return row(FAIL, said, hint)
    return row(PASS, said)


def _float32_copy(s: Subject) -> int:
    """Return the bytes of a float32 copy of the largest argument that is narrower; 0 if none is."""
    narrow = [x.size for x in s.points if finfo(x.dtype).bits < 32]
    return 4 * max(narrow, default=0)


def _temporaries(program: Any) -> int:
    return int(program.memory_analysis().temp_size_in_bytes)


def _amounts(program: Any, wanted: Target) -> str:
    try:
        moved = f"{programs.facts(program, wanted.platform).main_bytes:,.0f} bytes moved"
    except UnknownProgram as error:  # which is no mistake of the rule
        moved = f"bytes moved are unknown ({first_line(error)})"
    return f"{moved}, {_temporaries(program):,} bytes of temporaries"
