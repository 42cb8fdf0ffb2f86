"""The checker on the zoo: the right check catches every wrong rule, and no right rule fails.

By default one wrong rule of 32 runs, the first right rule with all checks, and one right rule of 48 with the quick
core. JAXNN_ALL=1 runs all rules: a wrong one that several checks notice with the one check that must fail, one right
rule of 18 with all checks and the others with the quick core.
`JAXNN_ALL=1 JAXNN_ZOO=full python -m pytest tests/gradcheck/test_zoo.py` runs every rule with all checks.
"""

import os

import jax
import jax.numpy as jnp
import pytest
import zoo

from jaxnn import gradcheck
from jaxnn.gradcheck.checks import FULL, RULE

WHOLE = os.environ.get("JAXNN_ZOO") == "full"


def only(check):
    """Options with which this check runs, and of the others the quick core alone."""
    if check in ("signature", *RULE):
        return {"level": "rule"}
    return {"skip": tuple(set(FULL) - set(RULE) - {check})}


@pytest.mark.one_in(32)
@pytest.mark.parametrize("specimen", zoo.WRONG, ids=lambda s: s.id)
def test_a_wrong_rule_is_caught_by_the_right_check(specimen):
    f, args = specimen.make()
    options = {} if specimen.alone or WHOLE else only(specimen.check)
    report = gradcheck.check(f, *args, **{**options, **specimen.kwargs})
    failed = {row.check for row in report.failures}
    assert specimen.check in failed, report
    assert not specimen.alone or failed == {specimen.check}, report


def right(i, specimen):
    """The specimen with its level, marked as `more` unless it runs by default."""
    level = "full" if WHOLE or i % 18 == 0 else "rule"
    runs = WHOLE or i == 0 or i % 48 == 1
    return pytest.param(specimen, level, marks=() if runs else pytest.mark.more, id=specimen.id)


@pytest.mark.parametrize("specimen, level", [right(i, s) for i, s in enumerate(zoo.RIGHT)])
def test_a_right_rule_is_not_failed(specimen, level):
    f, args = specimen.make()
    report = gradcheck.check(f, *args, **{"level": level, **specimen.kwargs})
    assert report.ok, report
    assert "could not run" not in str(report)


def test_every_check_has_a_wrong_rule_that_it_alone_notices():
    reports = {"stop_gradient", "forward_mode", "residuals", "cost"}
    assert {s.check for s in zoo.WRONG if s.alone} == {"signature", *FULL} - reports


def test_the_zoo_is_large_and_names_its_sources():
    assert len(zoo.WRONG) >= 30 and all(s.source and s.mistake for s in zoo.WRONG)
    assert len(zoo.RIGHT) >= 40
    assert len({s.id for s in zoo.WRONG + zoo.RIGHT}) == len(zoo.WRONG) + len(zoo.RIGHT)


def test_the_configuration_of_jax_is_left_as_it_was():
    f, args = zoo.RIGHT[0].make()
    before = dict(jax.config.values)
    gradcheck.check(f, *args)
    assert dict(jax.config.values) == before and jnp.ones(()).dtype == jnp.float32
