"""What the shared tests do not see of the linear cross entropy: larger arrays, every size of block, second derivatives
with every option, memory, and the vocabulary over several devices."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import forms_of
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_components import DELTA, assert_close, x64
from test_transformations import operations

import jaxnn
from jaxnn.rules.blocks import least_overlapping
from jaxnn.tracing import kinds

loss = jaxnn.linear_cross_entropy
memories = pytest.mark.parametrize("memory", ["fast", "lean"])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
IGNORED = -100
OPTIONS = {
    "plain": {"ignore_index": IGNORED},
    "all": {"label_smoothing": 0.1, "z_loss": 0.05, "logit_softcap": 2.0, "ignore_index": IGNORED},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def arrays(n=6, d=3, v=8, dtype="float64", seed=0):
    """x, w, b and weight; and labels, one of which is ignored."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, d)), rng.standard_normal((v, d)), rng.standard_normal(v), rng.uniform(0.5, 2, v)
    labels = rng.integers(0, max(1, v), n)
    labels[n // 2] = IGNORED
    return tuple(jnp.asarray(a, dtype) for a in values), jnp.asarray(labels, jnp.int32)


def scalar(f, labels, **options):
    """The loss as a function of x, w, b and weight, under a cotangent that is another one for each row."""

    def total(x, w, b, weight):
        l = f(x, w, labels, b=b, weight=weight, **options)
        return jnp.sum(l * jnp.cos(jnp.arange(l.size, dtype=l.dtype)).reshape(l.shape))

    return total


def derivatives(f, primals):
    return jax.jit(jax.value_and_grad(f, (0, 1, 2, 3)))(*primals)


def assert_same(ours, truth, rtol=1e-11, atol=1e-12):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol, atol)


# The formula in NumPy, of twice the digits or so, and arrays of many blocks.


def exact(x, w, b, weight, labels, reduction, epsilon, z_loss, cap):
    """Value and gradients, by the formulas of the lecture notes; the mean's upstream gradient is 1."""
    a = x @ w.T + b
    z = cap * np.tanh(a / cap)
    e = np.exp(z - z.max(1, keepdims=True))
    p, log_total = e / e.sum(1, keepdims=True), z.max(1) + np.log(e.sum(1))
    counted = labels != IGNORED
    hot = labels[:, None] == np.arange(len(w))
    u = counted[:, None] * ((1 - epsilon) * hot + epsilon / len(w))
    q, minus_log_p = weight * u, log_total[:, None] - z
    l = (q * minus_log_p).sum(1) + z_loss * counted * log_total**2
    d = (hot * weight).sum(1)
    scale = d.sum() if reduction == "mean" else 1.0
    value = l.sum() / scale
    dz = (q.sum(1) + 2 * z_loss * counted * log_total)[:, None] * p - q
    da = dz / np.cosh(a / cap) ** 2 / scale
    dweight = (u * minus_log_p).sum(0) / scale
    if reduction == "mean":
        dweight -= value / scale * hot.sum(0)
    return value, da @ w, da.T @ x, da.sum(0), dweight


@pytest.mark.one_in(8)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@memories
def test_many_blocks_against_numpy(memory, reduction, dtype):
    with x64(dtype):
        primals, labels = arrays(67, 24, 211, dtype)
        settings = {"label_smoothing": 0.1, "z_loss": 0.01, "logit_softcap": 5.0}
        f = scalar(loss, labels, reduction=reduction, memory=memory, block_size=16, ignore_index=IGNORED, **settings)
        value, gradients = derivatives(f, primals)
        assert [g.dtype for g in gradients] == [a.dtype for a in primals]
        rounded = [np.asarray(a).astype(np.longdouble) for a in primals]
    truth = exact(*rounded, np.asarray(labels), reduction, *settings.values())
    rng, response = np.random.default_rng(1), [np.abs(t) for t in truth]
    for _ in range(3):
        moved = [a * (1 + DELTA * rng.choice([-1.0, 1.0], a.shape)) for a in rounded]
        now = exact(*moved, np.asarray(labels), reduction, *settings.values())
        response = [np.maximum(r, np.abs(n - t) / DELTA) for r, n, t in zip(response, now, truth, strict=True)]
    for name, a, t, r in zip(("l", "dx", "dw", "db", "dweight"), (value, *gradients), truth, response, strict=True):
        # At least the median element's response: a small one's own may be an accident of three draws of signs.
        assert_close(name, a, t, np.maximum(r, np.median(r)), dtype)


