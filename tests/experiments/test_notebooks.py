"""The notebooks: as given they run, and with the solutions every check passes. They are stored without outputs."""

import importlib.metadata
import re
import textwrap
from pathlib import Path

import pytest
from exercises.solutions import SOLUTIONS

from jaxnn.exercises import find, starter

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "notebooks"
NAMES = ["softmax_and_cross_entropy", "backprop_by_hand"]  # the quicker one first
DIFFERENCE = re.compile(r"largest difference from the graph: (\S+)")


def notebook_of(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def exercises_of(notebook):
    """Return the names of the exercises, in their order."""
    return [cell.id.removesuffix("-exercise") for cell in notebook.cells if cell.id.endswith("-exercise")]


def cell_of(notebook, identifier):
    (cell,) = [cell for cell in notebook.cells if cell.id == identifier]
    return cell


def solve(notebook):
    """Put the reference solution in the place of each function that is to be written."""
    for name in exercises_of(notebook):
        cell = cell_of(notebook, f"{name}-exercise")
        above, definition, below = cell.source.rpartition(f"def {find(name).function}(")
        signature, _, blanks = below.partition("\n")
        assert "# write this" in blanks
        cell.source = above + definition + signature + "\n" + textwrap.indent(textwrap.dedent(SOLUTIONS[name]), "    ")


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Return a function that executes a notebook in an empty folder, and returns what each check shows."""
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (folder := tmp_path / "run").mkdir()

    def run(notebook):
        resources = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert [output.text for output in outputs if output.get("name") == "stderr"] == []
        assert list(folder.iterdir()) == []
        shown = {name: cell_of(notebook, f"{name}-check").outputs for name in exercises_of(notebook)}
        return {name: "".join(output.data["text/plain"] for output in outputs) for name, outputs in shown.items()}

    return run


def printed(notebook, identifier):
    return "".join(output.text for output in cell_of(notebook, identifier).outputs)


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.more) for name in NAMES[1:])])
def test_with_the_solutions_every_check_passes(name, execute):
    solve(notebook := notebook_of(name))
    for exercise, shown in execute(notebook).items():
        assert shown.startswith(f"{exercise}: passed\n") and "not passed" not in shown
    (graph,) = cell_of(notebook, "graph").outputs
    assert graph.data["text/html"].startswith("<iframe ")
    assert "not written yet" not in printed(notebook, "compare")
    if name == "backprop_by_hand":
        differences = [float(number) for number in DIFFERENCE.findall(printed(notebook, "compare"))]
        assert len(differences) == len(find("two_layer_network").gradients) and max(differences) < 1e-4
        assert "W = 1.980, b = 1.000" in printed(notebook, "descent")


@pytest.mark.more
@pytest.mark.parametrize("name", NAMES)
def test_as_given_it_runs_and_no_check_passes(name, execute):
    notebook = notebook_of(name)
    for exercise, shown in execute(notebook).items():
        assert shown.startswith(f"{exercise}: not passed\n") and "not written yet" in shown
    assert "not written yet" in printed(notebook, "compare")


def test_all_are_tested():
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_without_outputs_and_without_this_machine(name):
    text, notebook = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"), notebook_of(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert text == nbformat.writes(notebook) + "\n"  # the form in which Jupyter saves it
    for cell in notebook.cells:
        assert cell.metadata == {} and re.fullmatch(r"[a-z_]+(-[a-z]+)*", cell.id)
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)
    assert notebook.metadata.kernelspec.name == "python3" and list(notebook.metadata.language_info) == ["name"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_exercises_are_those_of_the_package(name):
    notebook = notebook_of(name)
    assert len(exercises_of(notebook)) >= 4
    for each in exercises_of(notebook):
        code = starter(find(each)).split('"""', 2)[2].partition("\n\n\nEXERCISE")[0]
        assert cell_of(notebook, f"{each}-exercise").source == code.replace("import jax.numpy as jnp\n", "").strip()
        assert cell_of(notebook, f"{each}-check").source == f'exercises.check({find(each).function}, "{each}")'


@pytest.mark.parametrize("name", NAMES)
def test_it_says_how_to_install_this_package_and_no_other(name):
    setup = cell_of(notebook_of(name), "setup").source
    assert f"./jaxnn_vjp-{importlib.metadata.version('jaxnn-vjp')}-py3-none-any.whl[train]" in setup
    assert "pip install '.[train]'" in setup and "pip install jaxnn" not in (FOLDER / f"{name}.ipynb").read_text()
