"""A profile shows each component by its name: it is in the compiled program's metadata, of both passes."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxnn.components import COMPONENTS, TINY

LINES = {component.f.__name__: component for component in COMPONENTS}  # one line of the table for each function


@pytest.fixture
def metadata_counts():
    """Without it a program that differs in its metadata alone would come from the cache on disk."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


@pytest.mark.parametrize("name", LINES)
def test_the_compiled_program_names_the_component_in_both_passes(name, metadata_counts):
    first, *others = LINES[name].example(TINY)

    def passes(x):
        y, vjp = jax.vjp(lambda x: jax.tree.leaves(LINES[name](x, *others))[0], x)
        return y, vjp(jnp.cos(y))

    program = jax.jit(passes).lower(jnp.asarray(first)).compile().as_text()
    scopes = re.findall(r'op_name="([^";]*)', program)
    assert any(f"jvp({name})/" in scope and "transpose" not in scope for scope in scopes), "the forward pass"
    assert any(f"transpose(jvp({name}))/" in scope for scope in scopes), "the backward pass"
