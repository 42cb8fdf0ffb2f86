"""The check `shard_map` in a child process on two virtual CPU devices, beside the other checks."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from jaxnn.gradcheck._child import Child, answer, child
from jaxnn.gradcheck.report import Row

SECONDS = 20.0  # that the child gets when all other checks are done
CHECK = "shard_map"


@contextlib.contextmanager
def two_devices(wanted: bool, *call: Any) -> Iterator[Child | None]:
    """Start the child if it is wanted and this process has one device; end it at the end.

    Args:
      wanted: whether `shard_map` is checked, and the caller gave no mesh.
      *call: f, its arguments, its keyword arguments, and the options of `check` by name.
    """
    if not wanted or jax.device_count() > 1:
        yield None
        return
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "xla_force_host_platform_device_count" not in f]
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": " ".join(flags)}
    with child(__name__, environment, *call) as started:
        yield started


# --- in the child ---


def main() -> None:
    """Check what standard input holds, and write the rows to standard output."""
    answer(_checked)


def _checked(f: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> list[Row]:
    from jaxnn.gradcheck.checker import check
    from jaxnn.gradcheck.checks import FULL

    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    report = check(f, *args, kwargs=kwargs, mesh=mesh, skip=[name for name in FULL if name != CHECK], **options)
    found = [row for row in report.rows if row.check == CHECK]
    if not found:
        raise RuntimeError(f"f has no row there: {'; '.join(row.message for row in report.rows)}")
    return found
