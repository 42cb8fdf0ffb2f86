"""The pytest plugin, run on small projects whose own tests pass."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from plugin_run import ROOT, run

from jaxnn.gradcheck.pytest_plugin.settings import skipped

RULES = """
    import jax, jax.numpy as jnp, os

    def rule(wrong):
        @jax.custom_vjp
        def sine(x, w):
            return jnp.sin(x) * w
        sine.defvjp(lambda x, w: (sine(x, w), (x, w)),
                    lambda r, dy: (wrong * dy * jnp.cos(r[0]) * r[1], dy * jnp.sin(r[0])))
        return sine

    halved, right = rule(0.5), rule(1.0)

    @jax.custom_jvp
    def straight(x):
        return jnp.round(x)
    straight.defjvp(lambda p, t: (jnp.round(p[0]), t[0]))

    def identity(x):
        return x

    @jax.custom_vjp
    def dies(x):
        return jnp.sin(x)
    dies.defvjp(lambda x: (dies(x), x), lambda x, dy: os._exit(3))
"""
TESTS = """
    import jax, jax.numpy as jnp, pytest
    from mine.rules import *

    X = jnp.array([0.5, 1.5, -2.0])

    def test_gradient():
        g = jax.jit(jax.grad(lambda x: jax.lax.scan(lambda c, row: (c + halved(row, row).sum(), None), 0.0, x)[0]))
        assert g(jnp.stack([X, X])).shape == (2, 3)

    def test_value():
        assert right(X, X).shape == (3,) and straight(X).shape == (3,)

    def test_dies():
        assert dies(X).shape == (3,)
