"""What each rule keeps for its backward pass, in closed form, counted from the shapes of `jax.vjp`."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxnn

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
CASES = {
    "linear": (jaxnn.linear, (array(N, C), array(5, C), array(5)), 0),
    "conv2d": (functools.partial(jaxnn.conv2d, layout="NHWC"), (IMAGES, array(3, 3, C, 8), array(8)), 0),
    "relu": (jaxnn.relu, (IMAGES,), N * C * H * W),
    "relu bfloat16": (jaxnn.relu, (array(N, H, W, C, dtype=jnp.bfloat16),), N * C * H * W),
    "sigmoid": (jaxnn.sigmoid, (IMAGES,), 0),
    "tanh": (jaxnn.tanh, (IMAGES,), 0),
    "max_pool2d": (pool, (IMAGES,), N * C * (H // 2) * (W // 2)),
    "max_pool2d 3/1": (functools.partial(pool, window=3, stride=1), (IMAGES,), N * C * (H - 2) * (W - 2)),
    "max_pool2d 16x16": (functools.partial(pool, window=16), (array(N, 32, 32, C),), N * C * 2 * 2),
    "max_pool2d 17x16": (functools.partial(pool, window=(17, 16)), (array(N, 34, 32, C),), 4 * N * C * 2 * 2),
    "max_pool2d_with_indices": (
        lambda x: jaxnn.max_pool2d_with_indices(x, layout="NHWC")[0], (IMAGES,), N * C * (H // 2) * (W // 2)),
    "dropout": (lambda x, key: jaxnn.dropout(x, 0.5, key), (IMAGES, array(2, dtype=jnp.uint32)), 0),
    "softmax": (jaxnn.softmax, (ROWS,), 4 * N * C),
    "log_softmax": (jaxnn.log_softmax, (ROWS,), 4 * N),
    "nll": (functools.partial(jaxnn.nll, reduction="sum"), (ROWS, LABELS), 4 * N),
    "nll_loss": (functools.partial(jaxnn.nll_loss, reduction="sum"), (ROWS, LABELS), 0),
    "cross_entropy": (functools.partial(jaxnn.cross_entropy, reduction="sum"), (ROWS, LABELS), 4 * N),
    # The gradient itself, as the sum of the rows' losses; or three numbers a row, and nothing of the vocabulary's size.
    "linear_cross_entropy": (functools.partial(jaxnn.linear_cross_entropy, reduction="sum"), (ROWS, array(7, C), LABELS), 4 * (N * C + 7 * C + N)),
    "linear_cross_entropy lean": (
        functools.partial(jaxnn.linear_cross_entropy, reduction="sum", memory="lean"), (ROWS, array(7, C), LABELS), 12 * N),
    "binary_cross_entropy": (functools.partial(jaxnn.binary_cross_entropy, reduction="sum"), (ROWS, ROWS), 0),
    "squared_error": (functools.partial(jaxnn.squared_error, reduction="sum"), (ROWS, ROWS), 0),
    "l1_penalty": (jaxnn.l1_penalty, (ROWS,), 0),
    "l2_penalty": (jaxnn.l2_penalty, (ROWS,), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_residual_bytes(name):
    f, args, expected = CASES[name]
    count, dtypes = saved(f, *args)
    assert count == expected, dtypes


def test_the_mean_keeps_two_numbers_more():
    bytes_sum, _ = saved(lambda x: jaxnn.squared_error(x, jnp.zeros((N, C)), reduction="sum"), ROWS)
    bytes_mean, _ = saved(lambda x: jaxnn.squared_error(x, jnp.zeros((N, C))), ROWS)
    assert bytes_mean - bytes_sum == 8