@pytest.mark.more
@memories
def test_every_size_of_block_is_the_same(memory):
    with jax.enable_x64(True):
        primals, labels = arrays(7, 3, 7)
        truth = derivatives(scalar(loss.definition, labels, **OPTIONS["all"]), primals)
        for block_size in (1, 2, 3, 6, 7, 100):
            f = scalar(loss, labels, memory=memory, block_size=block_size, **OPTIONS["all"])
            assert_same(derivatives(f, primals), truth)


@pytest.mark.parametrize(
    "size, block, length",
    [(0, 4, 1), (5, 100, 5), (10, 3, 3), (9, 8, 8), (1024, 256, 256), (1024, 192, 176), (50257, 2048, 2016)],
)
def test_blocks_of_even_length(size, block, length):
    """As many as of the greatest length, at multiples of 8 below it: the last overlaps the one before little."""
    assert least_overlapping(size, block) == length
    assert -(-size // length) == -(-size // block)


@pytest.mark.more
@pytest.mark.parametrize("summed", [3, 5, 100])
def test_blocks_of_the_sum_for_w_are_the_same(monkeypatch, summed):
    """In the fast form the vocabulary is blocked too, where it is large: here by force."""
    module = importlib.import_module("jaxnn.losses._linear_cross_entropy_inputs")
    with jax.enable_x64(True):
        primals, labels = arrays()
        sizes = module.Sizes(4, 3, min(summed, len(primals[1])))
        monkeypatch.setattr(module, "_block_sizes", lambda *_: (sizes, sizes))
        truth = derivatives(scalar(loss.definition, labels, **OPTIONS["all"]), primals)
        assert_same(derivatives(scalar(loss, labels, **OPTIONS["all"]), primals), truth)


@pytest.mark.one_in(6)
@memories
@reductions
def test_it_is_the_cross_entropy_of_linear(reduction, memory):
    def composed(x, w, labels, *, b, weight, **options):
        return jaxnn.cross_entropy(jaxnn.linear(x, w, b), labels, weight=weight, **options)

    with jax.enable_x64(True):
        primals, labels = arrays()
        for bad in (0, -1, 8):
            options = {"ignore_index": IGNORED, "label_smoothing": 0.2, "reduction": reduction}
            t = labels.at[1].set(bad)
            ours = derivatives(scalar(loss, t, memory=memory, block_size=4, **options), primals)
            assert_same(ours, derivatives(scalar(composed, t, **options), primals))
            assert bool(jnp.isnan(ours[0])) == (bad != 0)


@pytest.mark.more
@every_option
@memories
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives(reduction, memory, options):
    """Of rule and definition: reverse over reverse, and forward over reverse."""
    with jax.enable_x64(True):
        primals, labels = arrays(5, 2, 7)
        directions, _ = arrays(5, 2, 7, seed=1)
        blocks = {"memory": memory, "block_size": 3}

        def second(f):
            gradient = jax.grad(f, (0, 1, 2, 3))

            def along(*primals):
                return sum(jnp.vdot(g, v) for g, v in zip(gradient(*primals), directions, strict=True))

            return jax.jit(lambda p, v: (jax.grad(along, (0, 1, 2, 3))(*p), jax.jvp(gradient, p, v)[1]))(
                primals, directions
            )

        truth = second(scalar(loss.definition, labels, reduction=reduction, **options))
        assert_same(second(scalar(loss, labels, reduction=reduction, **blocks, **options)), truth)


# Work and memory.

N, D, V = 1024, 512, 32768
LARGE = [jax.ShapeDtypeStruct(s, t) for s, t in (((N, D), jnp.float32), ((V, D), jnp.float32), ((N,), jnp.int32))]


def hessian_product(f, x, w, t):
    return jax.grad(lambda w: jnp.sum(jax.grad(f, 1)(x, w, t)))(w)


def shapes(jaxpr):
    """The shapes of all arrays that a program computes, however deep."""
    return [v.aval.shape for eqn in kinds.equations(jaxpr) for v in eqn.outvars if hasattr(v.aval, "shape")]


@memories
def test_no_array_is_as_large_as_the_logits(memory):
    f = functools.partial(loss, memory=memory)
    with forms_of("cpu"):  # elsewhere, blocks are larger than LARGE
        for g in (f, jax.value_and_grad(f, (0, 1)), functools.partial(hessian_product, f)):
            assert max(math.prod(shape) for shape in shapes(jax.make_jaxpr(g)(*LARGE).jaxpr)) < N * V
    plain = jax.make_jaxpr(jax.grad(loss.definition))(*LARGE)
    assert max(math.prod(shape) for shape in shapes(plain.jaxpr)) == N * V


def temporaries(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.one_in(4)
@pytest.mark.parametrize("memory, share", [("fast", 0.12), ("lean", 0.05)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-4, "logit_softcap": 30.0}], ids=str)
def test_a_part_of_the_memory(memory, share, options):
    f = jax.value_and_grad(functools.partial(loss, memory=memory, **options), (0, 1))
    plain = jax.value_and_grad(functools.partial(loss.definition, **options), (0, 1))
    assert temporaries(f, *LARGE) <= share * temporaries(plain, *LARGE)


@memories
def test_a_second_derivative_does_not_keep_the_logits_either(memory):
    n, d, v = 4096, 16, 4096
    args = [jax.ShapeDtypeStruct(s, t) for s, t in (((n, d), jnp.float32), ((v, d), jnp.float32), ((n,), jnp.int32))]
    f = functools.partial(hessian_product, functools.partial(loss, memory=memory, block_size=64))
    assert temporaries(f, *args) <= 4 * n * v / 8


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("memory, products", [("fast", 3), ("lean", 4)])
def test_the_number_of_matrix_products_and_their_operands(memory, products, platform):
    x, w = (jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in LARGE[:2])
    t = LARGE[2]
    f = functools.partial(loss, memory=memory)
    with forms_of(platform):
        found = list(operations(jax.make_jaxpr(jax.value_and_grad(f, (0, 1)))(x, w, t).jaxpr, ("dot_general",)))
        value = list(operations(jax.make_jaxpr(f)(x, w, t).jaxpr, ("dot_general",)))
    assert len(found) == products
    for eqn in found:
        assert all(v.aval.dtype == jnp.bfloat16 for v in eqn.invars)
        assert eqn.params["preferred_element_type"] == jnp.float32
    assert len(value) == 1


def test_float16_does_not_lose_a_mean_over_many_rows():
    """1/N of a small probability is below what float16 can hold; the fast form divides its float32 sums."""
    n, v = 512, 1024
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(0.01 * rng.standard_normal(s), jnp.float16) for s in ((n, 4), (v, 4)))
    x, t = jnp.abs(x) + jnp.ones((), x.dtype), jnp.zeros(n, jnp.int32)
    db = jax.jit(jax.grad(lambda b: loss(x, w, t, b=b)))(jnp.zeros(v, jnp.float16))
    dw = jax.jit(jax.grad(loss, 1))(x, w, t)
    np.testing.assert_allclose(np.asarray(dw[1:, 0], np.float32), np.asarray(db[1:], np.float32), rtol=0.02)


