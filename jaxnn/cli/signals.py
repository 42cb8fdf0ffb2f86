"""How Ctrl-C, SIGTERM and the closing of the terminal stop a run."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_signals_call(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Call `handler` on Ctrl-C, SIGTERM and SIGHUP instead of ending the process.

    A signal that is ignored stays ignored, for example SIGHUP under nohup.
    """
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    replaced = {number: former for number, former in previous.items() if former is not signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in replaced.items():
            signal.signal(number, former)


def signal_name(number: int) -> str:
    """Return the name of a signal, as the user knows it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class StopRequest:
    """Remembers the first signal, so that the training stops after the current chunk of steps.

    The handler raises no exception: in the middle of a compilation an exception can crash the interpreter, and in a
    callback of the garbage collector it is lost.

    Args:
        same_signal_seconds: signals within so many seconds count as one. A child process may get a signal twice: from
            its process group and from its parent.
    """

    signal: int | None = None

    def __init__(self, same_signal_seconds: float) -> None:
        self.same_signal_seconds, self.since = same_signal_seconds, 0.0

    def __call__(self) -> bool:
        """Return whether the training is to stop."""
        return self.signal is not None

    def handle(self, number: int, _: Any) -> None:
        """Remember the signal; a second one ends the process at once."""
        if self.signal is None:
            self.signal, self.since = number, time.monotonic()
        elif time.monotonic() - self.since >= self.same_signal_seconds:
            os._exit(128 + number)
