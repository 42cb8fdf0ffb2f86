"""Jaxprs, JAX's traces of functions: how to run them, and how to walk through them.

A jaxpr is a list of equations. An equation has a primitive, operands, results, and parameters, which may hold the
jaxprs of inner functions (the body of a loop, the branches of a cond).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jax.sharding import AxisType

from jaxnn.tracing.functions import is_inexact


def run(closed: Any, *leaves: Any) -> list[Any]:
    """Run a closed jaxpr on arrays."""
    return list(jex.jaxpr_as_fun(closed)(*leaves))


def run_each(closed: Any, leaves: Sequence[Any], change: Callable[[int, Any], Any]) -> list[Any]:
    """Run a closed jaxpr one equation after another; `change` takes an equation's position and each of its results."""
    jaxpr = open_jaxpr(closed)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *leaves], strict=True))

    def current(atoms: Sequence[Any]) -> list[Any]:
        return [a.val if isinstance(a, jex.Literal) else values[a] for a in atoms]

    for i, eqn in enumerate(jaxpr.eqns):
        results = eqn.primitive.bind(*current(eqn.invars), **eqn.primitive.get_bind_params(eqn.params))
        results = results if eqn.primitive.multiple_results else [results]
        values |= {v: change(i, y) for v, y in zip(eqn.outvars, results, strict=True)}
    return current(jaxpr.outvars)


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
    """Return the type of an array, or of a variable's abstract value, as arguments of a trace have it.

    Over Explicit axes of a mesh the sharding is part of the type.
    """
    sharding = getattr(array, "sharding", None)
    types = getattr(getattr(sharding, "mesh", None), "axis_types", None) or ()
    explicit = sharding if AxisType.Explicit in types else None
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=explicit)  # type: ignore[no-untyped-call]


def unused_inputs(closed: Any) -> list[int]:
    """Return the positions of the inputs on which no result, and no effect, depends."""
    jaxpr = open_jaxpr(closed)
    used = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in used for v in eqn.outvars):
            used |= {v for v in eqn.invars if not isinstance(v, jex.Literal)}
    return [i for i, v in enumerate(jaxpr.invars) if v not in used]
