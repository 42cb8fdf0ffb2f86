"""Under every transformation a component's gradient is its plain gradient, and under a second one JAX's own."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES

import jaxnn

CHOSEN = {
    "linear", "linear-vector", "conv2d-NCHW-all", "conv2d-NHWC-plain", "conv2d-NHWC-same", "relu", "sigmoid", "tanh",
    "max_pool2d-tiles-NHWC", "max_pool2d-overlap", "max_pool2d-padding", "softmax", "softmax-where-axis", "log_softmax",
    "log_softmax-where-axis", "nll-mean-weight", "nll-none-weight", "nll_loss-sum-weight", "nll_loss", "cross_entropy-plain",
    "cross_entropy-mean-weight-0.1", "cross_entropy-none-weight-0.1", "cross_entropy-soft-mean-0.1-True",
    "binary_cross_entropy-mean", "binary_cross_entropy-none", "squared_error-mean", "squared_error-none",
}  # fmt: skip
BY_ID = {case.id: case for case in CASES}
chosen = pytest.mark.parametrize("id", sorted(CHOSEN))


class Plain:
    """A case in float64: the function of its floating arguments, those, and a cotangent."""

    def __init__(self, id):
        self.case = BY_ID[id]
        rng = np.random.default_rng(zlib.crc32(id.encode()))
        self.args = [jnp.asarray(a) for a in self.case.make(rng)]
        self.floats = [i for i, a in enumerate(self.args) if jnp.issubdtype(a.dtype, jnp.floating)]
        self.dy = jnp.asarray(rng.standard_normal(jax.eval_shape(self.f, *self.args).shape))

    def f(self, *args, definition=False):
        return self.case.call(self.case.f.definition if definition else self.case.f, *args)

    def cotangents(self, args, dy, definition=False):
        def of_floats(*floats):
            filled = list(args)
            for i, a in zip(self.floats, floats, strict=True):
                filled[i] = a
            return self.f(*filled, definition=definition)

        return jax.vjp(of_floats, *(args[i] for i in self.floats))[1](dy)


@pytest.fixture
def plain(id):
    with jax.enable_x64(True):
        yield Plain(id)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@chosen
def test_jit_scan_and_remat(plain):
    expected = jax.jit(plain.cotangents)(plain.args, plain.dy)

    def scanned(args, dy):
        return jax.lax.scan(lambda c, dy: (c, plain.cotangents(args, dy)), 0.0, jnp.stack([dy, 2 * dy]))[1]

    twice = jax.jit(scanned)(plain.args, plain.dy)
    assert_same([t[0] for t in twice], list(expected))
    assert_same([t[1] / 2 for t in twice], list(expected))

    rematerialized = Plain.__new__(Plain)
    rematerialized.__dict__.update(plain.__dict__)
    rematerialized.f = lambda *args, definition: jax.checkpoint(plain.f)(*args)
    assert_same(jax.jit(rematerialized.cotangents)(plain.args, plain.dy), expected)


@chosen
def test_eager(plain):
    assert_same(plain.cotangents(plain.args, plain.dy), jax.jit(plain.cotangents)(plain.args, plain.dy))


@chosen
def test_vmap_over_every_subset_of_arguments(plain):
    if not plain.case.vmappable:
        pytest.skip("the case's axis counts from the front")
    operands = [*plain.args, plain.dy]

    def cotangents(*operands):
        return plain.cotangents(operands[:-1], operands[-1])

    def other(a):
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        return jnp.stack([a, 0.5 * a + 0.25 if floating else jnp.flip(a)], axis=-1 if a.ndim else 0)

    one = jax.jit(cotangents)
    for n in range(1, len(operands) + 1):
        for subset in itertools.combinations(range(len(operands)), n):
            batched = [other(a) if i in subset else a for i, a in enumerate(operands)]
            in_axes = [(-1 if a.ndim else 0) if i in subset else None for i, a in enumerate(operands)]
            got = jax.jit(jax.vmap(cotangents, in_axes))(*batched)
            for k in (0, 1):
                expected = one(*(b[..., k] if i in subset else b for i, b in enumerate(batched)))
                assert_same([g[k] for g in got], list(expected))


@chosen
def test_jacrev_row_by_row(plain):
    jacobians = jax.jit(jax.jacrev(plain.f, argnums=tuple(plain.floats)))(*plain.args)
    dy = plain.dy
    weighted = [jnp.tensordot(dy, j, dy.ndim) for j in jacobians]
    assert_same(weighted, list(plain.cotangents(plain.args, dy)))


@chosen
def test_gradient_of_a_gradient(plain):
    """Of rule and definition: the derivative of ⟨cotangents, v⟩ by every floating argument and by the cotangent."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(plain.cotangents, plain.args, plain.dy)
    v = [jnp.asarray(rng.standard_normal(s.shape)) for s in shapes]

    def second(definition):
        def inner(floats, dy):
            args = list(plain.args)
            for i, a in zip(plain.floats, floats, strict=True):
                args[i] = a
            cotangents = plain.cotangents(args, dy, definition)
            return sum(jnp.sum(c * u) for c, u in zip(cotangents, v, strict=True))

        return jax.jit(jax.grad(inner, (0, 1)))([plain.args[i] for i in plain.floats], plain.dy)

    assert_same(second(False), second(True))


@chosen
def test_forward_over_reverse(plain):
    """The rules are plain JAX: a Hessian by jvp of the gradient works, though jvp of the component does not."""

    def total(floats):
        args = list(plain.args)
        for i, a in zip(plain.floats, floats, strict=True):
            args[i] = a
        return jnp.sum(plain.dy * plain.f(*args))

    floats = [plain.args[i] for i in plain.floats]
    tangents = [jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in floats]
    forward = jax.jit(lambda f, t: jax.jvp(jax.grad(total), (f,), (t,))[1])(floats, tangents)

    def directional(floats):
        return sum(jnp.sum(g * t) for g, t in zip(jax.grad(total)(floats), tangents, strict=True))

    assert_same(forward, jax.jit(jax.grad(directional))(floats))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(total, (floats,), (tangents,))


