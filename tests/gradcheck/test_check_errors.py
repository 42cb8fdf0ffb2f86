"""Bad input to `check`: one line that names the argument, its value and the requirement."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules_to_check import W, X, dense

from jaxnn import gradcheck

TABLE = np.zeros((2, 2))  # its text has two lines


def raising(x):
    raise RuntimeError("first\nsecond")


def keyword_only(x, *, scale):
    return x * scale


BAD = {
    "no function": (("abc", X), {}, TypeError, "`f` ('abc') must be a function of arrays"),
    "raises": ((raising, X), {}, ValueError, "`f` (raising) must run on `args`, but raises RuntimeError: first"),
    "wants keywords": ((keyword_only, X), {}, ValueError, "kwargs={...}"),
    "integer output": ((lambda x: jnp.argmax(x), X), {}, TypeError, "must return a floating-point array"),
    "no output": ((lambda x: None, X), {}, TypeError, "must return a floating-point array"),
    "integers only": ((lambda x: x * 1.0, jnp.arange(3)), {}, TypeError, "`args` (int32[3]) must include a floating"),
    "a string": ((lambda x: 1.0, "abc"), {}, TypeError, "`args` (str) must include a floating-point array"),
    "no arguments": ((lambda: 1.0,), {}, TypeError, "`args` (none) must include"),
    "branches": ((lambda x: x if x.sum() > 0 else -x, X), {}, TypeError, "must not branch in Python"),
    "donates": ((jax.jit(lambda x: 2 * x, donate_argnums=0), X), {}, ValueError, "must not donate its arguments"),
    "level": ((dense, X, W), {"level": "fast"}, ValueError, "`level` ('fast') must be one of 'rule', 'full'"),
    "skip": ((dense, X, W), {"skip": ("speed",)}, ValueError, "`skip` (('speed',)) must be a sequence of names"),
    "skip a string": ((dense, X, W), {"skip": "vmap"}, ValueError, "`skip` ('vmap')"),
    "argnums": ((dense, X, W), {"argnums": 2}, ValueError, "`argnums` (2) must be positions among the 2"),
    "rtol": ((dense, X, W), {"rtol": -1.0}, ValueError, "`rtol` (-1.0)"),
    "seed": ((dense, X, W), {"seed": -1}, ValueError, "`seed` (-1)"),
    "kwargs": ((dense, X, W), {"kwargs": [1]}, TypeError, "`kwargs` (list) must be a dict"),
    "reference": ((dense, X, W), {"reference": 3}, TypeError, "`reference` (3) must be a function"),
    "skip nothing": ((dense, X, W), {"skip": None}, ValueError, "`skip` (None) must be a sequence of names"),
    "skip lists": ((dense, X, W), {"skip": [["kinks"]]}, ValueError, "`skip` ([['kinks']])"),
    "level a list": ((dense, X, W), {"level": ["rule"]}, ValueError, "`level` (['rule'])"),
    "argnums a bool": ((dense, X, W), {"argnums": True}, ValueError, "`argnums` (True)"),
    "mesh": ((dense, X, W), {"mesh": "devices"}, ValueError, "`mesh` ('devices') must be a jax.sharding.Mesh"),
    "unknown keyword": ((dense, X, W), {"kwargs": {"u": X}}, ValueError, "got an unexpected keyword argument 'u'"),
    "a signature of many lines": (
        (lambda x, table=TABLE: x @ table, X, X, X), {}, ValueError, "but too many positional arguments"
    ),
    "reference of other arguments": ((dense, X, W), {"reference": jnp.sin}, ValueError, "`reference` (sin(x: "),
    "reference raises": (
        (jnp.sin, X), {"reference": raising}, ValueError, "`reference` (raising) must run on `args`, but raises RuntimeErr"
    ),
    "reference of another shape": (
        (jnp.sin, X), {"reference": lambda x: x[:1]}, ValueError, "must return arrays as f does, of shapes"
    ),
    "not differentiable": (
        (lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x), X), {}, TypeError, "must be differentiable"
    ),
}  # fmt: skip


def test_a_check_inside_jit_is_refused():
    with pytest.raises(TypeError, match="`args` must be values, not what jit, grad or vmap traces"):
        jax.jit(lambda x: gradcheck.check(jnp.sin, x).ok)(X)


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    args, options, kind, message = BAD[name]
    with pytest.raises(kind, match=re.escape(message)) as error:
        gradcheck.check(*args, **options)
    assert "\n" not in str(error.value)
