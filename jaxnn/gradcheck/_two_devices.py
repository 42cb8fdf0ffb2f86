"""The check `shard_map` in a child process on two virtual CPU devices, where the parent has one device.

JAX decides once, at its first use, how many devices there are. So a process with one device starts a child process,
which runs beside the other checks. `_sending.py` pickles the function for it. The child returns its rows as JSON, or
the cause if it fails.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from jaxnn.gradcheck import _sending
from jaxnn.gradcheck.report import Row
from jaxnn.tracing.errors import first_line

SECONDS = 20.0  # that the child gets when all other checks are done
CHECK = "shard_map"
STARTED_WITH = "import sys; sys.path[:] = {path!r}; from jaxnn.gradcheck._two_devices import main; main()"


@dataclasses.dataclass(frozen=True)
class TwoDevices:
    """A child process that checks f on two devices; or the reason why there is none."""

    cause: str = ""
    process: Any = None
    output: Any = None  # the file of its rows
    stderr: Any = None  # the file of its standard error

    def rows(self, seconds: float = SECONDS) -> tuple[list[Row], str]:
        """Wait for the child, and return its rows, or the reason why there are none."""
        if self.cause:
            return [], self.cause
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return [], f"it did not finish within {seconds:g} s after the other checks"
        self.output.seek(0)
        try:
            found = json.loads(self.output.read())
            if "cause" in found:
                return [], str(found["cause"])
            return [Row(CHECK, path, status, message, hint) for path, status, message, hint in found["rows"]], ""
        except (ValueError, TypeError, KeyError):
            return [], f"it ended with exit code {self.process.returncode}{self._last_error_line()}"

    def _last_error_line(self) -> str:
        """Return the last line that the child wrote to its standard error."""
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        return f" ({lines[-1][:200]})" if lines else ""


@contextlib.contextmanager
def two_devices(wanted: bool, *call: Any) -> Iterator[TwoDevices | None]:
    """Start the child if it is wanted and this process has one device; end it at the end.

    Args:
      wanted: whether `shard_map` is checked, and the caller gave no mesh.
      *call: f, its arguments, its keyword arguments, and the options of `check` by name.
    """
    if not wanted or jax.device_count() > 1:
        yield None
        return
    try:
        sent = _sending.packed(_sending.settings()) + _sending.packed(call)
    except Exception as error:  # pickling a third-party object may raise anything
        yield TwoDevices(f"f cannot be sent to another process: {first_line(error)}")
        return
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as stderr:
        stdin.write(sent)
        stdin.seek(0)
        code = STARTED_WITH.format(path=_sending.path())
        files: dict[str, Any] = {"stdin": stdin, "stdout": output, "stderr": stderr}
        try:
            process = subprocess.Popen([sys.executable, "-c", code], env=_environment(), **files)
        except OSError as error:
            yield TwoDevices(f"Python cannot be started: {first_line(error)}")
            return
        try:
            yield TwoDevices("", process, output, stderr)
        finally:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "xla_force_host_platform_device_count" not in f]
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": " ".join(flags)}
    return os.environ | devices


# --- in the child ---


def main() -> None:
    """Check what standard input holds, and write the rows to standard output."""
    result = os.dup(1)
    os.dup2(2, 1)  # what f prints goes to standard error, not into the result
    found: dict[str, Any]
    try:
        found = {"rows": _checked(sys.stdin.buffer)}
    except BaseException as error:
        found = {"cause": f"it raises {first_line(error)}"}
    with os.fdopen(result, "w") as output:
        output.write(json.dumps(found))
    sys.stderr.flush()
    os._exit(0)  # a thread that f has started must not keep the process


def _checked(given: Any) -> list[tuple[str, str, str, str]]:
    _sending.apply(pickle.load(given))
    f, args, kwargs, options = pickle.load(given)
    from jaxnn.gradcheck.checker import check
    from jaxnn.gradcheck.checks import FULL

    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    report = check(f, *args, kwargs=kwargs, mesh=mesh, skip=[name for name in FULL if name != CHECK], **options)
    rows = [(row.path, row.status, row.message, row.hint) for row in report.rows if row.check == CHECK]
    if not rows:
        raise RuntimeError(f"f has no row there: {'; '.join(row.message for row in report.rows)}")
    return rows
