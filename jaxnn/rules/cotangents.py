"""The types of cotangents, the dtype that sums run in, and the precision that a rule computes in."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Type:
    """The type of a primal (shape, dtype, mesh axes it varies over): a residual without bytes."""

    aval: Any


def type_of(primal: jax.Array) -> Type:
    """Return the type that the primal's cotangent must have."""
    return Type(jax.typeof(primal))


def _varying(x: Any) -> frozenset[str]:
    return cast(frozenset[str], x.manual_axis_type.varying)


def cotangent(ct: jax.Array, primal: Type) -> jax.Array:
    """Give a cotangent its primal's type.

    Inside `shard_map` a primal that is the same on all devices (a weight) affects the loss through the data of every
    device, so the chain rule's sum over "all variables y that x directly affects" runs over the devices too: the
    cotangent is summed over the mesh axes that it varies over and its primal does not. The result varies over exactly
    the primal's axes. Outside `shard_map`, only the dtype changes.
    """
    affected = tuple(_varying(jax.typeof(ct)) - _varying(primal.aval))
    ct = lax.psum(ct, affected) if affected else ct  # type: ignore[no-untyped-call]
    return ct.astype(primal.aval.dtype)


def vary_with(x: jax.Array, *types: Type) -> jax.Array:
    """Mark a constant as varying over the mesh axes of `types`: a scan requires it of its initial carry."""
    axes = frozenset[str]().union(*(_varying(t.aval) for t in types)) - _varying(jax.typeof(x))
    return lax.pcast(x, tuple(axes), to="varying") if axes else x


def accumulation_dtype(dtype: DTypeLike) -> Any:
    """Return the dtype to accumulate in: at least float32."""
    return max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda dtype: dtype.itemsize)


def resolve_precision(precision: Any) -> Any:
    """Return the precision in force now, as a static value.

    A backward rule may be traced after the `jax.default_matmul_precision` block of its forward pass has ended. It
    gets this value, so that it does not fall back to TF32 or bfloat16.
    """
    if precision is None:
        precision = jax.config.jax_default_matmul_precision or "default"  # type: ignore[attr-defined]
    return tuple(precision) if isinstance(precision, list) else precision
