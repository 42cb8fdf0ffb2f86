"""What each rule keeps for its backward pass, in closed form, counted from the shapes of `jax.vjp`."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxnn
from jaxnn import components
from jaxnn.components import COMPONENTS

N, C, H, W = 4, 6, 10, 12


def saved(f, *args):
    """The arrays `jax.vjp` keeps beyond the arguments themselves: (bytes, dtypes). Nothing is computed."""

    def leaves(*args):
        floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]

        def of_floats(*values):
            filled = list(args)
            for i, v in zip(floats, values, strict=True):
                filled[i] = v
            return f(*filled)

        vjp = jax.vjp(of_floats, *(args[i] for i in floats))[1]
        return [leaf for leaf in jax.tree.leaves(vjp) if hasattr(leaf, "dtype")]

    jaxpr = jax.make_jaxpr(leaves)(*args)
    given = {id(v) for v in jaxpr.jaxpr.invars}
    new = {id(v): v for v in jaxpr.jaxpr.outvars if id(v) not in given and not hasattr(v, "val")}.values()
    return sum(v.aval.size * v.aval.dtype.itemsize for v in new), [str(v.aval.dtype) for v in new]


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


IMAGES, ROWS, LABELS = array(N, H, W, C), array(N, C), array(N, dtype=jnp.int32)
pool = functools.partial(jaxnn.max_pool2d, layout="NHWC")
# Beside the table's own: other windows, other dtypes, and losses that are summed.
OPTIONS = {
    "relu bfloat16": (jaxnn.relu, (array(N, H, W, C, dtype=jnp.bfloat16),), N * C * H * W),
    "max_pool2d 3/1": (functools.partial(pool, window=3, stride=1), (IMAGES,), N * C * (H - 2) * (W - 2)),
    "max_pool2d 17x15": (functools.partial(pool, window=(17, 15)), (array(N, 34, 30, C),), N * C * 2 * 2),
    "max_pool2d 16x16": (functools.partial(pool, window=16), (array(N, 32, 32, C),), 4 * N * C * 2 * 2),
    "nll sum": (functools.partial(jaxnn.nll, reduction="sum"), (ROWS, LABELS), 4 * N),
    "linear_cross_entropy sum": (
        functools.partial(jaxnn.linear_cross_entropy, reduction="sum"), (ROWS, array(7, C), LABELS), 4 * (N * C + 7 * C + N)),
    "linear_cross_entropy lean sum": (
        functools.partial(jaxnn.linear_cross_entropy, reduction="sum", memory="lean"), (ROWS, array(7, C), LABELS), 12 * N),
}  # fmt: skip


def first(y):
    """The output that has a gradient."""
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("size", ["TINY", "SMALL"])
@pytest.mark.parametrize("line", COMPONENTS, ids=lambda line: line.name)
def test_residual_bytes(line, size):
    args = line.example(getattr(components, size))
    count, dtypes = saved(lambda *args: first(line(*args)), *(array(*a.shape, dtype=a.dtype) for a in args))
    assert count == line.residual_bytes(*args), dtypes


@pytest.mark.parametrize("name", OPTIONS)
def test_residual_bytes_with_options(name):
    f, args, expected = OPTIONS[name]
    count, dtypes = saved(f, *args)
    assert count == expected, dtypes


def test_the_mean_keeps_two_numbers_more():
    bytes_sum, _ = saved(lambda x: jaxnn.squared_error(x, jnp.zeros((N, C)), reduction="sum"), ROWS)
    bytes_mean, _ = saved(lambda x: jaxnn.squared_error(x, jnp.zeros((N, C))), ROWS)
    assert bytes_mean - bytes_sum == 8
