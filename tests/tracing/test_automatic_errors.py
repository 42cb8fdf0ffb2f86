"""automatic(f) says in one line what it cannot do: no function, Python branches on values, no derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas
from placements import MESH, SHARDED, HiPrim, X, square, wrong

import jaxnn


@pytest.mark.parametrize("f", [None, "relu", 3.0, np.arange(3)])
def test_an_argument_that_is_no_function_is_refused(f):
    with pytest.raises(TypeError, match=f"`f` \\({type(f).__name__} .* must be a function of arrays"):
        jaxnn.automatic(f)


def branches(x):
    return x if x[0] > 0 else -x


def converts(x):
    return x * float(x[0])


def indexes(x):
    return [1, 2][x[0].astype(int)] * x


def to_numpy(x):
    return x * np.asarray(x)


def selects(x):
    return x[x > 0]


@pytest.mark.parametrize("f", [branches, converts, indexes, to_numpy, selects])
def test_python_branches_on_values_are_refused(f):
    for run in (lambda f: f, jax.jit, lambda f: jax.grad(lambda x: jnp.sum(f(x)))):
        with pytest.raises(
            TypeError, match=f"`f` \\({f.__name__}\\) must not branch in Python on the value of an array .*jax.lax.cond"
        ):
            run(jaxnn.automatic(f))(jnp.array(X))


def test_errors_that_f_raises_pass_through():
    def fails(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jaxnn.automatic(fails)(jnp.array(X))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        jaxnn.automatic(square)()


def sine_on_host(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


def sine_on_host_with_effect(x):
    return jax.experimental.io_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def sine_kernel(x):
    def kernel(x_ref, y_ref):
        y_ref[...] = jnp.sin(x_ref[...])

    return pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


CALLS = [(sine_on_host, "pure_callback"), (sine_on_host_with_effect, "io_callback"), (sine_kernel, "pallas_call")]
AROUND = {
    "plain": lambda f: f,
    "scan-in-jit": lambda f: jax.jit(lambda x: lax.scan(lambda c, _: (f(c), None), x, length=2)[0]),
    "cond": lambda f: lambda x: lax.cond(x[0] > 0, f, lambda x: x, x),
    "shard_map": lambda f: jax.shard_map(f, mesh=MESH, in_specs=SHARDED, out_specs=SHARDED),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(("definition", "primitive"), CALLS)
def test_a_definition_without_a_derivative_is_named(definition, primitive, around):
    if around == "shard_map" and primitive == "pallas_call":
        pytest.skip("JAX wants the kernel to say how its outputs vary")
    message = f"`{definition.__name__}` \\(which calls `{primitive}`\\)"
    f = AROUND[around](wrong(definition))
    without = jaxnn.automatic(f)
    np.testing.assert_array_equal(without(jnp.array(X)), f(jnp.array(X)))
    for derivative in (jax.grad(lambda x: jnp.sum(without(x))), lambda x: jax.jvp(without, (x,), (x,))):
        with pytest.raises(TypeError, match=message):
            derivative(jnp.array(X))

    @wrong
    def outer(x):  # what has no derivative, deeper in a definition
        return jax.jit(lambda x: x * definition(x))(x)

    with pytest.raises(TypeError, match=f"`outer` \\(which calls `{primitive}`\\)"):
        jax.grad(lambda x: jnp.sum(jaxnn.automatic(outer)(x)))(jnp.array(X))


def test_a_callback_behind_stop_gradient_needs_no_derivative():
    f = wrong(lambda x: x * x * sine_on_host(lax.stop_gradient(x)))
    x = jnp.array(X)
    for run in (jaxnn.automatic(f), jax.jit(jaxnn.automatic(f))):
        np.testing.assert_allclose(jax.jvp(run, (x,), (jnp.ones(2),))[1], 2 * X * np.sin(X), rtol=1e-6)


def test_a_primitive_with_a_rule_of_its_own_is_named():
    sine = jax.extend.core.Primitive("sine")
    sine.def_impl(np.sin)
    sine.def_abstract_eval(lambda x: x)
    jax.interpreters.mlir.register_lowering(sine, jax.interpreters.mlir.lower_fun(jnp.sin, multiple_results=False))
    jax.interpreters.ad.defjvp(sine, lambda t, x: 3 * t)
    f = jaxnn.automatic(lambda x: sine.bind(x) * 2)
    np.testing.assert_allclose(f(jnp.array(X)), 2 * np.sin(X), rtol=1e-6)
    with pytest.raises(TypeError, match=r"the primitive `sine` must have no rule of its own; .*`reference=`"):
        jax.grad(lambda x: jnp.sum(f(x)))(jnp.array(X))


def test_a_primitive_that_cannot_be_expanded_is_named():
    class Unfinished(HiPrim):
        def __init__(self):
            self.in_avals, self.out_aval, self.params = (jax.typeof(X),), jax.typeof(X), {}
            super().__init__()

    with pytest.raises(TypeError, match=r"`f` must not call `Unfinished` \(HiPrim\), whose method `expand` cannot be "):
        jaxnn.automatic(Unfinished())(X)
