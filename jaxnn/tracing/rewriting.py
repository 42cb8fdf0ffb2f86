"""Taking rules out of a traced function: each call of a function with a hand-written rule becomes its definition.

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

from jaxnn.tracing.errors import first_line
from jaxnn.tracing.functions import is_inexact
from jaxnn.tracing.jaxprs import map_jaxprs, open_jaxpr, run, shape_and_dtype
from jaxnn.tracing.kinds import HIPRIM, RuleCall, rule_call

CallFilter = Callable[[RuleCall], bool]  # whether a call of a rule of JAX's own is replaced by its definition, too

OPAQUE_CALLS = ("pure_callback", "io_callback", "ffi_call", "pallas_call")  # JAX cannot look into these

_rewritten: weakref.WeakKeyDictionary[Any, dict[str | None, Any]] = weakref.WeakKeyDictionary()


def without_rules(closed: Any, also_replace: CallFilter | None = None, definition_of: str | None = None) -> Any:
    """Return the jaxpr with every call of a hand-written rule replaced by its definition.

    Rules of JAX's own stay, except its custom_vjp rules: they hold conventions such as relu'(0) = 0. Without
    `also_replace` the result is cached, so that jit finds what it has compiled for an inner function. A jaxpr without
    rules is not cached: its cache entry would refer to itself and never be freed.

    Args:
      closed: a jaxpr, open or closed.
      also_replace: selects the calls of JAX's own rules that are replaced, too; none by default.
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

    def __init__(self, closed: Any, also_replace: CallFilter | None, definition_of: str | None) -> None:
        self.closed, self.also_replace, self.definition_of = closed, also_replace, definition_of
        self.equations: list[Any] = []
        self.substitutes: dict[Any, Any] = {}

    def result(self) -> Any:
        jaxpr = open_jaxpr(self.closed)
        for eqn in jaxpr.eqns:
            inner = self.definition(eqn)
            if inner is None:
                self.keep(eqn)
            else:
                self.write_out(inner, self.current(eqn.invars), eqn.outvars)
        if all(a is b for a, b in zip(self.equations, jaxpr.eqns, strict=False)) and not self.substitutes:
            return self.closed
        rewritten = jaxpr.replace(eqns=self.equations, outvars=self.current(jaxpr.outvars))
        return rewritten if self.closed is jaxpr else self.closed.replace(jaxpr=rewritten)

    def definition(self, eqn: Any) -> Any:
        """Return the definition, without rules, of the rule that the equation calls; None if the equation stays."""
        call = rule_call(eqn)
        if call is None or call.definition is None:
            return None
        replaced = call.kind == "custom_vjp" or not call.is_jaxs_own
        if replaced or (self.also_replace is not None and self.also_replace(call)):
            return without_rules(_traced_definition(call), self.also_replace, call.name)
        if eqn.primitive.name != "call_hi_primitive":
            return None
        # One of JAX's own primitives, such as its remat, may hold calls of the user's rules.
        held = _traced_definition(call)
        inner = without_rules(held, self.also_replace, self.definition_of)
        return None if inner is held else inner

    def current(self, atoms: Sequence[Any]) -> list[Any]:
        """Return what now stands for each variable or literal."""
        return [a if isinstance(a, jex.Literal) else self.substitutes.get(a, a) for a in atoms]

    def keep(self, eqn: Any) -> None:
        """Keep an equation, without the rules in its inner functions."""
        call = rule_call(eqn)
        if call is not None and call.definition is None:
            self.guard(eqn, f"the primitive `{call.name}` must have no rule of its own")
        elif self.definition_of is not None and _has_no_derivative(eqn):
            calls = f"`{self.definition_of}` (which calls `{eqn.primitive.name}`)"
            self.guard(eqn, f"the definition of {calls} must have a derivative that JAX knows")
        params = dict(eqn.params)
        if eqn.primitive.name != "pallas_call":
            rewrite = functools.partial(without_rules, also_replace=self.also_replace, definition_of=self.definition_of)
            params = {name: map_jaxprs(rewrite, value) for name, value in params.items()}
        if eqn.primitive.name == "custom_vmap_call":
            params["rule"] = functools.partial(_batched_without_rules, params["rule"], self.also_replace)
        operands = self.current(eqn.invars)
        same = all(
            a is b for a, b in zip([*operands, *params.values()], [*eqn.invars, *eqn.params.values()], strict=True)
        )
        self.equations.append(eqn if same else eqn.replace(invars=operands, params=params))

    def guard(self, eqn: Any, message: str) -> None:
        """Put an identity before each operand that raises this message when it is differentiated."""
        identity = _not_differentiable(message)
        for variable in {v for v in eqn.invars if not isinstance(v, jex.Literal) and is_inexact(v.aval)}:
            traced = jax.make_jaxpr(identity)(shape_and_dtype(variable.aval))
            self.write_out(traced, self.current([variable]), [variable])

    def write_out(self, closed: Any, operands: Sequence[Any], results: Sequence[Any]) -> None:
        """Append the equations of a jaxpr with fresh variables; its outputs stand for the variables `results`."""
        inner = open_jaxpr(closed)
        own = dict(zip(inner.invars, operands, strict=True))
        constants = zip(inner.constvars, getattr(closed, "consts", ()), strict=True)
        own |= {v: jex.Literal(c, v.aval) for v, c in constants}  # type: ignore[no-untyped-call]

        def renamed(atoms: Sequence[Any]) -> list[Any]:
            return [a if isinstance(a, jex.Literal) else own[a] for a in atoms]

        for eqn in inner.eqns:
            fresh = [v if type(v) is not jex.Var else jex.Var(v.aval) for v in eqn.outvars]
            self.equations.append(eqn.replace(invars=renamed(eqn.invars), outvars=fresh))
            own.update(zip(eqn.outvars, fresh, strict=True))
        self.substitutes.update(zip(results, renamed(inner.outvars), strict=True))