def operations(jaxpr, names):
    """Every equation with one of these names, however deep."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in names:
            yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from operations(inner, names)


@pytest.mark.parametrize("inside, expected", [("highest", "HIGHEST"), (None, "DEFAULT")])
@pytest.mark.parametrize("id", ["linear", "conv2d-NHWC-plain"])
def test_a_rule_keeps_the_precision_of_its_forward_pass(id, inside, expected):
    outside = "highest" if inside is None else None
    case = BY_ID[id]
    args = [jnp.asarray(a, jnp.float32) for a in case.make(np.random.default_rng(0))]
    with jax.default_matmul_precision(inside):
        y, vjp = jax.vjp(functools.partial(case.call, case.f), *args)
    with jax.default_matmul_precision(outside):
        jaxpr = jax.make_jaxpr(vjp)(y)
    found = list(operations(jaxpr.jaxpr, ("dot_general", "conv_general_dilated")))
    assert len(found) >= 2
    for eqn in found:
        precision = eqn.params["precision"]
        assert {str(p).rpartition(".")[2] for p in (precision if isinstance(precision, tuple) else [precision])} == {
            expected
        }


def test_under_shard_map_a_replicated_weight_gets_the_sum_over_devices():
    from jax.sharding import AxisType
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    x, t = jnp.asarray(rng.standard_normal((8, 6, 6, 2)), jnp.float32), jnp.asarray(rng.integers(0, 3, 8), jnp.int32)
    params = [jnp.asarray(0.1 * rng.standard_normal(s), jnp.float32) for s in ((3, 3, 2, 4), (4,), (3, 16), (3,))]

    def loss(params, x, t):
        w0, b0, w1, b1 = params
        h = jaxnn.max_pool2d(jaxnn.relu(jaxnn.conv2d(x, w0, b0, layout="NHWC")), layout="NHWC")
        return jaxnn.cross_entropy(jaxnn.linear(h.reshape(x.shape[0], -1), w1, b1), t, reduction="sum")

    expected = jax.grad(loss)(params, x, t)
    in_specs = (P(), P("data"), P("data"))
    checked = jax.jit(jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=in_specs, out_specs=P()))
    unchecked = jax.jit(
        jax.shard_map(
            lambda *args: jax.lax.psum(jax.grad(loss)(*args), "data"),
            mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=False,
        )
    )  # fmt: skip
    for f in (checked, unchecked):
        for a, b in zip(f(params, x, t), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_under_shard_map_an_argument_that_varies_alone_leaves_the_gradient_its_type():
    from jax.sharding import AxisType
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3)), jnp.float32)
    where = jnp.asarray(np.random.default_rng(1).random((8, 3)) < 0.7)
    keys = jax.random.split(jax.random.key(0), 4)
    dy = jnp.arange(6.0).reshape(2, 3)

    def sharded(f, other):
        total = jax.shard_map(
            lambda x, o: jax.lax.psum(jnp.sum(dy * f(x, o)), "data"),
            mesh=mesh,
            in_specs=(P(), P("data")),
            out_specs=P(),
        )
        return jax.jit(jax.grad(total))(x, other)

    for f in (jaxnn.softmax, jaxnn.log_softmax):

        def masked(x, o, f=f):
            return jnp.where(o, f(x, -1, o), 0.0)

        one_by_one = [jax.grad(lambda x, o=o, g=masked: jnp.sum(dy * g(x, o)))(x) for o in where.reshape(4, 2, 3)]
        np.testing.assert_allclose(sharded(masked, where), sum(one_by_one), rtol=1e-5, atol=1e-5)
    expected = sum(jax.grad(lambda x, k=k: jnp.sum(dy * jaxnn.dropout(x, 0.5, k)))(x) for k in keys)
    np.testing.assert_allclose(sharded(lambda x, k: jaxnn.dropout(x, 0.5, k[0]), keys), expected, rtol=1e-6)


@pytest.mark.parametrize("f", [jaxnn.nll, jaxnn.nll_loss, jaxnn.cross_entropy])
def test_ignored_rows_leave_second_derivatives_finite(f):
    p, labels = jnp.array([[0.3, 0.7], [0.5, 0.5]]), jnp.array([0, -100])

    def squared_gradient(w):
        inner = jax.grad(lambda p: jnp.sum(w * f(p, labels, ignore_index=-100, reduction="none")))(p)
        return jnp.sum(inner**2)

    second = jax.grad(squared_gradient)(jnp.ones(2))
    assert float(second[0]) > 0 and float(second[1]) == 0.0


@pytest.mark.parametrize("f", [jaxnn.softmax, jaxnn.log_softmax])
def test_a_row_of_false_has_no_gradient_and_no_nan(f):
    x = jnp.array([[jnp.nan, 1.0, 2.0], [0.0, 1.0, 2.0]])
    where = jnp.array([[False, False, False], [True, False, True]])
    dy = jnp.array([[1.0, jnp.nan, 1.0], [1.0, jnp.inf, 2.0]])  # whatever arrives at an excluded entry is dropped
    (dx,) = jax.vjp(lambda x: f(x, -1, where), x)[1](dy)
    assert np.isfinite(dx).all() and not dx[0].any() and dx[1, 1] == 0
    assert np.isfinite(jax.grad(lambda x: jnp.sum(jnp.where(where, f.definition(x, -1, where), 0.0)))(x)).all()
