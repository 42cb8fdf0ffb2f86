"""The devices and processes of a run: how they connect, and which settings they must share."""

import argparse
import collections
import contextlib
import json
from typing import TYPE_CHECKING, Any

from jaxnn.cli import supervisor
from jaxnn.cli.terminal import CommandError

if TYPE_CHECKING:
    from jax.sharding import Mesh

CONNECT_SECONDS = 30
AXIS = "data"  # of the mesh
SETTINGS_BYTES = 4096  # the length to which each process pads its settings as JSON, since a gather needs equal shapes


def check(options: argparse.Namespace) -> None:
    """Require all three options that name the processes, or none of them."""
    given = {name: getattr(options, name) for name in ("coordinator", "processes", "process_id")}
    missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]
    if len(missing) == 3:
        return
    if missing or not options.distributed:
        raise CommandError(
            f"{', '.join(missing) or '--distributed'} must also be given, to name the processes of a run", 2
        )
    host, _, port = options.coordinator.rpartition(":")
    if not host or host != host.strip() or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 2**16:
        raise CommandError(f"--coordinator ({options.coordinator!r}) must be HOST:PORT, for example 127.0.0.1:12345", 2)
    if options.process_id >= options.processes:
        raise CommandError(f"--process-id ({options.process_id}) must be below --processes ({options.processes})", 2)


def connect(options: argparse.Namespace) -> None:
    """Connect to the other processes of the run."""
    import jax

    given: dict[str, Any] = {}
    if options.coordinator is not None:
        given = {
            "coordinator_address": options.coordinator,
            # By default JAX listens on all interfaces, and it has no authentication.
            "coordinator_bind_address": options.coordinator,
            "num_processes": options.processes,
            "process_id": options.process_id,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **given, initialization_timeout=CONNECT_SECONDS, heartbeat_timeout_seconds=supervisor.HEARTBEAT,
            # At the end all processes wait for the main one, which draws the pictures.
            shutdown_timeout_seconds=int(supervisor.STARTING),
        )  # fmt: skip
    except ValueError as error:
        if options.debug or options.coordinator is not None:
            raise
        raise CommandError(
            "--distributed found no Slurm, Open MPI, Kubernetes or TPU pod: give --coordinator, --processes and "
            "--process-id"
        ) from error
    except RuntimeError as error:
        if options.debug:
            raise
        reason = " ".join(str(error).split())[:150]
        raise CommandError(
            f"this process cannot connect{_where(options)} ({reason}): the address must be process 0's own, and the "
            f"port free"
        ) from error
    require_devices()
    counts = sorted(collections.Counter(device.process_index for device in jax.devices()).values())
    if len(set(counts)) > 1:
        raise CommandError(f"each process must have the same number of devices; they have {counts}")


def connect_error(options: argparse.Namespace) -> str:
    """Return the message for processes that did not connect in time."""
    return (
        f"the processes of the run did not connect{_where(options)} within {CONNECT_SECONDS} seconds; start all, and "
        f"--process-id 0 on the machine of --coordinator"
    )


def require_devices() -> None:
    """Refuse a JAX_PLATFORMS that JAX cannot use here."""
    import jax

    try:
        jax.devices()
    except Exception as error:  # for "cuda" without CUDA an AssertionError without a message
        if not (platforms := getattr(jax.config, "jax_platforms", None)):
            raise
        reason = f" ({' '.join(str(error).split())[:200]})" if str(error) else ""
        raise CommandError(
            f"JAX_PLATFORMS ({platforms!r}) must name platforms that JAX can use here{reason}: unset it, set it to "
            f"cpu, or install the platform's JAX, in a clone with pip install '.[cuda13]', '.[cuda12]' or '.[tpu]'"
        ) from error


def _where(options: argparse.Namespace) -> str:
    return "" if options.coordinator is None else f" at --coordinator {options.coordinator}"


def mesh(options: argparse.Namespace) -> "Mesh | None":
    """Return the mesh of the devices to train on; None for one device."""
    import jax
    from jax.sharding import AxisType

    devices = jax.devices()
    wanted = getattr(options, "devices", "all" if options.distributed else 1)
    count = len(devices) if wanted == "all" else int(wanted)
    kind = devices[0].platform
    if count > len(devices):
        virtual = f"; set JAX_NUM_CPU_DEVICES={count} for virtual ones" if kind == "cpu" else ""
        raise CommandError(
            f"--devices ({count}) must be at most {len(devices)}, the number of devices ({kind}){virtual}", 2
        )
    if options.distributed and count < len(devices):
        raise CommandError(
            f"--devices ({count}) must be all {len(devices)} devices of a distributed run; leave it out", 2
        )
    if options.batch_size < count * options.accumulate:
        raise CommandError(
            f"--batch-size ({options.batch_size}) must be at least {count * options.accumulate}: one row for each "
            f"micro-batch of each device ({count} devices, {options.accumulate} micro-batches)",
            2,
        )
    if count == 1:
        return None
    return jax.make_mesh((count,), (AXIS,), devices=devices[:count], axis_types=(AxisType.Auto,))


def shared_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that must match across processes. Those that determine the defaults of others come first."""
    import jax

    may_differ = (
        "given", "run", "output", "quiet", "debug", "data_dir", "checkpoint_dir", "download", "coordinator",
        "process_id",
    )  # fmt: skip
    mine = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items() if name not in may_differ}
    first = {name: mine[name] for name in ("--processes", "--dataset", "--model", "--optimizer")}
    saves = "left out" if options.checkpoint_dir is None else "given"
    return first | mine | {"--checkpoint-dir": saves, "jax's version": jax.__version__}


def require_the_same_everywhere(mine: dict[str, Any]) -> None:
    """Raise in every process if the values of any process differ from those of process 0."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    text = json.dumps(mine).encode()
    gathered = np.asarray(multihost_utils.process_allgather(np.frombuffer(text.ljust(SETTINGS_BYTES), np.uint8)))
    first, *rest = (json.loads(row.tobytes()) for row in gathered.reshape(-1, SETTINGS_BYTES))
    for process, theirs in enumerate(rest, 1):
        differing = [name for name in first | theirs if first.get(name) != theirs.get(name)]
        if differing:
            end_together()
            name = differing[0]
            raise CommandError(
                f"{name} is {first.get(name)} in process 0 and {theirs.get(name)} in process {process}: it must be the "
                f"same in all processes"
            )


def end_together() -> None:
    """Wait for the other processes before all of them end: if process 0 left first, they would report it lost."""
    import jax

    if jax.process_count() > 1:
        with contextlib.suppress(Exception):  # if one of them is already lost
            jax.distributed.shutdown()  # type: ignore[no-untyped-call]


def is_main_process() -> bool:
    """Return whether this process prints and writes for the run."""
    import jax

    return bool(jax.process_index() == 0)


def hardware(mesh: "Mesh | None") -> str:
    """Return the devices in words, such as "8 x cpu in 4 processes"."""
    import jax

    kind = jax.devices()[0].device_kind
    if mesh is None:
        return str(kind)
    return f"{mesh.size} x {kind}" + (f" in {n} processes" if (n := jax.process_count()) > 1 else "")
