"""What all experiments share: each names every file that it wrote, and no other."""

import argparse

import _experiment
import pytest
from matplotlib.figure import Figure


def measure(options: argparse.Namespace):
    (options.output / "page.html").write_text("a page")
    return {"claims": [_experiment.at_most("one", 1, 2)], "tables": []}


def draw(results):
    return {"test_experiment": Figure(), "test_experiment_more": Figure()}


def run(folder, capsys, measure=measure):
    assert _experiment.main("", lambda parser: None, measure, draw, ["--output", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return sorted(line.removeprefix("wrote ") for line in lines if line.startswith("wrote "))


def test_every_file_is_named(tmp_path, capsys):
    named = run(tmp_path, capsys)
    assert named == sorted(map(str, tmp_path.iterdir())) and len(named) == 4


def test_a_second_run_names_what_it_wrote_again_and_nothing_else(tmp_path, capsys):
    run(tmp_path, capsys)
    (tmp_path / "mine.txt").write_text("not of this run")
    named = run(tmp_path, capsys)
    assert named == sorted(str(path) for path in tmp_path.iterdir() if path.name != "mine.txt")
    without_page = lambda options: {"claims": [], "tables": []}  # noqa: E731
    assert str(tmp_path / "page.html") not in run(tmp_path, capsys, without_page)


@pytest.mark.more
@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["softmax_regression", "backprop_in_action"])
def test_an_experiment_names_what_lies_in_its_folder(name, tmp_path, capsys, monkeypatch):
    module = __import__(name)
    if name == "softmax_regression":
        monkeypatch.setattr(module, "MOST", module.BLOCK)  # stops early: its claims fail, its files are written
    else:
        monkeypatch.setattr(module, "STEPS", 5)
    argv = ["--output", str(tmp_path)]
    _experiment.main(module.__doc__, module.add_options, module.measure, module.draw, argv)
    lines = capsys.readouterr().out.splitlines()
    named = {line.removeprefix("wrote ") for line in lines if line.startswith("wrote ")}
    assert named == set(map(str, tmp_path.iterdir()))
