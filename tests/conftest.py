"""The strict settings of the whole suite, the doctests in jaxnn/ included."""

import collections
import functools
import itertools
import os
import signal
import tempfile

import jax
import numpy as np
import pytest
from jaxtyping import config as annotations
from jaxtyping import install_import_hook

# The components' annotations, shapes included, are checked at every call: while JAX traces them, which costs little.
install_import_hook(["jaxnn.layers", "jaxnn.losses"], "beartype.beartype")

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A process in the background is born with SIGINT ignored, one under nohup with SIGHUP, and so would those be that the
# tests start. What is caught here is at its default in them.
for number in (getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

collect_ignore = ["gradcheck/project", "gradcheck/project_of_troubles"]  # their tests are run by ours

ALL = os.environ.get("JAXNN_ALL", "")  # "" for a sample, "rest" for what the sample leaves out, else all

finished = itertools.count(1)

# What is forgotten below is compiled once: each process keeps its programs on disk while it runs.
if not jax.config.jax_compilation_cache_dir:
    programs = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", programs.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `more`, and all but one of n cases of a test that is marked `one_in(n)`."""
    if ALL not in ("", "rest"):
        return
    earlier, kept, left_out = collections.Counter(), [], []
    for item in items:
        test, sample = item.nodeid.partition("[")[0], item.get_closest_marker("one_in")
        runs = item.get_closest_marker("more") is None
        if runs and sample is not None:
            runs = earlier[test] % sample.args[0] == 0
            earlier[test] += 1
        (kept if runs == (ALL == "") else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@functools.cache
def compiles_float16():
    """Whether XLA has float16 on this processor: without the instructions of F16C it has no conversion to float32."""
    try:
        jax.jit(lambda x: x.astype("float32"))(np.ones(1, np.float16))
    except jax.errors.JaxRuntimeError:
        return False
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip a test that needs float16 where nothing in float16 compiles, JAX's own functions neither."""
    try:
        return (yield)
    except jax.errors.JaxRuntimeError as error:
        if "Failed to materialize symbols" in str(error) and not compiles_float16():
            pytest.skip("XLA cannot compile float16 for this processor")
        raise


@pytest.fixture
def unchecked_annotations():
    """Annotations are not checked: for our own errors about bad arguments, and for array-likes as Flax's parameters."""
    before = annotations.jaxtyping_disable
    annotations.update("jaxtyping_disable", True)
    yield
    annotations.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Thousands of compiled programs would fill several gigabytes: forget them now and then."""
    yield
    if next(finished) % 50 == 0:
        jax.clear_caches()
