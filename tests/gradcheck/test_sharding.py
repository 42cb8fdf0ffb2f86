"""Arguments that are placed on devices, meshes in force, and the check of sharded arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import gradcheck
from jaxnn.gradcheck.checks import FULL

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).standard_normal((6, 2)), jnp.float32)
ONLY = tuple(set(FULL) - {"shard_map"})


def mesh(*types):
    return jax.make_mesh((2, 2), ("i", "j"), axis_types=types)


EXPLICIT, AUTO = mesh(AxisType.Explicit, AxisType.Explicit), mesh(AxisType.Auto, AxisType.Auto)
BOTH = mesh(AxisType.Explicit, AxisType.Auto)


def with_rule(definition, backward):
    f = jax.custom_vjp(definition)
    f.defvjp(lambda *args: (f(*args), args), lambda args, dy: backward(*args, dy))
    return f


softplus = with_rule(jax.nn.softplus, lambda x, dy: (dy * jnp.exp(x) / (1 + jnp.exp(x)),))  # wrong: NaN from x = 89
square = with_rule(lambda x: x * x, lambda x, dy: (2 * x * dy,))


def outcomes(report):
    return [(row.check, row.path, row.status, row.message) for row in report.rows if row.check != "cost"]


@functools.cache
def unplaced_outcomes():
    return outcomes(gradcheck.check(softplus, X, skip=("shard_map", "staging", "vmap", "second_order")))


PLACED = {
    "sharded": NamedSharding(EXPLICIT, P("i")),
    "replicated": NamedSharding(AUTO, P()),
    "on-both-kinds-of-axes": NamedSharding(BOTH, P("i", "j")),
    "second-device": jax.sharding.SingleDeviceSharding(jax.devices()[1]),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("where", PLACED)
def test_the_verdict_does_not_depend_on_where_the_arguments_lie(where):
    placed = jax.device_put(X, PLACED[where])
    found = outcomes(gradcheck.check(softplus, placed, skip=("shard_map", "staging", "vmap", "second_order")))
    assert found == unplaced_outcomes() and ("extremes", "FAIL") in {(check, status) for check, _, status, _ in found}


def test_keys_and_weak_types_may_be_placed():
    key = jax.device_put(jax.random.key(1), NamedSharding(AUTO, P()))
    scale = jax.device_put(jnp.full((4, 2), 2.0), jax.devices()[1])
    f = with_rule(
        lambda x, scale, key: (x * scale).astype(x.dtype) + jax.random.normal(key, x.shape).astype(x.dtype),
        lambda x, scale, key, dy: (dy * scale, (dy * x).astype(scale.dtype), None),
    )
    assert scale.weak_type and gradcheck.check(f, X, scale, key, level="rule").ok


def test_an_array_of_several_processes_is_refused(monkeypatch):
    placed = jax.device_put(X, NamedSharding(AUTO, P("i")))
    monkeypatch.setattr(type(X), "is_fully_addressable", False)
    with pytest.raises(
        ValueError, match=r"`x` \(shape \(4, 2\), on devices of several processes\) must be addressable"
    ):
        gradcheck.check(square, placed, level="rule")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("in_force", [EXPLICIT, AUTO, BOTH], ids=["explicit", "auto", "both"])
def test_a_right_rule_is_right_inside_of_a_mesh(in_force):
    with jax.set_mesh(in_force):
        placed = jax.device_put(X, P("i"))
        assert gradcheck.check(square, placed, level="rule").ok
        assert gradcheck.check(square, np.asarray(X), level="rule").ok
        assert jax.sharding.get_mesh() == in_force
        wrong = with_rule(lambda x: x * x, lambda x, dy: (2.02 * x * dy,))
        assert gradcheck.check(wrong, placed, level="rule").verdict == "wrong"


NEEDS_ITS_MESH = {
    "constraint": (AUTO, lambda x: jax.lax.with_sharding_constraint(jnp.sin(x), P("i"))),
    "shard_map": (AUTO, lambda x: jax.shard_map(jnp.sin, in_specs=P("i"), out_specs=P("i"))(x)),
    "size": (EXPLICIT, lambda x: x * jax.sharding.get_abstract_mesh().shape["i"]),
    "reshard": (EXPLICIT, lambda x: jax.sharding.reshard(jnp.sin(x), P(None, None))),
    "out_sharding": (BOTH, lambda x: jnp.einsum("ij,kj->ik", jnp.sin(x), x, out_sharding=P("i", None))),
    "type": (EXPLICIT, lambda x: x * len(jax.typeof(x).sharding.spec[0])),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", NEEDS_ITS_MESH)
def test_a_function_that_needs_its_mesh_keeps_it(name):
    in_force, definition = NEEDS_ITS_MESH[name]

    def backward(factor, x, dy):
        return tuple(factor * dx for dx in jax.vjp(definition, x)[1](dy))

    with jax.set_mesh(in_force):
        x = jax.device_put(X, P("i"))
        for factor, verdict in ((1.0, "right"), (1.01, "wrong")):
            f = with_rule(definition, functools.partial(backward, factor))
            assert gradcheck.check(f, x, level="rule").verdict == verdict


def test_a_function_with_a_mesh_of_its_own():
    constrained = with_rule(
        lambda x: jax.lax.with_sharding_constraint(x * x, NamedSharding(AUTO, P("i"))), lambda x, dy: (2 * x * dy,)
    )
    mapped = jax.shard_map(square, mesh=EXPLICIT, in_specs=P("i"), out_specs=P("i"))
    for f, x in ((constrained, X), (mapped, jax.device_put(X, NamedSharding(EXPLICIT, P("i"))))):
        assert gradcheck.check(f, x, level="rule").ok


# --- the check ---


def explicit_rows(f, *args, **options):
    rows = gradcheck.check(f, *args, skip=ONLY, **options).rows
    return {row.path: (row.status, row.message) for row in rows if "Explicit" in row.path and row.status != "NOTE"}


def notes(f, *args):
    return [row.message for row in gradcheck.check(f, *args, skip=ONLY).rows if row.status == "NOTE"]


def linear_backward(x, w, dy):
    """Each product is sharded as its primal, under an Explicit mesh and without one."""
    dx = jnp.einsum("no,oi->ni", dy, w, out_sharding=jax.typeof(x).sharding)
    return dx, jnp.einsum("no,ni->oi", dy, x, out_sharding=jax.typeof(w).sharding)


def test_a_right_rule_over_an_explicit_axis():
    rows = explicit_rows(with_rule(lambda x, w: x @ w.T, linear_backward), X, W)
    assert rows == {path: ("PASS", "the same gradient") for path in ("x (Explicit)", "w (Explicit)")}


def test_a_rule_that_is_wrong_only_over_an_explicit_axis():
    def backward(x, dy):
        return (dy * jnp.cos(x) * (1 if jax.typeof(x).sharding.spec[0] is None else 2),)

    rows = explicit_rows(with_rule(jnp.sin, backward), X)
    assert rows["x (Explicit)"][0] == "FAIL" and "without the transformation" in rows["x (Explicit)"][1]


def test_what_does_not_run_over_an_explicit_axis_is_unsupported():
    rule = with_rule(lambda x, w: x @ w.T, lambda x, w, dy: (dy @ w, dy.T @ x))  # JAX asks for an out_sharding
    status, message = explicit_rows(rule, X, W)["x (Explicit)"]
    assert status == "UNSUPPORTED" and "its definition does" in message and "out_sharding=" in message
    sort = with_rule(
        lambda x: jax.lax.top_k(x.T, 2)[0], lambda x, dy: jax.vjp(lambda x: jax.lax.top_k(x.T, 2)[0], x)[1](dy)
    )
    status, message = explicit_rows(sort, X)["x (Explicit)"]
    assert status == "UNSUPPORTED" and "neither f nor its definition" in message
    status, message = explicit_rows(square, X[:3, :1])["Explicit"]
    assert status == "INCONCLUSIVE" and "no argument has an axis that 2 devices divide" in message


def test_a_batch_is_sharded_with_its_labels():
    labels = jnp.array([0, 1, 1, 0])

    def definition(x, labels):
        return x * jax.nn.one_hot(labels, 2, dtype=x.dtype)

    f = with_rule(definition, lambda x, labels, dy: (definition(dy, labels), None))
    assert explicit_rows(f, X, labels)["x (Explicit)"] == ("PASS", "the same gradient")


def test_collectives_that_autodiff_does_without_are_counted():
    def backward(x, dy):
        return (dy * jnp.cos(x) + 0 * jnp.sum(x),)

    assert notes(with_rule(jnp.sin, lambda x, dy: (dy * jnp.cos(x),)), X) == []
    (message,) = notes(with_rule(jnp.sin, backward), X)
    assert message == "the rule's gradient has 1 all-reduce; JAX's derivative of the definition has no collective"


@pytest.mark.one_in(2)
@pytest.mark.parametrize("types", [EXPLICIT, AUTO], ids=["explicit", "auto"])
def test_the_mesh_may_be_given(types):
    rows = gradcheck.check(square, X, skip=ONLY, mesh=types).rows
    assert {row.status for row in rows} == {"PASS"} and any(row.path == "x (Explicit)" for row in rows)


# --- refs ---


def keeping(factor=1.0):
    """Write the cotangent down, and return it times a factor."""

    def backward(ref, dy):
        ref[...] = dy
        return factor * dy, None

    keep = jax.custom_vjp(lambda x, ref: x)
    keep.defvjp(lambda x, ref: (x, ref), backward)
    return keep


def closing_over(factor, by_rule):
    ref, keep = jax.new_ref(jnp.ones_like(X)), keeping(factor)

    def backward(_, dy):
        ref[...] = dy
        return (factor * dy,)

    own = jax.custom_vjp(lambda x: x)
    own.defvjp(lambda x: (x, None), backward)
    return lambda x: jnp.sin(own(x) if by_rule else keep(x, ref))


REFS = {
    "an argument": lambda factor: (lambda x, ref: jnp.sin(keeping(factor)(x, ref)), jax.new_ref(jnp.ones_like(X))),
    "a leaf": lambda factor: (lambda x, d: jnp.sin(keeping(factor)(x, d["r"])), {"r": jax.new_ref(jnp.ones_like(X))}),
    "closed over": lambda factor: (closing_over(factor, False),),
    "closed over by the rule": lambda factor: (closing_over(factor, True),),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", REFS)
def test_a_function_with_refs(name):
    for factor, verdict in ((1.0, "right"), (1.01, "wrong")):
        f, *rest = REFS[name](factor)
        assert gradcheck.check(f, X, *rest, level="rule").verdict == verdict


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "closed over" else pytest.mark.more) for n in REFS])
def test_what_cannot_run_with_refs_does_not_fail(name):
    f, *rest = REFS[name](1.0)
    report = gradcheck.check(f, X, *rest, skip=("cost", "extremes", "kinks"))
    assert report.ok and "could not run" not in str(report), report
    assert any(row.status == "UNSUPPORTED" for row in report.rows)


def test_the_refs_of_the_caller_keep_what_they_hold():
    ref = jax.new_ref(jnp.ones_like(X))
    assert gradcheck.check(lambda x, ref: jnp.sin(keeping()(x, ref)), X, ref, level="rule").ok
    assert np.array_equal(ref[...], np.ones_like(X))


def test_a_ref_that_is_read_counts_as_a_constant():
    scale = with_rule(lambda x, ref: x * ref[...], lambda x, ref, dy: (dy * ref[...], None))
    assert gradcheck.check(scale, X, jax.new_ref(2 * jnp.ones_like(X)), level="rule").ok


def test_an_argument_without_elements_is_not_sharded():
    for x in (X[:0], X[:, :0]):  # JAX 0.10 cannot place the second
        report = gradcheck.check(square, x, skip=ONLY)
        assert report.ok, report
