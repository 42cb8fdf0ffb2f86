"""The strict settings of the whole suite, the doctests in jaxnn/ included."""

import itertools

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

finished = itertools.count(1)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Thousands of compiled programs would fill several gigabytes: forget them now and then."""
    yield
    if next(finished) % 50 == 0:
        jax.clear_caches()
