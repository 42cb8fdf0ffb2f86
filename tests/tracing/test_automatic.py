"""automatic(f) has f's values and JAX's own derivatives, wherever in f a hand-written rule stands.

Every rule here is wrong: it returns 100 times the cotangent, so a rule that survives is seen. Every placement computes
c·xᵖ, element by element, so the derivatives to compare with come from paper and not from JAX.
"""

import functools
import gc
import inspect
from types import SimpleNamespace

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas

import jaxnn
from jaxnn.tracing import rewriting

X = np.array([1.25, -0.75], np.float32)  # sums, products and powers of these are exact in float32
T = np.array([0.5, 2.0], np.float32)
MESH = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
SHARDED = jax.P("d")


def wrong(definition, *, symbolic_zeros=False, optimize_remat=False, **options):
    """Give the definition a rule whose derivative is 100 by every argument."""
    f = jax.custom_vjp(definition, **options)
    static = options.get("nondiff_argnums", ())

    def forward(*args):
        args = jax.tree.map(lambda a: getattr(a, "value", a), args, is_leaf=lambda a: hasattr(a, "perturbed"))
        return f(*args), [a for i, a in enumerate(args) if i not in static]

    def backward(*args):
        *_, residuals, dy = args
        dy = 100 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(dy) if is_inexact(leaf))
        return tuple(jax.tree.map(lambda a: jnp.full_like(a, dy) if is_inexact(a) else None, residuals))

    f.defvjp(forward, backward, symbolic_zeros=symbolic_zeros, optimize_remat=optimize_remat)
    return f


def is_inexact(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def square(x):
    return x * x


def nested(rule):
    inner = rule(square)
    middle = rule(lambda x: x * inner(x))
    return rule(lambda x: inner(x) * middle(x))


def jit_twice(rule, **options):
    f = jax.jit(rule(square), **options)
    return lambda x: f(x) + f(2 * x)


def jit_in_definition(rule):
    inner = jax.jit(rule(square))
    return rule(lambda x: inner(x) + inner(2 * x))


def scan(rule):
    f = rule(square)
    return lambda x: lax.scan(lambda c, _: (f(c), None), x, length=2)[0]


def scan_rows(rule):
    f = rule(lambda x, w: x * w)
    return lambda x: lax.scan(lambda c, row: (c, f(row, row)), 0.0, x, reverse=True)[1]


def scan_cond(rule):
    f = rule(square)
    body = jax.jit(lambda c, i: (lax.cond(i == 1, f, lambda c: c, c), None))
    return jax.jit(lambda x: lax.scan(body, x, jnp.arange(3))[0])


def while_loop(rule):
    f = rule(square)
    return lambda x: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, f(s[1])), (0, x))[1]


def while_condition(rule):
    f = rule(lambda x: jnp.sum(x * x))
    return lambda x: lax.while_loop(lambda s: (s[0] < 1) & (f(s[1]) > 0), lambda s: (s[0] + 1, s[1] ** 2), (0, x))[1]


def cond(rule):
    f = rule(square)
    return lambda x: lax.cond(x[0] > 0, f, lambda x: f(-x), x)


def switch(rule):
    f = rule(square)
    return lambda x: lax.switch(jnp.sum(x > 0), [lambda x: f(2 * x) / 4, lambda x: f(-x), f], x)


def vmap(in_axes, out_axes, pick):
    def build(rule):
        f = jax.vmap(rule(lambda x, w: x * w), in_axes, out_axes)

        def mapped(x):
            args = [x if axis is None else jnp.stack([x, 2 * x, 3 * x], axis) for axis in in_axes]
            return pick(f(*args))

        return mapped

    return build


def vmap_scan(rule):
    f = scan(rule)
    return lambda x: jax.vmap(f, 1, 1)(jnp.stack([3 * x, x], 1))[:, 1]


