"""The kinds of hand-written rules that JAX has: how the call of each looks in a jaxpr, and what its definition is.

| written with | in the jaxpr | its definition |
|---|---|---|
| `custom_vjp`, `custom_gradient` | `custom_vjp_call` | the decorated function |
| `custom_jvp` | `custom_jvp_call` | the decorated function |
| `HiPrim` (`VJPHiPrimitive` before jax 0.12) | `call_hi_primitive` | its method `expand` |
| `custom_vjp` with `generic_batching`, or under `jax_custom_vjp3` | `call_hi_primitive` | the decorated function |
| `custom_jvp` under `jax_custom_jvp3` | `call_hi_primitive` | the decorated function |
| `jax.custom_derivatives.linear_call` | `linear_call` | the linear function |
| `jax.lax.custom_linear_solve` | `custom_linear_solve` | the solver |
| `jax.lax.custom_root` | `custom_jvp_call`, or `call_hi_primitive` | the solver |

JAX differentiates the last two implicitly: the derivative comes from the equation that is solved, not from the solver.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import hijax
from jax.extend.core.primitives import custom_jvp_call_p, custom_vjp_call_p
from jax.interpreters import ad

from jaxnn.tracing import jaxprs
from jaxnn.tracing.functions import is_inexact

IMPLICIT = ("custom_root", "custom_linear_solve")
HIPRIM = "HiPrim"
HiPrim = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive  # its name before jax 0.12
_IN_JAX = re.compile(r"[/\\]jax[/\\](_src|experimental)[/\\]")
# What the user hands to JAX as the rule.
HANDED_OVER = {
    "custom_root": "tangent_solve",
    "custom_linear_solve": "transpose_solve",
    "linear_call": "transpose",
}


@dataclasses.dataclass(frozen=True)
class RuleCall:
    """The call of a function with a hand-written rule.

    Attributes:
      kind: what it is written with: "custom_vjp", "custom_jvp", "HiPrim", "linear_call", "custom_linear_solve",
        "custom_root", or "primitive" for a primitive that is registered with JAX by hand.
      name: the function's name.
      is_jaxs_own: whether the rule belongs to JAX itself.
      definition: returns the trace of the definition, which takes the call's operands; None for a primitive.
      traced: the trace in which JAX keeps the function's place and the names of its arguments; None for a HiPrim.
    """

    kind: str
    name: str
    is_jaxs_own: bool
    definition: Callable[[], Any] | None
    traced: Any = None

    @property
    def place(self) -> str:
        """The file and line where the function begins, "student.py:14"; "" if unknown."""
        return "" if self.traced is None else _place(self.traced)

    @property
    def is_implicit(self) -> bool:
        """Whether the derivative comes from an equation that the definition solves."""
        return self.kind in IMPLICIT


def rule_call(eqn: Any) -> RuleCall | None:
    """Return what hand-written rule the equation calls, if it calls one."""
    name = eqn.primitive.name
    if eqn.primitive is custom_vjp_call_p:
        return _traced_call("custom_vjp", eqn.params["call_jaxpr"])
    if eqn.primitive is custom_jvp_call_p:
        call = _traced_call("custom_jvp", eqn.params["call_jaxpr"])
        if call.name != "_custom_root":
            return call
        return dataclasses.replace(call, kind="custom_root", name="custom_root", is_jaxs_own=False)
    if name == "call_hi_primitive":
        return _primitive_call(eqn) if calls_hi_primitive(eqn) else RuleCall("primitive", name, False, None)
    if name == "linear_call":
        return _traced_call("linear_call", eqn.params["callee"])
    if name == "custom_linear_solve":
        return _linear_solve_call(eqn)
    return _registered_call(eqn)


def _traced_call(kind: str, jaxpr: Any) -> RuleCall:
    return RuleCall(kind, _function_name(jaxpr), _is_in_jax(jaxpr), lambda: jaxpr, jaxpr)


def _function_name(jaxpr: Any) -> str:
    return str(jaxprs.open_jaxpr(jaxpr).debug_info.func_src_info).split(" at ")[0]


def _place(jaxpr: Any) -> str:
    _, _, place = str(jaxprs.open_jaxpr(jaxpr).debug_info.func_src_info).partition(" at ")
    return re.split(r"[/\\]", place)[-1]


def _is_in_jax(jaxpr: Any) -> bool:
    return is_file_of_jax(str(jaxprs.open_jaxpr(jaxpr).debug_info.func_src_info))


def is_file_of_jax(name: str) -> bool:
    """Whether a file, or the place of a function, is in JAX."""
    return _IN_JAX.search(name) is not None


def calls_hi_primitive(eqn: Any) -> bool:
    """Whether the equation calls a `HiPrim`, in the form that is known here."""
    return eqn.primitive.name == "call_hi_primitive" and "_prim" in eqn.params


def hi_primitive(eqn: Any) -> Any:
    """Return the object whose methods are the rules, of a `call_hi_primitive` equation."""
    return eqn.params["_prim"]


def unbatched(primitive: Any) -> Any:
    """Return the primitive that the user wrote: before jax 0.12 vmap wraps it."""
    while type(primitive).__name__ == "VmapOf":
        primitive = primitive.prim
    return primitive


def _primitive_call(eqn: Any) -> RuleCall:
    primitive = unbatched(hi_primitive(eqn))
    definition = functools.partial(_expanded, eqn)
    if type(primitive).__name__ in ("CustomVJPTraced", "CustomJVPTraced"):
        kind = "custom_vjp" if type(primitive).__name__ == "CustomVJPTraced" else "custom_jvp"
        jaxpr = primitive.traced.jaxpr
        return RuleCall(kind, _function_name(jaxpr), _is_in_jax(jaxpr), definition, jaxpr)
    if type(primitive).__name__ == "CustomRoot":
        return RuleCall("custom_root", "custom_root", False, definition)
    return RuleCall(HIPRIM, type(primitive).__name__, type(primitive).__module__.startswith("jax."), definition)


def _expanded(eqn: Any) -> Any:
    primitive = hi_primitive(eqn)

    def expand(*operands: Any) -> Any:
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, operands)))

    avals = [v.aval for v in eqn.invars]
    with eqn.ctx.manager:
        mesh = jax.sharding.get_abstract_mesh()
    axes = set(mesh.manual_axes) - set(jax.sharding.get_abstract_mesh().manual_axes)
    if not axes:
        return jax.make_jaxpr(expand)(*avals)
    # The call stands in a shard_map: trace inside of another one, where JAX knows the axes.
    traced = []

    def body(x: Any) -> Any:
        traced.append(jax.make_jaxpr(expand)(*avals))
        return x

    whole = mesh.update(axis_types=(jax.sharding.AxisType.Auto,) * len(mesh.axis_names))  # type: ignore[no-untyped-call]
    spec = jax.P()  # type: ignore[no-untyped-call]
    varies = any(a.manual_axis_type.varying for a in avals if hasattr(a, "manual_axis_type"))
    around = jax.shard_map(body, mesh=whole, in_specs=spec, out_specs=spec, axis_names=axes, check_vma=varies)
    jax.eval_shape(around, jnp.zeros((), bool))
    return traced[-1]


def _linear_solve_call(eqn: Any) -> RuleCall:
    solve, lengths = eqn.params["jaxprs"].solve, eqn.params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    after = before + lengths.solve

    def solution(*operands: Any) -> Any:
        b = operands[after + lengths.transpose_solve :]
        return jaxprs.run(solve, *operands[before:after], *b)

    def definition() -> Any:
        return jax.make_jaxpr(solution)(*(jaxprs.shape_and_dtype(v.aval) for v in eqn.invars))

    return RuleCall("custom_linear_solve", _function_name(solve), _is_in_jax(solve), definition)


def _registered_call(eqn: Any) -> RuleCall | None:
    """Return the call of a primitive that somebody else than JAX has registered with JAX: it has no definition."""
    primitive = eqn.primitive
    # The tangents of stop_gradient are zeros: no transpose of it is ever called, and lineax registers one.
    tables = (ad.primitive_jvps, ad.primitive_transposes)[: 1 if primitive.name == "stop_gradient" else 2]
    rules = [table.get(primitive) for table in tables]
    if not any(rules) or all(_is_of_jax(f) for f in (*rules, primitive.impl, primitive.abstract_eval)):
        return None
    return RuleCall("primitive", primitive.name, False, None)


def _is_of_jax(f: Any) -> bool:
    """Whether a function is JAX's, and so are those that it wraps."""
    if isinstance(f, functools.partial):
        return all(map(_is_of_jax, (f.func, *f.args, *f.keywords.values())))
    if isinstance(f, tuple | list):
        return all(map(_is_of_jax, f))
    if not callable(f) or not hasattr(f, "__module__"):
        return True
    wrapped = [cell.cell_contents for cell in getattr(f, "__closure__", None) or () if callable(cell.cell_contents)]
    module = str(f.__module__)
    return module.split(".")[0] in ("jax", "jaxlib", "numpy", "functools", "builtins") and all(map(_is_of_jax, wrapped))


