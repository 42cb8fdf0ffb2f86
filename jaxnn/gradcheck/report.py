"""The report of a check: its rows, as text for a terminal, as data for JSON, and as the message of an exception."""

import dataclasses
import math
import shutil
import textwrap
from typing import Any

PASS, FAIL, UNSUPPORTED, INCONCLUSIVE, NOTE = "PASS", "FAIL", "UNSUPPORTED", "INCONCLUSIVE", "NOTE"
RIGHT, WRONG, UNPROVEN = "right", "wrong", "unproven"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The worst element: its index, the three derivatives there, and the error of the rule's."""

    index: tuple[int, ...]
    custom: complex  # a float where the argument is not complex
    automatic: complex | None
    numeric: complex | None
    absolute: float  # |custom − truth|
    relative: float  # |custom − truth| / |truth|
    ulp: float  # |custom − truth| in units in the last place of the truth, in the argument's dtype
    tolerance: float  # the absolute error allowed there
    agree: str  # which two of the three agree


@dataclasses.dataclass(frozen=True)
class Row:
    """One check of one argument, output or transformation.

    `status` is PASS, FAIL (the rule is wrong), UNSUPPORTED (the rule, or JAX, cannot do this), INCONCLUSIVE (not
    decided at these arguments; the message says what would decide it) or NOTE (information, no verdict).
    """

    check: str
    path: str
    status: str
    message: str = ""
    hint: str = ""
    evidence: Evidence | None = None
    decides: bool = False  # whether the verdict is "unproven" where this row is INCONCLUSIVE

    def lines(self, width: int) -> list[str]:
        """Return the row as lines of text; a long message is continued under the path."""
        head = f"{self.status:<12} {self.check:<13} "
        text = f"{self.path}: {self.message}" if self.message else self.path
        return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head)) or [head]

    def details(self, width: int) -> list[str]:
        """Return the evidence and the hint of a failed row as lines of text."""
        indent = " " * 13
        found: list[str] = []
        if (e := self.evidence) is not None:
            at = f"[{', '.join(map(str, e.index))}]" if e.index else ""
            found.append(f"at {self.path}{at}: custom {_digits(e.custom)}, automatic {_digits(e.automatic)}, "
                         f"numeric {_digits(e.numeric)} ({e.agree})")  # fmt: skip
            found.append(f"error {_digits(e.absolute)} absolute, {_digits(e.relative)} relative, {_digits(e.ulp)} ULP; "
                         f"allowed {_digits(e.tolerance)}")  # fmt: skip
        if self.hint:
            found.append(f"hint: {self.hint}")
        return [
            line for text in found
            for line in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + "  ")
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of `gradcheck.check`. `print(report)` shows a table.

    Attributes:
      name: the name of the function.
      rows: one row for each check of an argument, an output or a transformation.
      repro: the call that gives this report again.
      seed: the seed of the cotangents and directions.
      seconds: the time that the check took.
      has_rule: whether the function calls a hand-written rule, or is one of JAX's own functions with a rule.
      costs: bytes, flops and milliseconds, by "custom" and "automatic".
      sweep: pairs of a step size and the numeric derivative's relative distance from the rule's at that step.
      errors: the rule's largest distance from the automatic derivative, relative to the largest element, and from the
        numeric one, relative to the slope along a direction.
    """

    name: str
    rows: tuple[Row, ...]
    repro: str
    seed: int
    seconds: float
    has_rule: bool = True
    costs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    sweep: tuple[tuple[float, float], ...] = ()
    errors: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """ "wrong" if a row fails, else "unproven" if a derivative could not be decided, else "right"."""
        if self.failures:
            return WRONG
        return UNPROVEN if self.undecided else RIGHT

    @property
    def ok(self) -> bool:
        """Whether the verdict is "right"."""
        return self.verdict == RIGHT

    @property
    def undecided(self) -> tuple[Row, ...]:
        """The rows that leave the verdict open: derivatives for which no truth was to be had; checks that crashed."""
        return tuple(row for row in self.rows if row.status == INCONCLUSIVE and row.decides)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that fail."""
        return tuple(row for row in self.rows if row.status == FAIL)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data that JSON can hold; complex and non-finite numbers become strings."""
        return _jsonable({"ok": self.ok, "verdict": self.verdict, **dataclasses.asdict(self)})  # type: ignore[no-any-return]

    def __str__(self) -> str:
        width = max(60, min(120, shutil.get_terminal_size().columns))
        counted = {
            status: [row.status for row in self.rows].count(status) for status in (FAIL, INCONCLUSIVE, UNSUPPORTED)
        }
        remarks = ", ".join(f"{count} {status}" for status, count in counted.items() if count)
        found = "" if self.has_rule else "; no custom rule found: JAX's derivative is compared with the numeric one"
        lines = [f"gradcheck {self.name}: {self.verdict}{f' ({remarks})' if remarks else ''}{found}"]
        for row in self.rows:
            lines += row.lines(width)
            if row.status == FAIL:
                lines += row.details(width)
        return "\n".join([*lines, f"again: {self.repro}"])

    def failed_lines(self, limit: int = 30) -> str:
        """Return only the failed rows, or those that are unproven, as at most `limit` lines of text."""
        rows = self.failures or self.undecided
        what = "failed" if self.failures else "unproven"
        lines = [f"{self.name}: {self.verdict}, {len(rows)} check{'s' if len(rows) != 1 else ''} {what}"]
        for row in rows:
            lines += row.lines(120) + row.details(120)
        if len(lines) > limit - 1:
            lines = [*lines[: limit - 2], "... and more lines"]
        return "\n".join([*lines, f"again: {self.repro}"])


def _digits(x: complex | None) -> str:
    return "none" if x is None else f"{x:.6g}"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, complex):
        return str(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
