"""`jaxnn compare --package`: what is listed, what is checked at arguments that are made up, and what a run says."""

import json
import re

import pytest

from jaxnn import cli

RULES = """
import os
import jax, jax.numpy as jnp
from jax import lax

def with_rule(f, derivative):
    rule = jax.custom_vjp(f)
    rule.defvjp(lambda *xs: (f(*xs), xs), derivative)
    return rule

sine = with_rule(lambda x: jnp.sin(x), lambda r, g: (g * jnp.cos(*r),))

@jax.custom_vjp
def matmul(a, b):
    return a @ b

matmul.defvjp(lambda a, b: (a @ b, (a, b)), lambda r, g: (g @ r[1].T, 2 * r[0].T @ g))

@jax.custom_vjp
def shifted(x, b):
    return x + b

shifted.defvjp(lambda x, b: (x + b, None), lambda _, g: (g, jnp.sum(g, 0)))

@jax.custom_vjp
def lookup(table, ids):
    return table[ids]

lookup.defvjp(lambda t, i: (t[i], (t, i)), lambda r, g: (jnp.zeros_like(r[0]).at[r[1]].add(g), None))

@jax.custom_vjp
def root(a):  # it never ends for a negative number
    return lax.while_loop(lambda y: jnp.any(abs(y * y - a) > 1e-6), lambda y: (y + a / y) / 2, jnp.ones_like(a))

root.defvjp(lambda a: (root(a),) * 2, lambda y, g: (g / 2 / y,))

def make(n):
    power = jax.custom_vjp(lambda x: x**n)
    power.defvjp(lambda x: (x**n, x), lambda x, g: (n * g * x ** (n - 1),))
    return power

def is_rule(f):  # makes none
    return isinstance(f, jax.custom_vjp | jax.custom_jvp)

@jax.custom_vjp
def leaves(x):
    os._exit(7)

leaves.defvjp(lambda x: (x, None), lambda _, g: (g,))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "some_rules"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "rules.py").write_text(RULES)
    (folder / "needing.py").write_text("import nowhere_at_all")
    (tmp_path / "failing.py").write_text("1 / 0")
    (tmp_path / "ending.py").write_text("import os; os._exit(3)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    code = cli.main(["compare", *arguments])
    return code, *capsys.readouterr()


def test_rules_are_listed_and_checked_where_arguments_can_be_made(package, capsys):
    code, out, _ = run(capsys, "--package", "some_rules", "--level", "rule")
    head, *rows = out.partition("\n\n")[0].splitlines()
    found = {row.split()[0].removeprefix("some_rules.rules."): " ".join(row.split()[1:]) for row in rows}
    assert code == 1 and head == "some_rules: 8 rules: 1 wrong, 1 could not be run, 3 right, 3 not judged"
    line = RULES.splitlines().index("def matmul(a, b):")
    assert found["matmul"] == f"custom_vjp some_rules/rules.py:{line} wrong at (f32[4,4], f32[4,4])"
    assert re.search(r"right at \(f32\[3,4\], f32\[4\]\)", found["shifted"]), "the other shapes fail in its rule"
    assert "right at" in found["root"] and "right at" in found["<lambda>"]
    assert found["lookup"].endswith("not judged needs arguments")
    assert found["leaves"].endswith("could not be run it ends its process (code 7)")
    assert found["make"].endswith("made when it is called; needs a test") and "with_rule" in found
    assert "is_rule" not in found
    assert "not imported: some_rules.needing: ModuleNotFoundError: No module named 'nowhere_at_all'" in out
    assert "again: jaxnn compare some_rules.rules.matmul --package some_rules --level rule --seed 0" in out
    assert "pytest --gradcheck --gradcheck-packages=some_rules" in out and "Traceback" not in out


def reported(name, verdict, arguments="x f32[3]"):
    signature = {"arguments": arguments, "verdict": verdict, "rows": [], "tests": ["test_a.py::test_b"], "seconds": 0.1}
    return {"name": f"some_rules.rules.{name}", "file": "some_rules/rules.py", "line": 1, "kind": "custom_vjp",
            "differentiated": False, "verdict": verdict, "signatures": [signature]}  # fmt: skip


@pytest.mark.more
def test_what_a_run_reached_is_said_and_not_checked_again(package, capsys):
    rules = [reported("lookup", "right"), reported("leaves", "unproven"), reported("make.power", "wrong", "x f32[2]")]
    (package / "report.json").write_text(json.dumps({"rules": rules, "seconds": 1.0}))
    names = [f"some_rules.rules.{name}" for name in ("lookup", "leaves", "make", "with_rule")]
    code, out, _ = run(capsys, "--package", "some_rules", "--report", "report.json", "--json", *names)
    whole = json.loads(out)
    found = {rule["name"].rpartition(".")[2]: rule for rule in whole["rules"]}
    assert code == 1 and whole["functions"] == [] and list(whole["not_imported"]) == ["some_rules.needing"]
    assert {name: rule["verdict"] for name, rule in found.items()} == {
        "leaves": "unproven", "lookup": "right", "make": "wrong", "with_rule": "not judged",
    }  # fmt: skip
    assert found["make"]["how"] == "reached by the run, 1 signature; wrong at x f32[2]; never differentiated by a test"
    assert found["make"]["reached"] and not found["with_rule"]["reached"]


ERRORS = {  # arguments: the exit code and the message
    ("--package", "nowhere_at_all"): (2, "--package 'nowhere_at_all' must be the name by which an installed package"),
    ("--package", ""): (2, "--package '' must be the name"),
    ("--package", "jaxnn-vjp"): (2, "the distribution jaxnn-vjp is imported as jaxnn"),
    ("--package", "failing"): (4, "--package 'failing' cannot be imported: ZeroDivisionError: division by zero"),
    ("--package", "ending"): (4, "--package 'ending' cannot be imported: it ends its process (code 3)"),
    ("--package", "some_rules", "relu"): (2, "'relu' must be a rule of some_rules"),
    ("--package", "some_rules", "--report", "no.json"): (2, "cannot read --report 'no.json'"),
    ("--package", "some_rules", "--report", "failing.py"): (2, "'failing.py' must be a file that `pytest --gradcheck"),
    ("--report", "failing.py"): (2, "--report must be given with --package"),
}


def error(arguments):
    """The arguments, marked as `more` if the package is imported."""
    marks = pytest.mark.more if arguments[1:] in (("ending",), ("some_rules", "relu")) else ()
    return pytest.param(arguments, id=" ".join(arguments[1:]), marks=marks)


@pytest.mark.parametrize("arguments", list(map(error, ERRORS)))
def test_what_cannot_be_listed_is_one_line(package, capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (ERRORS[arguments][0], "") and ERRORS[arguments][1] in err and err.count("\n") == 1
