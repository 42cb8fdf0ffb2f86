"""The devices and processes of a run: how they find one another, and what they must have in common."""

import argparse
import collections
import contextlib
import json
from typing import TYPE_CHECKING, Any

from jaxnn.cli import supervisor
from jaxnn.cli.terminal import Failure

if TYPE_CHECKING:
    from jax.sharding import Mesh

CONNECT_SECONDS = 30


def check(options: argparse.Namespace) -> None:
    """Require all three options of a cluster, or none."""
    given = {name: getattr(options, name) for name in ("coordinator", "processes", "process_id")}
    missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]
    if len(missing) == 3:
        return
    if missing or not options.distributed:
        raise Failure(f"{', '.join(missing) or '--distributed'} must be given, too, to name the processes of a run", 2)
    host, _, port = options.coordinator.rpartition(":")
    if not host or host != host.strip() or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 2**16:
        raise Failure(f"--coordinator ({options.coordinator!r}) must be HOST:PORT, as 127.0.0.1:12345", 2)
    if options.process_id >= options.processes:
        raise Failure(f"--process-id ({options.process_id}) must be below --processes ({options.processes})", 2)


def connect(options: argparse.Namespace) -> None:
    """Join the run's other processes."""
    import jax

    given: dict[str, Any] = {}
    if options.coordinator is not None:
        given = {
            "coordinator_address": options.coordinator,
            # JAX listens on all interfaces otherwise, and asks nobody who he is.
            "coordinator_bind_address": options.coordinator,
            "num_processes": options.processes,
            "process_id": options.process_id,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **given, initialization_timeout=CONNECT_SECONDS, heartbeat_timeout_seconds=supervisor.HEARTBEAT,
            # At the end all wait for the process that draws.
            shutdown_timeout_seconds=int(supervisor.STARTING),
        )  # fmt: skip
    except ValueError as error:
        if options.debug or options.coordinator is not None:
            raise
        raise Failure(
            "--distributed found no Slurm, Open MPI, Kubernetes or TPU pod: give --coordinator, --processes and "
            "--process-id"
        ) from error
    except RuntimeError as error:
        if options.debug:
            raise
        reason = " ".join(str(error).split())[:150]
        raise Failure(
            f"the run cannot be joined{_where(options)} ({reason}): see that the address is process 0's own, and the "
            f"port free"
        ) from error
    of_each = collections.Counter(device.process_index for device in jax.devices())
    if len(set(of_each.values())) > 1:
        raise Failure(f"each process must have the same number of devices, and they have {sorted(of_each.values())}")


def unmet(options: argparse.Namespace) -> str:
    """Return what to say where the processes did not find one another."""
    return (
        f"the processes of the run did not meet{_where(options)} within {CONNECT_SECONDS} seconds; start them all, "
        f"--process-id 0 where the coordinator is"
    )


def _where(options: argparse.Namespace) -> str:
    return "" if options.coordinator is None else f" at --coordinator {options.coordinator}"


def mesh(options: argparse.Namespace) -> "Mesh | None":
    """Return the devices to train on, None for one."""
    import jax
    from jax.sharding import AxisType

    devices = jax.devices()
    wanted = getattr(options, "devices", "all" if options.distributed else 1)
    count = len(devices) if wanted == "all" else int(wanted)
    kind = devices[0].platform
    if count > len(devices):
        virtual = f"; JAX_NUM_CPU_DEVICES={count} makes virtual ones" if kind == "cpu" else ""
        raise Failure(f"--devices ({count}) must be at most {len(devices)}, as many as there are ({kind}){virtual}", 2)
    if options.distributed and count < len(devices):
        raise Failure(f"--devices ({count}) must be all {len(devices)} of a distributed run; leave it out", 2)
    if options.batch_size < count * options.accumulate:
        raise Failure(
            f"--batch-size ({options.batch_size}) must be at least {count * options.accumulate}, a row for each of "
            f"{count} devices and {options.accumulate} micro-batches",
            2,
        )
    if count == 1:
        return None
    return jax.make_mesh((count,), ("data",), devices=devices[:count], axis_types=(AxisType.Auto,))


def deciding(options: argparse.Namespace) -> dict[str, Any]:
    """Return what decides over the result, what was asked for before what follows from it."""
    import jax

    own = (
        "given", "run", "output", "quiet", "debug", "data_dir", "checkpoint_dir", "download", "coordinator",
        "process_id",
    )  # fmt: skip
    mine = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items() if name not in own}
    first = {name: mine[name] for name in ("--processes", "--dataset", "--model", "--optimizer")}
    steps = "left out" if options.checkpoint_dir is None else "given"
    return first | mine | {"--checkpoint-dir": steps, "jax's version": jax.__version__}


def require_the_same_everywhere(mine: dict[str, Any]) -> None:
    """Compare with process 0's."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    text = json.dumps(mine).encode()
    everyones = np.asarray(multihost_utils.process_allgather(np.frombuffer(text.ljust(4096), np.uint8)))
    first, *others = (json.loads(row.tobytes()) for row in everyones.reshape(-1, 4096))
    for process, theirs in enumerate(others, 1):
        for name in first | theirs:
            if first.get(name) != theirs.get(name):
                end_together()
                raise Failure(
                    f"{name} is {first.get(name)} in process 0 and {theirs.get(name)} in process {process}: it must be "
                    f"the same in all"
                )


def end_together() -> None:
    """Wait for the others, before an end that all have come to: process 0's would be a loss to them."""
    import jax

    if jax.process_count() > 1:
        with contextlib.suppress(Exception):  # where one of them is lost
            jax.distributed.shutdown()  # type: ignore[no-untyped-call]


def leads() -> bool:
    """Tell whether this process speaks and writes for the run."""
    import jax

    return bool(jax.process_index() == 0)


def hardware(mesh: "Mesh | None") -> str:
    import jax

    kind = jax.devices()[0].device_kind
    if mesh is None:
        return str(kind)
    return f"{mesh.size} x {kind}" + (f" in {n} processes" if (n := jax.process_count()) > 1 else "")
