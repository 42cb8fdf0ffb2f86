"""The strict settings of the whole suite, the doctests in jaxnn/ included."""

import itertools
import os
import signal
import sys
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A process in the background is born with SIGINT ignored, one under nohup with SIGHUP, and so would those be that the
# tests start. What is caught here is at its default in them.
for number in (getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# Every test runs with JAXNN_ALL=1; without it those that pyproject.toml marks as `more` do not, and of those marked as
# `once` only one Python's do.
LEFT_OUT = {"more", "once"} if sys.version_info >= (3, 12) else {"more"}
LEFT_OUT = set() if os.environ.get("JAXNN_ALL") else LEFT_OUT

finished = itertools.count(1)

# What is forgotten below is compiled once: each process keeps its programs on disk while it runs.
if not jax.config.jax_compilation_cache_dir:
    programs = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", programs.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_modifyitems(config, items):
    """Leave out what `LEFT_OUT` says, and say how many."""
    left_out = [item for item in items if not LEFT_OUT.isdisjoint(mark.name for mark in item.iter_markers())]
    config.hook.pytest_deselected(items=left_out)
    kept = set(items).difference(left_out)
    items[:] = [item for item in items if item in kept]


@pytest.fixture(autouse=True)
def bounded_memory():
    """Thousands of compiled programs would fill several gigabytes: forget them now and then."""
    yield
    if next(finished) % 50 == 0:
        jax.clear_caches()
