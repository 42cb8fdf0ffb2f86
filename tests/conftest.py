"""The strict settings of the whole suite, the doctests in jaxnn/ included."""

import itertools
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

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

# The experiments, the benchmark and the page take minutes, and little in them depends on JAX's version: they are tested
# on the oldest Python, and with JAXNN_ALL=1 on every one.
SHORT = sys.version_info >= (3, 12) and not os.environ.get("JAXNN_ALL")
if SHORT:
    experiments = (Path(__file__).parents[1] / "experiments").glob("[!_]*.py")
    collect_ignore = [f"test_{path.stem}.py" for path in experiments] + [
        "test_gallery.py",
        "test_graph_page.py",
        "test_bench.py",
    ]

finished = itertools.count(1)

# What is forgotten below is compiled once: each process keeps its programs on disk while it runs.
if not jax.config.jax_compilation_cache_dir:
    programs = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", programs.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_modifyitems(items):
    """Leave to the oldest Python what repeats in other dtypes, and two of three of the zoo's right rules."""
    if SHORT:
        repeated = re.compile(r"test_rule_against_loops_and_torch\[.*-(float16|float64)\]$")
        right = [item for item in items if item.name.startswith("test_a_right_rule_is_not_failed")]
        left_out = {id(item) for i, item in enumerate(right) if i % 3}
        items[:] = [item for item in items if not repeated.search(item.name) and id(item) not in left_out]


@pytest.fixture(autouse=True)
def bounded_memory():
    """Thousands of compiled programs would fill several gigabytes: forget them now and then."""
    yield
    if next(finished) % 50 == 0:
        jax.clear_caches()
