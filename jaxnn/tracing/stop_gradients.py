"""Find the arguments that a traced function's author holds constant: a stop_gradient is between them and an output."""

import re
from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex

from jaxnn.tracing import jaxprs, kinds

# `stop_gradient` itself, and what runs a function that it is given, as in `jax.tree.map(jax.lax.stop_gradient, tree)`.
_RUNS_OTHERS = re.compile(
    r"[/\\]jax[/\\]_src[/\\](tree|tree_util|api|api_util|core|linear_util|pjit|stages|traceback_util|source_info_util"
    r"|ad_checkpoint|custom_\w+|interpreters[/\\]\w+|lax[/\\]lax|lax[/\\]control_flow[/\\](?!solves)\w+)\.py$"
)
_CALLS = ("jit", "pjit", "closed_call", "core_call", "eval_jaxpr", "remat", "remat2", "checkpoint")


def stopped_inputs(closed: Any) -> set[int]:
    """Return the positions of the inputs on which an output depends through a stop_gradient that is not JAX's own."""
    jaxpr = jaxprs.open_jaxpr(closed)
    return _stopped(jaxpr, [{i} for i in range(len(jaxpr.invars))], [True] * len(jaxpr.outvars))


def _stopped(jaxpr: Any, inputs: Sequence[set[int]], wanted: Sequence[bool]) -> set[int]:
    """Do the same for an inner function: its inputs depend on `inputs`, and only its `wanted` outputs count."""
    origins: dict[Any, set[int]] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atoms: Sequence[Any]) -> set[int]:
        return set().union(*(origins.get(a, set()) for a in atoms if not isinstance(a, jex.Literal)))

    for eqn in jaxpr.eqns:
        origins |= dict.fromkeys(eqn.outvars, of(eqn.invars))
    used = {v for v, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted and not _is_constant(v)}
    found: set[int] = set()
    for eqn in reversed(jaxpr.eqns):
        reaching = [v in used for v in eqn.outvars]
        if any(reaching):
            used |= {v for v in eqn.invars if not _is_constant(v)}
            inner = _called(eqn)
            if inner is not None:
                found |= _stopped(inner, [of([a]) for a in eqn.invars], reaching)
            elif any(map(is_users_stop_gradient, _with_inner(eqn))):
                found |= of(eqn.invars)
    return found


def _is_constant(atom: Any) -> bool:
    return isinstance(atom, jex.Literal)


def _called(eqn: Any) -> Any:
    """Return the inner function that the equation calls once, with its operands; None if there is none."""
    if eqn.primitive.name in _CALLS:
        return jaxprs.open_jaxpr(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
    try:
        call = kinds.rule_call(eqn)
        return None if call is None or call.definition is None else jaxprs.open_jaxpr(call.definition())
    except Exception:  # its error belongs to whoever calls it
        return None


def _with_inner(eqn: Any) -> list[Any]:
    """Return the equation and those of its inner functions, such as the body of a loop."""
    inner: list[Any] = []
    for value in eqn.params.values():
        jaxprs.map_jaxprs(inner.append, value)
    return [eqn, *(each for jaxpr in inner for each in kinds.equations(jaxpr))]


def is_users_stop_gradient(eqn: Any) -> bool:
    """Whether the equation is a stop_gradient that is not written in JAX itself."""
    if eqn.primitive.name != "stop_gradient":
        return False
    frames = eqn.source_info.traceback.frames if eqn.source_info.traceback else ()  # innermost first
    author = next((frame.file_name for frame in frames if not _RUNS_OTHERS.search(frame.file_name)), "")
    return not kinds.is_file_of_jax(author)