def _traced_definition(call: RuleCall) -> Any:
    """Trace a definition.

    Raises:
      TypeError: if it cannot be traced.
    """
    assert call.definition is not None
    try:
        return call.definition()
    except Exception as error:
        reason = first_line(error)
        method = "method `expand`" if call.kind == HIPRIM else "definition"
        raise TypeError(
            f"`f` must not call `{call.name}` ({call.kind}), whose {method} cannot be traced: {reason}"
        ) from error


def _batched_without_rules(rule: Any, also_replace: CallFilter | None, size: int, batched: Any, *args: Any) -> Any:
    """Call a custom_vmap rule with the rules inside it replaced."""
    leaves, tree = jax.tree.flatten(args)
    returned: list[Any] = []

    def outputs(*leaves: Any) -> list[Any]:
        values, batched_outputs = rule(size, batched, *jax.tree.unflatten(tree, leaves))
        flat, structure = jax.tree.flatten(values)
        returned[:] = [structure, batched_outputs]
        return flat

    flat = run(without_rules(jax.make_jaxpr(outputs)(*leaves), also_replace), *leaves)
    return jax.tree.unflatten(returned[0], flat), returned[1]


def _has_no_derivative(eqn: Any) -> bool:
    """Whether JAX cannot differentiate an equation with floating-point operands and results."""
    if not any(is_inexact(v.aval) for v in eqn.invars) or not any(is_inexact(v.aval) for v in eqn.outvars):
        return False
    if eqn.primitive.name not in OPAQUE_CALLS and eqn.primitive in ad.primitive_jvps:
        return False
    if eqn.primitive.name == "custom_jvp_call":
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


def _not_differentiable(message: str) -> Callable[[Any], Any]:
    """Return an identity that raises this message when it is differentiated."""

    @jax.custom_jvp
    def identity(x: Any) -> Any:
        return x

    @identity.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise TypeError(f"{message}; give the checker `reference=`, a function that JAX can differentiate")

    return identity
