"""What a user's pytest run shows of `assert_correct`."""

import jax
import jax.numpy as jnp
import pytest

from jaxnn import gradcheck


def test_pytest_shows_the_lines_of_the_report_and_not_our_source():
    wrong = jax.custom_vjp(jnp.sin)
    wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (2 * dy * jnp.cos(x),))
    with pytest.raises(AssertionError, match="a constant factor") as caught:
        gradcheck.assert_correct(wrong, jnp.array([0.3]), level="rule")
    shown = caught.traceback.filter(caught)
    assert [entry.name for entry in shown] == ["test_pytest_shows_the_lines_of_the_report_and_not_our_source"]