def scan_vmap(rule):
    f = rule(square)
    return lambda x: lax.scan(lambda c, _: (jax.vmap(f)(c), None), x, length=2)[0]


def collective(rule):
    f = rule(lambda x: x * lax.psum(x, "i"))
    return lambda x: jax.vmap(f, axis_name="i")(jnp.stack([x, x]))[1]


def remat_scan(rule):
    f = rule(square)
    body = jax.checkpoint(lambda c, _: (f(c), None), policy=jax.checkpoint_policies.dots_saveable)
    return jax.checkpoint(lambda x: lax.scan(body, x, length=2)[0])


def shard_map(check_vma, scanned=False):
    def build(rule):
        f = rule(square)
        body = (lambda x: lax.scan(lambda c, _: (f(c), None), x, length=2)[0]) if scanned else f
        return jax.shard_map(body, mesh=MESH, in_specs=SHARDED, out_specs=SHARDED, check_vma=check_vma)

    return build


def shard_map_replicated(rule):
    f = rule(lambda w, x: w[0] * x)
    f = jax.shard_map(f, mesh=MESH, in_specs=(jax.P(), SHARDED), out_specs=SHARDED)
    return lambda x: jnp.stack([f(x[i : i + 1], x)[i] for i in range(2)])


def custom_jvp(rule):
    """A body with a rule inside, and a custom_jvp rule that calls it: the derivative is 2·f(x)/x = 2 x."""
    f = jax.custom_jvp(rule(square))
    f.defjvp(lambda x, t: (f(*x), 2 * t[0] * inner(*x) / x[0]))
    inner = rule(square)
    return f


def custom_jvp_nested(rule):
    inner, inside = custom_jvp(rule), rule(square)
    f = jax.custom_jvp(lambda x: inside(x) * x)
    f.defjvp(lambda x, t: (f(*x), t[0] * (2 * inside(x[0]) + inner(x[0]))))
    return lambda x: lax.scan(lambda c, _: (jax.vmap(f)(c), None), x, length=1)[0]


def linear_solve(rule):
    f, double = rule(square), rule(lambda x: 2 * x)

    def solve(matvec, b):
        return b / 2

    return lambda x: lax.custom_linear_solve(lambda y: 2 * y, f(x), solve, solve) + double(f(x))


def pytrees(rule):
    def definition(tree, rest):
        return {"y": tree["a"] * tree["b"][0], "none": None}, (rest[0], tree["a"])

    f = rule(definition)

    def of_trees(x):
        tree, (one, same) = f({"a": x, "b": [x, None]}, (jnp.ones_like(x), ()))
        return tree["y"] * one + 0 * same

    return of_trees


def nondiff(rule):
    f = rule(lambda function, x, n: function(n * x), nondiff_argnums=(0, 2))
    return lambda x: f(square, x, 3)


def keywords(rule):
    f = rule(lambda x, w=2.0: w * x * x)
    return lambda x: f(x) + f(w=jnp.float32(3.0), x=x)


def closed_over(rule):
    on_device, on_host = jnp.array([3.0, 3.0]), np.array([2.0, 2.0], np.float32)
    return rule(lambda x: on_device * x * x * on_host)


def closed_over_tracer(rule):
    return lambda x: rule(lambda y: y * y * x)(x)


def loses_variables(rule):
    """Outputs that are inputs, literals, unused or given twice."""
    f = rule(lambda x, w: (x, 2.0, x * w, w, x, jnp.cos(x)))

    def of_many(x):
        a, b, c, d, _, _ = f(x, x)
        return a * d * b + c

    return of_many


def aliases(rule):
    """A result that is an argument, of another rule's result."""
    f, same = rule(square), rule(lambda x: x)
    return jax.jit(lambda x: same(same(f(same(x)))))


def gradient_alias(rule):
    gradient = rule(lambda x, w: x * x * w)
    return jax.custom_gradient(lambda x: (gradient(x, x), lambda dy: 100 * dy))


