"""The modes of JAX that a check computes in, whatever the caller's are."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Run with JAX's debugging switches off, whatever the caller's are: a check looks at NaN on purpose."""
    with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False), jax.check_tracer_leaks(False):
        yield


@contextlib.contextmanager
def float64_mode() -> Iterator[None]:
    """Compute in float64, the oracle's precision."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        yield
