"""Arrays sharded over many devices: Explicit meshes, and classes of which each device has a part.

Under a mesh of Auto axes the compiler shards the program. Inside `shard_map` the rules sum over the devices where the
chain rule does (`cotangent`). Under a mesh of Explicit axes every operation must know how its result is sharded; a
gather, a reshape or a sum over two sharded axes does not. There a component declares the sharding of its result, and
is compiled as if the axes were Auto. JAX differentiates that change of axes as the identity, and each cotangent gets
its primal's sharding.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, auto_axes

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
AxisName = str | tuple[str, ...]


def on_any_mesh(out: Callable[[dict[str, Any]], tuple[Any, ...]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a component work under a mesh of Explicit axes; `out` maps its arguments to its value's sharding."""

    def attach(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def component(*args: P.args, **kwargs: P.kwargs) -> R:
            leaves, tree = jax.tree.flatten((args, kwargs))
            arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
            own = [jax.typeof(leaves[i]).sharding.mesh for i in arrays]
            meshes = [mesh for mesh in (jax.sharding.get_abstract_mesh(), *own) if mesh.explicit_axes]
            if not meshes:
                return function(*args, **kwargs)

            def call(*traced: Any) -> R:
                given = dict(zip(arrays, traced, strict=True))
                args, kwargs = jax.tree.unflatten(tree, [given.get(i, leaf) for i, leaf in enumerate(leaves)])
                return function(*args, **kwargs)

            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            sharding = NamedSharding(meshes[0], PartitionSpec(*out(bound.arguments)))  # type: ignore[no-untyped-call]
            automatic = auto_axes(call, axes=meshes[0].explicit_axes, out_sharding=sharding)
            return automatic(*(leaves[i] for i in arrays))  # type: ignore[no-any-return]

        return component

    return attach


def sharding_of(x: Any) -> tuple[Any, ...]:
    """Return the mesh axes over which each axis of x is sharded."""
    if not isinstance(x, jax.Array):
        return (None,) * np.ndim(x)
    spec = jax.typeof(x).sharding.spec
    return (*spec, *(None,) * (x.ndim - len(spec)))


def rows_sharding(name: str) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Return a loss's sharding: none if it is reduced, else that of the named argument without its class axis."""

    def out(arguments: dict[str, Any]) -> tuple[Any, ...]:
        axes, axis = sharding_of(arguments[name]), arguments.get("axis")
        if isinstance(axis, int) and -len(axes) <= axis < len(axes):  # else the component raises
            axes = axes[: axis % len(axes)] + axes[axis % len(axes) + 1 :]
        return axes if arguments["reduction"] == "none" else ()

    return out


def all_reduce(axis_name: AxisName | None, collective: Any, values: T) -> T:
    """Apply a collective over the devices that share the classes."""
    return values if axis_name is None else collective(values, axis_name)


def mark_varying(axis_name: AxisName | None, x: jax.Array) -> jax.Array:
    """Mark an array as different on each of the devices that share the classes."""
    names = () if axis_name is None else axis_name if isinstance(axis_name, tuple) else (axis_name,)
    axes = tuple(name for name in names if name not in jax.typeof(x).manual_axis_type.varying)
    return lax.pcast(x, axes, to="varying") if axes else x


def axis_size(axis_name: AxisName | None) -> int:
    """Return the number of devices that share the classes."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if axis_name is not None and (not all(isinstance(n, str) for n in names) or not 0 < len(set(names)) == len(names)):
        raise TypeError(f"`axis_name` ({axis_name!r}) must be the name of a mesh axis, or a tuple of different ones")
    try:
        return 1 if axis_name is None else int(lax.axis_size(axis_name))
    except NameError:
        raise ValueError(
            f"`axis_name` ({axis_name!r}) must name a mesh axis that is in scope; call it inside `shard_map` or `pmap`"
        ) from None
