"""The command `jaxnn compare`: names, own files, JSON, the page, exit codes, errors in one line."""

import html.parser
import json
import re
import time

import pytest

from jaxnn import cli, components
from jaxnn.cli import cases, isolated
from jaxnn.gradcheck.report import Report, Row
from jaxnn.plots.comparison import page

RULES = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def double(x):
    return 2 * x

double.defvjp(lambda x: (2 * x, None), lambda _, dy: ({factor} * dy,))
x = jnp.array([1.0, -2.0])

def case():
    return double, (x,)

def cases():
    return [(double, (x,)), (double, (x,), {{"reference": lambda x: 3 * x}})]

def imaginary():
    square = jax.custom_vjp(lambda z: z * z)
    square.defvjp(lambda z: (z * z, z), lambda z, g: (jnp.conj({factor} * z * g),))
    return square, (jnp.array([1 + 2j, -3 + 1j]),)
"""


@pytest.fixture
def rules(tmp_path):
    def write(factor=2):
        path = tmp_path / f"rules_{factor}.py"
        path.write_text(RULES.format(factor=factor))
        return str(path)

    return write


def run(capsys, *arguments):
    code = cli.main(["compare", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.more
def test_a_component_by_name(capsys):
    code, out, err = run(capsys, "relu", "nll", "--level", "rule")
    head, relu, nll = out.splitlines()
    assert code == 0 and err == "" and head.split()[:2] == ["function", "verdict"]
    assert relu.split()[:2] == ["relu", "right"] and nll.split()[:2] == ["nll", "right"]


def test_every_line_of_the_table_of_components_is_a_case():
    found = [case.name for name in cases.names() for case in cases.find(name)]
    assert sorted(found) == sorted(line.name for line in components.COMPONENTS)
    assert [case.name for case in cases.find("conv2d")] == ["conv2d NHWC", "conv2d NCHW"]
    assert [case.name for case in cases.find("linear_cross_entropy lean")] == ["linear_cross_entropy lean"]


def test_a_right_rule_of_ones_own(capsys, rules):
    code, out, _ = run(capsys, f"{rules()}:case")
    assert code == 0 and " right " in out and re.search(r"\d\.\d\d$", out.strip()), "the last column is a ratio"


def test_a_wrong_rule_gets_a_hint_and_exit_code_1(capsys, rules):
    code, out, _ = run(capsys, f"{rules(6)}:case", "--level", "rule")
    assert code == 1 and "wrong" in out and "hint: a constant factor: 3 times the derivative" in out
    name = f"{rules(6)}:case"
    assert f"\n{name}: " in out and f"again: jaxnn compare {name} --level rule --seed 0" in out


def test_a_list_of_cases_and_a_module(capsys, rules, monkeypatch, tmp_path):
    rules()
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "rules_2:cases", "--level", "rule")
    assert code == 1 and re.search(r"^rules_2:cases\[0\] +right ", out, re.M)
    assert re.search(r"^rules_2:cases\[1\] +wrong ", out, re.M)


def test_json(capsys, rules):
    code, out, _ = run(capsys, f"{rules(6)}:case", "--json")
    found = json.loads(out)
    (function,) = found["functions"]
    assert (
        code == 1
        and (function["ok"], function["verdict"], function["error"]) == (False, "wrong", None)
        and set(found["versions"]) == {"python", "jax", "device"}
    )
    assert {"rows", "costs", "sweep", "errors", "repro", "seed"} <= set(function)


class Tags(html.parser.HTMLParser):
    """The tags of a page; every opened one is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.more
def test_the_page(capsys, rules, tmp_path):
    path = tmp_path / "page.html"
    code, *_ = run(capsys, f"{rules(6)}:case", "tanh", "--html", str(path))
    text = path.read_text()
    tags = Tags()
    tags.feed(text)
    assert code == 1 and not tags.open
    names = [tag for tag, _ in tags.seen]
    assert names.count("table") >= 3 and names.count("svg") >= 2 and "script" not in names
    assert not any(
        re.match(r"https?:|//", str(v)) for _, attrs in tags.seen for k, v in attrs.items() if k in ("src", "href")
    )
    assert "step size h" in text and "a constant factor: 3 times" in text


