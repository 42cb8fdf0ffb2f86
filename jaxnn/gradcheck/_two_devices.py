"""The check `shard_map` in a child process on two virtual CPU devices, where the parent has one device.

JAX decides once, at its first use, how many devices there are. So a process with one device starts another, which runs
beside the other checks. The function travels by name, as "find `f` in `module`", or pickled; arrays travel as NumPy's.
The child returns its rows as JSON; if it fails, the cause.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck.report import Row
from jaxnn.tracing.errors import first_line
from jaxnn.tracing.functions import is_ref

SECONDS = 20.0  # that the child gets when all other checks are done
CHECK = "shard_map"
# What changes the programs that JAX traces, or their numbers.
SETTINGS = (
    "jax_enable_x64", "jax_custom_vjp3", "jax_custom_jvp3", "jax_remat3", "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_enable_custom_prng", "jax_legacy_prng_key", "jax_softmax_custom_jvp", "jax_use_shardy_partitioner",
    "jax_explicit_x64_dtypes", "jax_use_direct_linearize",
)  # fmt: skip
STARTED_WITH = "import sys; sys.path[:] = {path!r}; from jaxnn.gradcheck._two_devices import main; main()"


class CannotSend(Exception):
    """A function, or a part of it, that another process cannot have."""


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
      wanted: whether `shard_map` is checked, on no mesh in particular.
      *call: f, its arguments, its keyword arguments, and the options of `check` by name.
    """
    if not wanted or jax.device_count() > 1:
        yield None
        return
    try:
        sent = packed(call)
    except Exception as error:  # whatever the pickling of a stranger's object raises
        yield TwoDevices(str(error) if isinstance(error, CannotSend) else f"f cannot be pickled: {first_line(error)}")
        return
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as stderr:
        stdin.write(sent)
        stdin.seek(0)
        code = STARTED_WITH.format(path=[os.path.abspath(p) for p in sys.path])
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


# --- what is sent ---


def packed(call: Any) -> bytes:
    """Return what the child is sent: JAX's settings, and the function with its arguments.

    Raises:
      CannotSend: if the function, or a part of it, cannot be found by name; the message says what to do.
    """
    buffer = io.BytesIO()
    settings = {name: getattr(jax.config, name) for name in SETTINGS if hasattr(jax.config, name)}
    pickle.dump({name: value for name, value in settings.items() if _is_plain(value)}, buffer)
    _Sender(buffer).dump(call)
    return buffer.getvalue()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | str)


class _Sender(pickle.Pickler):
    """Pickles functions by name where they have one, whatever object they are, and arrays as NumPy's."""

    def reducer_override(self, obj: Any) -> Any:
        if is_ref(obj):
            return jax.new_ref, (obj[...],)
        if isinstance(obj, jax.Array):
            if jnp.issubdtype(obj.dtype, jax.dtypes.prng_key):
                return _key, (np.asarray(jax.random.key_data(obj)), str(jax.random.key_impl(obj)))
            return jnp.asarray, (np.asarray(obj),)
        if not callable(obj) or not isinstance(getattr(obj, "__module__", None), str):
            return NotImplemented
        if (name := _name_of(obj)) is not None:
            by_pickle = isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType)
            return NotImplemented if by_pickle and name == obj.__qualname__ else (_find, (obj.__module__, name))
        if isinstance(obj, type) or (hasattr(obj, "__qualname__") and not hasattr(obj, "__self__")):
            raise CannotSend(_why_not(obj))
        return NotImplemented


def _name_of(obj: Any) -> str | None:
    """Return the name under which another process finds an object in its module; None if it has none."""
    module = sys.modules.get(obj.__module__)
    if obj.__module__ == "__main__" or module is None:
        return None
    qualified = getattr(obj, "__qualname__", None)
    with contextlib.suppress(AttributeError):
        if isinstance(qualified, str) and functools.reduce(getattr, qualified.split("."), module) is obj:
            return qualified
    return next((name for name, value in vars(module).items() if value is obj), None)


def _why_not(obj: Any) -> str:
    name = getattr(obj, "__qualname__", type(obj).__name__)
    if obj.__module__ == "__main__":
        return f"`{name}` is defined in the program that was started, which another process cannot import"
    return f"`{name}` is made inside of a function, or has no name in its module `{obj.__module__}`"


def _find(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _key(data: Any, implementation: str) -> Any:
    return jax.random.wrap_key_data(data, impl=implementation)


# --- in the child ---


def main() -> None:
    """Check what standard input holds, and write the rows to standard output."""
    result = os.dup(1)
    os.dup2(2, 1)  # what f prints must not get between
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
    for name, value in pickle.load(given).items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]
    f, args, kwargs, options = pickle.load(given)
    from jaxnn.gradcheck.checker import check
    from jaxnn.gradcheck.checks import FULL

    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    report = check(f, *args, kwargs=kwargs, mesh=mesh, skip=[name for name in FULL if name != CHECK], **options)
    rows = [(row.path, row.status, row.message, row.hint) for row in report.rows if row.check == CHECK]
    if not rows:
        raise RuntimeError(f"f has no row there: {'; '.join(row.message for row in report.rows)}")
    return rows