def key_and_integers(rule):
    def definition(x, key, n):
        return x * x * jax.random.uniform(key, x.shape, minval=2.0, maxval=2.0) * n.astype(x.dtype), n + 1

    f = rule(definition)
    return lambda x: f(x, jax.random.key(0), jnp.arange(3, 5) // 3)[0]


def of(f):
    return lambda rule: f(rule(square))


PLACEMENTS = {  # how a rule is placed, c, p
    "plain": (of(lambda f: f), 1, 2),
    "nested-three-deep": (nested, 1, 5),
    "jit": (of(jax.jit), 1, 2),
    "jit-of-jit": (of(lambda f: jax.jit(lambda x: jax.jit(f)(f(x)))), 1, 4),
    "jit-twice": (jit_twice, 5, 2),
    "jit-twice-inline": (functools.partial(jit_twice, inline=True), 5, 2),
    "jit-in-definition": (jit_in_definition, 5, 2),
    "scan": (scan, 1, 4),
    "scan-rows-reversed": (scan_rows, 1, 2),
    "scan-cond-in-jit": (scan_cond, 1, 2),
    "fori": (of(lambda f: lambda x: lax.fori_loop(0, 2, lambda i, c: f(c), x)), 1, 4),
    "map": (of(lambda f: lambda x: lax.map(f, x)), 1, 2),
    "while": (while_loop, 1, 4),
    "while-condition": (while_condition, 1, 2),
    "cond": (cond, 1, 2),
    "switch": (switch, 1, 2),
    "vmap-both": (vmap((0, -1), 0, lambda y: y[1]), 4, 2),
    "vmap-first": (vmap((1, None), 1, lambda y: y[:, 2]), 3, 2),
    "vmap-second": (vmap((None, 0), -1, lambda y: y[:, 1]), 2, 2),
    "vmap-of-scan": (vmap_scan, 1, 4),
    "vmap-of-vmap": (of(lambda f: lambda x: jax.vmap(jax.vmap(f))(jnp.stack([x, x]))[1]), 1, 2),
    "vmap-axis-name": (collective, 2, 2),
    "scan-of-vmap": (scan_vmap, 1, 4),
    "remat": (of(jax.checkpoint), 1, 2),
    "remat-of-scan-of-remat": (remat_scan, 1, 4),
    "shard_map": (shard_map(True), 1, 2),
    "shard_map-no-vma": (shard_map(False), 1, 2),
    "shard_map-of-scan": (shard_map(True, scanned=True), 1, 4),
    "shard_map-replicated": (shard_map_replicated, 1, 2),
    "pmap": (of(lambda f: jax.pmap(f, devices=jax.devices()[:2])), 1, 2),
    "custom_jvp": (custom_jvp, 1, 2),
    "custom_jvp-nested": (custom_jvp_nested, 1, 3),
    "custom_linear_solve": (linear_solve, 2.5, 2),
    "pytrees": (pytrees, 1, 2),
    "nondiff_argnums": (nondiff, 9, 2),
    "symbolic_zeros": (lambda rule: rule(square, symbolic_zeros=True), 1, 2),
    "optimize_remat": (lambda rule: rule(square, optimize_remat=True), 1, 2),
    "keywords": (keywords, 5, 2),
    "closed-over-arrays": (closed_over, 6, 2),
    "closed-over-tracer": (closed_over_tracer, 1, 3),
    "loses-variables": (loses_variables, 3, 2),
    "aliases": (aliases, 1, 2),
    "custom_gradient": (gradient_alias, 1, 3),
    "key-and-integers": (key_and_integers, 2, 2),
    "donated": (of(lambda f: jax.jit(f, donate_argnums=0)), 1, 2),
}  # fmt: skip
FORWARD = {"while", "while-condition"}  # JAX has no reverse mode of these
UNSEEN = {
    "custom_jvp",
    "custom_jvp-nested",
    "closed-over-tracer",
    "shard_map-replicated",
}  # the first gradient calls, or JAX accepts, no rule


def exact(c, p):
    """c·xᵖ and two derivatives, as JAX is asked for them."""
    d0, d1, d2 = lambda x: c * x**p, lambda x: c * p * x ** (p - 1), lambda x: c * p * (p - 1) * x ** (p - 2)
    rows = np.stack([X, 2 * X])
    return {
        "value": d0(X), "jvp": d1(X) * T, "vmap of jvp": d1(rows) * T, "jacfwd": np.diag(d1(X)),
        "jvp of jvp": d2(X) * T * T, "grad": d1(X), "grad of jit": d1(X), "vmap of grad": d1(rows),
        "jacrev": np.diag(d1(X)), "hessian": np.diag(d2(X)), "grad of grad": d2(X), "scan of grad": d1(rows),
    }  # fmt: skip


def asked(f, x, forward):
    """What is asked of f, in one program."""
    t, total = jnp.array(T), lambda x: jnp.sum(f(x))
    rows, gradient = jnp.stack([x, 2 * x]), jax.grad(total)

    def tangent(x):
        return jax.jvp(f, (x,), (t,))[1]

    answers = {"value": f(x), "jvp": tangent(x), "jacfwd": jax.jacfwd(f)(x)}
    if forward:
        return answers | {"vmap of jvp": jax.vmap(tangent)(rows), "jvp of jvp": jax.jvp(tangent, (x,), (t,))[1]}
    return answers | {
        "grad": gradient(x), "grad of jit": jax.grad(jax.jit(total))(x), "vmap of grad": jax.vmap(gradient)(rows),
        "jacrev": jax.jacrev(f)(x), "hessian": jax.hessian(total)(x),
        "grad of grad": jax.grad(lambda x: jnp.sum(gradient(x)))(x),
        "scan of grad": lax.scan(lambda c, x: (c, gradient(x)), 0, rows)[1],
    }  # fmt: skip


@pytest.mark.parametrize("id", PLACEMENTS)
def test_placement(id):
    build, c, p = PLACEMENTS[id]
    expected = exact(c, p)
    f = build(wrong)
    without = jaxnn.automatic(f)
    if id not in UNSEEN | FORWARD:  # the rule that is to be replaced is there
        assert np.abs(jax.grad(lambda x: jnp.sum(f(x)))(jnp.array(X)) - expected["grad"]).max() > 10

    for run in (lambda f: f, jax.jit):
        value = run(without)(jnp.array(X))
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, run(f)(jnp.array(X)))
    for name, answer in jax.jit(lambda x: asked(without, x, id in FORWARD))(X).items():
        np.testing.assert_allclose(answer, expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("id", [id for id in PLACEMENTS if id not in FORWARD | {"custom_gradient"}])
def test_automatic_inside(id):
    """Of each rule by itself, under what encloses it; then of the whole once more."""
    build, c, p = PLACEMENTS[id]
    inside = build(lambda *args, **kwargs: jaxnn.automatic(wrong(*args, **kwargs)))

    def answers(x):
        twice = jaxnn.automatic(jaxnn.automatic(inside))
        gradients = [jax.grad(lambda x, f=f: jnp.sum(f(x))) for f in (inside, twice)]
        return [(inside(x), *jax.jvp(gradient, (x,), (jnp.array(T),))) for gradient in gradients]

    expected = exact(c, p)
    for value, gradient, second in jax.jit(answers)(X):
        np.testing.assert_allclose(value, expected["value"], rtol=1e-6)
        np.testing.assert_allclose(gradient, expected["grad"], rtol=1e-6)
        np.testing.assert_allclose(second, expected["jvp of jvp"] / T, rtol=1e-6)


def test_axes_of_an_outer_transformation():
    f = wrong(lambda x: x * lax.psum(x, "d"))
    without = jaxnn.automatic(f)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(without(x)))(x)

    rows = jnp.stack([X, 2 * X])
    expected = np.broadcast_to(2 * rows.sum(0), rows.shape)
    np.testing.assert_array_equal(jax.vmap(gradient, axis_name="d")(rows), expected)
    np.testing.assert_array_equal(jax.vmap(gradient, 1, 1, axis_name="d")(rows.T), expected.T)
    for check_vma in (True, False):
        sharded = jax.shard_map(gradient, mesh=MESH, in_specs=SHARDED, out_specs=SHARDED, check_vma=check_vma)
        np.testing.assert_array_equal(sharded(rows), expected)
    np.testing.assert_array_equal(jax.pmap(gradient, axis_name="d", devices=jax.devices()[:2])(rows), expected)


