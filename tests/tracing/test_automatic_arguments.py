"""automatic(f) takes the arguments that f takes: static leaves, scalars, any dtype, integers, keys, donated arrays."""

import functools
import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from placements import X, square, wrong

import jaxnn


def test_static_leaves_and_results():
    f, seen, marker = wrong(lambda x, w: x * w), [], object()

    def of_many(x, n, options, *rest, scale=1.0, **kwargs):
        seen.append((n, options["name"], rest, scale, kwargs["tree"]["flag"]))
        assert not isinstance(n, jax.Array) and not isinstance(scale, jax.Array)
        y = f(x, options["w"]) * scale if kwargs["tree"]["flag"] else x
        return {"y": y, "static": (options["name"], n, marker, None)}, [jnp.argmax(x), options["w"]]

    args = (jnp.array(X), 3, {"name": "q", "w": jnp.array(2 * X)}, len, None, np.str_("s"))
    kwargs = {"scale": 2.0, "tree": {"flag": True, "array": np.arange(2)}}
    expected, got = of_many(*args, **kwargs), jaxnn.automatic(of_many)(*args, **kwargs)
    assert seen == [(3, "q", (len, None, "s"), 2.0, True)] * 2
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if isinstance(b, jax.Array):
            assert isinstance(a, jax.Array) and a.dtype == b.dtype and a.weak_type == b.weak_type
            np.testing.assert_array_equal(a, b)
        else:
            assert a is b

    def of_arrays(f):
        def total(x, w):
            tree, rest = f(x, 3, {"name": "q", "w": w}, scale=2.0, tree={"flag": True})
            return jnp.sum(tree["y"]), (rest, tree["y"])

        return total

    (y, (rest, _)), gradients = jax.value_and_grad(of_arrays(jaxnn.automatic(of_many)), (0, 1), has_aux=True)(
        args[0], args[2]["w"]
    )
    assert y == 4 * (X**2).sum() and rest[0] == 0 and jnp.issubdtype(rest[0].dtype, jnp.integer)
    np.testing.assert_array_equal(gradients, [4 * X, 2 * X])


@pytest.mark.parametrize(
    "leaf", [np.str_("sum"), np.array(["sum", "mean"]), np.datetime64("2026-01-01"), np.array([None]), b"sum", 2 + 1j]
)
def test_leaves_that_are_no_arrays_are_static(leaf):
    f = wrong(square)
    gradient = jax.grad(jaxnn.automatic(lambda x, leaf: f(x) if leaf is given else x))
    given = leaf
    assert gradient(3.0, leaf) == 6


def test_python_scalars():
    f = jaxnn.automatic(wrong(square))
    assert f(3) == 9 and f(3.0) == 9.0 and jax.grad(f)(3.0) == 6 and jax.hessian(f)(3.0) == 2
    assert jaxnn.automatic(lambda n: 2 * n)(3) == 6
    assert jaxnn.automatic(lambda x, n: x if n > 2 else -x)(jnp.float32(1.0), 3) == 1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "weak", "int32"])
def test_values_and_gradients_keep_their_dtypes(dtype):
    f = wrong(lambda x: x * x + 1)
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(3.0) if dtype == "weak" else jnp.asarray(3, dtype)
        for run in (lambda f: f, jax.jit, jax.vmap):
            x_run = x[None] if run is jax.vmap else x
            value, expected = run(jaxnn.automatic(f))(x_run), run(f)(x_run)
            assert value.dtype == expected.dtype and value.weak_type == expected.weak_type == (dtype == "weak")
            np.testing.assert_array_equal(value, expected)
        if dtype != "int32":
            gradient = jax.grad(jaxnn.automatic(f), holomorphic=dtype == "complex64")(x)
            assert gradient == 6 and gradient.dtype == x.dtype and gradient.weak_type == (dtype == "weak")


def test_numpy_arguments():
    f = wrong(square)
    for x in (X, np.float32(3), np.int8(3), np.arange(3)):
        value = jaxnn.automatic(f)(x)
        assert isinstance(value, jax.Array) and value.dtype == jnp.asarray(f(jnp.asarray(x))).dtype
        np.testing.assert_array_equal(value, f(jnp.asarray(x)))


def test_integer_and_key_arguments():
    f = wrong(lambda x, i, key: x[i] * jax.random.normal(key))
    without, i, key = jaxnn.automatic(f), jnp.array([0, 0, 1]), jax.random.key(3)
    x, normal = jnp.array(X), jax.random.normal(key)
    np.testing.assert_array_equal(without(x, i, key), f(x, i, key))
    np.testing.assert_allclose(
        jax.grad(lambda x: jnp.sum(without(x, i, key)))(x), normal * np.array([2.0, 1.0]), rtol=1e-6
    )
    assert jax.grad(lambda i: jnp.sum(without(x, i, key)), allow_int=True)(i).dtype == jax.dtypes.float0
    split = jaxnn.automatic(lambda key, x: (jax.random.split(key), x))(key, x)[0]
    assert split.dtype == key.dtype and (jax.random.key_data(split) == jax.random.key_data(jax.random.split(key))).all()


def test_an_array_in_nondiff_argnums_is_a_constant():
    f = wrong(lambda x, w: x * w, nondiff_argnums=(1,))
    without = jaxnn.automatic(f)
    assert without(jnp.float32(2.0), jnp.float32(3.0)) == 6
    assert jax.grad(without)(jnp.float32(2.0), jnp.float32(3.0)) == 3
    w = jnp.float32(3.0)
    assert jax.jit(jax.grad(lambda x: without(x, w) ** 2))(2.0) == 36


def test_donated_argument():
    x, f = jnp.array(X), jax.jit(wrong(square), donate_argnums=0)
    np.testing.assert_array_equal(jaxnn.automatic(f)(x), X**2)
    assert x.is_deleted()


def test_static_arguments_of_jit():
    f = wrong(square)
    jitted = jax.jit(lambda n, x, mode: f(x) * n if mode == "sum" else x, static_argnums=0, static_argnames="mode")
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(jaxnn.automatic(jitted)(3, x, mode="sum")))(X), 6 * X)


def test_name_docstring_and_signature_are_kept():
    @jaxnn.automatic
    def documented(x: jax.Array, *, n: int = 3) -> jax.Array:
        """Say what it does."""
        return n * x

    assert (documented.__name__, documented.__doc__) == ("documented", "Say what it does.")
    assert str(inspect.signature(documented)).startswith("(x: jax.") and documented.__wrapped__(1.0) == 3.0
    partial = jaxnn.automatic(functools.partial(wrong(lambda n, x: n * x), 3.0))
    assert jax.grad(partial)(2.0) == 3
    assert jaxnn.automatic(jaxnn.relu).__name__ == "relu"

    class Layer(SimpleNamespace):
        @jaxnn.automatic
        def apply(self, x):
            return self.f(x) * self.scale

        def __call__(self, x):
            return self.f(x)

    layer = Layer(f=wrong(square), scale=2.0)
    assert jax.grad(layer.apply)(3.0) == 12 and jax.grad(jaxnn.automatic(layer))(3.0) == 6
