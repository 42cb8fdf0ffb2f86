"""Traced functions: what depends on how JAX represents them, and nothing else does.

A jaxpr is JAX's trace of a function: a list of equations. A call of a `custom_vjp` function is the one equation
`custom_vjp_call`, which carries the trace of the definition (`call_jaxpr`) beside the two halves of the rule.
Replacing the equation by the equations of its definition takes the rule out. That is a rewriting of data, so it works
at any depth (under jit, scan, cond, shard_map, ...) without knowing what the enclosing equation means.
"""

import dataclasses
import functools
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.extend.core.primitives import custom_jvp_call_p, custom_vjp_call_p
from jax.interpreters import ad

Strip = Callable[[Any], bool]  # whether a custom_jvp_call equation loses its rule too


def trace(f: Callable[..., Any], *leaves: Any) -> Any:
    """Trace `f`, a function of arrays that returns a list of arrays."""
    return jax.make_jaxpr(f)(*leaves)


def evaluate(closed: Any, *leaves: Any) -> list[Any]:
    """Run a trace."""
    return list(jex.jaxpr_as_fun(closed)(*leaves))


def is_custom_vjp(eqn: Any) -> bool:
    """Whether the equation calls a `custom_vjp` function."""
    return eqn.primitive is custom_vjp_call_p


def is_custom_jvp(eqn: Any) -> bool:
    """Whether the equation calls a `custom_jvp` function."""
    return eqn.primitive is custom_jvp_call_p


def is_backward_only(eqn: Any) -> bool:
    """Whether the equation stands for a backward rule: it can be transposed, not run forwards."""
    return bool(eqn.primitive.name == "custom_lin")


def name_of(eqn: Any) -> str:
    """Return the name of the function whose rule the equation calls."""
    return str(_open(eqn.params["call_jaxpr"]).debug_info.func_src_info).split(" at ")[0]


def written_in_jax(eqn: Any) -> bool:
    """Whether the rule is one of JAX's own."""
    source = str(_open(eqn.params["call_jaxpr"]).debug_info.func_src_info)
    return re.search(r"[/\\]jax[/\\]_src[/\\]", source) is not None


def _open(jaxpr: Any) -> Any:
    """Return the equations' jaxpr of a closed one (one class since jax 0.12)."""
    return jaxpr if hasattr(jaxpr, "eqns") and not hasattr(jaxpr, "jaxpr") else jaxpr.jaxpr


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, jex.Jaxpr | jex.ClosedJaxpr)


def _map_jaxprs(f: Callable[[Any], Any], value: Any) -> Any:
    """Apply `f` to a parameter's jaxprs: itself, or the members of a tuple."""
    if _is_jaxpr(value):
        return f(value)
    if isinstance(value, tuple) and any(map(_is_jaxpr, value)):
        members = [_map_jaxprs(f, member) for member in value]
        return type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    return value


