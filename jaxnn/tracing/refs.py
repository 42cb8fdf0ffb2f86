"""Refs, JAX's mutable arrays (`jax.new_ref`), that a function closes over."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxnn.tracing import jaxprs
from jaxnn.tracing.functions import is_array, is_ref, with_arrays_apart

Function = Callable[..., Any]


def with_new_refs(f: Function, closed: Any) -> Function:
    """Return f with a new ref in place of each that it closes over, made at each call with the present content.

    So every call begins with the same content, the caller's refs stay as they are, and f runs under vmap.

    Args:
      f: a function of arrays.
      closed: its trace, in which the refs are constants.
    """
    contents = {id(c): (c, c[...]) for c in closed.consts if is_ref(c)}
    if not contents:
        return f

    @functools.wraps(f)
    def on_new_refs(*args: Any, **kwargs: Any) -> Any:
        of_arrays, arrays = with_arrays_apart(f, args, kwargs, lambda x: is_array(x) or is_ref(x))
        trace, outputs = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        consts = [jax.new_ref(contents[id(c)][1]) if id(c) in contents else c for c in trace.consts]
        renewed = trace.replace(consts=consts)  # type: ignore[no-untyped-call]
        return jax.tree.unflatten(jax.tree.structure(outputs), jaxprs.run(renewed, *arrays))

    return on_new_refs


def uses_refs(closed: Any) -> bool:
    """Whether a trace has refs: among its constants, its arguments, or the values in it."""
    operands = (v for eqn in jaxprs.equations(closed) for v in (*eqn.invars, *eqn.outvars))
    return any(map(is_ref, closed.consts)) or any(hasattr(v.aval, "inner_aval") for v in operands)
