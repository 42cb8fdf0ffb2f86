"""The check `targets`: f and both passes of its rule, compiled for accelerators that need not be there.

Each target gets a child process, because its compiler starts only with settings that JAX reads once. The child traces
f with the shapes of the arguments, and runs nothing.
"""

import contextlib
from pathlib import Path
from typing import Any

from jaxnn.accelerators import programs
from jaxnn.accelerators.targets import Target, Unavailable, compiled_for, only_libtpu, target
from jaxnn.gradcheck._child import answer, child
from jaxnn.gradcheck._subject import Subject
from jaxnn.gradcheck._tolerance import finfo
from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Row
from jaxnn.tracing.errors import first_line
from jaxnn.tracing.functions import is_array

SECONDS = 600.0  # for one target: its compiler may have to wait for its turn
TWICE = 2.0  # of the temporaries of JAX's derivative, from which they are too many


def targets(t: Trial) -> Findings:
    """The function and its gradient compile for each target, and need no more memory than JAX's derivative."""
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
        yield from rows or [Row("targets", wanted.name, INCONCLUSIVE, f"the process that compiles: {cause}")]


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
    """Compile f, its rule's gradient, and JAX's gradient of the definition; judge the second by the third."""
    dy = s.cotangents(0)

    def facts(kind: str, gradient: bool = True) -> programs.Facts:
        def both_passes(points: Any, rest: Any, dy: Any) -> Any:
            return s.vjp(kind, points, rest, dy) if gradient else s.value(kind, points, rest)

        return programs.facts(compiled_for(device, both_passes, (s.points, s.rest, dy)), wanted.platform)

    try:
        facts("custom", gradient=False)
    except Exception as error:
        return Row("targets", wanted.name, UNSUPPORTED, f"f itself does not compile for it: {first_line(error)}")
    try:
        rule = facts("custom")
    except Exception as error:
        return Row(
            "targets", wanted.name, FAIL, f"f compiles for it, its gradient does not: {first_line(error)}",
            "the backward rule must run wherever the forward rule does",
        )  # fmt: skip
    said = f"both passes compile: {_amount(rule)}"
    try:
        automatic = facts("automatic")
    except Exception:  # a kernel without a derivative, a while_loop
        return Row("targets", wanted.name, PASS, said)
    said += f" (JAX's derivative: {_amount(automatic)})"
    copy = _float32_copy(s)
    if copy and rule.temporary_bytes >= max(TWICE * automatic.temporary_bytes, copy):
        return Row(
            "targets", wanted.name, FAIL, said,
            "float32 arrays where the arguments are narrower: convert at the end of each sum, not before it",
        )  # fmt: skip
    return Row("targets", wanted.name, PASS, said)


def _float32_copy(s: Subject) -> int:
    """Return the bytes of a float32 copy of the largest argument that is narrower; 0 if none is."""
    narrow = [x.size for x in s.points if is_array(x) and finfo(x.dtype).bits < 32]
    return 4 * max(narrow, default=0)


def _amount(facts: programs.Facts) -> str:
    return f"{_bytes(facts.main_bytes)} moved, {_bytes(facts.temporary_bytes)} of temporaries"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