def equations(closed: Any) -> Iterator[Any]:
    """Go through all equations, those of inner functions too (a kernel's body is its own)."""
    for eqn in _open(closed).eqns:
        yield eqn
        if eqn.primitive.name != "pallas_call":
            inner: list[Any] = []
            for value in eqn.params.values():
                _map_jaxprs(inner.append, value)
            for jaxpr in inner:
                yield from equations(jaxpr)


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
    jaxpr = _open(closed)
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
            inner = without_rules(eqn.params["call_jaxpr"], strip, name_of(eqn))
            splice(_open(inner), [now(v) for v in eqn.invars], eqn.outvars)
            continue
        if definition_of is not None and _has_no_derivative(eqn):
            for variable in {v for v in eqn.invars if not isinstance(v, jex.Literal) and _is_inexact(v.aval)}:
                guard = _open(jax.make_jaxpr(_guard(definition_of, eqn.primitive.name))(_struct(variable.aval)))
                splice(guard, [now(variable)], [variable])
        params = dict(eqn.params)
        if eqn.primitive.name != "pallas_call":
            params = {k: _map_jaxprs(lambda j: without_rules(j, strip, definition_of), v) for k, v in params.items()}
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
    if is_custom_jvp(eqn) and name_of(eqn) == "_custom_root":
        held = [eqn.params["call_jaxpr"]]
    elif eqn.primitive.name == "call_hi_primitive":  # since jax 0.11
        attributes = [vars(value) for value in eqn.params.values() if hasattr(value, "__dict__")]
        held = [value for each in attributes for value in each.values() if _is_jaxpr(value)]
    else:
        return
    for inner in (e for jaxpr in held for e in equations(jaxpr) if is_custom_vjp(e)):
        raise TypeError(
            f"`f` must not call `{name_of(inner)}`, which has a custom_vjp rule, inside jax.lax.custom_root, "
            f"whose own rule differentiates it; call automatic({name_of(inner)}) there"
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


def _is_inexact(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)  # type: ignore[no-untyped-call]


CALLED = ("pure_callback", "io_callback", "ffi_call", "pallas_call")  # JAX cannot look into these


def _has_no_derivative(eqn: Any) -> bool:
    if not any(_is_inexact(v.aval) for v in eqn.invars) or not any(_is_inexact(v.aval) for v in eqn.outvars):
        return False
    if eqn.primitive.name not in CALLED and eqn.primitive in ad.primitive_jvps:
        return False
    if is_custom_jvp(eqn) or is_custom_vjp(eqn):
        return False

    def gradient(*operands: Any) -> Any:
        inexact = [i for i, v in enumerate(eqn.invars) if _is_inexact(v.aval)]

        def of_inexact(*values: Any) -> list[Any]:
            filled = list(operands)
            for i, value in zip(inexact, values, strict=True):
                filled[i] = value
            out = eqn.primitive.bind(*filled, **eqn.primitive.get_bind_params(eqn.params))
            out = out if eqn.primitive.multiple_results else [out]
            return [y for y, v in zip(out, eqn.outvars, strict=True) if _is_inexact(v.aval)]

        y, vjp = jax.vjp(of_inexact, *(operands[i] for i in inexact))
        return vjp(y)

    try:
        jax.eval_shape(gradient, *(_struct(v.aval) for v in eqn.invars))
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


@dataclasses.dataclass(frozen=True)
class BackwardRule:
    """The backward half of a custom_vjp function as its author wrote it, with the types it is given and must return."""

    name: str
    residuals: list[Any]  # types; pytree leaves in order
    kept_inputs: list[int | None]  # for a residual that is an argument, which one
    primals: list[Any]
    paths: list[str]  # of the primals, as JAX counts the arguments: "[0]"
    outputs: list[Any]
    jaxpr: Any  # residuals, output cotangents -> the numeric cotangents
    positions: list[int]  # of the numeric cotangents among the primals


def backward_rules(closed: Any) -> Iterator[BackwardRule]:
    """Find each custom_vjp rule's backward half; a rule that has been batched, or is of a new kind, is passed over."""
    for eqn in equations(closed):
        if is_custom_vjp(eqn) and not eqn.params["symbolic_zeros"]:
            try:
                rule = _backward_rule(eqn)
            except Exception:  # its error belongs to the checks that call the rule
                continue
            if rule is not None:
                yield rule


def _backward_rule(eqn: Any) -> BackwardRule | None:
    flat = eqn.params["bwd"]
    flatten = flat.transforms[0][0] if flat.transforms else None
    if getattr(flatten, "__name__", "") != "_flatten_bwd":
        return None
    bwd, in_tree, avals, out_trees = flat.f_transformed.args[:4]
    forward, _ = eqn.params["fwd_jaxpr_thunk"].call_wrapped(*[True] * len(avals))
    out_tree, res_tree, kept = out_trees()
    types = [v.aval for v in forward.outvars]
    outputs = types[len(types) - out_tree.num_leaves :]
    computed = iter(types)
    residuals = [next(computed) if i is None else avals[i] for i in kept]
    found: list[int] = []

    def cotangents(res: list[Any], dy: list[Any]) -> list[Any]:
        result = bwd(jax.tree.unflatten(res_tree, res), jax.tree.unflatten(out_tree, dy))
        leaves: list[Any] = []
        for given, subtree in zip(result, in_tree.children(), strict=True):
            count = subtree.num_leaves
            values = jax.tree.leaves(given, is_leaf=lambda x: x is None)
            leaves += values if len(values) == count and given is not None else [None] * count
        numeric = [
            (i, ct) for i, ct in enumerate(leaves)
            if ct is not None and getattr(ct, "dtype", None) != jax.dtypes.float0 and hasattr(ct, "dtype")
        ]  # fmt: skip
        found[:] = [i for i, _ in numeric]
        return [ct for _, ct in numeric]

    jaxpr = jax.make_jaxpr(cotangents)([_struct(a) for a in residuals], [_cotangent_struct(a) for a in outputs])
    numbered = jax.tree.unflatten(in_tree, list(range(in_tree.num_leaves)))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]
    return BackwardRule(name_of(eqn), residuals, list(kept), list(avals), paths, outputs, jaxpr, list(found))


def _cotangent_struct(aval: Any) -> Any:
    return _struct(aval) if _is_inexact(aval) else jax.ShapeDtypeStruct(aval.shape, jax.dtypes.float0)  # type: ignore[no-untyped-call]


def unused_inputs(closed: Any) -> list[int]:
    """Return the inputs that no result (and no effect) depends on."""
    jaxpr = _open(closed)
    alive = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in alive for v in eqn.outvars):
            alive |= {v for v in eqn.invars if not isinstance(v, jex.Literal)}
    return [i for i, v in enumerate(jaxpr.invars) if v not in alive]
