"""`automatic` and `trace` where arguments are placed on devices, inside of meshes, and with refs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnn

X = np.arange(8, dtype=np.float32).reshape(4, 2) / 4 - 1
MESHES = {
    types: jax.make_mesh((2, 2), ("i", "j"), axis_types=tuple(getattr(AxisType, t) for t in types.split("-")))
    for types in ("Explicit-Explicit", "Auto-Auto", "Explicit-Auto")
}


@jax.custom_vjp
def sine(x):
    return jnp.sin(x)


sine.defvjp(lambda x: (sine(x), x), lambda x, dy: (100 * dy * jnp.cos(x),))  # wrong


def solved(x):
    return lax.custom_linear_solve(lambda y: 2 * y, sine(x), lambda _, b: b / 2, symmetric=True)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("f, factor", [(sine, 1), (solved, 0.5)], ids=["custom_vjp", "custom_linear_solve"])
def test_automatic_inside_of_a_mesh(mesh, f, factor):
    with jax.set_mesh(MESHES[mesh]):
        x = jax.device_put(X, P("i"))
        gradient = jax.jit(jax.grad(lambda x: jaxnn.automatic(f)(x).sum()))(x)
        assert np.allclose(gradient, factor * np.cos(X)) and jax.typeof(gradient) == jax.typeof(x)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("mesh", MESHES)
def test_trace_inside_of_a_mesh(mesh):
    with jax.set_mesh(MESHES[mesh]):
        graph = jaxnn.graph.trace(lambda x: (x * x).sum(), jax.device_put(X, P("i")))
    assert np.allclose(graph["x"].upstream, 2 * X)


def test_trace_of_what_lies_anywhere():
    for where in (NamedSharding(MESHES["Auto-Auto"], P("i")), jax.sharding.SingleDeviceSharding(jax.devices()[1])):
        graph = jaxnn.graph.trace(lambda x, w: (x * w).sum(), jax.device_put(X, where), X)
        assert np.allclose(graph["x"].upstream, X)


def test_trace_of_what_needs_its_mesh():
    with jax.set_mesh(MESHES["Auto-Auto"]):
        graph = jaxnn.graph.trace(lambda x: lax.with_sharding_constraint(x * x, P("i")).sum(), X)
    assert np.allclose(graph["x"].upstream, 2 * X)
    with (
        jax.set_mesh(MESHES["Explicit-Explicit"]),
        pytest.raises(ValueError, match="must run without Explicit mesh axes; call trace on a mesh with Auto axes"),
    ):
        jaxnn.graph.trace(lambda x: jnp.einsum("ij,kj->ik", x, x, out_sharding=P("i", None)).sum(), X)


@jax.custom_vjp
def keep(x, ref):
    return x


def _write(ref, dy):
    ref[...] = dy
    return 100 * dy, None


keep.defvjp(lambda x, ref: (x, ref), _write)


def test_automatic_with_refs():
    ref = jax.new_ref(jnp.zeros_like(X))
    given, closed = (lambda x, ref: jnp.sin(keep(x, ref)).sum()), (lambda x: jnp.sin(keep(x, ref)).sum())
    assert np.allclose(jax.grad(jaxnn.automatic(given))(X, ref), np.cos(X))
    assert np.allclose(jax.jit(jax.grad(jaxnn.automatic(closed)))(X), np.cos(X))
    assert not ref[...].any()  # it is the rule that writes


def test_trace_names_refs_and_what_to_do():
    ref = jax.new_ref(jnp.zeros_like(X))

    def read(x):
        return (x * ref[...]).sum()

    def local(x):
        own = jax.new_ref(x)
        return own[...].sum()

    cases = (read, (X,)), (lambda x: keep(x, ref).sum(), (X,)), (lambda x, ref: x.sum(), (X, ref)), (local, (X,))
    for f, args in cases:
        with pytest.raises(
            TypeError, match=r"must be a pure function, without refs \(jax.new_ref\); pass what they hold as arrays"
        ):
            jaxnn.graph.trace(f, *args)
