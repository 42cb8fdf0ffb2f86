"""The files that `jaxnn train` writes: metrics, parameters with their configuration, pictures; and its summary."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxnn.cli.output_folder import OutputFolder
from jaxnn.cli.terminal import CommandError
from jaxnn.files import write_whole
from jaxnn.models import Classifier

if TYPE_CHECKING:
    from jaxnn.data import Dataset
    from jaxnn.training import EpochResult

TRAINED_WITH = (  # the options that the configuration records
    "dataset", "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "momentum", "l2", "dropout", "dtype",
    "accumulate",
)  # fmt: skip


def epoch_row(result: "EpochResult", validation: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the metrics of an epoch, the row that metrics.jsonl holds.

    Raises:
        CommandError: the validation loss is not finite: an update can make parameters that are finite but useless.
    """
    if not math.isfinite(validation["loss"]):
        raise CommandError(f"the validation loss is not finite after epoch {result.epoch}: try a lower learning rate")
    sums = result.metrics
    return {
        "epoch": result.epoch,
        "step": int(result.state.step),
        "train_loss": sums["nll"] / sums["count"],
        "train_accuracy": sums["correct"] / sums["count"],
        "validation_loss": validation["loss"],
        "validation_accuracy": validation["accuracy"],
        "seconds": round(seconds, 3),
    }


def write_metrics(output: OutputFolder, rows: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl: one JSON object per row."""
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with output.writing():
        write_whole(output.staged / "metrics.jsonl", lines.encode())


def write_parameters(output: OutputFolder, params: Any, config: dict[str, Any]) -> None:
    """Write params.npz: the parameters and their configuration."""
    from jaxnn.training import save_params

    with output.writing():
        save_params(output.staged / "params.npz", params, config)


def configuration(options: argparse.Namespace, dataset: "Dataset", classifier: Classifier) -> dict[str, Any]:
    """Return what is needed to use the parameters again, and the options that they were trained with."""
    return {
        "model": options.model,
        "input_shape": list(dataset.train.images.shape[1:]),
        "classes": list(dataset.classes),
        "normalisation": {"mean": classifier.mean, "std": classifier.std},
        "seed": options.seed,
        **{name: getattr(options, name) for name in TRAINED_WITH},
    }


def draw(
    output: OutputFolder, rows: list[dict[str, Any]], counts: Any, params: Any, model: str, dataset: "Dataset"
) -> None:
    """Draw curves.png, confusion.png (of the `counts` on the test split) and filters.png."""
    import numpy as np

    from jaxnn.plots.confusion import confusion
    from jaxnn.plots.curves import curves
    from jaxnn.plots.filters import filters

    title = f"{model} on {dataset.name}"
    images, labels = _first_layer(model, params, dataset)
    what = "weights" if model in ("softmax", "mlp") else "filters"
    with output.writing():
        curves(output.staged / "curves.png", rows, title)
        confusion(output.staged / "confusion.png", np.asarray(counts), dataset.classes, f"{title}, test split")
        filters(output.staged / "filters.png", images, f"{title}: {what} of the first layer", labels)


def _first_layer(model: str, params: Any, dataset: "Dataset") -> tuple[Any, tuple[str, ...] | None]:
    """Return the weights of the first layer as images, (count, height, width), and their labels if they have any."""
    import numpy as np

    if model in ("cnn", "convnet"):  # (height, width, input channel, output channel)
        weights = params["W0"] if model == "cnn" else params["conv1"]["w"]
        return np.moveaxis(np.asarray(weights)[:, :, 0], -1, 0), None
    weights = params["linear" if model == "softmax" else "linear1"]["w"]  # (unit, pixels)
    height, width, _ = dataset.train.images.shape[1:]
    some = np.asarray(weights)[:64]  # a picture of more is hard to read
    return some.reshape(-1, height, width), dataset.classes if model == "softmax" else None


def summary(options: argparse.Namespace, rows: list[dict[str, Any]], output: Path) -> str:
    """Return the table that ends a training."""
    (*_, last_epoch, test), epochs = rows, options.epochs
    lines = {
        "test accuracy": f"{test['test_accuracy']:.2%}",
        "test loss": f"{test['test_loss']:.4f}",
        "validation accuracy": f"{last_epoch['validation_accuracy']:.2%}",
        "training time": f"{test['seconds']:.1f} s with compilation, {epochs} epochs, {last_epoch['step']} steps",
        "metrics": str(output / "metrics.jsonl"),
        "parameters": str(output / "params.npz"),
        "pictures": ", ".join(str(output / f"{name}.png") for name in ("curves", "confusion", "filters")),
    }
    return "\n".join(f"{name:<20} {value}" for name, value in lines.items())
