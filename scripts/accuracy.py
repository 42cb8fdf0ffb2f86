"""Test accuracy over seeds of `jaxnn train` with its defaults: one table row a model.

    python scripts/accuracy.py --dataset digits --seeds 5
    python scripts/accuracy.py --dataset mnist --data-dir DIR --seeds 3 [--models softmax mlp]

The defaults were picked on the validation split; each run evaluates the test split once, at its end.
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

import jax

MODELS = ("softmax", "mlp", "cnn", "convnet")


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {jax.devices()[0].device_kind}\n")
    print("| data set | model | test accuracy, mean ± sd | validation | seeds | training | CPU time of a run |")
    print("|---|---|---|---|---|---|---|")
    for model in options.models:
        runs = [run(options, model, seed) for seed in range(options.seeds)]
        test, validation, seconds, cpu = zip(*runs, strict=True)
        spread = statistics.stdev(test) if len(test) > 1 else 0.0
        print(
            f"| {options.dataset} | `{model}` | {100 * statistics.mean(test):.2f} ± {100 * spread:.2f} % | "
            f"{100 * statistics.mean(validation):.2f} % | "
            f"{len(test)} | {statistics.median(seconds):.0f} s | {statistics.median(cpu):.0f} s |",
            flush=True,
        )


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
    main()
