"""A child process for a check that this process cannot run: it has other devices, or other compilers.

JAX decides once, at its first use, which devices there are. `_sending.py` pickles the function for the child. The child
returns its rows as JSON, or the cause if it fails.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from jaxnn.gradcheck import _sending
from jaxnn.gradcheck.report import Row
from jaxnn.tracing.errors import first_line

STARTED_WITH = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


@dataclasses.dataclass(frozen=True)
class Child:
    """A child process that checks f; or the reason why there is none."""

    cause: str = ""
    process: Any = None
    output: Any = None  # the file of its rows
    stderr: Any = None  # the file of its standard error

    def rows(self, check: str, seconds: float, after: str = "") -> tuple[list[Row], str]:
        """Wait for the child, and return its rows of a check, or the reason why there are none."""
        if self.cause:
            return [], self.cause
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return [], f"it did not finish within {seconds:g} s{after}"
        self.output.seek(0)
        try:
            found = json.loads(self.output.read())
            if "cause" in found:
                return [], str(found["cause"])
            return [Row(check, path, status, message, hint) for path, status, message, hint in found["rows"]], ""
        except (ValueError, TypeError, KeyError):
            return [], f"it ended with exit code {self.process.returncode}{self._last_error_line()}"

    def _last_error_line(self) -> str:
        """Return the last line that the child wrote to its standard error."""
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        return f" ({lines[-1][:200]})" if lines else ""


@contextlib.contextmanager
def child(module: str, environment: dict[str, str], *call: Any) -> Iterator[Child]:
    """Start a child process; kill it when the block ends.

    Args:
      module: the module whose `main` the child runs.
      environment: its environment variables, beside those of this process.
      *call: the arguments of the check that the child's `main` passes to `answer`.
    """
    try:
        sent = _sending.packed(_sending.settings()) + _sending.packed(call)
    except Exception as error:  # pickling a third-party object may raise anything
        yield Child(f"f cannot be sent to another process: {first_line(error)}")
        return
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as stderr:
        stdin.write(sent)
        stdin.seek(0)
        code = STARTED_WITH.format(path=_sending.path(), module=module)
        files: dict[str, Any] = {"stdin": stdin, "stdout": output, "stderr": stderr}
        try:
            process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | environment, **files)
        except OSError as error:
            yield Child(f"Python cannot be started: {first_line(error)}")
            return
        try:
            yield Child("", process, output, stderr)
        finally:
            process.kill()
            process.wait()


def answer(check: Callable[..., list[Row]]) -> None:
    """In the child: check what standard input holds, and write the rows to standard output."""
    result = os.dup(1)
    os.dup2(2, 1)  # what f prints goes to standard error, not into the result
    found: dict[str, Any]
    try:
        _sending.apply(pickle.load(sys.stdin.buffer))
        rows = check(*pickle.load(sys.stdin.buffer))
        found = {"rows": [(row.path, row.status, row.message, row.hint) for row in rows]}
    except BaseException as error:
        found = {"cause": f"it raises {first_line(error)}"}
    with os.fdopen(result, "w") as output:
        output.write(json.dumps(found))
    sys.stderr.flush()
    os._exit(0)  # a thread that f has started must not keep the process