def test_custom_root_refuses():
    """Its own rule differentiates what it holds: a rule inside would survive."""
    f = wrong(square)

    def newton(residual, guess):
        return guess - residual(guess)

    def tangent(linear, y):
        return y / linear(jnp.ones_like(y))

    def root(g):
        return lambda x: lax.custom_root(lambda y: y - g(x), 0 * x, newton, tangent)

    with pytest.raises(TypeError, match=r"inside jax.lax.custom_root, .* call automatic\(square\) there"):
        jaxnn.automatic(root(f))(3.0 * jnp.ones(()))
    assert float(jax.grad(root(jaxnn.automatic(f)))(3.0)) == pytest.approx(6.0)


def test_custom_vmap():
    f = wrong(square)
    batched = jax.custom_batching.custom_vmap(f)
    batched.def_vmap(lambda size, in_batched, x: (f(x), in_batched[0]))
    mapped = jax.vmap(jaxnn.automatic(batched))
    np.testing.assert_array_equal(jax.jvp(mapped, (jnp.array(X),), (jnp.array(T),))[1], 2 * X * T)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(mapped(x)))(jnp.array(X)), 2 * X)


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
def test_what_is_no_array_is_static(leaf):
    f = wrong(square)
    gradient = jax.grad(jaxnn.automatic(lambda x, leaf: f(x) if leaf is given else x))
    given = leaf
    assert gradient(3.0, leaf) == 6


