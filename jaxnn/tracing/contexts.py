"""The modes of JAX in which checks compute, whatever the caller's configuration is."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switch JAX's debugging off: a check computes NaN on purpose."""
    with jax.debug_nans(False), jax.debug_infs(False), jax.disable_jit(False), jax.check_tracer_leaks(False):
        yield


@contextlib.contextmanager
def float64_mode() -> Iterator[None]:
    """Compute in float64 and with matrix products of full precision, as the derivative to compare with must be."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        yield


@contextlib.contextmanager
def new_remat() -> Iterator[None]:
    """Let jax.checkpoint call the rules that primitives have for it, as JAX does with jax_remat3."""
    before = jax.config.jax_remat3  # type: ignore[attr-defined]
    jax.config.update("jax_remat3", True)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        jax.config.update("jax_remat3", before)  # type: ignore[no-untyped-call]
