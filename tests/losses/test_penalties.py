"""The penalties over pytrees: value, gradient, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxnn

BOTH = [
    (jaxnn.l1_penalty, oracles.l1_penalty, oracles.l1_penalty_vjp),
    (jaxnn.l2_penalty, oracles.l2_penalty, oracles.l2_penalty_vjp),
]
both = pytest.mark.parametrize("f, oracle, oracle_vjp", BOTH, ids=["l1", "l2"])
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])


def params(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 4)), np.array([0.0, -0.0, 1.0]), np.float64(-2.5), np.zeros((0, 2))]
    a, b, c, d = (jnp.asarray(np.asarray(v).astype(jnp.dtype(dtype))) for v in arrays)
    return {"a": a, "b": [b, c], "d": d}


@dtypes
@both
def test_against_loops_and_autodiff(f, oracle, oracle_vjp, dtype):
    with jax.enable_x64(dtype == "float64"):
        p = params(dtype)
        leaves = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(p)]
        value, vjp = jax.vjp(f, p)
        (gradient,) = vjp(jnp.asarray(1.5, value.dtype))
        assert value.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_allclose(value, oracle(leaves), rtol=4 * float(jnp.finfo(value.dtype).eps))
        autodiff = jax.vjp(f.definition, p)[1](jnp.asarray(1.5, value.dtype))[0]
        rows = zip(
            jax.tree.leaves(gradient),
            jax.tree.leaves(p),
            oracle_vjp(leaves, 1.5),
            jax.tree.leaves(autodiff),
            strict=True,
        )
        for ours, primal, truth, auto in rows:
            assert (ours.shape, ours.dtype) == (primal.shape, primal.dtype)
            rounding = 2 * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(np.asarray(ours).astype(np.float64), truth, rtol=rounding)
            smooth = np.asarray(primal) != 0  # |w| has no derivative at 0: autodiff takes 1, we 0
            np.testing.assert_allclose(
                np.asarray(ours).astype(np.float64)[smooth], np.asarray(auto).astype(np.float64)[smooth], rtol=rounding
            )


@both
def test_against_torch(f, oracle, oracle_vjp):
    torch = pytest.importorskip("torch")
    w = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    t = torch.tensor(w, requires_grad=True)
    loss = t.abs().sum() if f is jaxnn.l1_penalty else (t * t).sum()
    loss.backward()
    np.testing.assert_allclose(f({"w": w}), loss.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(f)({"w": jnp.asarray(w)})["w"], t.grad.numpy(), rtol=1e-6)


@pytest.mark.more
@both
def test_transformations(f, oracle, oracle_vjp):
    with jax.enable_x64(True):
        p = params("float64")
        plain = jax.grad(f)(p)
        assert_same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), a, b)  # noqa: E731
        assert_same(jax.jit(jax.grad(f))(p), plain)
        assert_same(jax.grad(jax.checkpoint(f))(p), plain)
        assert_same(jax.jacrev(f)(p), plain)
        stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), p)
        assert_same(jax.tree.map(lambda a: a[0], jax.vmap(jax.grad(f))(stacked)), plain)
        scanned = jax.lax.scan(lambda c, q: (c, jax.grad(f)(q)), 0.0, stacked)[1]
        assert_same(jax.tree.map(lambda a: a[0], scanned), plain)
        second = jax.grad(
            lambda p: sum(
                jnp.sum(jnp.sin(g) * w) for g, w in zip(*map(jax.tree.leaves, (jax.grad(f)(p), p)), strict=True)
            )
        )
        assert_same(
            second({"w": p["a"]}),
            jax.grad(lambda p: jnp.sum(jnp.sin((2 * p["w"]) if f is jaxnn.l2_penalty else jnp.sign(p["w"])) * p["w"]))(
                {"w": p["a"]}
            ),
        )


@both
def test_nothing_costs_nothing_and_mixed_dtypes_keep_theirs(f, oracle, oracle_vjp):
    assert float(f({})) == 0.0 and f({}).dtype == jnp.float32
    mixed = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3, jnp.float32)}
    assert f(mixed).dtype == jnp.float32 and float(f(mixed)) == 5.0
    assert [g.dtype for g in jax.tree.leaves(jax.grad(f)(mixed))] == [jnp.bfloat16, jnp.float32]
    with jax.enable_x64(True):
        mixed |= {"c": jnp.full(2, 1.5, jnp.float64)}
        assert f(mixed).dtype == jnp.float64
        assert [g.dtype for g in jax.tree.leaves(jax.grad(f)(mixed))] == [jnp.bfloat16, jnp.float32, jnp.float64]
