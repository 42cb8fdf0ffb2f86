"""Test accuracy over seeds of `jaxnn train` with its defaults: a row for each data set and model.

    python scripts/accuracy.py --dataset digits --seeds 5
    python scripts/accuracy.py --dataset mnist --data-dir DIR --seeds 3 [--models softmax mlp]
    python scripts/accuracy.py --readme

The rows are printed, and replace those of the same data set and model in scripts/accuracy.json; `--readme` writes the
table in scripts/README.md from that file. The defaults were chosen on the validation split; each run evaluates the test
split once, at its end.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from sections import ROOT, rewrite, table

FILE, README = ROOT / "scripts" / "accuracy.json", ROOT / "scripts" / "README.md"
MODELS = ("softmax", "mlp", "cnn", "convnet")
HEAD = ["data set", "model", "test accuracy, mean ± sd", "validation", "seeds", "training time", "CPU time of a run"]


def main() -> int:
    """Train and print, or write the README's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--readme", action="store_true", help="write the README's table; train nothing")
    options = parser.parse_args()
    if options.readme:
        rewrite(README, "accuracy", section())
        return 0
    rows: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    for model in options.models:
        row = measured(options, model)
        print(*cells(row), sep="  ", flush=True)
        rows = [other for other in rows if (other["dataset"], other["model"]) != (options.dataset, model)] + [row]
        FILE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """Train a model from each seed; return its row."""
    runs = [run(options, model, seed) for seed in range(options.seeds)]
    test, validation, seconds, cpu = zip(*runs, strict=True)
    return {
        "dataset": options.dataset, "model": model, "seeds": len(test),
        "test": statistics.mean(test), "sd": statistics.stdev(test) if len(test) > 1 else 0.0,
        "validation": statistics.mean(validation), "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu), "jax": jax.__version__, "python": platform.python_version(),
        "machine": jax.devices()[0].device_kind,
    }  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row's texts, in the order of HEAD."""
    return [
        row["dataset"], f"`{row['model']}`", f"{100 * row['test']:.2f} ± {100 * row['sd']:.2f} %",
        f"{100 * row['validation']:.2f} %", str(row["seeds"]), f"{row['seconds']:.0f} s", f"{row['cpu_seconds']:.0f} s",
    ]  # fmt: skip


def section() -> str:
    """Return the table in Markdown, from the committed rows."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    runs = dict.fromkeys(f"jax {r['jax']}, Python {r['python']}, {r['machine']}" for r in rows)
    return "\n".join([*table(HEAD, list(map(cells, rows))), "", f"`python scripts/accuracy.py`; {'; '.join(runs)}."])


def run(options: argparse.Namespace, model: str, seed: int) -> tuple[float, float, float, float]:
    """Return test and validation accuracy, and the training's and the whole process' seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; from jaxnn.cli import main; sys.exit(main())", "train", "--quiet"]
        command += ["--dataset", options.dataset, "--model", model, "--seed", str(seed), "--output", folder]
        command += ["--data-dir", options.data_dir] if options.data_dir else []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return rows[-1]["test_accuracy"], rows[-2]["validation_accuracy"], rows[-1]["seconds"], cpu


if __name__ == "__main__":
    sys.exit(main())
