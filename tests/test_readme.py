"""What a README shows is true: its code runs, its transcripts are what the code prints, its links lead to files."""

import contextlib
import inspect
import io
import linecache
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
import zoo
from test_package import FLOORS

import jaxnn
from jaxnn import components

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NO_PAGES = ("build", "dist", "results")
PAGES = sorted(
    page
    for page in ROOT.rglob("README.md")
    if not any(part[0] == "." or part in NO_PAGES for part in page.relative_to(ROOT).parts[:-1])
)
SLOW = "<!-- slow: runs with JAXNN_ALL=1 -->\n"  # stands before a block of a kind of which a faster one runs


def text_of(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    """A block of Python, and what its README says that it prints."""

    page: Path
    number: int  # on its page, from 1
    code: str
    transcript: str
    slow: bool


def blocks_of(page):
    found = re.findall(rf"^({SLOW})?```python\n(.*?)^```\n(?:\n*```text\n(.*?)^```)?", text_of(page), re.M | re.S)
    return [Block(page, i, code, printed, bool(slow)) for i, (slow, code, printed) in enumerate(found, 1)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
by_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def run(block):
    """Run a block in the reader's JAX, which is not in this suite's strict mode, and return what it prints."""
    printed, name = io.StringIO(), f"<{name_of(block.page)}-{block.number}>"
    linecache.cache[name] = len(block.code), None, block.code.splitlines(True), name  # its source can be read
    with contextlib.redirect_stdout(printed), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(block.code, name, "exec"), {"__name__": "readme"})
    return printed.getvalue()


def is_shown(shown, printed):
    """Whether a transcript is what was printed: word by word, in lines of any length, and numbers up to rounding.

    The last digit of a number depends on the processor. One below 2e-5 is a rounding error, or the bound of one.
    """
    words = zip(shown.split(), printed.split(), strict=False)
    return len(shown.split()) == len(printed.split()) and all(a == b or is_near(a, b) for a, b in words)


def is_near(a, b):
    try:
        a, b = (float(word.strip("[](),;")) for word in (a, b))
    except ValueError:
        return False
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=2e-5)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=[pytest.mark.more] * block.slow, id=f"{name_of(block.page)}-{block.number}")
        for block in BLOCKS
    ],
)
def test_a_block_runs_and_prints_its_transcript(block, tmp_path, monkeypatch, unchecked_annotations):
    for library in ("flax", "equinox", "sklearn", "matplotlib"):
        if re.search(rf"\bimport {library}|digits", block.code):
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what a block sets ends with it
    printed = run(block)
    assert not block.transcript or is_shown(block.transcript, printed), f"it prints\n{printed}"


@pytest.mark.parametrize(
    "shown, printed, same",
    [
        ("error 5.3e-07 of 1.3", "error 1e-06\n    of 1.3", True),
        ("custom 0.568898, automatic", "custom 0.568899, automatic", True),
        ("custom 0.58009, automatic", "custom 0.568898, automatic", False),
        ("12 of 12 elements", "11 of 12 elements", False),
        ("PASS x", "FAIL x", False),
        ("one two", "one two three", False),
    ],
)
def test_a_transcript_that_is_no_longer_true_is_noticed(shown, printed, same):
    assert is_shown(shown, printed) is same


@by_page
def test_no_transcript_stands_without_the_code_that_prints_it(page):
    transcripts = len(re.findall(r"^```text$", text_of(page), re.M))
    assert transcripts == sum(block.transcript != "" for block in blocks_of(page))


READERS_TESTS = [block.code for block in BLOCKS if block.code.startswith("# tests/")]