# At the edges.


@pytest.mark.one_in(12)
@memories
@pytest.mark.parametrize("n, v, d", [(0, 4, 3), (2, 0, 3), (0, 0, 3), (1, 1, 1), (2, 3, 0), (1, 5, 2)])
def test_sizes_of_0_and_1(n, v, d, memory):
    with jax.enable_x64(True):
        (x, w, b, weight), _ = arrays(max(n, 1), d, v)
        x, t = x[:n], jnp.zeros(n, jnp.int32)
        for options in ({}, {"label_smoothing": 0.1, "weight": weight}):
            f = functools.partial(loss, targets=t, b=b, memory=memory, reduction="sum", **options)
            l, gradients = jax.jit(jax.value_and_grad(lambda x, w, f=f: f(x, w), (0, 1)))(x, w)
            assert [g.shape for g in gradients] == [x.shape, w.shape]
            np.testing.assert_allclose(l, loss.definition(x, w, t, b=b, reduction="sum", **options), 1e-12)
            assert bool(jnp.isnan(l)) == (v == 0 < n)


@memories
def test_a_mean_over_nothing_is_nan_and_has_gradient_0(memory):
    (x, w, _, weight), t = arrays(dtype="float32")
    for labels, weights in ((jnp.full_like(t, IGNORED), weight), (t.at[:].set(1), weight.at[1].set(0.0))):
        f = functools.partial(loss, targets=labels, ignore_index=IGNORED, memory=memory)
        l, gradients = jax.jit(jax.value_and_grad(lambda x, w, o, f=f: f(x, w, weight=o), (0, 1, 2)))(x, w, weights)
        assert jnp.isnan(l)
        assert all(not jnp.any(g) for g in gradients)


def test_arguments_of_two_dtypes_are_promoted():
    (x, w, _, _), t = arrays(dtype="float32")
    with jax.numpy_dtype_promotion("standard"):
        l, (dx, dw) = jax.value_and_grad(loss, (0, 1))(x.astype(jnp.bfloat16), w, t, ignore_index=IGNORED)
    assert (l.dtype, dx.dtype, dw.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)