def test_the_page_writes_complex_numbers(capsys, rules, tmp_path):
    path = tmp_path / "page.html"
    code, *_ = run(capsys, f"{rules()}:imaginary", "--level", "rule", "--html", str(path))
    assert code == 1 and re.search(r"the rule gives \S+ [+−] \S+i, automatic \S+ [+−] \S+i and", path.read_text())


def test_the_page_escapes_what_it_shows():
    entry = {"name": "<lambda>&", "ok": True, "verdict": "right", "seconds": 1.0, "seed": 0, "repro": "f(<b>)", "costs": {}, "sweep": [], "errors": {},
             "rows": [{"check": "gradient", "path": "x", "status": "PASS", "message": "<script>", "hint": "", "evidence": None}]}  # fmt: skip
    text = page([entry], "rules <title>", "jaxnn compare <x>", {"jax": "<1>"})
    assert "<h1>rules &lt;title&gt;</h1>" in text and "<title>" in text and text.count("<title>") == 1
    assert "<script>" not in text and "<lambda>" not in text and "&lt;lambda&gt;&amp;" in text


STUDENT = """
import jax, jax.numpy as jnp
from helper import factor
f = jax.custom_vjp(jnp.sin)
f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factor * g * jnp.cos(x),))
def case():
    return f, (jnp.array([0.3, -1.0]),)
"""
ODD = """
import dataclasses, os, sys
import jax, jax.numpy as jnp
print("this is printed")
os.chdir("/")
jax.config.update("jax_enable_x64", True)

@dataclasses.dataclass
class Example:
    x: "int" = 0

f = jax.custom_vjp(jnp.sin)
f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
def case():
    return f, (jnp.array([0.3]),)
def raises():
    return 1 / 0
def exits():
    sys.exit("enough")
def interrupts():
    raise KeyboardInterrupt
def ends():
    os._exit(3)
def aborts():
    os.abort()
def asks():
    return input()
def listed():
    return f, [1.0]
def nonsense():
    return "abc"
def integers():
    return f, (3,)
def empty():
    return []
def needs(x):
    return x
"""
NOT_RUN = {  # the causes of cases that cannot be run
    "odd.py:raises": "ZeroDivisionError: division by zero",
    "odd.py:exits": "SystemExit: enough",
    "odd.py:interrupts": "KeyboardInterrupt",
    "odd.py:ends": "it ends its process (code 3)",
    "odd.py:aborts": "its process was ended by SIGABRT",
    "odd.py:asks": "EOFError",
    "odd.py:listed": "it returns (custom_vjp, list)",
    "odd.py:nonsense": "must return (function, (argument, ...))",
    "odd.py:integers": "must include a floating-point array",
    "odd.py:empty": "it is empty",
    "odd.py:other": "there is no function 'other' in odd.py: it has case, raises, exits",
    "syntax.py:case": "SyntaxError: ",
    "leaves.py:case": "SystemExit: 0",
    "nowhere.py:case": "there is no file 'nowhere.py'",
    "nowhere_at_all:case": "ModuleNotFoundError: No module named 'nowhere_at_all'",
}


