"""What every command has in common: a failure with its one line, and what is printed."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any


class Failure(Exception):
    """A failure with its one line and its exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        """Keep the exit code."""
        super().__init__(message)
        self.code = code


def complain(line: str) -> None:
    """Print to the standard error, if there is one."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def say(line: str) -> None:
    """Print, unless the reader went away: a closed pipe is no reason to lose a training."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def noting(note: Callable[[int, Any], Any]) -> Iterator[None]:
    """Have `note` called where Ctrl-C, SIGTERM or the end of the terminal would end the process.

    What is ignored stays ignored, as under nohup.
    """
    stopping = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    former = {number: signal.getsignal(number) for number in stopping}
    held = {number: handler for number, handler in former.items() if handler is not signal.SIG_IGN}
    for number in held:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def signal_name(number: int) -> str:
    """Return a signal's name for people."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