@pytest.mark.one_in(3)
def test_class_weights_narrower_than_the_logits():
    with jax.enable_x64(True):
        (x, w, _, weight), t = arrays()
        f = functools.partial(loss, x, w, t, label_smoothing=0.1, ignore_index=IGNORED)
        l, dweight = jax.jit(jax.value_and_grad(lambda o: f(weight=o)))(weight.astype(jnp.float32))
        assert (l.dtype, dweight.dtype) == (jnp.float64, jnp.float32)
        np.testing.assert_allclose(l, f(weight=weight), rtol=1e-6)


# The vocabulary over several devices.


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def sharded(f, devices, rows, check_vma, **options):
    """The loss of arrays that are split over the devices of the axis "model", and the rows over "data"."""
    data = tuple(rows or ())
    reduction = options.get("reduction", "mean")
    per_class = P("model")

    def local(x, w, targets, b, weight):
        l = f(x, w, targets, b=b, weight=weight, axis_name="model", **options)
        return jax.lax.psum(l, data) if data and reduction != "none" else l

    mapped = jax.shard_map(
        local, mesh=devices, in_specs=(rows, per_class, rows, per_class, per_class),
        out_specs=rows if reduction == "none" else P(), check_vma=check_vma,
    )  # fmt: skip
    return lambda x, w, targets, *, b, weight, **_: mapped(x, w, targets, b, weight)


check_vma = pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])


@pytest.mark.one_in(12)
@check_vma
@memories
@reductions
def test_a_vocabulary_over_four_devices(reduction, memory, check_vma):
    with jax.enable_x64(True):
        primals, labels = arrays(6, 3, 12)
        options = {**OPTIONS["all"], "reduction": reduction}
        truth = derivatives(scalar(loss.definition, labels, **options), primals)
        f = sharded(loss, mesh(model=4), P(), check_vma, memory=memory, block_size=2, **options)
        assert_same(derivatives(scalar(f, labels), primals), truth)


@pytest.mark.one_in(8)
@check_vma
@memories
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_rows_over_other_devices(reduction, memory, check_vma):
    with jax.enable_x64(True):
        primals, labels = arrays(6, 3, 12)
        options = {**OPTIONS["all"], "reduction": reduction}
        truth = derivatives(scalar(loss.definition, labels, **options), primals)
        f = sharded(loss, mesh(data=2, model=2), P("data"), check_vma, memory=memory, block_size=2, **options)
        assert_same(derivatives(scalar(f, labels), primals), truth)


@memories
def test_the_definition_takes_several_devices_too(memory):
    with jax.enable_x64(True):
        primals, labels = arrays(6, 3, 12)
        truth = derivatives(scalar(loss.definition, labels, **OPTIONS["all"]), primals)
        f = sharded(loss.definition, mesh(model=4), P(), True, **OPTIONS["all"])
        assert_same(derivatives(scalar(f, labels), primals), truth)


@pytest.mark.one_in(4)
@check_vma
@memories
def test_bad_labels_over_several_devices(memory, check_vma):
    with jax.enable_x64(True):
        primals, labels = arrays(6, 3, 12)
        # Neither is a class, of a device that counts its own from 0 either.
        labels = labels.at[:2].set(jnp.array([12, -1], labels.dtype))
        truth = derivatives(scalar(loss.definition, labels, **OPTIONS["all"]), primals)
        assert jnp.isnan(truth[0])
        rows = sharded(loss, mesh(model=4), P(), check_vma, memory=memory, reduction="none", **OPTIONS["all"])
        x, w, b, weight = primals
        l = jax.jit(functools.partial(rows, b=b, weight=weight))(x, w, labels)
        assert [bool(nan) for nan in jnp.isnan(l)] == [True, True, False, False, False, False]
        mean = sharded(loss, mesh(model=4), P(), check_vma, memory=memory, **OPTIONS["all"])
        value, (dx, dw, db, _) = derivatives(scalar(mean, labels), primals)
        assert jnp.isnan(value) and jnp.isnan(dx[:2]).all() and jnp.isfinite(dx[2:]).all()
        assert jnp.isnan(dw).all() and jnp.isnan(db).all()


