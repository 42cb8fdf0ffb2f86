"""automatic(f) has f's values and JAX's own derivatives, wherever in f a hand-written rule stands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from placements import FORMS, FORWARD, MESH, NOT_A_PRIMITIVE, PLACEMENTS, SHARDED, UNSEEN, T, X, square, wrong

import jaxnn


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


@pytest.mark.one_in(9)
@pytest.mark.parametrize("id", PLACEMENTS)
def test_a_rule_is_replaced_wherever_it_stands(id):
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


@pytest.mark.one_in(3)
@pytest.mark.parametrize("id", [id for id in PLACEMENTS if id not in FORWARD | {"custom_gradient"}])
def test_automatic_of_each_rule_by_itself(id):
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


def test_a_collective_over_the_axis_of_an_outer_transformation():
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


def test_rules_inside_custom_vmap_are_replaced():
    f = wrong(square)
    batched = jax.custom_batching.custom_vmap(f)
    batched.def_vmap(lambda size, in_batched, x: (f(x), in_batched[0]))
    mapped = jax.vmap(jaxnn.automatic(batched))
    np.testing.assert_array_equal(jax.jvp(mapped, (jnp.array(X),), (jnp.array(T),))[1], 2 * X * T)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(mapped(x)))(jnp.array(X)), 2 * X)


def test_closed_over_tracers():
    f = wrong(square)
    with jax.checking_leaks():
        second = jax.grad(lambda w: jax.grad(lambda x: w * jaxnn.automatic(lambda y: f(x) * f(y) * f(w))(x))(3.0))(2.0)
    assert second == 3 * 2.0**2 * 4 * 3.0**3


@pytest.mark.one_in(40)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("id", PLACEMENTS)
def test_a_rule_of_another_form_is_replaced_too(id, form):
    if form == "HiPrim" and id in NOT_A_PRIMITIVE:
        pytest.skip("a HiPrim cannot stand there")
    build, c, p = PLACEMENTS[id]
    without, expected = jaxnn.automatic(build(FORMS[form])), exact(c, p)
    np.testing.assert_array_equal(without(jnp.array(X)), build(FORMS[form])(jnp.array(X)))
    for name, answer in jax.jit(lambda x: asked(without, x, id in FORWARD))(X).items():
        np.testing.assert_allclose(answer, expected[name], rtol=1e-6, err_msg=name)


def test_rules_of_jaxs_own_functions_stay():
    f = wrong(square)
    rectified = jaxnn.automatic(lambda x: jax.nn.relu(f(x) - 4))
    assert [float(jax.grad(rectified)(x)) for x in (0.0, 2.0, 3.0)] == [0, 0, 6]
    assert [float(jax.hessian(rectified)(x)) for x in (0.0, 2.0, 3.0)] == [0, 0, 2]


@pytest.mark.more
def test_components_get_forward_mode_and_hessians():
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


def test_a_rule_that_a_gradient_inside_has_used_stays():
    f = wrong(square)
    for consumed in (
        jax.grad(f),
        jax.jit(jax.grad(f)),
        lambda x: jax.vjp(f, x)[1](jnp.float32(1.0))[0],
        lambda x: jax.grad(jax.checkpoint(f))(x),
    ):
        assert jaxnn.automatic(consumed)(jnp.float32(3.0)) == 100
    assert jax.grad(jaxnn.automatic(f))(3.0) == jaxnn.automatic(jax.grad(jaxnn.automatic(f)))(jnp.float32(3.0)) == 6


@pytest.mark.more
def test_a_flax_model_has_the_gradients_of_plain_functions():
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


@pytest.mark.more
def test_an_equinox_model_has_the_gradients_of_plain_functions():
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


def test_prints_in_a_definition_still_print(capfd):
    def loud(x):
        jax.debug.print("seen {}", x)
        return x * x

    assert jax.jit(jax.grad(jaxnn.automatic(wrong(loud))))(3.0) == 6
    jax.effects_barrier()
    assert "seen 3" in capfd.readouterr().out
