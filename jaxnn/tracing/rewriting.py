"""Taking rules out of a traced function: each call of a `custom_vjp` function becomes its definition.

Replacing the equation of the call by the equations of its definition takes the rule out. That is a rewriting of data,
so it works at any depth (under jit, scan, cond, shard_map, ...) without knowing what the enclosing equation means.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
from jax.interpreters import ad

from jaxnn.tracing.jaxprs import equations, evaluate, is_inexact, is_jaxpr, map_jaxprs, opened, struct, trace
from jaxnn.tracing.kinds import is_custom_jvp, is_custom_vjp, rule_name

Strip = Callable[[Any], bool]  # whether a custom_jvp_call equation loses its rule too

_rewritten: weakref.WeakKeyDictionary[Any, dict[str | None, Any]] = weakref.WeakKeyDictionary()


def without_rules(closed: Any, strip: Strip | None = None, definition_of: str | None = None) -> Any:
    """Return the jaxpr with every custom_vjp rule replaced by its definition, and the custom_jvp rules of `strip`.

    `definition_of` names the rule whose definition this is. Without `strip` the answer is remembered, so that jit finds
    what it compiled for an inner function; a jaxpr that stays as it is would keep itself alive there.
    """
    if strip is not None:
        return _without_rules(closed, strip, definition_of)
    known = _rewritten.get(closed, {})
    if definition_of in known:
        return known[definition_of]
    rewritten = _without_rules(closed, strip, definition_of)
    if rewritten is not closed:
        _rewritten.setdefault(closed, {})[definition_of] = rewritten
    return rewritten


def _without_rules(closed: Any, strip: Strip | None, definition_of: str | None) -> Any:
    jaxpr = opened(closed)
    value_of: dict[Any, Any] = {}  # a variable of a replaced equation, and what stands for it now

    def now(atom: Any) -> Any:
        return atom if isinstance(atom, jex.Literal) else value_of.get(atom, atom)

    equations = []

    def splice(inner: Any, operands: list[Any], results: list[Any]) -> None:
        """Write out `inner`, a jaxpr, with fresh variables."""
        own = dict(zip(inner.invars, operands, strict=True))

        def renamed(atom: Any) -> Any:
            return atom if isinstance(atom, jex.Literal) else own[atom]

        for eqn in inner.eqns:
            fresh = [v if type(v) is not jex.Var else jex.Var(v.aval) for v in eqn.outvars]
            equations.append(eqn.replace(invars=[renamed(v) for v in eqn.invars], outvars=fresh))
            own.update(zip(eqn.outvars, fresh, strict=True))
        value_of.update(zip(results, map(renamed, inner.outvars), strict=True))

    for eqn in jaxpr.eqns:
        if is_custom_vjp(eqn) or (strip is not None and is_custom_jvp(eqn) and strip(eqn)):
            inner = without_rules(eqn.params["call_jaxpr"], strip, rule_name(eqn))
            splice(opened(inner), [now(v) for v in eqn.invars], eqn.outvars)
            continue
        if definition_of is not None and _has_no_derivative(eqn):
            for variable in {v for v in eqn.invars if not isinstance(v, jex.Literal) and is_inexact(v.aval)}:
                guard = opened(jax.make_jaxpr(_guard(definition_of, eqn.primitive.name))(struct(variable.aval)))
                splice(guard, [now(variable)], [variable])
        params = dict(eqn.params)
        if eqn.primitive.name != "pallas_call":
            params = {k: map_jaxprs(lambda j: without_rules(j, strip, definition_of), v) for k, v in params.items()}
        if eqn.primitive.name == "custom_vmap_call":
            params["rule"] = functools.partial(_batched_without_rules, params["rule"], strip)
        _refuse_opaque(eqn)
        if is_custom_jvp(eqn):
            params["jvp_jaxpr_fun"] = _JvpWithoutRules(eqn.params["jvp_jaxpr_fun"], strip)
        equations.append(eqn.replace(invars=[now(v) for v in eqn.invars], params=params))
    if all(a is b for a, b in zip(equations, jaxpr.eqns, strict=False)) and not value_of:
        return closed
    rewritten = jaxpr.replace(eqns=equations, outvars=[now(v) for v in jaxpr.outvars])
    return rewritten if closed is jaxpr else closed.replace(jaxpr=rewritten)


def _refuse_opaque(eqn: Any) -> None:
    """jax.lax.custom_root differentiates functions that it holds: in jaxprs of its own, nobody's to rewrite."""
    if is_custom_jvp(eqn) and rule_name(eqn) == "_custom_root":
        held = [eqn.params["call_jaxpr"]]
    elif eqn.primitive.name == "call_hi_primitive":  # since jax 0.11
        attributes = [vars(value) for value in eqn.params.values() if hasattr(value, "__dict__")]
        held = [value for each in attributes for value in each.values() if is_jaxpr(value)]
    else:
        return
    for inner in (e for jaxpr in held for e in equations(jaxpr) if is_custom_vjp(e)):
        raise TypeError(
            f"`f` must not call `{rule_name(inner)}`, which has a custom_vjp rule, inside jax.lax.custom_root, "
            f"whose own rule differentiates it; call automatic({rule_name(inner)}) there"
        )


