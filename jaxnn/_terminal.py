"""What every command has in common: a failure with its one line, and what is printed."""

import contextlib
import os
import sys


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
