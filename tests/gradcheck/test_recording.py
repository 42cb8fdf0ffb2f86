"""The plugin's recorder: it sees every call of a rule, with its values, and a test sees nothing of it."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo.specimen import primitive, sine_times, sine_times_bwd

from jaxnn import gradcheck
from jaxnn.gradcheck.pytest_plugin.recording import Recorder, recording

X = jnp.array([[0.5, -1.0, 2.0], [3.0, 0.25, -0.75]])


@jax.custom_vjp
def by_vjp(x):
    return jnp.sin(x)


by_vjp.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))


@jax.custom_jvp
def by_jvp(x):
    return jnp.sin(x)


by_jvp.defjvp(lambda p, t: (jnp.sin(p[0]), jnp.cos(p[0]) * t[0]))


@jax.custom_gradient
def by_gradient(x):
    return jnp.sin(x), lambda dy: (dy * jnp.cos(x),)


def by_hiprim(x):
    return primitive(sine_times, sine_times_bwd)(x, jnp.ones_like(x))


RULES = {"by_vjp": by_vjp, "by_jvp": by_jvp, "by_gradient": by_gradient, "by_hiprim": by_hiprim}


def scanned(f):
    return lambda x: jax.lax.scan(lambda c, row: (c + f(row).sum(), None), 0.0, x)[0]


def looped(f):
    return lambda x: jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, f(c[1])), (0, x))[1]


PLACES = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "grad": lambda f: jax.grad(lambda x: f(x).sum()),
    "jit of grad": lambda f: jax.jit(jax.grad(lambda x: f(x).sum())),
    "grad of jit": lambda f: jax.grad(jax.jit(lambda x: f(x).sum())),
    "vmap": jax.vmap,
    "jit of grad of scan of vmap": lambda f: jax.jit(jax.grad(scanned(jax.vmap(f)))),
    "eager scan": scanned,
    "grad of remat": lambda f: jax.grad(lambda x: jax.checkpoint(f)(x).sum()),
    "cond": lambda f: jax.jit(lambda x: jax.lax.cond(x.sum() > 0, f, jnp.cos, x)),
    "while": lambda f: jax.jit(looped(f)),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
    "second": lambda f: jax.jit(jax.grad(lambda x: jax.grad(lambda x: f(x).sum())(x).sum())),
    "donated": lambda f: jax.jit(lambda x: f(x), donate_argnums=0),
    "vmap of jit": lambda f: jax.vmap(jax.jit(f)),
}  # fmt: skip
CANNOT = {("by_vjp", "jvp"), ("by_gradient", "jvp"), ("by_hiprim", "jvp"), ("by_hiprim", "second")} | {
    ("by_hiprim", place) for place in PLACES if "vmap" in place or "remat" in place
}  # by JAX, with or without a recorder


def recorder_of_this_file():
    return Recorder(lambda place: place.file == __file__ or "zoo" in place.file)


def records_of(recorder):
    return [record for rule in recorder.rules.values() for record in rule.records.values()]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", RULES)
def test_a_call_is_recorded_with_its_values_and_changes_nothing(name, place):
    if (name, place) in CANNOT:
        pytest.skip("JAX cannot do this")
    expected = PLACES[place](RULES[name])(jnp.array(X))
    jax.clear_caches()  # what is traced already is not traced again
    recorder = recorder_of_this_file()
    with recording(recorder):
        found = PLACES[place](RULES[name])(jnp.array(X))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    records = records_of(recorder)
    assert any(record.leaves is not None for record in records), records
    inputs = np.concatenate([np.ravel(np.asarray(record.leaves[0])) for record in records if record.leaves])
    assert np.isin(inputs, np.asarray(X)).all()
    for record in (record for record in records if record.leaves):
        shape = ",".join(map(str, np.shape(record.leaves[0])))  # of one example, where there is a batch
        assert f" f32[{shape}]" in record.signature and record.batched == ("vmap" in place)
    # The forward rule calls the function, too; it is differentiated wherever `grad` or `jvp` is in the name.
    differentiates = any(word in place for word in ("grad", "jvp", "second"))
    assert all(rule.differentiated == differentiates for rule in recorder.rules.values())


def without_places(text):
    """A compiled program without the lines of Python that it comes from."""
    return re.sub(r"metadata=\{.*?\}", "", "ENTRY".join(text.split("ENTRY")[1:]))


def test_jax_is_as_before_at_the_end():
    before = jax.custom_vjp.__call__, jax.custom_jvp.__call__, type(jax.jit(by_vjp)).trace
    with recording(recorder_of_this_file()):
        assert jax.custom_vjp.__call__ is not before[0]
    assert (jax.custom_vjp.__call__, jax.custom_jvp.__call__, type(jax.jit(by_vjp)).trace) == before


@pytest.mark.parametrize("read", [
    lambda f: str(jax.make_jaxpr(f)(X)),
    lambda f: str(jax.make_jaxpr(jax.grad(lambda x: f(x).sum()))(X)),
    lambda f: jax.jit(f).lower(X).as_text(),
    lambda f: (jax.jit(f)(X), without_places(jax.jit(f).lower(X).compile().as_text()))[1],
])  # fmt: skip
def test_what_somebody_reads_of_a_program_is_the_same(read):
    def f(x):
        return by_vjp(x) + by_jvp(x)

    expected = read(f)
    jax.clear_caches()
    with recording(recorder_of_this_file()):
        assert read(f) == expected


def test_a_function_is_traced_as_often_as_before():
    traces = []

    @jax.jit
    def f(x):
        traces.append(1)
        return by_vjp(x)

    with recording(recorder_of_this_file()):
        for _ in range(5):
            f(X)
    assert len(traces) == 1


def test_the_hardest_of_several_calls_is_kept():
    recorder = recorder_of_this_file()
    calls = [jnp.zeros(3), jnp.array([jnp.nan, 1.0, 1.0]), jnp.array([30.0, 1.0, 1.0])]
    for kept, order in ((2, (0, 1, 2)), (2, (2, 0, 1))):
        recorder = recorder_of_this_file()
        with recording(recorder):
            f = jax.jit(by_vjp)
            for i in order:
                f(calls[i])
        jax.clear_caches()
        (record,) = records_of(recorder)
        np.testing.assert_array_equal(record.leaves[0], calls[kept])


def test_what_a_test_forbids_the_recorder_may():
    with recording(recorder_of_this_file()), warnings.catch_warnings(), jax.transfer_guard("disallow"):
        warnings.simplefilter("error")
        with jax.debug_nans(True), jax.checking_leaks():
            jax.jit(jax.grad(lambda x: by_vjp(x).sum()))(X)


def test_arguments_that_are_large_are_left_out_and_said(monkeypatch):
    monkeypatch.setattr("jaxnn.gradcheck.pytest_plugin.recording.LARGEST", 8)
    recorder = recorder_of_this_file()
    with recording(recorder):
        by_vjp(X)
    (record,) = records_of(recorder)
    assert record.leaves is None and "MiB" in record.left_out


def test_static_arguments_and_keys_and_kwargs_are_part_of_a_signature():
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def power(n, x, key):
        return x**n * jax.random.uniform(key)

    power.defvjp(lambda n, x, key: (power(n, x, key), (x, key)),
                 lambda n, r, dy: (dy * n * r[0] ** (n - 1) * jax.random.uniform(r[1]), None))  # fmt: skip
    recorder = recorder_of_this_file()
    with recording(recorder):
        for n in (2, 3):
            jax.jit(jax.grad(lambda x, n=n: power(n, x, key=jax.random.key(1)).sum()))(X)
    records = records_of(recorder)
    assert [record.signature.split(", key")[0] for record in records] == ["n=2, x f32[2,3]", "n=3, x f32[2,3]"]
    for record in records:
        f, args, kwargs = record.call()
        assert gradcheck.check(f, *args, kwargs=kwargs, level="rule").ok


@pytest.mark.parametrize("factor, verdict", [(1.0, "right"), (0.5, "wrong")])
@pytest.mark.parametrize("checks_varying", [True, False])
def test_a_call_inside_of_a_shard_map_is_called_again_over_a_mesh(checks_varying, factor, verdict):
    @jax.custom_vjp
    def total(x):
        return jax.lax.psum(jnp.sin(x), "i")

    def bwd(x, dy):
        dy = jax.lax.pcast(dy, "i", to="varying") if checks_varying else jax.lax.psum(dy, "i")
        return (factor * dy * jnp.cos(x),)

    total.defvjp(lambda x: (total(x), x), bwd)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("i",), axis_types=auto, devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec("i")
    over = jax.shard_map(total, mesh=mesh, in_specs=spec, out_specs=jax.P(), check_vma=checks_varying)
    recorder = recorder_of_this_file()
    with recording(recorder):
        jax.jit(over)(X)
    (record,) = records_of(recorder)
    assert record.axes == {"i": 2} and record.leaves[0].shape == (2, 1, 3)
    f, args, kwargs = record.call()
    report = gradcheck.check(f, *args, kwargs=kwargs, level="rule")
    assert report.verdict == verdict, report


def test_a_call_that_raises_is_forgotten():
    recorder = recorder_of_this_file()
    with recording(recorder):
        for x in ("text", X):
            with pytest.raises(TypeError):
                by_vjp(x, x)
        with pytest.raises(TypeError):
            by_vjp("text")
    assert not recorder.rules


def test_numbers_and_arrays_that_jax_makes_under_a_trace_are_plain_ones():
    """The forward rule calls the function with JAX's own kinds of them."""

    @jax.custom_vjp
    def power(x, n, w):
        return w.sum() * x**n

    power.defvjp(lambda x, n, w: (power(x, n, w), (x, n)), lambda r, dy: (dy * r[1] * r[0], None, None))
    recorder = recorder_of_this_file()
    with recording(recorder):
        jax.grad(lambda x: power(x, 2.0, np.ones(2, np.float32)).sum())(X)
    (record,) = records_of(recorder)
    assert [type(x) for x in record.leaves] == [np.ndarray, float, np.ndarray] and "n=2.0" in record.signature


def test_jaxs_solvers_are_no_rules_of_their_own():
    """`custom_root`'s arguments are the constants of several functions, and have no meaning apart."""
    recorder = Recorder(lambda place: True)

    def root(a):
        return jax.lax.custom_root(
            lambda x: x * x - a, jnp.ones(()), lambda f, x: jnp.sqrt(a), lambda g, y: y / g(jnp.ones(()))
        )

    with recording(recorder):
        jax.grad(root)(jnp.float32(2.0))
        by_vjp(X)
    assert [rule.name.rsplit(".")[-1] for rule in recorder.rules.values()] == ["by_vjp"]