def test_python_scalars():
    f = jaxnn.automatic(wrong(square))
    assert f(3) == 9 and f(3.0) == 9.0 and jax.grad(f)(3.0) == 6 and jax.hessian(f)(3.0) == 2
    assert jaxnn.automatic(lambda n: 2 * n)(3) == 6
    assert jaxnn.automatic(lambda x, n: x if n > 2 else -x)(jnp.float32(1.0), 3) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "weak", "int32"])
def test_types(dtype):
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


def test_array_that_must_not_be_traced():
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


def test_closed_over_tracers():
    f = wrong(square)
    with jax.checking_leaks():
        second = jax.grad(lambda w: jax.grad(lambda x: w * jaxnn.automatic(lambda y: f(x) * f(y) * f(w))(x))(3.0))(2.0)
    assert second == 3 * 2.0**2 * 4 * 3.0**3


def test_custom_jvp_rules_stay():
    seven = jax.custom_jvp(lambda x: x * x)
    seven.defjvp(lambda x, t: (seven(*x), 7 * t[0]))
    f = wrong(square)

    def placed(x):
        return jax.jit(lambda x: lax.cond(x > 0, lambda x: seven(f(x)), f, x))(x)

    assert jax.jvp(jaxnn.automatic(placed), (3.0,), (1.0,))[1] == jax.grad(jaxnn.automatic(placed))(3.0) == 42
    in_definition = jaxnn.automatic(wrong(lambda x: seven(f(x))))
    assert jax.jvp(in_definition, (3.0,), (1.0,))[1] == jax.grad(in_definition)(3.0) == 42

    rectified = jaxnn.automatic(lambda x: jax.nn.relu(f(x) - 4))
    assert [float(jax.grad(rectified)(x)) for x in (0.0, 2.0, 3.0)] == [0, 0, 6]
    assert [float(jax.hessian(rectified)(x)) for x in (0.0, 2.0, 3.0)] == [0, 0, 2]


