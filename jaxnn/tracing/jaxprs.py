"""Jaxprs, JAX's traces of functions: how to make, run and walk through them.

A jaxpr is a list of equations. An equation has a primitive, operands, results, and parameters, which may hold the
jaxprs of inner functions (the body of a loop, the branches of a cond).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp


def trace(f: Callable[..., Any], *leaves: Any) -> Any:
    """Trace `f`, a function of arrays that returns a list of arrays."""
    return jax.make_jaxpr(f)(*leaves)


def evaluate(closed: Any, *leaves: Any) -> list[Any]:
    """Run a trace."""
    return list(jex.jaxpr_as_fun(closed)(*leaves))


def opened(jaxpr: Any) -> Any:
    """Return the equations' jaxpr of a closed one (one class since jax 0.12)."""
    return jaxpr if hasattr(jaxpr, "eqns") and not hasattr(jaxpr, "jaxpr") else jaxpr.jaxpr


def is_jaxpr(value: Any) -> bool:
    return isinstance(value, jex.Jaxpr | jex.ClosedJaxpr)


def map_jaxprs(f: Callable[[Any], Any], value: Any) -> Any:
    """Apply `f` to a parameter's jaxprs: itself, or the members of a tuple."""
    if is_jaxpr(value):
        return f(value)
    if isinstance(value, tuple) and any(map(is_jaxpr, value)):
        members = [map_jaxprs(f, member) for member in value]
        return type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    return value


def equations(closed: Any) -> Iterator[Any]:
    """Go through all equations, those of inner functions too (a kernel's body is its own)."""
    for eqn in opened(closed).eqns:
        yield eqn
        if eqn.primitive.name != "pallas_call":
            inner: list[Any] = []
            for value in eqn.params.values():
                map_jaxprs(inner.append, value)
            for jaxpr in inner:
                yield from equations(jaxpr)


def is_inexact(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)  # type: ignore[no-untyped-call]


def unused_inputs(closed: Any) -> list[int]:
    """Return the inputs that no result (and no effect) depends on."""
    jaxpr = opened(closed)
    alive = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in alive for v in eqn.outvars):
            alive |= {v for v in eqn.invars if not isinstance(v, jex.Literal)}
    return [i for i, v in enumerate(jaxpr.invars) if v not in alive]
