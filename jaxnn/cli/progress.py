"""The progress of a training: a bar on a terminal, otherwise a line for each epoch."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxnn.training import Progress


class Lines:
    """Prints a line after each epoch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def after_chunk(self, progress: "Progress") -> None:
        """Print nothing."""

    def after_epoch(self, row: dict[str, Any]) -> None:
        """Print the epoch's metrics."""
        self.say(
            f"epoch {row['epoch']:3d}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}  "
            f"validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}  "
            f"{row['seconds']:.1f} s"
        )


class Bar:
    """Draws a bar over the whole training, with the loss, the accuracy and the images per second."""

    def __init__(self, bar: Any, epochs: int) -> None:
        self.bar, self.epochs = bar, epochs
        with contextlib.suppress(OSError):
            bar.start()
        self.task = bar.add_task("compiling", total=None)
        self.start: float | None = None
        self.images = 0.0

    def after_chunk(self, progress: "Progress") -> None:
        """Draw the progress."""
        count, now = progress.metrics["count"], time.perf_counter()
        if self.start is None:  # the first chunk includes the compilation: measure the rate from its end
            self.start, self.images = now, -count
        rate = (self.images + count) / max(now - self.start, 1e-9) if self.images + count > 0 else 0.0
        self.bar.update(
            self.task,
            total=self.epochs * progress.steps,
            completed=(progress.epoch - 1) * progress.steps + progress.step,
            description=f"epoch {progress.epoch}/{self.epochs}  loss {progress.metrics['nll'] / count:.4f}  "
            f"accuracy {progress.metrics['correct'] / count:.2%}  {rate:,.0f} images/s",
        )
        if progress.step == progress.steps:
            self.images += count

    def after_epoch(self, row: dict[str, Any]) -> None:
        """Draw nothing: the last chunk of the epoch did."""


@contextlib.contextmanager
def open_progress(options: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Lines | Bar]:
    """Return what shows the progress; with --quiet `say` prints nothing."""
    if options.quiet or sys.stderr is None or not sys.stderr.isatty():
        yield Lines(say)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True))
    try:
        yield Bar(bar, options.epochs)
    finally:
        with contextlib.suppress(OSError):  # a closed terminal must not end a training
            bar.stop()
