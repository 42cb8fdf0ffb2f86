"""The HiPrims in a function, with the values that reach them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from placements import HiPrim

import jaxnn
from jaxnn.tracing.primitives import primitive_calls


class Square(HiPrim):
    def __init__(self, x):
        self.in_avals, self.out_aval, self.params = (x,), x, {}
        super().__init__()

    def expand(self, x):
        return x * x

    def vjp_fwd(self, nonzero, x):
        return self(x), x

    def vjp_bwd_retval(self, x, g):
        return (100 * x * g,)

    def batch_dim_rule(self, axis_data, dims):
        return dims[0]


def square(x):
    return Square(jax.typeof(x))(x)


ROWS = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
PLACES = {
    "called": (lambda x: square(x[0] + 1), ROWS[0] + 1),
    "jit": (lambda x: jax.jit(lambda r: square(2 * r))(x[1]), 2 * ROWS[1]),
    "first-of-a-scan": (lambda x: lax.scan(lambda c, r: (c, square(r)), 0, x)[1], ROWS[0]),
    "last-of-a-reversed-scan": (lambda x: lax.scan(lambda c, r: (c, square(r)), 0, x, reverse=True)[1], ROWS[2]),
    "branch": (lambda x: lax.cond(x[0, 0] > 0, lambda r: square(r + 7), jnp.sin, x[0]), ROWS[0] + 7),
    "loop": (lambda x: lax.fori_loop(0, 3, lambda i, c: square(c) / 9, x[0] + 5), ROWS[0] + 5),
    "remat": (lambda x: jax.checkpoint(lambda r: square(jnp.sin(r)))(x[0]), jnp.sin(ROWS[0])),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("place", PLACES)
def test_the_values_that_reach_a_primitive(place):
    f, expected = PLACES[place]
    (call,) = primitive_calls(jax.make_jaxpr(f)(ROWS), [ROWS])
    np.testing.assert_allclose(call.operands[0], expected, rtol=1e-6)
    np.testing.assert_allclose(call.value(*call.operands)[0], expected**2, rtol=1e-6)


def test_values_that_are_not_known_are_random():
    def f(x):
        return jax.shard_map(square, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())(x)

    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    (call,) = primitive_calls(jax.make_jaxpr(f)(ROWS), [ROWS])
    assert call.operands[0].shape == ROWS.shape and 0.5 <= call.operands[0].min() <= call.operands[0].max() <= 1.5


def test_calls_that_are_equal_are_one():
    jaxpr = jax.make_jaxpr(lambda x: square(x) + square(2 * x) + square(x[0])[None])(ROWS)
    assert [call.operands[0].shape for call in primitive_calls(jaxpr, [ROWS])] == [(3, 2), (2,)]


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="vmap wraps a primitive no more")
def test_automatic_replaces_a_primitive_under_vmap():
    without = jaxnn.automatic(lambda x: jax.vmap(jax.vmap(square))(x).sum())
    np.testing.assert_array_equal(jax.grad(without)(ROWS), 2 * ROWS)
