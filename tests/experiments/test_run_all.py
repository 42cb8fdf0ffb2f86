"""run_all: every experiment has its place on the page, and one that fails does not stop the others."""

import json
import sys

import pytest
import run_all

RESULTS = {
    "claims": [{"claim": "a < b", "measured": 1.0, "relation": "≤", "bound": 2.0, "holds": True}],
    "tables": [{"title": "Numbers", "columns": ["name", "number"], "rows": [["x", 0.123456789]]}],
}
GOOD = f"import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'results.json').write_text({json.dumps(RESULTS)!r})"


def run(monkeypatch, output, code):
    (output / "good").mkdir(parents=True, exist_ok=True)
    (output / "bad").mkdir(exist_ok=True)
    (output / "bad" / "results.json").write_text("of an earlier run")
    commands = {
        "bad": [sys.executable, "-c", f"raise SystemExit({code})"],
        "good": [sys.executable, "-c", GOOD, str(output / "good")],
        "compare": [sys.executable, "-c", ""],
    }
    monkeypatch.setattr(run_all, "EXPERIMENTS", ("bad", "good"))
    monkeypatch.setattr(run_all, "commands", lambda *_: commands)
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--output", str(output)])
    return run_all.main(), (output / "index.html").read_text()


def test_a_failure_is_reported_and_the_rest_runs(monkeypatch, tmp_path):
    code, page = run(monkeypatch, tmp_path, 3)
    assert code == 1
    assert "failed with exit code 3" in page and "of an earlier run" not in page
    assert "a &lt; b" in page and "0.12346" in page


def test_all_commands_exist(tmp_path):
    for name, command in run_all.commands(tmp_path, 7).items():
        assert name == "compare" or ("7" in command and (run_all.HERE / f"{name}.py").exists())


def test_an_unwritable_folder_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--output", str(tmp_path / "file")])
    assert run_all.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_option_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--nonsense"])
    with pytest.raises(SystemExit):
        run_all.main()
    assert capsys.readouterr().err.count("\n") == 1