"""


@pytest.fixture
def project(tmp_path):
    """A project of these rules and tests."""
    write(tmp_path / "mine" / "__init__.py", "")
    write(tmp_path / "mine" / "rules.py", RULES)
    write(tmp_path / "tests" / "test_rules.py", TESTS)
    write(tmp_path / "conftest.py", "")
    write(tmp_path / "pytest.ini", "[pytest]")
    return tmp_path


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))


LINE = (
    "FAIL mine/rules.py:5 sine · x: a constant factor: 0.5 times the derivative · at x f32[3], w f32[3]; with wrong=0.5 · "
    "called by tests/test_rules.py::test_gradient · repro: pytest --gradcheck 'tests/test_rules.py::test_gradient'"
)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "workers"])
def test_a_wrong_rule_is_found_and_a_right_one_is_not(project, workers):
    output = run(project, "--gradcheck", "--gradcheck-report=found.json", *workers, code=1)
    assert LINE in output and "3 passed" in output
    assert "NOT CHECKED" in output and "dies · it ended the process that checks it, with exit code 3" in output
    assert "FAIL mine/rules.py:14 straight · x:" in output
    rules = {rule["name"]: rule for rule in json.loads((project / "found.json").read_text())["rules"]}
    assert {name: rule["verdict"] for name, rule in rules.items()} == {
        "mine.rules.rule.sine": "wrong", "mine.rules.straight": "wrong", "mine.rules.dies": "not checked",
    }  # fmt: skip
    assert [rule["differentiated"] for rule in rules.values()].count(True) == 1


def test_without_the_option_nothing_happens(project):
    write(project / "tests" / "test_rules.py", "import sys\ndef test(): assert 'jax' not in sys.modules")
    assert "gradcheck" not in run(project, code=0)


@pytest.mark.more
def test_the_baseline_knows_failures_and_says_what_changed(project):
    options = ("--gradcheck", "--gradcheck-baseline=known.json", "-k", "not dies")
    assert "no such file; add --gradcheck-update" in run(project, *options, code=4)
    run(project, *options, "--gradcheck-update", code=0)
    assert "known: FAIL mine/rules.py:5 sine" in run(project, *options, code=0)
    rules = (project / "mine" / "rules.py").read_text()
    write(project / "mine" / "rules.py", rules.replace("rule(0.5)", "rule(0.25)"))
    write(project / "tests" / "test_rules.py", TESTS.replace("straight(X).shape == (3,)", "True"))
    output = run(project, *options, code=1)
    assert "new: mine.rules.rule.sine" in output
    assert "in the baseline" not in output  # the other signature was not reached: that is no error
    write(project / "mine" / "rules.py", rules.replace("rule(0.5)", "rule(1.0)").replace("t[0]))", "0 * t[0]))"))
    write(project / "tests" / "test_rules.py", TESTS)
    known = json.loads((project / "known.json").read_text())
    assert [failure["rule"] for failure in known["gradcheck baseline"]] == [
        "mine.rules.rule.sine",
        "mine.rules.straight",
    ]
    output = run(project, *options, code=1)
    assert "in the baseline, and no longer wrong: mine.rules.straight x f32[3]" in output
    write(project / "known.json", "[1, 2]")
    assert "is no baseline of gradcheck" in run(project, *options, code=4)


@pytest.mark.more
@pytest.mark.parametrize("how", ["ini", "pyproject", "marker"])
def test_a_reference_tells_what_a_rule_is_meant_to_be(project, how):
    if how == "ini":
        write(project / "pytest.ini", "[pytest]\ngradcheck = rule\ngradcheck_rules =\n    straight: reference=mine.rules.identity skip=primal\n")  # fmt: skip
    elif how == "pyproject":
        (project / "pytest.ini").unlink()
        write(project / "pyproject.toml", """
            [tool.pytest.ini_options]
            [tool.jaxnn.gradcheck]
            level = "rule"
            rules = {"rules.straight" = {reference = "mine.rules.identity", skip = ["primal"]}}
        """)  # fmt: skip
    else:
        write(project / "pytest.ini", "[pytest]\ngradcheck = rule\n")
        write(project / "tests" / "test_rules.py", TESTS.replace(
            "    def test_value", '    @pytest.mark.gradcheck(reference=lambda x: x, skip="primal")\n    def test_value'
        ).replace("right(X, X).shape == (3,) and ", ""))  # fmt: skip
    output = run(project, "-k", "value", code=0)
    assert "UNPROVEN" not in output and "FAIL" not in output and "1 right" in output.replace("2 right", "1 right")


@pytest.mark.parametrize(("given", "meant"), [
    ("primal,vmap", ("primal", "vmap")), (["primal"], ("primal",)), (("primal",), ("primal",)),
    (True, True), ("true", True), ("TRUE", True), (False, False), ("false", False), ((), ()),
])  # fmt: skip
def test_what_skip_may_be(given, meant):
    assert skipped(given) == meant and type(skipped(given)) is type(meant)


@pytest.mark.more
def test_what_a_failure_leaves_behind(project):
    write(project / "tests" / "test_rules.py", TESTS.replace("    def test_value", "    @pytest.mark.gradcheck(skip=True)\n    def test_value"))  # fmt: skip
    options = ("--gradcheck", "--gradcheck-save=saved", "--gradcheck-report=found.html", "--junitxml=found.xml")
    output = run(project, *options, "-k", "not dies", env={"GITHUB_ACTIONS": "true"}, code=1)
    assert "::error file=mine/rules.py,line=5,title=gradcheck::mine.rules.rule.sine: x: a constant factor" in output
    assert "1 rules, 1 signatures: 1 wrong" in output and "repro: python saved/sine_1.py" in output
    assert "a constant factor: 0.5" in (project / "found.html").read_text()
    assert "a constant factor: 0.5" in (project / "found.xml").read_text()
    path = os.pathsep.join([str(ROOT), str(project)])
    again = subprocess.run(
        [sys.executable, "saved/sine_1.py"], cwd=project, env=os.environ | {"PYTHONPATH": path}, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert "gradcheck sine: wrong (1 FAIL)" in again.stdout
    assert set(os.listdir(project / "saved")) == {"sine_1.py", "sine_1.pkl", "sine_1.npz"}


@pytest.mark.more
def test_what_is_out_of_time_is_named(project):
    output = run(project, "--gradcheck", "--gradcheck-seconds=1e-6", code=0)
    assert output.count("left out: the time of --gradcheck-seconds is over") == 4


TROUBLES = """
    import jax, jax.numpy as jnp, pytest, time
    from mine.rules import rule

    X, kept = jnp.array([0.5, 1.5, -2.0]), []

    def closed_over(t):
        @jax.custom_vjp
        def times(x):
            return t * x
        times.defvjp(lambda x: (times(x), x), lambda x, dy: (t * dy,))
        return times

    @jax.custom_vjp
    def raises(x):
        return 2 * x
    raises.defvjp(lambda x: (raises(x), None), lambda r, dy: 1 / 0)

    numbers = iter([2.0])

    @jax.custom_vjp
    def consumes(x):
        return next(numbers) * x
    consumes.defvjp(lambda x: (2.0 * x, None), lambda r, dy: (2.0 * dy,))

    @jax.custom_vjp
    def hangs(x):
        return 2 * x
    hangs.defvjp(lambda x: (hangs(x), None), lambda r, dy: time.sleep(1000))

    def test_closed_over_tracer():
        jax.jit(lambda t: closed_over(t)(X))(2.0)

    def test_leak():
        jax.jit(lambda x: kept.append(rule(1.0)(x, x)) or x)(X)

    def test_raises():
        raises(X)

    def test_consumes():
        consumes(X)

    def test_hangs():
        hangs(X)
