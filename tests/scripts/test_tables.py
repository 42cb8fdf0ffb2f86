"""The tables of residuals and accuracy in scripts/README.md are what their scripts make of the committed results."""

import json

import accuracy
import pytest
import residuals
import sections
import sharding_modes

from jaxnn import components


@pytest.mark.parametrize("script, name", [(residuals, "residuals"), (accuracy, "accuracy")], ids=lambda v: str(v))
def test_the_readme_says_what_was_measured(script, name):
    text = script.README.read_text(encoding="utf-8")
    assert sections.rewritten(text, name, script.section()) == text, f"run scripts/{name}.py --readme"


def test_every_line_of_the_table_of_components_has_its_residuals():
    committed = json.loads(residuals.FILE.read_text(encoding="utf-8"))["bytes"]
    assert list(committed) == [line.name for line in components.COMPONENTS], "run scripts/residuals.py"
    for line in components.COMPONENTS:
        assert committed[line.name][1] == line.residual_bytes(*line.example(components.BENCHMARK))


def test_a_line_that_is_added_to_the_table_appears(monkeypatch):
    line = components.COMPONENTS[0]._replace(name="toy")
    monkeypatch.setattr(components, "COMPONENTS", [*components.COMPONENTS, line])
    monkeypatch.setattr(residuals, "counted", lambda line: [0])
    assert list(residuals.measured()["bytes"])[-1] == "toy"
    assert "toy" in [work.name for work in sharding_modes.works(2)]


def test_accuracy_replaces_the_row_of_the_same_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(accuracy, "FILE", tmp_path / "accuracy.json")
    accuracy.FILE.write_text("[]")
    monkeypatch.setattr(accuracy, "run", lambda options, model, seed: (0.9 + seed / 100, 0.8, 2.0, 3.0))
    for seeds in ("1", "3"):
        monkeypatch.setattr("sys.argv", ["accuracy.py", "--models", "mlp", "softmax", "--seeds", seeds])
        assert accuracy.main() == 0
    assert [row["model"] for row in json.loads(accuracy.FILE.read_text())] == ["mlp", "softmax"]
    assert "| digits | `mlp` | 91.00 ± 1.00 % | 80.00 % | 3 | 2 s | 3 s |" in accuracy.section()