def test_jaxnn_components():
    x = jnp.array([-1.0, 0.5, 2.0])
    relu = jaxnn.automatic(jaxnn.relu)
    np.testing.assert_array_equal(jax.jvp(relu, (x,), (jnp.ones(3),))[1], [0, 1, 1])
    np.testing.assert_array_equal(jax.hessian(lambda x: jnp.sum(relu(x) ** 2))(x), np.diag([0, 2, 2]))

    labels = jnp.array([2])

    def loss(z):
        return jaxnn.cross_entropy(z[None], labels)

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (x,), (x,))
    p = jax.nn.softmax(x)
    np.testing.assert_allclose(jax.jacfwd(jaxnn.automatic(loss))(x), p - jnp.eye(3)[2], atol=1e-6)
    np.testing.assert_allclose(jax.hessian(jaxnn.automatic(loss))(x), jnp.diag(p) - jnp.outer(p, p), atol=1e-6)


def test_rule_that_a_gradient_inside_used():
    f = wrong(square)
    for consumed in (
        jax.grad(f),
        jax.jit(jax.grad(f)),
        lambda x: jax.vjp(f, x)[1](jnp.float32(1.0))[0],
        lambda x: jax.grad(jax.checkpoint(f))(x),
    ):
        assert jaxnn.automatic(consumed)(jnp.float32(3.0)) == 100
    assert jax.grad(jaxnn.automatic(f))(3.0) == jaxnn.automatic(jax.grad(jaxnn.automatic(f)))(jnp.float32(3.0)) == 6


def test_flax():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, activation):
            self.linear, self.activation = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), activation

        def __call__(self, x):
            return jnp.sum(self.activation(self.linear(x)) ** 2)

    ours, theirs = (nnx.split(Net(activation)) for activation in (jaxnn.relu, jax.nn.relu))

    def loss(graph):
        return lambda params, x: nnx.merge(graph, params)(x)

    x = jnp.array(X)[None]
    expected = jax.grad(loss(theirs[0]))(theirs[1], x)
    for f in (jaxnn.automatic(loss(ours[0])), jaxnn.automatic(nnx.jit(loss(ours[0])))):
        assert jax.tree.all(jax.tree.map(jnp.array_equal, jax.grad(f)(ours[1], x), expected))
    assert jax.tree.all(jax.tree.map(jnp.allclose, jax.jacfwd(f)(ours[1], x), expected))
    assert jaxnn.automatic(nnx.merge(*ours))(x) == nnx.merge(*ours)(x)


def test_equinox():
    eqx = pytest.importorskip("equinox")
    f = wrong(square)

    class Net(eqx.Module):
        linear: eqx.nn.Linear
        activation: object
        power: int = eqx.field(static=True)
        name: str = "net"

        def __call__(self, x):
            return jnp.sum(self.activation(self.linear(x))) ** self.power

    net = Net(eqx.nn.Linear(2, 3, key=jax.random.key(0)), f, 2)
    plain = eqx.tree_at(lambda net: net.activation, net, square)

    def call(net, x):
        return net(x)

    x = jnp.array(X)
    expected = eqx.filter_grad(call)(plain, x)
    got = eqx.filter_grad(jaxnn.automatic(call))(net, x)
    np.testing.assert_allclose(got.linear.weight, expected.linear.weight, rtol=1e-6)
    np.testing.assert_allclose(
        eqx.filter_jit(eqx.filter_grad(jaxnn.automatic(eqx.filter_jit(call))))(net, x).linear.weight,
        expected.linear.weight,
        rtol=1e-6,
    )
    np.testing.assert_allclose(jax.grad(jaxnn.automatic(net))(x), jax.grad(plain)(x), rtol=1e-6)