"""


@pytest.mark.more
def test_a_rule_that_cannot_be_checked_is_a_line(project):
    write(project / "tests" / "test_rules.py", TROUBLES)
    output = run(project, "--gradcheck", code=1)
    assert "5 passed" in output
    lines = {line.split(" · ")[0].split()[-1]: line for line in output.splitlines() if " · " in line}
    assert "it closes over a tracer, `t`, and exists only while that is traced" in lines["times"]
    assert "the rule raises ZeroDivisionError: division by zero" in lines["raises"] and "FAIL" in lines["raises"]
    assert "it cannot be called again: " in lines["consumes"] and "StopIteration" in lines["consumes"]
    assert "it did not finish within 60 s" in lines["hangs"]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("options, message", [
    (["--gradcheck", "--gradcheck-packages=no_such"], "--gradcheck-packages: no package 'no_such' can be imported here"),
    (["--gradcheck", "--gradcheck-seconds=-1"], "--gradcheck-seconds '-1' must be a positive number of seconds"),
    (["--gradcheck", "--gradcheck-report=a.txt"], "--gradcheck-report 'a.txt' must end in .json or .html"),
    (["--gradcheck", "--gradcheck-update"], "--gradcheck-update needs --gradcheck-baseline FILE"),
    (["--gradcheck", "-o", "gradcheck_rules=a.b: rtol=x"], "gradcheck_rules: rtol='x' of 'a.b' must be a number"),
    (["--gradcheck", "-o", "gradcheck_rules=a.b: tol=1"], "gradcheck_rules: 'a.b' has tol"),
    (["-o", "gradcheck=all"], "gradcheck='all' must be 'rule' or 'full'"),
])  # fmt: skip
def test_a_bad_setting_is_one_line(options, message, tmp_path):
    write(tmp_path / "test_nothing.py", "def test(): pass")
    output = run(tmp_path, *options, code=4)
    assert f"ERROR: {message}" in output and "Traceback" not in output


@pytest.mark.more
def test_packages_chooses_whose_rules_are_checked(project):
    write(project / "tests" / "test_rules.py", "import jax, jaxnn\ndef test(): jaxnn.relu(jax.numpy.ones(3))")
    assert "0 rules, 0 signatures: none reached" in run(project, "--gradcheck", code=0)
    assert "1 rules, 1 signatures: 1 right" in run(project, "--gradcheck", "--gradcheck-packages=jaxnn", code=0)
