"""The checks of HiPrims: what is said where a method is missing, or two disagree. The zoo has the wrong ones."""

import jax.numpy as jnp
import pytest
from zoo.specimen import normal, primitive, sine_times, sine_times_bwd, sine_times_tangent

from jaxnn import gradcheck
from jaxnn.gradcheck.checks import FULL

X, Y = normal(3), normal(3, seed=1)


def rows_of(f, *checks):
    """The rows of these checks alone, by check."""
    report = gradcheck.check(f, X, Y, skip=tuple(set(FULL) - set(checks)))
    return report, {check: [row for row in report.rows if row.check == check] for check in checks}


def test_missing_methods_are_named_and_fail_nothing():
    f = primitive(sine_times, sine_times_bwd)
    report, rows = rows_of(f, "staging", "vmap", "forward_mode", "jvp", "lin", "batch", "transpose", "remat")
    assert report.verdict == "right" and not rows["jvp"] + rows["lin"] + rows["transpose"]
    for check, method in (("vmap", "`batch`"), ("batch", "`batch`"), ("remat", "`jvp`"), ("forward_mode", "`jvp`")):
        assert {row.status for row in rows[check]} == {"UNSUPPORTED"}, report
        assert all(f"`Primitive` must implement {method}" in row.message for row in rows[check]), report
    assert [row.path for row in rows["staging"] if row.status == "UNSUPPORTED"] == ["remat"]


def test_a_primitive_without_a_vjp_is_not_proven():
    report = gradcheck.check(primitive(sine_times), X, Y)
    (row,) = report.rows
    assert report.verdict == "unproven" and "`Primitive` must implement `vjp_fwd`" in row.message


@pytest.mark.parametrize("factors, agrees", [((1, 2), "the vjp"), ((2, 1), "`jvp`")])
def test_the_message_says_which_of_two_is_right(factors, agrees):
    def bwd(r, g):
        return [factors[0] * ct for ct in sine_times_bwd(r, g)]

    def jvp(self, primals, tangents):
        return self(*primals), factors[1] * sine_times_tangent(primals, tangents)

    _, rows = rows_of(primitive(sine_times, bwd, jvp=jvp), "jvp")
    assert all(row.message.endswith(f"JAX's derivative of `expand` agrees with {agrees}") for row in rows["jvp"])


def test_a_derivative_of_float32_inside_is_not_failed():
    def coarse(x, y):
        return (jnp.sin(x.astype(jnp.float32)) * y.astype(jnp.float32)).astype(x.dtype)

    def jvp(self, primals, tangents):
        return self(*primals), sine_times_tangent(primals, tangents)

    _, rows = rows_of(primitive(coarse, sine_times_bwd, jvp=jvp), "jvp")
    assert {row.status for row in rows["jvp"]} == {"PASS"}
