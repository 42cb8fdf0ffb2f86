"""The child process that checks `shard_map` on two devices for a parent that has one."""

import functools
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rules_to_send as rules

from jaxnn import gradcheck
from jaxnn.gradcheck import _child, _sending, _two_devices
from jaxnn.gradcheck._two_devices import two_devices
from jaxnn.gradcheck.checks import FULL

X = jnp.array([[0.3, -0.7], [1.2, -0.4]])
OPTIONS = {"argnums": None, "seed": 0, "rtol": None}


@pytest.fixture
def one_device(monkeypatch):
    """The tests have four devices: with fewer, the parent starts a child."""
    monkeypatch.setattr(_two_devices.jax, "device_count", lambda: 1)


def found(f, *args, seconds=60, **kwargs):
    with two_devices(True, f, args, kwargs, OPTIONS) as child:
        return child.rows("shard_map", seconds)


def unpacked(what):
    """What the child makes of what it is sent."""
    return pickle.loads(_sending.packed(what))


SENT = {
    "custom_vjp": rules.sine,
    "of a lambda": rules.cube,
    "jit": rules.jitted,
    "partial": rules.squared,
    "partial made here": functools.partial(rules.power, 3),
    "method": rules.Layer(2.0).apply,
    "object": rules.Layer(jnp.float32(2.0)),
    "made here": rules.closed_over(),
    "library": jnp.sin,
    "ufunc": jnp.add,
}


@pytest.mark.parametrize("name", SENT)
def test_what_has_a_name_can_be_sent(name):
    f = SENT[name]
    args = (X, X) if name == "ufunc" else (X,)
    assert np.array_equal(unpacked(f)(*args), f(*args))


def test_arguments_keep_their_values_and_types():
    key, half, ref = jax.random.key(3, impl="rbg"), jnp.ones(2, jnp.bfloat16), jax.new_ref(X)
    sent = unpacked({"key": key, "half": half, "ref": ref, "host": np.arange(3), "static": "same"})
    assert jax.random.key_impl(sent["key"]) == jax.random.key_impl(key) and sent["half"].dtype == jnp.bfloat16
    assert np.array_equal(jax.random.key_data(sent["key"]), jax.random.key_data(key))
    assert np.array_equal(sent["ref"][...], X) and sent["static"] == "same" and type(sent["host"]) is np.ndarray


def test_what_has_no_name_travels_by_its_code():
    factor = jnp.float32(3.0)

    @jax.custom_vjp
    def inside(x):
        return factor * x

    inside.defvjp(lambda x: (inside(x), None), lambda r, dy: (2 * factor * dy,))
    for f in (inside, lambda x: inside(x), rules.closed_over()):
        there = unpacked(f)
        assert np.array_equal(there(X), f(X))
        assert np.array_equal(jax.grad(lambda x, f=there: f(x).sum())(X), jax.grad(lambda x, f=f: f(x).sum())(X))


def test_a_module_can_be_left_behind():
    for own in (rules.sine, rules.power):
        assert b"rules_to_send" in _sending.packed(own) and pickle.loads(_sending.packed(own)) is own
        (there,) = pickle.loads(_sending.packed([own], by_value=["rules_to_send"]))
        assert there is not own
    (sine,) = pickle.loads(_sending.packed([rules.sine], by_value=["rules_to_send"]))
    assert np.array_equal(sine(X), rules.sine(X))


def test_the_rows_of_the_child(one_device):
    rows, cause = found(rules.sine, X)
    assert not cause and {row.status for row in rows} == {"PASS"}
    assert [row.path for row in rows] == ["all (check_vma=True)", "all (check_vma=False)", "x (Explicit)"]


@pytest.mark.more
def test_a_wrong_rule_is_found_and_prints_do_no_harm(one_device):
    rows, _ = found(rules.sum_over_devices, X)
    assert {row.path for row in rows if row.status == "FAIL"} == {"all (check_vma=False)"}
    rows, cause = found(rules.noisy, X)
    assert not cause and {row.status for row in rows} == {"PASS"}
    rows, cause = found(rules.of_dict, {"w": X}, jax.random.key(0), n=2)
    assert not cause and {row.status for row in rows} == {"PASS"}


