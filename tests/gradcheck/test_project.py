"""The project with 40 rules: its own tests pass, and `check` says of each rule what `expected.py` says."""

import json
import shutil
import sys
from pathlib import Path

import jax
import pytest
from plugin_run import run

from jaxnn import gradcheck

PROJECT = Path(__file__).parent / "project"
sys.path.insert(0, str(PROJECT))
try:
    from expected import EXPECTED
finally:
    sys.path.remove(str(PROJECT))

SAMPLE = ("primitives.Blend", "attention.sharp_softmax")


def rule(name):
    """The name, marked as `more` unless it is of the sample."""
    return pytest.param(name, marks=() if name.endswith(SAMPLE) else pytest.mark.more)


@pytest.mark.parametrize("name", [rule(name) for name in EXPECTED])
def test_check_says_what_is_expected(name):
    expected = EXPECTED[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        f, *args = expected.call()
        report = gradcheck.check(f, *args, level=expected.level)
    assert report.verdict == expected.verdict, f"{expected.why}\n{report}"


def test_half_of_the_rules_are_wrong():
    verdicts = [expected.verdict for expected in EXPECTED.values()]
    assert verdicts.count("wrong") == verdicts.count("right") == 20


@pytest.mark.more
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "workers"])
def test_the_plugin_finds_the_wrong_rules_and_no_other(workers, tmp_path):
    """At the arguments that the project's own tests use, without a line in them."""
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
    output = run(project, "--gradcheck", "--gradcheck-report=found.json", *workers, code=1)
    rules = json.loads((project / "found.json").read_text())["rules"]
    assert {rule["name"]: rule["verdict"] for rule in rules} == {name: e.verdict for name, e in EXPECTED.items()}, (
        output
    )


@pytest.mark.more
@pytest.mark.parametrize("folder", [PROJECT, PROJECT.with_name("project_of_troubles")], ids=lambda path: path.name)
def test_the_own_tests_of_the_projects_pass(folder):
    run(folder, code=0)