def equations(closed: Any) -> Iterator[Any]:
    """Yield all equations, those of inner functions too, and those of the definitions of HiPrims."""
    for eqn in jaxprs.equations(closed):
        yield eqn
        if calls_hi_primitive(eqn):
            try:
                definition = _expanded(eqn)
            except Exception:  # its error belongs to whoever calls it
                continue
            yield from equations(definition)


def rule_calls(closed: Any) -> Iterator[RuleCall]:
    """Yield the calls of rules that are not JAX's own, in inner functions and in definitions too."""
    for eqn in equations(closed):
        call = rule_call(eqn)
        if call is not None and not call.is_jaxs_own:
            yield call


def is_backward_only(eqn: Any) -> bool:
    """Whether the equation stands for a backward rule: it can be transposed, not run forwards."""
    return eqn.primitive.name in ("custom_lin", "call_hi_primitive_linearized")


def iterates_until(eqn: Any) -> bool:
    """Whether the equation is a loop whose condition looks at floating-point numbers."""
    if eqn.primitive.name != "while":
        return False
    condition = jaxprs.equations(eqn.params["cond_jaxpr"])
    return any(is_inexact(v.aval) for e in condition for v in e.invars)


def sees_zeros(eqn: Any) -> bool:
    """Whether the rule that the equation calls is told which arguments and outputs are not differentiated."""
    if calls_hi_primitive(eqn):
        call = _primitive_call(eqn)
        return not call.is_jaxs_own and bool(getattr(hi_primitive(eqn), "symbolic_zeros", call.kind == HIPRIM))
    return bool(eqn.params.get("symbolic_zeros"))
