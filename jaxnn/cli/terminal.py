"""What every command prints, and the error that ends one."""

import contextlib
import os
import sys

from jaxnn.data import DataError
from jaxnn.errors import JaxnnError

# The library's errors about data name its parameters; a user of the command knows them as options.
OPTIONS = {"`data_dir`": "--data-dir", "`download=True`": "--download", "`name`": "--dataset"}


class CommandError(JaxnnError):
    """An error of a command, with its exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        """Store the exit code."""
        super().__init__(message)
        self.code = code


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, with options of the command for the library's parameters."""
    line = " ".join(str(error).split()) or type(error).__name__
    for parameter, option in OPTIONS.items() if isinstance(error, DataError) else ():
        line = line.replace(parameter, option)
    return line


def print_error(line: str) -> None:
    """Print to the standard error, if it is open."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def print_line(line: str) -> None:
    """Print to the standard output; a closed pipe must not end a training."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
