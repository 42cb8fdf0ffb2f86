"""Under every transformation a component's gradient is its plain gradient, and under a second one JAX's own."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, CHOSEN

import jaxnn
from jaxnn.tracing import kinds

BY_ID = {case.id: case for case in CASES}


def chosen(test):
    """One or two cases of each component; one in ten by default."""
    return pytest.mark.one_in(10)(pytest.mark.parametrize("id", sorted(CHOSEN))(test))


class Plain:
    """A case in float64: the function of its floating arguments, those, and a cotangent."""

    def __init__(self, id):
        self.case = BY_ID[id]
        rng = np.random.default_rng(zlib.crc32(id.encode()))
        self.args = [jax.device_put(np.asarray(a)) for a in self.case.make(rng)]
        self.floats = [i for i, a in enumerate(self.args) if jnp.issubdtype(a.dtype, jnp.floating)]
        self.dy = jax.device_put(rng.standard_normal(jax.eval_shape(self.f, *self.args).shape))

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
    assert_same([np.asarray(t)[0] for t in twice], list(expected))
    assert_same([np.asarray(t)[1] / 2 for t in twice], list(expected))

    rematerialized = Plain.__new__(Plain)
    rematerialized.__dict__.update(plain.__dict__)
    rematerialized.f = lambda *args, definition: jax.checkpoint(plain.f)(*args)
    assert_same(jax.jit(rematerialized.cotangents)(plain.args, plain.dy), expected)


@pytest.mark.more
@chosen
def test_eager(plain):
    assert_same(plain.cotangents(plain.args, plain.dy), jax.jit(plain.cotangents)(plain.args, plain.dy))


@chosen
def test_without_differentiation(plain):
    """Then the forward rule does not run."""
    f = jax.jit(plain.f, static_argnames="definition")
    assert_same(f(*plain.args), f(*plain.args, definition=True))


@chosen
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.more)])
def test_vmap_over_every_subset_of_arguments(plain, every):
    """Or over each argument alone, all, and all but one."""
    if not plain.case.vmappable:
        pytest.skip("the case's axis counts from the front")
    operands = [*plain.args, plain.dy]

    def cotangents(*operands):
        return plain.cotangents(operands[:-1], operands[-1])

    def other(a):
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        a = np.asarray(a)
        return np.stack([a, 0.5 * a + 0.25 if floating else np.flip(a)], axis=-1 if a.ndim else 0)

    one = jax.jit(cotangents)
    few = {1, len(operands) - 1, len(operands)}
    for n in range(1, len(operands) + 1) if every else sorted(few):
        for subset in itertools.combinations(range(len(operands)), n):
            batched = [other(a) if i in subset else a for i, a in enumerate(operands)]
            in_axes = [(-1 if a.ndim else 0) if i in subset else None for i, a in enumerate(operands)]
            got = jax.jit(jax.vmap(cotangents, in_axes))(*batched)
            for k in (0, 1):
                expected = one(*(b[..., k] if i in subset else b for i, b in enumerate(batched)))
                assert_same([np.asarray(g)[k] for g in got], list(expected))


@pytest.mark.more
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
    v = [jax.device_put(rng.standard_normal(s.shape)) for s in shapes]

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
    tangents = [jax.device_put(np.cos(np.arange(a.size, dtype=a.dtype)).reshape(a.shape)) for a in floats]
    forward = jax.jit(lambda f, t: jax.jvp(jax.grad(total), (f,), (t,))[1])(floats, tangents)

    def directional(floats):
        return sum(jnp.sum(g * t) for g, t in zip(jax.grad(total)(floats), tangents, strict=True))

    assert_same(forward, jax.jit(jax.grad(directional))(floats))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(total, (floats,), (tangents,))


def operations(jaxpr, names):
    """Every equation with one of these names, however deep."""
    return [eqn for eqn in kinds.equations(jaxpr) if eqn.primitive.name in names]


def in_float32(case):
    made = map(np.asarray, case.make(np.random.default_rng(0)))
    return [jnp.asarray(a, jnp.float32 if a.dtype == np.float64 else a.dtype) for a in made]


@pytest.mark.parametrize("inside, expected", [("highest", "HIGHEST"), (None, "DEFAULT")])
@pytest.mark.parametrize("id", ["linear", "conv2d-NHWC-plain", "linear_cross_entropy-lean"])
def test_a_rule_keeps_the_precision_of_its_forward_pass(id, inside, expected):
    outside = "highest" if inside is None else None
    case = BY_ID[id]
    args = in_float32(case)
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


@pytest.mark.parametrize("id", ["linear", "conv2d-NHWC-plain", "linear_cross_entropy-blocks"])
def test_a_precision_that_is_asked_for_reaches_the_forward_pass(id):
    case = BY_ID[id]
    args = in_float32(case)
    jaxpr = jax.make_jaxpr(functools.partial(case.call, functools.partial(case.f, precision="highest")))(*args)
    found = list(operations(jaxpr.jaxpr, ("dot_general", "conv_general_dilated")))
    assert found
    assert all(set(eqn.params["precision"]) == {jax.lax.Precision.HIGHEST} for eqn in found)


def test_a_precision_given_as_a_list_is_a_tuple_to_the_rule():
    from jaxnn.rules.cotangents import resolve_precision

    assert resolve_precision(["highest", "default"]) == ("highest", "default")


ARITHMETIC = {
    "add", "add_any", "sub", "mul", "div", "neg", "exp", "log", "log1p", "logistic", "tanh", "reduce_sum",
    "integer_pow", "square", "abs", "sign", "dot_general",
}  # fmt: skip
low_precisions = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


def assert_computed_in_float32(f, out_dtype, dtype, *floats):
    """Forward and backward: no arithmetic on `dtype` but products that are summed in float32."""

    def value_and_cotangents(*floats):
        y, vjp = jax.vjp(f, *floats)
        return y, vjp(jnp.ones_like(y))

    jaxpr = jax.make_jaxpr(value_and_cotangents)(*floats)
    assert jaxpr.out_avals[0].dtype == out_dtype
    for eqn in operations(jaxpr.jaxpr, ARITHMETIC):
        low = any(v.aval.dtype == dtype for v in eqn.invars)
        assert not low or eqn.params.get("preferred_element_type") == jnp.float32, eqn


@low_precisions
@pytest.mark.parametrize("id", [
    "linear", "relu", "sigmoid", "tanh", "max_pool2d-overlap", "softmax-where-axis", "log_softmax-where-axis",
    "nll-mean-weight", "nll_loss-mean-weight", "cross_entropy-mean-weight-0.1", "cross_entropy-soft-mean-0.1-True",
    "binary_cross_entropy-mean", "squared_error-mean", "linear_cross_entropy-mean-fast", "linear_cross_entropy-mean-lean",
])  # fmt: skip
def test_low_precision_is_computed_in_float32(id, dtype):
    """The bounds of test_components are too wide to tell, on arrays this small."""
    case = BY_ID[id]
    args = [np.asarray(a) for a in case.make(np.random.default_rng(0))]
    floats = {i: jnp.asarray(a, dtype) for i, a in enumerate(args) if a.dtype == np.float64}

    def f(*values):
        given = dict(zip(floats, values, strict=True))
        return case.call(case.f, *(given.get(i, a) for i, a in enumerate(args)))

    is_loss = case.f.__module__.startswith("jaxnn.losses")
    assert_computed_in_float32(f, "float32" if is_loss else dtype, dtype, *floats.values())


@low_precisions
def test_low_precision_is_dropped_in_float32(dtype):
    x, key = jnp.ones(6, dtype), jax.random.key(0)
    assert_computed_in_float32(lambda x: jaxnn.dropout(x, 0.4, key), dtype, dtype, x)


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("id", ["binary_cross_entropy-none", "squared_error-none"])
def test_a_loss_of_two_dtypes_is_computed_in_the_wider(id, narrow):
    case = BY_ID[id]
    with jax.enable_x64(True):
        exact = case.make(np.random.default_rng(0))
        args = [jnp.asarray(a, "float32" if i == narrow else "float64") for i, a in enumerate(exact)]
        exact = [np.asarray(a).astype("float64") for a in args]
        l, vjp = jax.vjp(functools.partial(case.call, case.f), *args)
        cotangents = vjp(jnp.ones_like(l))
    assert [a.dtype for a in (l, *cotangents)] == ["float64", *(a.dtype for a in args)]
    np.testing.assert_allclose(l, case.oracle(*exact), rtol=1e-13)
    for ours, truth in zip(cotangents, case.oracle_vjp(np.ones(l.shape), *exact), strict=True):
        np.testing.assert_allclose(ours, truth, rtol=8 * float(jnp.finfo(ours.dtype).eps))


@low_precisions
@pytest.mark.parametrize("id", ["conv2d-NHWC-plain", "conv2d-NHWC-groups"])
def test_gradients_of_filters_in_low_precision_are_summed_in_float32(id, dtype):
    case = BY_ID[id]
    args = [jnp.asarray(a, dtype) for a in case.make(np.random.default_rng(0))]
    y, vjp = jax.vjp(functools.partial(case.call, case.f), *args)
    found = list(operations(jax.make_jaxpr(vjp)(y).jaxpr, ("dot_general", "reduce_sum")))
    assert {eqn.primitive.name for eqn in found} == {"dot_general", "reduce_sum"}
    for eqn in found:
        assert jnp.float32 in (eqn.params.get("preferred_element_type"), eqn.invars[0].aval.dtype), eqn


@pytest.mark.more
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


@pytest.mark.parametrize("id", ["linear", "conv2d-NHWC-plain"])
def test_under_shard_map_a_bias_of_low_precision_is_summed_in_float32(id):
    """Over the devices, too: `jnp.sum` alone rounds each device's part to bfloat16 first."""
    from jax.sharding import AxisType
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    case = BY_ID[id]
    x, w, b = (jnp.asarray(a, jnp.bfloat16) for a in case.make(np.random.default_rng(0)))

    def gradient(b, x, w):
        return jax.grad(lambda b: jnp.sum(case.call(case.f, x, w, b).astype(jnp.float32)))(b)

    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P())
    jaxpr = jax.make_jaxpr(sharded)(b, jnp.concatenate([x, x]), w)
    psums = operations(jaxpr.jaxpr, ("psum", "psum_invariant"))
    assert [v.aval.dtype for eqn in psums for v in eqn.invars if v.aval.shape == b.shape] == [jnp.float32]


@pytest.mark.more
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


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_the_curvature_of_binary_cross_entropy_at_a_logit_of_0(t):
    assert float(jax.grad(jax.grad(jaxnn.binary_cross_entropy))(0.0, t)) == 0.25


@pytest.mark.parametrize("f, third", [(jaxnn.sigmoid, -0.125), (jaxnn.tanh, -2.0)])
def test_the_curvature_of_a_sigmoid_at_0(f, third):
    assert float(jax.grad(jax.grad(f))(0.0)) == 0.0
    assert float(jax.grad(jax.grad(f))(1e-3)) == pytest.approx(third * 1e-3, rel=1e-3)