def test_a_case_without_end_is_not_the_end_of_the_others(tmp_path, monkeypatch):
    """One loops while it is imported, the other has started a process that would keep the pipe open."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(isolated, "CASE_SECONDS", 4.0)
    (tmp_path / "loops.py").write_text("while True:\n    pass\n")
    (tmp_path / "waits.py").write_text(
        "import os, time\ndef case():\n    os.fork()\n    time.sleep(100)\ndef other():\n    return []\n"
    )
    started = time.monotonic()
    for file in ("loops.py", "waits.py"):
        first, *others = isolated.run([f"{file}:case", f"{file}:other"], isolated.Asked("rule", 0), False)
        assert first.error == "no result within 4 s" and [result.name for result in others] == [f"{file}:other"]
    assert time.monotonic() - started < 60


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A folder of files: alice's is right, bob's is wrong, and the others cannot be run."""
    for name, factor in (("alice", 1.0), ("bob", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text(f"factor = {factor}")
        (tmp_path / name / "student.py").write_text(STUDENT)
    for name, text in (("odd", ODD), ("syntax", "def case(:"), ("leaves", "raise SystemExit(0)")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_file_runs_with_its_own_imports(course, capsys):
    """Two files of one name, each with a module of one name beside it; what another file changes does not matter."""
    names = ["odd.py:case", "alice/student.py:case", "bob/student.py:case", "alice/student.py:case"]
    code, out, err = run(capsys, *names, "--level", "rule")
    found = [line.split()[:2] for line in out.splitlines()[1:5]]
    assert found == [[name, verdict] for name, verdict in zip(names, ("right", "right", "wrong", "right"), strict=True)]
    assert code == 1 and "\nbob/student.py:case: " in out and "this is printed" not in out + err


@pytest.mark.more
def test_a_file_may_have_the_name_of_another_module_and_its_own_folder_comes_first(course, capsys, monkeypatch):
    (course / "elsewhere").mkdir()
    (course / "elsewhere" / "helper.py").write_text("raise ImportError('the helper of somebody else')")
    monkeypatch.syspath_prepend(course / "elsewhere")
    (course / "alice" / "types.py").write_text(f"{STUDENT}\nimport types\ntypes.FunctionType  # of Python's module")
    code, out, err = run(capsys, "alice/types.py:case", "--level", "rule")
    assert code == 0, out + err


def test_what_cannot_be_run_is_a_row_and_not_the_end(course, capsys):
    names = [*NOT_RUN, "odd.py:case"]
    code, out, err = run(capsys, *names, "--level", "rule", "--html", "page.html")
    _, *rows = out.partition("\n\n")[0].splitlines()
    assert code == 4 and "Traceback" not in out + err and len(rows) == len(names)
    for row, (name, cause) in zip(rows, NOT_RUN.items(), strict=False):
        assert row.startswith(f"{name} ") and "  could not be run  " in row and cause in row, row
    assert rows[-1].split()[:2] == ["odd.py:case", "right"]
    text = (course / "page.html").read_text()
    assert out.endswith("page: page.html\n") and "could not be run" in text and "division by zero" in text


@pytest.mark.more
def test_json_of_what_cannot_be_run_and_a_wrong_rule_decides_the_exit_code(course, capsys):
    code, out, _ = run(capsys, "syntax.py:case", "bob/student.py:case", "--level", "rule", "--json")
    broken, wrong = json.loads(out)["functions"]
    assert code == 1 and (broken["name"], broken["verdict"]) == ("syntax.py:case", "could not be run")
    assert broken["error"].startswith("SyntaxError") and not broken["ok"] and broken["rows"] == []
    assert (wrong["verdict"], wrong["error"], wrong["name"]) == ("wrong", None, "bob/student.py:case")


@pytest.mark.parametrize("verdicts, code", [
    (["right"], 0), (["right", "unproven"], 3), (["unproven", None], 4), (["wrong", None, "unproven", "right"], 1),
])  # fmt: skip
def test_the_exit_code_is_that_of_the_worst(verdicts, code, capsys, monkeypatch):
    reports = {"right": (), "wrong": (Row("gradient", "x", "FAIL"),), "unproven": (Row("gradient", "x", "INCONCLUSIVE", decides=True),)}  # fmt: skip
    results = [
        isolated.Result(f"a.py:{i}", None, "no") if v is None else isolated.Result(f"a.py:{i}", Report(f"a.py:{i}", reports[v], "", 0, 0.0))
        for i, v in enumerate(verdicts)
    ]  # fmt: skip
    monkeypatch.setattr(isolated, "run", lambda *_: iter(results))
    found, out, _ = run(capsys, "relu")
    assert found == code and [row.split()[1] for row in out.splitlines()[1 : 1 + len(verdicts)]] == [
        v or "could" for v in verdicts
    ]


USAGE = {
    "unknown": (["rellu"], "'rellu' must be one of linear, conv2d"),
    "a file without a function": (["odd.py"], "give odd.py:case or odd.py:raises"),
    "a function without a name": (["odd.py:"], "give odd.py:case or odd.py:raises"),
    "a broken file without a function": (["syntax.py"], "such as syntax.py:case"),
    "html": (["relu", "--html", "/nowhere/page.html"], "cannot write --html '/nowhere/page.html'"),
    "an option twice": (["relu", "--level", "rule", "--level", "full"], "argument --level: it is given twice"),
    "a switch twice": (["relu", "--json", "--json"], "argument --json: it is given twice"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_is_one_line_and_nothing_is_judged(name, capsys, course):
    arguments, message = USAGE[name]
    try:
        code, out, err = run(capsys, "alice/student.py:case", *arguments)
    except SystemExit as stop:
        code, (out, err) = stop.code, capsys.readouterr()
    assert code == 2 and out == "" and message in err and err.count("\n") == 1
