"""The kinds of hand-written rules that JAX has: how each looks in a jaxpr, and what its backward half is.

A call of a `custom_vjp` function is the one equation `custom_vjp_call`, which carries the trace of the definition
(`call_jaxpr`) beside the two halves of the rule. A `custom_jvp` function has its own, `custom_jvp_call`.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core.primitives import custom_jvp_call_p, custom_vjp_call_p

from jaxnn.tracing.jaxprs import equations, is_inexact, opened, struct


def is_custom_vjp(eqn: Any) -> bool:
    """Whether the equation calls a `custom_vjp` function."""
    return eqn.primitive is custom_vjp_call_p


def is_custom_jvp(eqn: Any) -> bool:
    """Whether the equation calls a `custom_jvp` function."""
    return eqn.primitive is custom_jvp_call_p


def is_backward_only(eqn: Any) -> bool:
    """Whether the equation stands for a backward rule: it can be transposed, not run forwards."""
    return bool(eqn.primitive.name == "custom_lin")


def rule_name(eqn: Any) -> str:
    """Return the name of the function whose rule the equation calls."""
    return str(opened(eqn.params["call_jaxpr"]).debug_info.func_src_info).split(" at ")[0]


def written_in_jax(eqn: Any) -> bool:
    """Whether the rule is one of JAX's own."""
    source = str(opened(eqn.params["call_jaxpr"]).debug_info.func_src_info)
    return re.search(r"[/\\]jax[/\\]_src[/\\]", source) is not None


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

    jaxpr = jax.make_jaxpr(cotangents)([struct(a) for a in residuals], [_cotangent_struct(a) for a in outputs])
    numbered = jax.tree.unflatten(in_tree, list(range(in_tree.num_leaves)))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]
    return BackwardRule(rule_name(eqn), residuals, list(kept), list(avals), paths, outputs, jaxpr, list(found))


def _cotangent_struct(aval: Any) -> Any:
    return struct(aval) if is_inexact(aval) else jax.ShapeDtypeStruct(aval.shape, jax.dtypes.float0)  # type: ignore[no-untyped-call]
