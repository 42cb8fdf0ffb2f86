"""What every custom rule shares: its definition, its formulas, its precision, and the types of its cotangents."""

import dataclasses
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

P = ParamSpec("P")
R = TypeVar("R")


class Component(Protocol[P, R]):
    """A public function with a custom rule, and beside it the plain definition it was derived from."""

    definition: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the component."""


def defined_by(definition: Callable[P, R]) -> Callable[[Callable[P, R]], Component[P, R]]:
    """Attach the plain definition to a component, as `component.definition`."""

    def attach(function: Callable[P, R]) -> Component[P, R]:
        component = cast(Component[P, R], function)
        component.definition = definition
        return component

    return attach


class Formulas(NamedTuple):
    """A function as it is written on paper, in LaTeX."""

    definition: str
    gradients: dict[
        str, tuple[str, str]
    ]  # of each argument: its cotangent, and in words what the local derivative says


WRITTEN: dict[tuple[str, str], Formulas] = {}  # by the file and the name of the function, which a jaxpr tells


def on_paper(definition: str, **gradients: tuple[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Attach its formulas to a function with a custom rule, where whoever meets it in a jaxpr finds them."""

    def attach(function: Callable[P, R]) -> Callable[P, R]:
        code = cast(FunctionType, function).__code__
        WRITTEN[code.co_filename, code.co_name] = Formulas(definition, gradients)
        return function

    return attach


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
    cotangent is summed over the mesh axes it varies over and its primal does not. It varies over those of its primal,
    as the upstream gradient does, which has the function's value's type. Outside, only the dtype changes.
    """
    affected = tuple(_varying(jax.typeof(ct)) - _varying(primal.aval))
    ct = lax.psum(ct, affected) if affected else ct  # type: ignore[no-untyped-call]
    return ct.astype(primal.aval.dtype)


def vary_with(x: jax.Array, *types: Type) -> jax.Array:
    """Mark a constant as varying over the mesh axes of `types`, as a scan's initial carry has to be."""
    axes = frozenset[str]().union(*(_varying(t.aval) for t in types)) - _varying(jax.typeof(x))
    return lax.pcast(x, tuple(axes), to="varying") if axes else x


def wide(dtype: DTypeLike) -> Any:
    """Return the dtype to accumulate in: at least float32."""
    return max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda dtype: dtype.itemsize)


def resolve_precision(precision: Any) -> Any:
    """Return the precision in force now, as a static value.

    A backward rule may be traced after the `jax.default_matmul_precision` block of its forward pass has closed; it
    is given this value, so it cannot fall to TF32 or bfloat16 there.
    """
    if precision is None:
        precision = jax.config.jax_default_matmul_precision or "default"  # type: ignore[attr-defined]
    return tuple(precision) if isinstance(precision, list) else precision
