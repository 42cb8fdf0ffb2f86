"""The command `jaxnn compare`: names, own files, JSON, the page, exit codes, errors in one line."""

import html.parser
import json
import re

import pytest

from jaxnn import cli, components
from jaxnn.cli import compare
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

def exits():
    raise SystemExit(0)


def listed():
    return double, [x]


def raises():
    return 1 / 0

def nonsense():
    return "abc"

def integers():
    return double, (3,)

def none():
    return []
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


def test_a_component_by_name(capsys):
    code, out, err = run(capsys, "relu", "nll", "--level", "rule")
    head, relu, nll = out.splitlines()
    assert code == 0 and err == "" and head.split()[:2] == ["function", "verdict"]
    assert relu.split()[:2] == ["relu", "ok"] and nll.split()[:2] == ["nll", "ok"]


def test_every_line_of_the_table_of_components_is_a_case():
    assert [case.name for case in compare.find([])] == [line.name for line in components.COMPONENTS]
    assert [case.name for case in compare.find(["conv2d", "linear_cross_entropy lean"])] == [
        "conv2d NHWC", "conv2d NCHW", "linear_cross_entropy lean"]  # fmt: skip


def test_a_right_rule_of_ones_own(capsys, rules):
    code, out, _ = run(capsys, f"{rules()}:case")
    assert code == 0 and " ok " in out and re.search(r"\d\.\d\d$", out.strip()), "the last column is a ratio"


def test_a_wrong_rule_gets_a_hint_and_exit_code_1(capsys, rules):
    code, out, _ = run(capsys, f"{rules(6)}:case", "--level", "rule")
    assert code == 1 and "FAIL" in out and "hint: a constant factor: 3 times the derivative" in out


def test_a_list_of_cases_and_a_module(capsys, rules, monkeypatch, tmp_path):
    rules()
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "rules_2:cases", "--level", "rule")
    assert code == 1 and "rules_2:cases[0]  ok" in out and "rules_2:cases[1]  FAIL" in out


def test_json(capsys, rules):
    code, out, _ = run(capsys, f"{rules(6)}:case", "--json")
    found = json.loads(out)
    (function,) = found["functions"]
    assert code == 1 and not function["ok"] and set(found["versions"]) == {"python", "jax", "device"}
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
    entry = {"name": "<lambda>&", "ok": True, "seconds": 1.0, "seed": 0, "repro": "f(<b>)", "costs": {}, "sweep": [], "errors": {},
             "rows": [{"check": "gradient", "path": "x", "status": "PASS", "message": "<script>", "hint": "", "evidence": None}]}  # fmt: skip
    text = page([entry], "rules <title>", "jaxnn compare <x>", {"jax": "<1>"})
    assert "<h1>rules &lt;title&gt;</h1>" in text and "<title>" in text and text.count("<title>") == 1
    assert "<script>" not in text and "<lambda>" not in text and "&lt;lambda&gt;&amp;" in text


BAD = {
    "unknown": (["rellu"], "'rellu' must be one of linear, conv2d"),
    "no file": (["nowhere.py:case"], "'nowhere.py' must be a Python file"),
    "no module": (["nowhere_at_all:case"], "must be importable, but raises ModuleNotFoundError"),
    "no function": (["{rules}:other"], "has no function 'other'"),
    "raises": (["{rules}:raises"], "but raises ZeroDivisionError: division by zero"),
    "exits": (["{rules}:exits"], "but raises SystemExit: 0"),
    "a list of arguments": (["{rules}:listed"], "it returns (custom_vjp, list)"),
    "nonsense": (["{rules}:nonsense"], "must return (function, (argument, ...))"),
    "integers": (["{rules}:integers"], "must include a floating-point array"),
    "empty": (["{rules}:none"], "it is empty"),
    "html": (["relu", "--level", "rule", "--html", "/nowhere/page.html"], "cannot write --html '/nowhere/page.html'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, capsys, rules):
    arguments, message = BAD[name]
    code, out, err = run(capsys, *(a.replace("{rules}", rules()) for a in arguments))
    assert code == 1 and message in err and err.count("\n") == 1 and "Traceback" not in out + err