def run_in_pytest(folder, **variables):
    """Run the tests in a folder as its owner would, and return the last line of what pytest prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment).stdout.splitlines()[-1]


def test_the_tests_for_a_readers_suite_pass_and_fail_where_the_rule_is_wrong(tmp_path):
    (code,) = READERS_TESTS
    wrong = code.replace("jax.nn.sigmoid(x)", "jax.nn.sigmoid(-x)")
    (tmp_path / "test_right.py").write_text(code)
    (tmp_path / "test_wrong.py").write_text(wrong)
    assert wrong != code and run_in_pytest(tmp_path).startswith("2 failed, 2 passed")


@pytest.mark.more
def test_the_tests_for_a_readers_suite_pass_at_night(tmp_path):
    (code,) = READERS_TESTS
    (tmp_path / "test_right.py").write_text(code)
    assert run_in_pytest(tmp_path, NIGHTLY="1").startswith("2 passed")


def test_the_quick_start_is_two_commands_of_one_line():
    section = text_of(README).split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    assert len(blocks) == 2 and all(block.count("\n") == 1 for block in blocks)
    assert len(re.findall(r"^```", section, re.M)) == 4, "exactly two fenced blocks"


def test_the_front_page_is_short():
    lines = text_of(README).splitlines()
    assert len(lines) <= 250
    assert README.stat().st_size <= 16 * 1024
    assert not [line for line in lines if len(line) > 160 and not line.startswith("|")]
    generated = re.findall(r"^<!-- (.*?): written by .*?-->\n(.*?)^<!-- end of \1 -->", text_of(README), re.M | re.S)
    assert generated
    for _, part in generated:
        assert sum(line.startswith("|") for line in part.splitlines()) <= 2 + 20


def test_no_text_tells_anyone_to_install_the_other_project():
    sources = [path for folder in ("jaxnn", "experiments", "scripts") for path in ROOT.glob(f"{folder}/**/*.py")]
    for path in [*PAGES, *sources]:
        assert not re.search(r"pip install\s+(-\S+\s+)*['\"]?jaxnn(?!-vjp)", text_of(path)), path


FOLDERS = [ROOT / name for name in ("experiments", "scripts", "tests")]
FOLDERS += sorted(path.parent for path in ROOT.glob("jaxnn/*/__init__.py"))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_folder_has_a_readme(folder):
    assert text_of(folder / "README.md").startswith(f"# {folder.name}")


def anchors(page):
    """The headings of a page, as GitHub makes addresses of them."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


@by_page
def test_every_link_leads_somewhere(page):
    assert not list(broken_links(page))


def test_every_purpose_of_the_front_page_has_its_place():
    table = text_of(README).split("## I want to")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    targets = [re.findall(r"\]\(([^)]+)\)", row.split("|")[2]) for row in rows]
    assert all(targets)
    pages = {README.parent / target.partition("#")[0] for row in targets for target in row}
    assert pages == {folder / "README.md" for folder in FOLDERS}


def files_named(page):
    """The files of the repository that a page names, in its prose and its commands."""
    yield from re.findall(r"\bpython ((?:scripts|experiments)/\S+?\.py)\b", text_of(page))
    yield from re.findall(r"`([\w/]+\.(?:py|json|html))`", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S))


@by_page
def test_every_file_that_a_readme_names_exists(page):
    places = (page.parent, ROOT, ROOT / "jaxnn" / "layers")  # the last for `__init__.py`, which every folder has
    assert not [n for n in files_named(page) if "NAME" not in n and not any((at / n).exists() for at in places)]


def test_the_table_of_layers_has_every_component_and_options_that_exist():
    table = text_of(README).split("## The layers")[1].split("\n## ")[0]
    first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| [`"))
    assert set(re.findall(r"`(\w+)", first)) == {component.f.__name__ for component in components.COMPONENTS}
    for name, arguments in re.findall(r"(\w+)\(([^)]*)\)", first):
        options = set(re.findall(r"\w+", arguments.partition("*,")[2]))
        assert options <= set(inspect.signature(getattr(jaxnn, name)).parameters)
    links = re.findall(r"\[`(\w+)[^`]*`\]\(([^)]+)\)", first)
    assert {name: Path(inspect.getsourcefile(inspect.unwrap(getattr(jaxnn, name)))) for name, _ in links} == {
        name: ROOT / file for name, file in links
    }
    assert len(links) == first.count("`") // 2


def test_the_layout_lists_the_folders_in_the_order_of_their_imports():
    layout = text_of(README).split("## Layout")[1].split("```")[1]
    lines = [re.findall(r"(\w+)(?:/|\.py)", re.split(r"\s{3,}", line.strip())[0]) for line in layout.splitlines()]
    assert [set(folders) for folders in lines if folders and folders not in (["jaxnn"], ["tests"])] == FLOORS


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12) or jax.config.jax_custom_vjp3, reason="the forms of rules depend on JAX's version"
)
def test_the_zoo_is_as_large_as_the_readmes_say():
    for page in (README, ROOT / "jaxnn" / "gradcheck" / "README.md"):
        (counts,) = re.findall(r"(\d+) wrong rules.*?(\d+) right", text_of(page), re.S)
        assert counts == (str(len(zoo.WRONG)), str(len(zoo.RIGHT)))


@pytest.mark.more
def test_the_reference_pages_are_built_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "jaxnn", "-o", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    assert "linear_cross_entropy" in text_of(tmp_path / "jaxnn.html")
