"""The checks of the rule as a program: is it deterministic and closed, and what memory and time does it take?"""

import math
import time
from typing import Any

import jax
import numpy as np

from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck.report import FAIL, NOTE, PASS, UNSUPPORTED, Row
from jaxnn.gradcheck.tolerance import largest_finite
from jaxnn.tracing import jaxprs, kinds
from jaxnn.tracing.errors import missing_method
from jaxnn.tracing.functions import is_ref


def determinism(t: Trial) -> Findings:
    """Two runs give the same bits."""
    s = t.subject
    one, two = (s.vjp("custom", s.points, s.rest, t.dy)[1] for _ in range(2))
    for path, a, b in zip(s.paths, one, two, strict=True):
        if not np.array_equal(as64(a), as64(b), equal_nan=True):
            off = largest_finite(np.abs(as64(a) - as64(b)))
            yield Row("determinism", path, FAIL, f"two runs differ by up to {off:.3g}",
                      "randomness must come from a key among the arguments")  # fmt: skip
            return
    yield Row("determinism", s.name, PASS, "two runs are bitwise equal")


def closure(t: Trial) -> Findings:
    """No array with a gradient bypasses the rule: in nondiff_argnums, or closed over."""
    for path, reason in t.subject.frozen:
        yield Row("closure", path, FAIL, reason, "make it an ordinary argument of the rule")
    if not t.subject.frozen:
        yield Row("closure", t.subject.name, PASS, "every array reaches the rule as an argument")


def stop_gradient(t: Trial) -> Findings:
    """Say that the definition stops gradients: then custom is compared with automatic, not with numeric."""
    if t.stopped and t.numeric_differs:
        yield Row("stop_gradient", t.subject.name, NOTE,
                  "the definition has a stop_gradient: compared with automatic, not with numeric")  # fmt: skip


def forward_mode(t: Trial) -> Findings:
    """Say whether jax.jvp works."""
    s, missing = t.subject, ""
    try:
        jaxpr = jax.make_jaxpr(lambda p: jax.jvp(lambda *p: s.value("custom", list(p), s.rest), p, p))(tuple(s.points))
        works = not any(kinds.is_backward_only(e) for e in jaxprs.equations(jaxpr))
    except Exception as error:
        works, missing = False, missing_method(error)
    if missing:
        yield Row("forward_mode", s.name, UNSUPPORTED, missing)
    elif not works:
        yield Row("forward_mode", s.name, NOTE, "jax.jvp and jax.hessian raise; jaxnn.automatic(f) has both")
    else:
        yield Row("forward_mode", s.name, NOTE, "jax.jvp works")


def _kinds(t: Trial) -> list[str]:
    return ["custom"] if t.no_automatic else ["custom", "automatic"]


def _residual_bytes(t: Trial, kind: str) -> int:
    s = t.subject

    def saved(points: Arrays, rest: Arrays) -> Any:
        kept = jax.tree.leaves(jax.vjp(lambda *p: s.value(kind, list(p), rest), *points)[1])
        return [x for x in kept if not is_ref(x)]

    return sum(_bytes(x) for x in jax.tree.leaves(jax.eval_shape(saved, s.points, s.rest)))


def _bytes(x: Any) -> int:
    return int(math.prod(x.shape) * x.dtype.itemsize)


def residuals(t: Trial) -> Findings:
    """Count the bytes of the residuals, and of those that the backward rule never reads."""
    for kind in _kinds(t):
        t.costs.setdefault(kind, {})["residual_bytes"] = _residual_bytes(t, kind)
    counts = ", ".join(f"{kind} keeps {t.costs[kind]['residual_bytes']:,} bytes" for kind in _kinds(t))
    yield Row("residuals", t.subject.name, NOTE, counts)
    for rule in t.backward_rules:
        for i in jaxprs.unused_inputs(rule.jaxpr):
            if i < len(rule.residuals) and (size := _bytes(rule.residuals[i])):
                kind = f"{rule.residuals[i].dtype}{list(rule.residuals[i].shape)}"
                kept = f"residual {i} ({kind}, {size:,} bytes) is kept and never read"
                yield Row("residuals", rule.name, NOTE, kept)


def cost(t: Trial) -> Findings:
    """Compare the compiled programs of value and gradient: arithmetic, memory traffic, temporary memory and time."""
    s = t.subject
    for kind in _kinds(t):
        t.gradients(kind, s.points, t.dy)  # compile it, if no check has done so
    programs = {kind: s.native[kind] for kind in _kinds(t) if kind in s.native}
    times = _milliseconds(t, programs)
    for kind, program in programs.items():
        found, memory = program.cost_analysis() or {}, program.memory_analysis()
        costs = t.costs.setdefault(kind, {})
        costs["flops"], costs["bytes_accessed"] = (float(found.get(k, math.nan)) for k in ("flops", "bytes accessed"))
        costs["temporary_bytes"] = float(getattr(memory, "temp_size_in_bytes", math.nan))
        costs["milliseconds"] = times[kind]
        yield Row("cost", kind, NOTE, f"{costs['flops']:,.0f} flops, {costs['bytes_accessed']:,.0f} bytes moved, "
                  f"{costs['temporary_bytes']:,.0f} bytes of temporaries, {times[kind]:.3g} ms")  # fmt: skip


def _milliseconds(t: Trial, programs: dict[str, Any]) -> dict[str, float]:
    """Return the median time of each program. They run in turn, three times at least and for a tenth of a second."""
    taken: dict[str, list[float]] = {kind: [] for kind in programs}
    started = time.perf_counter()
    while any(len(v) < 3 for v in taken.values()) or time.perf_counter() - started < 0.1:
        for kind, program in programs.items():
            before = time.perf_counter()
            jax.tree.map(lambda x: x.block_until_ready(), program(t.subject.points, t.subject.rest, t.dy))
            taken[kind].append(1e3 * (time.perf_counter() - before))
    return {kind: float(np.median(v)) for kind, v in taken.items()}
