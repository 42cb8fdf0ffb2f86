"""Dropout: the probability, the independence of its bits, and the rule given the mask."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxnn

module = import_module("jaxnn.layers.dropout")


def kept(key, rate, shape):
    return np.asarray(jaxnn.dropout(jnp.ones(shape, jnp.float32), rate, key)) != 0


@pytest.mark.one_in(3)
@pytest.mark.parametrize("rate", [1e-4, 0.1, 0.25, 0.5, 0.9, 0.9999])
def test_the_drop_probability_is_the_rate_to_1e_4(rate):
    """From the threshold it is within 2⁻³³; here it is counted: 2e7 draws, five standard deviations, and 1e-4."""
    n = 20_000_000
    dropped = 1 - kept(jax.random.key(3), rate, (n,)).mean()
    assert abs(dropped - rate) < min(1e-4 + 5 * np.sqrt(rate * (1 - rate) / n), 6 * np.sqrt(rate * (1 - rate) / n))


@pytest.mark.more
def test_the_hash_permutes_so_the_threshold_is_the_probability():
    """Any key's hash is one-to-one: on a window of counters no value comes twice."""
    counters = jnp.arange(1 << 22, dtype=jnp.uint32)
    for s0, s1 in ((0, 0), (123456789, 987654321)):
        h = module._mix(module._mix(counters ^ jnp.uint32(s0)) + jnp.uint32(s1))
        assert len(np.unique(np.asarray(h))) == 1 << 22


def mixed(h):
    """C. Wellons' lowbias32, on Python's integers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ h >> shift) * factor % 2**32
    return h ^ h >> 16


def test_the_mask_is_the_hash_of_the_position():
    key = jax.random.key(3)
    s0, s1 = (int(s) for s in jax.random.bits(key, (2,), jnp.uint32))
    bits = np.array([mixed((mixed(i ^ s0) + s1) % 2**32) for i in range(600)]).reshape(20, 30)
    for threshold in (2**31, int(bits[3, 4]), int(bits[3, 4]) + 1):  # kept at the threshold itself
        np.testing.assert_array_equal(module._keep(threshold, (20, 30), key), bits >= threshold)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_bits_are_independent_over_positions_and_keys(rate):
    n, sigma = 1 << 20, 1 / np.sqrt(1 << 20)
    keys = [jax.random.key(0), jax.random.key(1), *jax.random.split(jax.random.key(2)), jax.random.key(2**31)]
    masks = [(kept(k, rate, (n,)) - (1 - rate)) / np.sqrt(rate * (1 - rate)) for k in keys]
    for i, a in enumerate(masks):
        for lag in (1, 2, 3, 16, 32, 64, 1024, 4096):
            assert abs(np.mean(a[:-lag] * a[lag:])) < 5 * sigma, f"lag {lag}"
        for b in masks[:i]:
            assert abs(np.mean(a * b)) < 5 * sigma, "two keys"
    counts = masks[0].reshape(-1, 64).sum(1)  # blocks of 64: the variance of a binomial
    assert abs(counts.var() / 64 - 1) < 0.06


def test_the_output_is_unbiased():
    x = jnp.full(4_000_000, 1.7, jnp.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        y = np.asarray(jaxnn.dropout(x.astype(dtype), 0.3, jax.random.key(5)), np.float64)
        expected = float(x.astype(dtype)[0])
        # A kept bfloat16 is 1.7 / 0.7 rounded once: off by at most half an ulp.
        assert abs(y.mean() / expected - 1) < 5 * np.sqrt(0.3 / 0.7 / x.size) + float(jnp.finfo(dtype).eps) / 2


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_rule_given_the_mask(dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        key = jax.random.key(7)
        x, dy = (jnp.asarray(rng.standard_normal((5, 6))).astype(dtype) for _ in range(2))
        keep = np.asarray(jaxnn.dropout(jnp.ones(x.shape, x.dtype), 0.4, key)) != 0
        y, vjp = jax.vjp(lambda x: jaxnn.dropout(x, 0.4, key), x)
        (dx,) = vjp(dy)
        assert dx.dtype == y.dtype == x.dtype
        p = round(0.4 * 2**32) / 2**32
        tolerance = 2 * float(jnp.finfo(dtype).eps)
        as64 = [np.asarray(a).astype(np.float64) for a in (x, dy, y, dx)]
        np.testing.assert_allclose(as64[2], oracles.dropout(as64[0], keep, p), rtol=tolerance)
        np.testing.assert_allclose(as64[3], oracles.dropout_vjp(as64[0], keep, p, as64[1])[0], rtol=tolerance)


def test_the_definition_drops_as_often():
    y = jaxnn.dropout.definition(jnp.ones(100_000), 0.25, jax.random.key(0))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs(float((y == 0).mean()) - 0.25) < 0.01


def test_the_ends_of_the_range():
    x = jnp.arange(6.0)
    key = jax.random.key(0)
    for f in (jaxnn.dropout, jaxnn.dropout.definition):
        np.testing.assert_array_equal(f(x, 0.0), x)
        np.testing.assert_array_equal(f(x, 1.0, key), 0 * x)
        np.testing.assert_array_equal(f(x, 0.5, deterministic=True), x)
        np.testing.assert_array_equal(f(x, 0.5, key, deterministic=True), x)
    np.testing.assert_array_equal(jax.grad(lambda x: jaxnn.dropout(x, 1.0, key).sum())(x), 0 * x)
    assert jaxnn.dropout(jnp.ones((0, 3)), 0.5, key).shape == (0, 3)
    with jax.enable_x64(True):  # the smallest rate is not 0
        assert float(jaxnn.dropout(jnp.ones(()), 2.0**-32, key)) == 1 / (1 - 2.0**-32)


def test_a_dropped_nan_is_zero():
    x = jnp.where(jnp.asarray(kept(jax.random.key(0), 0.5, (64,))), 1.0, jnp.nan)
    assert np.isfinite(jaxnn.dropout(x, 0.5, jax.random.key(0))).all()


def test_an_unmapped_key_shares_one_mask_and_mapped_keys_do_not():
    x, key = jnp.ones((4, 256)), jax.random.key(0)
    shared = jax.vmap(lambda x: jaxnn.dropout(x, 0.5, key))(x)
    assert (shared == shared[:1]).all()
    own = jax.vmap(lambda x, k: jaxnn.dropout(x, 0.5, k))(x, jax.random.split(key, 4))
    assert not (own[0] == own[1]).all()


@pytest.mark.more
def test_transformations_keep_the_mask():
    key, x = jax.random.key(2), jnp.linspace(-1.0, 1.0, 32)

    def f(x):
        return jnp.sum(jnp.sin(jaxnn.dropout(x, 0.5, key)))

    g = jax.grad(f)(x)
    for same in (jax.jit(jax.grad(f)), jax.grad(jax.checkpoint(f)), jax.vmap(jax.grad(f), axis_size=1, in_axes=None)):
        np.testing.assert_allclose(np.asarray(same(x)).reshape(32), g, rtol=1e-6)
    np.testing.assert_array_equal(g != 0, kept(key, 0.5, (32,)))
    hessian = jax.hessian(f)(x)
    np.testing.assert_allclose(
        hessian, np.diag(-4 * np.sin(2 * np.asarray(x)) * (np.asarray(g) != 0)), rtol=1e-5, atol=1e-6
    )


def test_raw_keys_work_as_typed_ones_do():
    x = jnp.ones(64)
    with_raw = jaxnn.dropout(x, 0.5, jax.random.PRNGKey(3))
    np.testing.assert_array_equal(with_raw, jaxnn.dropout(x, 0.5, jax.random.key(3)))
