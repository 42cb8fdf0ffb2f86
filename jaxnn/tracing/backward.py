"""The backward halves of hand-written rules, traced: what they read, and what they return."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from jaxnn.tracing.functions import is_inexact
from jaxnn.tracing.jaxprs import shape_and_dtype
from jaxnn.tracing.kinds import equations, hi_primitive, rule_call


@dataclasses.dataclass(frozen=True)
class BackwardRule:
    """The backward half of a rule as its author wrote it, with the types it is given and must return."""

    name: str
    residuals: list[Any]  # the types of the residuals' leaves, in order
    primals: list[Any]  # the types of the arguments' leaves
    paths: list[str]  # where those leaves are among the arguments, as JAX writes it: "[0]", "[1]['w']"
    outputs: list[Any]  # the types of the outputs' leaves
    jaxpr: Any  # residuals, output cotangents -> the cotangents that are arrays, then whatever else is returned
    positions: list[int]  # to which of the primals each of those cotangents belongs


def backward_rules(closed: Any) -> Iterator[BackwardRule]:
    """Yield the backward half of each rule that has one, but for batched rules and for rules that see zeros."""
    for eqn in equations(closed):
        call = rule_call(eqn)
        if call is None or (call.is_jaxs_own and call.kind != "custom_vjp"):
            continue
        try:
            rule = _of_primitive(eqn, call.name) if "_prim" in eqn.params else _of_custom_vjp(eqn, call.name)
        except Exception:  # its error belongs to the checks that call the rule
            continue
        if rule is not None:
            yield rule


def _of_custom_vjp(eqn: Any, name: str) -> BackwardRule | None:
    if eqn.primitive.name != "custom_vjp_call" or eqn.params["symbolic_zeros"]:
        return None
    flat = eqn.params["bwd"]
    flatten = flat.transforms[0][0] if flat.transforms else None
    if getattr(flatten, "__name__", "") != "_flatten_bwd":
        return None
    bwd, in_tree, avals, out_trees = flat.f_transformed.args[:4]
    with_logs = flat.f_transformed.args[6:7] == (True,)  # since jax 0.11: the rule returns (cotangents, logs)
    forward, _ = eqn.params["fwd_jaxpr_thunk"].call_wrapped(*[True] * len(avals))
    out_tree, res_tree, forwarded = out_trees()  # forwarded: which argument a residual is, None if it is computed
    types = [v.aval for v in forward.outvars]
    outputs = types[len(types) - out_tree.num_leaves :]
    computed = iter(types)
    residuals = [next(computed) if i is None else avals[i] for i in forwarded]

    def backward(res: list[Any], dy: list[Any]) -> tuple[Any, Any]:
        returned = bwd(jax.tree.unflatten(res_tree, res), jax.tree.unflatten(out_tree, dy))
        return returned if with_logs else (returned, None)

    return _traced(name, backward, residuals, in_tree, list(avals), outputs)


def _of_primitive(eqn: Any, name: str) -> BackwardRule | None:
    """Trace the backward half of a HiPrim; a custom_vjp function may be one."""
    primitive = hi_primitive(eqn)
    if getattr(primitive, "symbolic_zeros", False):
        return None
    avals = list(primitive.in_avals_flat)
    trees: list[Any] = []  # the structure of the residuals
    differentiated = jax.tree.unflatten(primitive.in_tree, [True] * len(avals))

    def forward(*operands: Any) -> list[Any]:
        _, residuals, *_ = primitive.vjp_fwd(differentiated, *jax.tree.unflatten(primitive.in_tree, operands))
        leaves, tree = jax.tree.flatten(residuals)
        trees[:] = [tree]
        return leaves

    residuals = jax.eval_shape(forward, *map(shape_and_dtype, avals))

    def backward(res: list[Any], dy: list[Any]) -> tuple[Any, Any]:
        given = jax.tree.unflatten(trees[0], res), jax.tree.unflatten(primitive.out_tree, dy)
        if hasattr(primitive, "bwd"):
            return _returned_by_custom_vjp(primitive, *given)
        if hasattr(primitive, "vjp_bwd_retval_logs"):  # since jax 0.12, whichever of the methods is written
            return primitive.vjp_bwd_retval_logs(*given)  # type: ignore[no-any-return]
        return primitive.vjp_bwd_retval(*given), None

    return _traced(name, backward, list(residuals), primitive.in_tree, avals, list(primitive.out_avals_flat))


def _returned_by_custom_vjp(primitive: Any, residuals: Any, dy: Any) -> tuple[Any, Any]:
    """Return what the backward rule returns as it is written: JAX's wrapper of it drops gradients of integers."""
    wrapper, wrapped = primitive.bwd, {}
    if code := getattr(wrapper, "__code__", None):
        cells = zip(code.co_freevars, wrapper.__closure__ or (), strict=True)
        wrapped = {name: cell.cell_contents for name, cell in cells}
    if "static_args" not in wrapped or "bwd" not in wrapped:
        returned, logs = wrapper(residuals, dy)
        # No cotangents for what the function closes over.
        return (*(None,) * (len(primitive.in_avals) - len(returned)), *returned), logs
    returned = wrapped["bwd"](*wrapped["static_args"], residuals, dy)
    returned, logs = returned if wrapped.get("with_logs") else (returned, None)
    given = iter(returned)
    arguments = primitive.in_avals[2:]
    return (None, None, *(None if type(a).__name__ == "Static" else next(given) for a in arguments)), logs


def _traced(
    name: str, backward: Any, residuals: list[Any], in_tree: Any, primals: list[Any], outputs: list[Any]
) -> BackwardRule:
    positions: list[int] = []

    def flat(res: list[Any], dy: list[Any]) -> list[Any]:
        cotangents, logs = backward(res, dy)
        leaves = _leaves_by_primal(cotangents, in_tree)
        positions[:] = [i for i, ct in enumerate(leaves) if _is_array_cotangent(ct)]
        return [*(leaves[i] for i in positions), *jax.tree.leaves(logs)]

    jaxpr = jax.make_jaxpr(flat)([shape_and_dtype(a) for a in residuals], [cotangent_type(a) for a in outputs])
    numbered = jax.tree.unflatten(in_tree, list(range(in_tree.num_leaves)))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]
    return BackwardRule(name, residuals, primals, paths, outputs, jaxpr, positions)


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


def cotangent_type(aval: Any) -> Any:
    """Return the type of the cotangent of an output: float0 for integers, booleans and keys."""
    if is_inexact(aval):
        return shape_and_dtype(aval)
    return jax.ShapeDtypeStruct(aval.shape, jax.dtypes.float0)  # type: ignore[no-untyped-call]