def test_a_child_that_dies_or_hangs_or_cannot_run_is_the_reason(one_device, monkeypatch):
    for f, words in ((rules.dies, "exit code 3"), (rules.only_on_one_device, "two devices are too many")):
        rows, cause = found(f, X)
        assert not rows and words in cause
    started = time.monotonic()
    rows, cause = found(rules.waits, X, seconds=0.2)
    assert not rows and "did not finish within 0.2 s" in cause and time.monotonic() - started < 10
    monkeypatch.setattr(_child, "STARTED_WITH", "print('no JSON')")
    assert "exit code 0" in found(rules.sine, X)[1]
    monkeypatch.setattr(_child, "STARTED_WITH", "import a_module_that_is_missing")
    assert "No module named 'a_module_that_is_missing'" in found(rules.sine, X)[1]
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "Python cannot be started" in found(rules.sine, X)[1]


def test_the_child_is_gone_afterwards(one_device):
    with two_devices(True, rules.waits, (X,), {}, OPTIONS) as child:
        pass
    assert child.process.returncode is not None and child.output.closed and child.stderr.closed


def test_no_child_where_it_is_not_wanted(one_device, monkeypatch):
    monkeypatch.setattr(_child.subprocess, "Popen", None)  # starting one would raise
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    for options in ({"level": "rule"}, {"skip": tuple(FULL)}):
        gradcheck.check(rules.sine, X, **options)
    others = [name for name in FULL if name != "shard_map"]
    assert gradcheck.check(rules.sine, X, skip=others, mesh=mesh).ok  # so does a child


def test_check_puts_the_rows_where_they_belong(one_device):
    skip = [name for name in FULL if name not in ("shard_map", "types", "closure")]
    report = gradcheck.check(rules.sine, X, skip=skip)
    assert report.ok and [row.check for row in report.rows] == ["signature", "types", *["shard_map"] * 3, "closure"]
    report = gradcheck.check(functools.partial(with_a_lock, threading.Lock()), X, skip=skip)
    (row,) = [row for row in report.rows if row.status == "INCONCLUSIVE"]
    assert report.ok and "cannot pickle '_thread.lock' object" in row.message and "JAX_NUM_CPU_DEVICES=2" in row.message


def with_a_lock(lock, x):
    with lock:
        return rules.sine(x)


@pytest.mark.parametrize(("wrong", "verdict"), [(False, "right"), (True, "wrong")])
def test_a_second_device_is_a_cure(one_device, monkeypatch, wrong, verdict):
    """Within a shard_map with check_vma=False, a sum over the devices is one too many; outside of it there is none."""
    lock = threading.Lock()  # with it the function cannot be sent to a child

    @jax.custom_vjp
    def sine(x):
        with lock:
            return jnp.sin(x)

    def bwd(x, dy):
        axes = jax.sharding.get_abstract_mesh().manual_axes if wrong else ()
        return (jax.lax.psum(dy, axes) * jnp.cos(x),) if axes else (dy * jnp.cos(x),)

    sine.defvjp(lambda x: (jnp.sin(x), x), bwd)
    skip = [name for name in FULL if name not in ("shard_map", "gradient")]
    report = gradcheck.check(sine, X, skip=skip)
    (row,) = [row for row in report.rows if row.status == "INCONCLUSIVE"]
    assert row.check == "shard_map" and "JAX_NUM_CPU_DEVICES=2" in row.message and not report.failures
    monkeypatch.undo()
    assert gradcheck.check(sine, X, skip=skip).verdict == verdict


@pytest.mark.more
def test_a_program_with_one_device_and_settings_of_its_own(tmp_path):
    """The whole way: a script with one device, a module beside it, and float64 switched on."""
    (tmp_path / "rules_of_mine.py").write_text(
        "import jax, jax.numpy as jnp\n"
        "f = jax.custom_vjp(lambda x: jnp.sin(x))\n"
        "f.defvjp(lambda x: (f(x), x), lambda x, dy: (dy * jnp.cos(x),))\n"
    )
    (tmp_path / "main.py").write_text(
        "import jax, jax.numpy as jnp, rules_of_mine\n"
        "from jaxnn import gradcheck\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "def own(x): return rules_of_mine.f(x)\n"
        "for f in (rules_of_mine.f, own):\n"
        "    report = gradcheck.check(f, jnp.ones((2, 3), 'float64'))\n"
        "    print([(r.path, r.status, r.message) for r in report.rows if r.check == 'shard_map'], report.ok)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUM", "XLA_FLAGS"))}
    root = str(Path(gradcheck.__file__).parents[2])
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    module, script = done.stdout.splitlines()
    assert "x (Explicit)" in module and "FAIL" not in module + script and "INCONCLUSIVE" not in module
    assert "x (Explicit)" in script and "INCONCLUSIVE" not in script and done.stderr == ""
    assert list((tmp_path / "tmp").iterdir()) == []
