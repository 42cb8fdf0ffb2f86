"""Jaxprs, JAX's traces of functions: how to run them, and how to walk through them.

A jaxpr is a list of equations. An equation has a primitive, operands, results, and parameters, which may hold the
jaxprs of inner functions (the body of a loop, the branches of a cond).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex

from jaxnn.tracing.functions import is_inexact


def run(closed: Any, *leaves: Any) -> list[Any]:
    """Run a closed jaxpr on arrays."""
    return list(jex.jaxpr_as_fun(closed)(*leaves))


def open_jaxpr(jaxpr: Any) -> Any:
    """Return the jaxpr inside of a closed one (since jax 0.12 they are one class)."""
    return jaxpr if hasattr(jaxpr, "eqns") and not hasattr(jaxpr, "jaxpr") else jaxpr.jaxpr


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter of an equation is a jaxpr, open or closed."""
    return isinstance(value, jex.Jaxpr | jex.ClosedJaxpr)


def map_jaxprs(f: Callable[[Any], Any], value: Any) -> Any:
    """Apply `f` to a parameter that is a jaxpr, or to the jaxprs in a parameter that is a tuple."""
    if is_jaxpr(value):
        return f(value)
    if isinstance(value, tuple) and any(map(is_jaxpr, value)):
        members = [map_jaxprs(f, member) for member in value]
        if all(a is b for a, b in zip(members, value, strict=True)):
            return value
        return type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    return value


def equations(closed: Any) -> Iterator[Any]:
    """Yield all equations, those of inner functions too, but not those of Pallas kernels."""
    for eqn in open_jaxpr(closed).eqns:
        yield eqn
        if eqn.primitive.name != "pallas_call":
            inner: list[Any] = []
            for value in eqn.params.values():
                map_jaxprs(inner.append, value)
            for jaxpr in inner:
                yield from equations(jaxpr)


def closed_over_dtypes(closed: Any) -> set[str]:
    """Return the dtypes of the floating-point arrays that a traced function closes over, except single numbers."""
    return {str(v.aval.dtype) for v in open_jaxpr(closed).constvars if is_inexact(v.aval) and v.aval.ndim}


def shape_and_dtype(array: Any) -> jax.ShapeDtypeStruct:
    """Return the type of an array, or of a variable's abstract value, as arguments of a trace have it."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)  # type: ignore[no-untyped-call]


def unused_inputs(closed: Any) -> list[int]:
    """Return the positions of the inputs on which no result, and no effect, depends."""
    jaxpr = open_jaxpr(closed)
    used = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in used for v in eqn.outvars):
            used |= {v for v in eqn.invars if not isinstance(v, jex.Literal)}
    return [i for i, v in enumerate(jaxpr.invars) if v not in used]
