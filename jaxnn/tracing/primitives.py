"""The user's HiPrims in a traced function, each with values that reach it there.

A custom_vjp function with rules for jax.checkpoint (`defremat`) is one, too.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnn.tracing.functions import is_inexact, random_values
from jaxnn.tracing.jaxprs import is_jaxpr, open_jaxpr
from jaxnn.tracing.kinds import HIPRIM, calls_hi_primitive, equations, hi_primitive, rule_call, unbatched


@dataclasses.dataclass(frozen=True)
class PrimitiveCall:
    """The call of a HiPrim. Its functions take and return the leaves of the arguments and outputs.

    Attributes:
      name: the name of its class, or of the custom_vjp function.
      primitive: the object whose methods are the rules.
      operands: the values of the arguments' leaves.
    """

    name: str
    primitive: Any
    operands: list[Any]

    @property
    def differentiable(self) -> list[int]:
        """The positions of the floating-point leaves."""
        return [i for i, aval in enumerate(self.primitive.in_avals_flat) if is_inexact(aval)]

    @functools.cached_property
    def paths(self) -> list[str]:
        """Where the leaves are among the arguments: "[0]", "[1]['w']"."""
        tree = self.primitive.in_tree
        numbered = jax.tree.unflatten(tree, list(range(tree.num_leaves)))
        return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]

    def defines(self, *methods: str) -> bool:
        """Whether its class has one of these methods of its own, written or derived from another one."""
        mine = type(unbatched(self.primitive))
        base = next(each for each in mine.__mro__ if each.__module__.startswith("jax."))
        return any(getattr(mine, m, None) is not getattr(base, m, None) for m in methods)

    @property
    def has_remat(self) -> bool:
        """Whether it has a rule of its own for jax.checkpoint."""
        return self.defines("remat") or bool(getattr(self.primitive, "remat_rules", None))

    def value(self, *operands: Any) -> list[Any]:
        """Call the primitive."""
        return jax.tree.leaves(self.primitive(*jax.tree.unflatten(self.primitive.in_tree, operands)))

    def definition(self, *operands: Any) -> list[Any]:
        """Call its method `expand`."""
        return jax.tree.leaves(self.primitive.expand(*jax.tree.unflatten(self.primitive.in_tree, operands)))


def primitive_calls(closed: Any, leaves: Sequence[Any]) -> list[PrimitiveCall]:
    """Return the calls of the user's HiPrims, one of those that are equal, with the values that reach each.

    Only those are returned whose arguments and outputs are arrays, and not of a type of the user's own. Where it is
    not known which values reach a call, they are random, between 0.5 and 1.5.

    Args:
      closed: the jaxpr of the function.
      leaves: the values of its arguments.
    """
    found: dict[Any, PrimitiveCall] = {}
    try:
        for eqn, operands in _reached(closed, leaves):
            found.setdefault(_key(eqn), _call(eqn, operands))
    except Exception:  # a function that does not run on these values: those of the others are random
        pass
    for eqn in filter(_calls_users_primitive, equations(closed)):
        if _key(eqn) not in found:
            found[_key(eqn)] = _call(eqn, random_values(hi_primitive(eqn).in_avals_flat))
    return list(found.values())


def _call(eqn: Any, operands: list[Any]) -> PrimitiveCall:
    rule = rule_call(eqn)
    assert rule is not None
    return PrimitiveCall(rule.name, hi_primitive(eqn), operands)


def _key(eqn: Any) -> Any:
    primitive = hi_primitive(eqn)
    return type(primitive), str(primitive.in_avals_flat), str(primitive.params)


def _calls_users_primitive(eqn: Any) -> bool:
    if not calls_hi_primitive(eqn) or not all(map(_is_array_type, (*eqn.invars, *eqn.outvars))):
        return False
    if getattr(hi_primitive(eqn), "remat_rules", None):
        return True
    call = rule_call(eqn)
    return call is not None and call.kind == HIPRIM and not call.is_jaxs_own


def _is_array_type(variable: Any) -> bool:
    """Whether the variable is an array, and no mutable one."""
    return hasattr(variable.aval, "dtype") and not hasattr(variable.aval, "inner_aval")


def _reached(closed: Any, leaves: Sequence[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the calls of the user's HiPrims with values that reach them, in inner functions too."""
    chosen = [e for e in open_jaxpr(closed).eqns if _calls_users_primitive(e) or _holds_primitives(e)]
    if not chosen:
        return
    for eqn, operands in zip(chosen, jax.jit(functools.partial(_operands, closed, chosen))(*leaves), strict=True):
        if _calls_users_primitive(eqn):
            yield eqn, operands
        for inner, values in _entered(eqn, operands):
            yield from _reached(inner, values)


def _holds_primitives(eqn: Any) -> bool:
    if calls_hi_primitive(eqn):
        return True  # its definition may
    return any(_calls_users_primitive(e) for inner in _inner_jaxprs(eqn) for e in equations(inner))


def _inner_jaxprs(eqn: Any) -> list[Any]:
    values = [v for value in eqn.params.values() for v in (value if isinstance(value, tuple) else (value,))]
    return [v for v in values if is_jaxpr(v)]


def _operands(closed: Any, chosen: list[Any], *leaves: Any) -> list[list[Any]]:
    """Run a jaxpr, and return the operands of the chosen equations."""
    jaxpr = open_jaxpr(closed)
    known = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
    known |= dict(zip(jaxpr.invars, leaves, strict=True))

    def values(atoms: Any) -> list[Any]:
        return [a.val if hasattr(a, "val") else known[a] for a in atoms]

    found = []
    for eqn in jaxpr.eqns:
        operands = values(eqn.invars)
        if any(eqn is e for e in chosen):
            found.append(operands)
        with eqn.ctx.manager:
            out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        known.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
    return found


def _entered(eqn: Any, operands: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the inner functions that the equation runs, with the values at their first call.

    A scan's body takes a slice of each operand that has one axis more than what the body takes.
    """
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        last = -1 if params["reverse"] else 0
        inner = open_jaxpr(params["jaxpr"]).invars
        yield params["jaxpr"], [x[last] if x.ndim > v.aval.ndim else x for x, v in zip(operands, inner, strict=True)]
    elif name == "while":
        conditions = params["cond_nconsts"]
        yield params["body_jaxpr"], operands[conditions:]
    elif calls_hi_primitive(eqn):
        call = rule_call(eqn)
        assert call is not None and call.definition is not None
        yield call.definition(), operands
    elif name == "cond":
        index, *others = operands
        yield params["branches"][int(np.clip(index, 0, len(params["branches"]) - 1))], others
    else:
        for inner in _inner_jaxprs(eqn):
            if len(open_jaxpr(inner).invars) == len(operands) and name != "shard_map":
                yield inner, operands
