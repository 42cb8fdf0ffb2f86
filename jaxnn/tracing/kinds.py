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

from jaxnn.tracing.functions import is_inexact
from jaxnn.tracing.jaxprs import equations, open_jaxpr, shape_and_dtype


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
    return str(open_jaxpr(eqn.params["call_jaxpr"]).debug_info.func_src_info).split(" at ")[0]


def is_jaxs_own(eqn: Any) -> bool:
    """Whether the rule belongs to JAX itself."""
    source = str(open_jaxpr(eqn.params["call_jaxpr"]).debug_info.func_src_info)
    return re.search(r"[/\\]jax[/\\]_src[/\\]", source) is not None


@dataclasses.dataclass(frozen=True)
class BackwardRule:
    """The backward half of a custom_vjp function as its author wrote it, with the types it is given and must return."""

    name: str
    residuals: list[Any]  # the types of the residuals' leaves, in order
    primals: list[Any]  # the types of the arguments' leaves
    paths: list[str]  # where those leaves are among the arguments, as JAX writes it: "[0]", "[1]['w']"
    outputs: list[Any]  # the types of the outputs' leaves
    jaxpr: Any  # residuals, output cotangents -> the cotangents that are arrays, float0 and None left out
    positions: list[int]  # to which of the primals each of those cotangents belongs


def backward_rules(closed: Any) -> Iterator[BackwardRule]:
    """Yield each custom_vjp rule's backward half, but for batched rules and for kinds that are not known here."""
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
    out_tree, res_tree, forwarded = out_trees()  # forwarded: which argument a residual is, None if it is computed
    types = [v.aval for v in forward.outvars]
    outputs = types[len(types) - out_tree.num_leaves :]
    computed = iter(types)
    residuals = [next(computed) if i is None else avals[i] for i in forwarded]
    positions: list[int] = []

    def cotangents(res: list[Any], dy: list[Any]) -> list[Any]:
        returned = bwd(jax.tree.unflatten(res_tree, res), jax.tree.unflatten(out_tree, dy))
        leaves = _leaves_by_primal(returned, in_tree)
        positions[:] = [i for i, ct in enumerate(leaves) if _is_array_cotangent(ct)]
        return [leaves[i] for i in positions]

    jaxpr = jax.make_jaxpr(cotangents)([shape_and_dtype(a) for a in residuals], [_cotangent_type(a) for a in outputs])
    numbered = jax.tree.unflatten(in_tree, list(range(in_tree.num_leaves)))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]
    return BackwardRule(rule_name(eqn), residuals, list(avals), paths, outputs, jaxpr, positions)


def _leaves_by_primal(returned: Any, in_tree: Any) -> list[Any]:
    """Flatten what a backward rule returns: one leaf for each leaf of the arguments, None where there is none."""
    leaves: list[Any] = []
    for ct, subtree in zip(returned, in_tree.children(), strict=True):
        values = jax.tree.leaves(ct, is_leaf=lambda x: x is None)
        matches = len(values) == subtree.num_leaves and ct is not None
        leaves += values if matches else [None] * subtree.num_leaves
    return leaves


def _is_array_cotangent(ct: Any) -> bool:
    return hasattr(ct, "dtype") and ct.dtype != jax.dtypes.float0


def _cotangent_type(aval: Any) -> Any:
    """Return the type of the cotangent of an output: float0 for integers, booleans and keys."""
    if is_inexact(aval):
        return shape_and_dtype(aval)
    return jax.ShapeDtypeStruct(aval.shape, jax.dtypes.float0)  # type: ignore[no-untyped-call]