def _batched_without_rules(rule: Any, strip: Strip | None, size: int, batched: Any, *args: Any) -> Any:
    """A custom_vmap rule, whose own calls of custom_vjp functions lose theirs."""
    leaves, tree = jax.tree.flatten(args)
    returned: list[Any] = []

    def outputs(*leaves: Any) -> list[Any]:
        values, batched_outputs = rule(size, batched, *jax.tree.unflatten(tree, leaves))
        flat, structure = jax.tree.flatten(values)
        returned[:] = [structure, batched_outputs]
        return flat

    flat = evaluate(without_rules(trace(outputs, *leaves), strip), *leaves)
    return jax.tree.unflatten(returned[0], flat), returned[1]


class _JvpWithoutRules:
    """A kept custom_jvp rule, whose own calls of custom_vjp functions lose theirs. JAX asks it for a jaxpr."""

    def __init__(self, thunk: Any, strip: Strip | None) -> None:
        self.thunk, self.strip, self.debug_info = thunk, strip, thunk.debug_info

    def call_wrapped(self, *zeros: bool) -> tuple[Any, ...]:
        jaxpr, *rest = self.thunk.call_wrapped(*zeros)
        return without_rules(jaxpr, self.strip), *rest


CALLED = ("pure_callback", "io_callback", "ffi_call", "pallas_call")  # JAX cannot look into these


def _has_no_derivative(eqn: Any) -> bool:
    if not any(is_inexact(v.aval) for v in eqn.invars) or not any(is_inexact(v.aval) for v in eqn.outvars):
        return False
    if eqn.primitive.name not in CALLED and eqn.primitive in ad.primitive_jvps:
        return False
    if is_custom_jvp(eqn) or is_custom_vjp(eqn):
        return False

    def gradient(*operands: Any) -> Any:
        inexact = [i for i, v in enumerate(eqn.invars) if is_inexact(v.aval)]

        def of_inexact(*values: Any) -> list[Any]:
            filled = list(operands)
            for i, value in zip(inexact, values, strict=True):
                filled[i] = value
            out = eqn.primitive.bind(*filled, **eqn.primitive.get_bind_params(eqn.params))
            out = out if eqn.primitive.multiple_results else [out]
            return [y for y, v in zip(out, eqn.outvars, strict=True) if is_inexact(v.aval)]

        y, vjp = jax.vjp(of_inexact, *(operands[i] for i in inexact))
        return vjp(y)

    try:
        jax.eval_shape(gradient, *(struct(v.aval) for v in eqn.invars))
    except Exception:  # whatever JAX says, there is no derivative
        return True
    return False


def _guard(name: str, primitive: str) -> Callable[[Any], Any]:
    """Make an identity that, where it is differentiated, says by name what cannot be."""

    @jax.custom_jvp
    def identity(x: Any) -> Any:
        return x

    @identity.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise TypeError(
            f"the definition of `{name}` (which calls `{primitive}`) must have a derivative that JAX knows; "
            f"give the checker `reference=`, a function that has it"
        )

    return identity