@pytest.fixture
def compilations():
    names = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    "id", ["jit", "nested-three-deep", "jit-in-definition", "scan-cond-in-jit", "custom_jvp", "remat", "optimize_remat"]
)
def test_nothing_is_compiled_twice(id, compilations):
    f = jaxnn.automatic(PLACEMENTS[id][0](wrong))
    x = jnp.array(X)
    jax.clear_caches()
    f(x)
    assert compilations
    compilations.clear()
    f(x)
    assert not compilations

    gradient = jax.grad(lambda x: jnp.sum(f(x)))
    gradient(x)
    compilations.clear()
    gradient(x)
    assert not compilations


def test_function_under_jit_is_traced_once():
    f, traces = wrong(square), []

    @jax.jit
    def traced(x):
        traces.append(x)
        return f(x)

    without, x = jaxnn.automatic(traced), jnp.array(X)
    for run in (without, without, jax.grad(lambda x: jnp.sum(without(x))), jax.jit(without)):
        run(x)
    assert len(traces) == 1


@pytest.mark.parametrize("id", ["plain", "nested-three-deep", "jit-in-definition", "argument", "branch"])
def test_calls_leave_nothing_behind(id):
    def same(x):
        return x

    f = (
        PLACEMENTS[id][0](wrong)
        if id in PLACEMENTS
        else {"argument": same, "branch": lambda x: lax.cond(x[0] > 0, lambda x: x, square, x)}[id]
    )
    without, x = jaxnn.automatic(f), jnp.array(X)
    before = len(rewriting._rewritten)
    calls = 20 if id in ("branch", "jit-in-definition") else 100 if id == "nested-three-deep" else 1000
    for _ in range(calls):
        without(x)
    if calls == 20:
        jax.clear_caches()  # JAX's own
    gc.collect()
    assert len(rewriting._rewritten) <= before + 4


def test_function_that_is_forgotten():
    without = jaxnn.automatic(jax.jit(wrong(square)))
    without(jnp.array(X))
    before = len(rewriting._rewritten)
    del without
    jax.clear_caches()
    gc.collect()
    assert len(rewriting._rewritten) < before


def test_metadata():
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


@pytest.mark.parametrize("f", [None, "relu", 3.0, np.arange(3)])
def test_no_function(f):
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
def test_python_that_looks_at_values(f):
    for run in (lambda f: f, jax.jit, lambda f: jax.grad(lambda x: jnp.sum(f(x)))):
        with pytest.raises(
            TypeError, match=f"`f` \\({f.__name__}\\) must not branch in Python on the value of an array .*jax.lax.cond"
        ):
            run(jaxnn.automatic(f))(jnp.array(X))


def test_errors_of_f_are_its_own():
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


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(("definition", "primitive"), CALLS)
def test_definition_without_a_derivative(definition, primitive, around):
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


def test_callback_that_no_derivative_passes():
    f = wrong(lambda x: x * x * sine_on_host(lax.stop_gradient(x)))
    with_rule = jax.custom_jvp(sine_on_host)
    with_rule.defjvp(lambda x, t: (with_rule(*x), jnp.cos(x[0]) * t[0]))
    x = jnp.array(X)
    for run in (jaxnn.automatic(f), jax.jit(jaxnn.automatic(f))):
        np.testing.assert_allclose(jax.jvp(run, (x,), (jnp.ones(2),))[1], 2 * X * np.sin(X), rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(jaxnn.automatic(wrong(with_rule)), (x,), (x,))[1], X * np.cos(X), rtol=1e-6)


def test_effects_in_a_definition(capfd):
    def loud(x):
        jax.debug.print("seen {}", x)
        return x * x

    assert jax.jit(jax.grad(jaxnn.automatic(wrong(loud))))(3.0) == 6
    jax.effects_barrier()
    assert "seen 3" in capfd.readouterr().out
