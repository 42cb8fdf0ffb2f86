"""Taking rules out of a traced function: each call of a `custom_vjp` function becomes its definition.

The equation that calls the function is replaced by the equations of its definition. That rewrites data, so it works at
any depth (under jit, scan, cond, shard_map, ...) without any knowledge of what the enclosing equation means.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jax.interpreters import ad

from jaxnn.tracing.functions import is_inexact
from jaxnn.tracing.jaxprs import equations, is_jaxpr, map_jaxprs, open_jaxpr, run, shape_and_dtype
from jaxnn.tracing.kinds import is_custom_jvp, is_custom_vjp, rule_name

EquationFilter = Callable[[Any], bool]  # whether a custom_jvp_call equation is replaced by its definition, too

OPAQUE_CALLS = ("pure_callback", "io_callback", "ffi_call", "pallas_call")  # JAX cannot look into these

_rewritten: weakref.WeakKeyDictionary[Any, dict[str | None, Any]] = weakref.WeakKeyDictionary()


def without_rules(closed: Any, also_replace: EquationFilter | None = None, definition_of: str | None = None) -> Any:
    """Return the jaxpr with every custom_vjp call replaced by its definition.

    Without `also_replace` the result is cached, so that jit finds what it has compiled for an inner function. A jaxpr
    without rules is not cached: its cache entry would refer to itself and never be freed.

    Args:
      closed: a jaxpr, open or closed.
      also_replace: selects the custom_jvp calls that are replaced, too; none by default.
      definition_of: the name of the rule whose definition this is.
    """
    if also_replace is not None:
        return _Rewriting(closed, also_replace, definition_of).result()
    known = _rewritten.get(closed, {})
    if definition_of in known:
        return known[definition_of]
    rewritten = _Rewriting(closed, None, definition_of).result()
    if rewritten is not closed:
        _rewritten.setdefault(closed, {})[definition_of] = rewritten
    return rewritten


class _Rewriting:
    """A jaxpr while it is rewritten: the equations so far, and what stands for replaced variables."""

    def __init__(self, closed: Any, also_replace: EquationFilter | None, definition_of: str | None) -> None:
        self.closed, self.also_replace, self.definition_of = closed, also_replace, definition_of
        self.equations: list[Any] = []
        self.substitutes: dict[Any, Any] = {}

    def result(self) -> Any:
        jaxpr = open_jaxpr(self.closed)
        for eqn in jaxpr.eqns:
            if is_custom_vjp(eqn) or (self.also_replace is not None and is_custom_jvp(eqn) and self.also_replace(eqn)):
                inner = without_rules(eqn.params["call_jaxpr"], self.also_replace, rule_name(eqn))
                self.write_out(open_jaxpr(inner), self.current(eqn.invars), eqn.outvars)
            else:
                self.keep(eqn)
        if all(a is b for a, b in zip(self.equations, jaxpr.eqns, strict=False)) and not self.substitutes:
            return self.closed
        rewritten = jaxpr.replace(eqns=self.equations, outvars=self.current(jaxpr.outvars))
        return rewritten if self.closed is jaxpr else self.closed.replace(jaxpr=rewritten)

    def current(self, atoms: Sequence[Any]) -> list[Any]:
        """Return what now stands for each variable or literal."""
        return [a if isinstance(a, jex.Literal) else self.substitutes.get(a, a) for a in atoms]

    def keep(self, eqn: Any) -> None:
        """Keep an equation, without the rules in its inner functions."""
        _refuse_opaque(eqn)
        if self.definition_of is not None and _has_no_derivative(eqn):
            self.guard(eqn)
        params = dict(eqn.params)
        if eqn.primitive.name != "pallas_call":
            rewrite = functools.partial(without_rules, also_replace=self.also_replace, definition_of=self.definition_of)
            params = {name: map_jaxprs(rewrite, value) for name, value in params.items()}
        if eqn.primitive.name == "custom_vmap_call":
            params["rule"] = functools.partial(_batched_without_rules, params["rule"], self.also_replace)
        if is_custom_jvp(eqn):
            params["jvp_jaxpr_fun"] = _JvpWithoutRules(eqn.params["jvp_jaxpr_fun"], self.also_replace)
        self.equations.append(eqn.replace(invars=self.current(eqn.invars), params=params))

    def guard(self, eqn: Any) -> None:
        """Put an identity before each operand that raises, and names the definition, when it is differentiated."""
        identity = _not_differentiable(self.definition_of or "", eqn.primitive.name)
        for variable in {v for v in eqn.invars if not isinstance(v, jex.Literal) and is_inexact(v.aval)}:
            traced = jax.make_jaxpr(identity)(shape_and_dtype(variable.aval))
            self.write_out(open_jaxpr(traced), self.current([variable]), [variable])

    def write_out(self, inner: Any, operands: Sequence[Any], results: Sequence[Any]) -> None:
        """Append the equations of `inner` with fresh variables; its outputs stand for the variables `results`."""
        own = dict(zip(inner.invars, operands, strict=True))

        def renamed(atoms: Sequence[Any]) -> list[Any]:
            return [a if isinstance(a, jex.Literal) else own[a] for a in atoms]

        for eqn in inner.eqns:
            fresh = [v if type(v) is not jex.Var else jex.Var(v.aval) for v in eqn.outvars]
            self.equations.append(eqn.replace(invars=renamed(eqn.invars), outvars=fresh))
            own.update(zip(eqn.outvars, fresh, strict=True))
        self.substitutes.update(zip(results, renamed(inner.outvars), strict=True))


_CUSTOM_ROOT = "jax.lax.custom_root, whose own rule differentiates it"


def _refuse_opaque(eqn: Any) -> None:
    """Refuse a function with a rule inside jax.lax.custom_root, or any equation whose jaxprs cannot be rewritten."""
    if is_custom_jvp(eqn) and rule_name(eqn) == "_custom_root":
        where, held = _CUSTOM_ROOT, [eqn.params["call_jaxpr"]]
    elif eqn.primitive.name == "call_hi_primitive":  # since jax 0.11
        primitives = [value for value in eqn.params.values() if hasattr(value, "__dict__")]
        name = ", ".join(type(value).__name__ for value in primitives)
        where = _CUSTOM_ROOT if name == "CustomRoot" else f"the primitive {name}, whose jaxprs cannot be rewritten"
        held = [value for each in primitives for value in vars(each).values() if is_jaxpr(value)]
    else:
        return
    for inner in (e for jaxpr in held for e in equations(jaxpr) if is_custom_vjp(e)):
        raise TypeError(
            f"`f` must not call `{rule_name(inner)}`, which has a custom_vjp rule, inside {where}; "
            f"call automatic({rule_name(inner)}) there"
        )


def _batched_without_rules(rule: Any, also_replace: EquationFilter | None, size: int, batched: Any, *args: Any) -> Any:
    """Call a custom_vmap rule with the custom_vjp rules inside it replaced."""
    leaves, tree = jax.tree.flatten(args)
    returned: list[Any] = []

    def outputs(*leaves: Any) -> list[Any]:
        values, batched_outputs = rule(size, batched, *jax.tree.unflatten(tree, leaves))
        flat, structure = jax.tree.flatten(values)
        returned[:] = [structure, batched_outputs]
        return flat

    flat = run(without_rules(jax.make_jaxpr(outputs)(*leaves), also_replace), *leaves)
    return jax.tree.unflatten(returned[0], flat), returned[1]


class _JvpWithoutRules:
    """A custom_jvp rule that stays, with the custom_vjp rules inside it replaced. JAX asks it for its jaxpr."""

    def __init__(self, thunk: Any, also_replace: EquationFilter | None) -> None:
        self.thunk, self.also_replace, self.debug_info = thunk, also_replace, thunk.debug_info

    def call_wrapped(self, *zeros: bool) -> tuple[Any, ...]:
        jaxpr, *rest = self.thunk.call_wrapped(*zeros)
        return without_rules(jaxpr, self.also_replace), *rest


def _has_no_derivative(eqn: Any) -> bool:
    """Whether JAX cannot differentiate an equation with floating-point operands and results."""
    if not any(is_inexact(v.aval) for v in eqn.invars) or not any(is_inexact(v.aval) for v in eqn.outvars):
        return False
    if eqn.primitive.name not in OPAQUE_CALLS and eqn.primitive in ad.primitive_jvps:
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
        jax.eval_shape(gradient, *(shape_and_dtype(v.aval) for v in eqn.invars))
    except Exception:  # whatever JAX raises, there is no derivative
        return True
    return False


def _not_differentiable(name: str, primitive: str) -> Callable[[Any], Any]:
    """Return an identity that raises when it is differentiated, and says which definition has no derivative."""

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
