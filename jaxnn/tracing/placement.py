"""Where arrays are: arguments placed on devices or sharded over a mesh, and the mesh in force.

A derivative does not depend on where its arguments are. So the arguments are moved to the default device, and the mesh
is left. A function that needs its mesh (for a constraint, or a `shard_map` without one) keeps it with Auto axes. Inside
the function, axes that were Explicit are Explicit again.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnn.tracing.functions import is_array, is_inexact, with_arrays_apart

Function = Callable[..., Any]


def unplaced(x: Any, name: str) -> Any:
    """Return an array on the default device, uncommitted, by way of the host; anything else as it is.

    Raises:
      ValueError: if a part of the array lies on the devices of another process.
    """
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer) or not (x.committed or len(x.devices()) > 1):
        return x
    if not x.is_fully_addressable:
        raise ValueError(
            f"`{name}` (shape {x.shape}, on devices of several processes) must be addressable from this process; "
            "gather it first with jax.experimental.multihost_utils.process_allgather"
        )
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(x))), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    if x.weak_type:  # a weak type is that of a Python number
        return jnp.broadcast_to(jnp.asarray(x.dtype.type(0).item()), x.shape).at[...].set(host)
    return jnp.asarray(host)


@contextlib.contextmanager
def outside_of_meshes(
    f: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Callable[[Function], Function]]:
    """Leave the mesh in force, or keep it with Auto axes if `f` does not run without it.

    Yields:
      A function that turns `f`, or another function of the same arguments, into the one to call.
    """
    mesh = _mesh_of(args, kwargs)
    if mesh is None:
        yield _as_it_is
        return
    context, change = _way_to_run(mesh, f, args, kwargs)
    with jax.set_mesh(context):
        yield change


def _as_it_is(f: Function) -> Function:
    return f


def _mesh_of(args: Any, kwargs: Any) -> Mesh | None:
    """Return the mesh in force, or else that of the first array on one; None without a mesh, and inside of a trace."""
    try:
        with jax.set_mesh(None):
            pass
    except ValueError:  # JAX is tracing, and does not let go of a mesh
        return None
    if not (mesh := jax.sharding.get_mesh()).empty:
        return mesh
    shardings = (getattr(x, "sharding", None) for x in jax.tree.leaves((args, kwargs)))
    return next((s.mesh for s in shardings if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh)), None)


def _way_to_run(mesh: Mesh, f: Function, args: Any, kwargs: Any) -> tuple[Mesh | None, Callable[[Function], Function]]:
    """Return the mesh to set, and what to do to f: the first way in which f's gradient compiles, or else its value."""
    auto = with_axis_type(mesh, AxisType.Auto)
    explicit = tuple(a for a, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t == AxisType.Explicit)
    ways: list[tuple[Mesh | None, Callable[[Function], Function]]] = [(None, _as_it_is), (auto, _as_it_is)]
    if explicit:
        ways.append((auto, functools.partial(_with_explicit_axes, explicit, _specs(explicit, args, kwargs))))
    for gradient in (True, False):
        for context, change in ways:
            if _runs(context, change(f), args, kwargs, gradient):
                return context, change
    return ways[0]


def with_axis_type(mesh: Mesh, axis_type: AxisType) -> Mesh:
    """Return the mesh with all its axes of one type."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(axis_type,) * len(mesh.axis_names))


def _specs(explicit: tuple[str, ...], args: Any, kwargs: Any) -> list[PartitionSpec]:
    """Return over which Explicit axes each array is sharded."""

    def of(x: Any) -> PartitionSpec:
        sharding = getattr(x, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return PartitionSpec()  # type: ignore[no-untyped-call]
        names = [e if isinstance(e, tuple) else (e,) for e in sharding.spec]
        kept = (tuple(n for n in group if n in explicit) or None for group in names)
        return PartitionSpec(*kept)  # type: ignore[no-untyped-call]

    return [of(x) for x in jax.tree.leaves((args, kwargs)) if is_array(x)]


def _with_explicit_axes(axes: tuple[str, ...], specs: list[PartitionSpec], f: Function) -> Function:
    """Return f on arrays that are sharded over Explicit axes inside of it, and over Auto ones outside."""

    @functools.wraps(f)
    def on_explicit_axes(*args: Any, **kwargs: Any) -> Any:
        of_arrays, arrays = with_arrays_apart(f, args, kwargs, is_array)
        explicit = jax.sharding.explicit_axes(of_arrays, axes=axes, in_sharding=tuple(specs))
        return explicit(*map(jnp.asarray, arrays))

    return on_explicit_axes


def _runs(mesh: Mesh | None, f: Function, args: Any, kwargs: Any, gradient: bool) -> bool:
    """Whether f, or its gradient, compiles under a mesh at unplaced arguments."""
    leaves, tree = jax.tree.flatten((args, kwargs))

    def of_arrays(differentiated: dict[int, Any], others: dict[int, Any]) -> list[Any]:
        filled = {**dict(enumerate(leaves)), **differentiated, **others}
        args, kwargs = jax.tree.unflatten(tree, [filled[i] for i in range(len(leaves))])
        return [y for y in jax.tree.leaves(f(*args, **kwargs)) if is_array(y) and is_inexact(y)]

    def pulled_back(differentiated: dict[int, Any], others: dict[int, Any]) -> Any:
        y, pull = jax.vjp(lambda d: of_arrays(d, others), differentiated)
        return pull([jnp.ones_like(a) for a in y])

    with jax.set_mesh(mesh):
        try:
            arrays = {i: unplaced(x, "args") for i, x in enumerate(leaves) if is_array(x)}
            inexact = {i: x for i, x in arrays.items() if is_inexact(x)}
            others = {i: x for i, x in arrays.items() if i not in inexact}
            jax.jit(pulled_back if gradient else of_arrays).lower(inexact, others)
        except Exception:  # whatever f raises: the last way lets the caller see it
            return False
    return True
