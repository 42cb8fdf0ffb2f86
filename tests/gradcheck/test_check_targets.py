"""`check(targets=...)`: what its row says of a function, judged here by the CPU's compiler; and what is refused."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import rules_to_send as rules

from jaxnn import cli, gradcheck
from jaxnn.accelerators.hlo import UnknownProgram
from jaxnn.accelerators.targets import Target, Unavailable
from jaxnn.gradcheck import _targets
from jaxnn.gradcheck._subject import Subject

X = jnp.array([0.5, 1.5])
NARROW = jnp.ones((64, 256), jnp.bfloat16)
HERE = Target("cpu", "this", (1,))


def row(f, *args):
    subject = Subject(f, args, {}, None, None)
    subject.find_outputs()
    subject.find_automatic()
    return _targets._row(HERE, jax.devices("cpu")[0], subject)


def with_backward(f, backward):
    rule = jax.custom_vjp(f)
    rule.defvjp(lambda *xs: (f(*xs), xs), backward)
    return rule


def refuses(r, dy):
    raise NotImplementedError("no such kernel on this chip")


def wide(r, dy):
    """The gradient of x², beside an array of float32 that cannot be fused."""
    x = r[0].astype(jnp.float32)
    return ((dy.astype(jnp.float32) * (2 * x + 0 * jnp.sort(x, 0))).astype(dy.dtype),)


def test_a_right_rule_has_its_figures():
    found = row(with_backward(jnp.square, lambda r, dy: (2 * dy * r[0],)), NARROW)
    assert found.status == "PASS" and "both passes compile: " in found.message and "JAX's derivative" in found.message


def test_a_gradient_that_does_not_compile_fails():
    found = row(with_backward(jnp.square, refuses), X)
    assert found.status == "FAIL" and "its gradient does not: NotImplementedError: no such kernel" in found.message


def test_float32_copies_of_narrow_arguments_fail():
    found = row(with_backward(jnp.square, wide), NARROW)
    assert found.status == "FAIL" and found.hint.startswith("the rule makes float32 arrays from narrower arguments")
    assert row(with_backward(jnp.square, wide), NARROW.astype(jnp.float32)).status == "PASS"


def test_a_function_that_does_not_compile_is_unsupported():
    def of_an_accelerator(x):
        return jax.lax.platform_dependent(x, tpu=jnp.sin)

    found = row(of_an_accelerator, X)
    assert found.status == "UNSUPPORTED" and "f itself does not compile for it" in found.message


def test_a_program_that_cannot_be_counted_is_no_mistake_of_the_rule(monkeypatch):
    def facts(*args):
        raise UnknownProgram("instruction new-in-xla is not known")

    monkeypatch.setattr(_targets.programs, "facts", facts)
    found = row(with_backward(jnp.square, lambda r, dy: (2 * dy * r[0],)), NARROW)
    assert found.status == "PASS" and "bytes moved are unknown" in found.message and "new-in-xla" in found.message


def test_a_compiler_that_is_not_installed_is_unsupported(monkeypatch):
    def lacks(self):
        raise Unavailable(f"{self.name}: its compiler is not installed; pip install it")

    monkeypatch.setattr(Target, "require", lacks)
    report = gradcheck.check(rules.sine, X, level="rule", targets=["tpu:v5e:2x2", "cuda:h100"])
    rows = [(r.path, r.status, r.message) for r in report.rows if r.check == "targets"]
    why = "its compiler is not installed; pip install it"
    assert rows == [("tpu:v5e:2x2", "UNSUPPORTED", why), ("cuda:h100:1", "UNSUPPORTED", why)]
    assert report.ok and "targets=('tpu:v5e:2x2', 'cuda:h100')" in report.repro


def test_a_process_that_has_libtpu_itself_is_told_so(monkeypatch):
    monkeypatch.setattr(Target, "require", lambda self: None)
    monkeypatch.setattr(_targets, "_has_libtpu", lambda: True)
    (found,) = [
        r for r in gradcheck.check(rules.sine, X, level="rule", targets=("tpu:v5e",)).rows if r.check == "targets"
    ]
    assert found.status == "UNSUPPORTED" and "JAX_PLATFORMS=cpu" in found.message


@pytest.mark.parametrize("targets", ["tpu:v5e", [1], {"tpu:v5e"}])
def test_targets_are_a_sequence_of_names(targets):
    with pytest.raises(TypeError, match=r"`targets` .* must be a sequence of names"):
        gradcheck.check(rules.sine, X, targets=targets)


def test_an_unknown_target_is_refused_with_the_nearest_names(capsys):
    with pytest.raises(ValueError, match="target 'tpu:v5' must begin with a known platform and chip: tpu:v5"):
        gradcheck.check(rules.sine, X, targets=("tpu:v5",))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", "relu", "--target", "tpu:v5"])
    assert "must begin with a known platform and chip" in capsys.readouterr().err


END_TO_END = """
import jax.numpy as jnp, jaxnn
from jaxnn import gradcheck
report = gradcheck.check(jaxnn.relu, jnp.ones((8, 128)), level="rule", targets=["{0}"])
print(*[row.status for row in report.rows if row.check == "targets"])
"""


@pytest.mark.more
@pytest.mark.parametrize(("name", "module"), [("tpu:v5e:2x2", "libtpu"), ("cuda:h100", "jax_cuda12_plugin")])
def test_with_the_compiler(name, module):
    if not importlib.util.find_spec(module):
        pytest.skip(f"pip install '.[{'tpu' if module == 'libtpu' else 'cuda12'}]' switches this on")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", END_TO_END.format(name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["PASS"], done.stderr