@pytest.mark.more
@check_vma
@memories
def test_second_derivatives_over_several_devices(memory, check_vma):
    with jax.enable_x64(True):
        primals, labels = arrays(4, 2, 8)

        def second(f):
            gradient = jax.grad(scalar(f, labels), (0, 1, 2, 3))

            def along(*p):
                return sum(jnp.vdot(jnp.cos(a), g) for a, g in zip(primals, gradient(*p), strict=True))

            return jax.jit(jax.grad(along, (0, 1, 2, 3)))(*primals)

        truth = second(functools.partial(loss.definition, **OPTIONS["all"]))
        f = sharded(loss, mesh(model=4), P(), check_vma, memory=memory, block_size=1, **OPTIONS["all"])
        assert_same(second(f), truth)


@pytest.mark.more
@memories
def test_a_gradient_taken_inside_of_shard_map(memory):
    """With `check_vma` JAX knows that x is the same on all devices: its gradient is the sum over them."""
    with jax.enable_x64(True):
        (x, w, _, _), labels = arrays(6, 3, 12)
        f = functools.partial(loss, ignore_index=IGNORED, memory=memory)
        gradient = jax.shard_map(
            jax.grad(functools.partial(f, axis_name="model"), (0, 1)),
            mesh=mesh(model=4), in_specs=(P(), P("model"), P()), out_specs=(P(), P("model")),
        )  # fmt: skip
        assert_same(jax.jit(gradient)(x, w, labels), jax.grad(f, (0, 1))(x, w, labels))


@memories
def test_under_shard_map_low_precision_is_summed_in_float32_over_the_devices(memory):
    (x, w, _, _), labels = arrays(8, 3, 4, "bfloat16")
    gradient = jax.shard_map(
        jax.grad(functools.partial(loss, reduction="sum", memory=memory, ignore_index=IGNORED), 1),
        mesh=mesh(data=4), in_specs=(P("data"), P(), P("data")), out_specs=P(),
    )  # fmt: skip
    psums = list(operations(jax.make_jaxpr(gradient)(x, w, labels).jaxpr, ("psum", "psum_invariant")))
    assert [v.aval.dtype for eqn in psums for v in eqn.invars if v.aval.shape == w.shape] == [jnp.float32]


@pytest.mark.parametrize("block_size", [6, 2])
def test_what_the_devices_exchange(block_size):
    """Once, and of each row: the maximum, Σ exp(z − max), z at the label, and the loss."""
    (x, w, _, _), labels = arrays(6, 3, 12, "float32")
    f = sharded(functools.partial(loss, block_size=block_size, memory="lean"), mesh(model=4), P(), True)
    jaxpr = jax.make_jaxpr(lambda x, w: f(x, w, labels, b=None, weight=None))(x, w).jaxpr
    exchanged = operations(jaxpr, ("pmax", "psum", "psum_invariant", "all_gather", "all_to_all", "ppermute"))
    found = [(eqn.primitive.name.removesuffix("_invariant"), v.aval.shape) for eqn in exchanged for v in eqn.invars]
    assert found == [("pmax", (6,))] + [("psum", (6,))] * 3


@memories
def test_classes_that_a_bias_of_minus_infinity_rules_out(memory):
    """All of a block's, too: their probability is 0, and nothing of them is NaN."""
    with jax.enable_x64(True):
        (x, w, b, _), labels = arrays(6, 3, 8)
        b, labels = b.at[:4].set(-jnp.inf), jnp.maximum(labels, 4)
        f = jax.value_and_grad(lambda f, x, w, b: f(x, w, labels, b=b, memory=memory, block_size=2), (1, 2, 3))
        ours, truth = (jax.jit(f, static_argnums=0)(g, x, w, b) for g in (loss, loss.definition))
        assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(ours))
        assert_same(ours, truth)


@memories
def test_float32_stays_float32_where_float64_is_enabled(memory):
    with jax.enable_x64(True):
        (x, w, b, weight), labels = arrays(6, 3, 8, "float32")
        f = scalar(loss, labels, memory=memory, block_size=2, **OPTIONS["all"])
        assert {str(a.dtype) for a in jax.tree.leaves(derivatives(f, (x, w, b, weight)))} == {"float32"}


@memories
def test_labels_of_64_bits(memory):
    """In several blocks, under the suite's strict promotion."""
    with jax.enable_x64(True):
        primals, labels = arrays()
        of = [
            derivatives(scalar(loss, labels.astype(d), memory=memory, block_size=3), primals)
            for d in ("int64", "int32")
        ]
        assert_same(*of)


def test_an_export_made_on_a_cpu_has_the_blocks_of_its_platform():
    def loops(platform):
        f = jax.jit(functools.partial(loss, memory="fast"))
        return f.trace(*LARGE).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")

    assert loops("cpu") > loops("cuda") == loops("tpu") == 0, "on a GPU or TPU, logits as few as these are one block"
