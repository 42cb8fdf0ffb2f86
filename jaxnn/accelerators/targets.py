"""Accelerators to compile for: what a target's name means, its chip's figures, its devices, and what must be installed.

A target is named "tpu:CHIP:TOPOLOGY" or "cuda:CHIP:COUNT", as in "tpu:v5e:2x2" or "cuda:h100:8". Without the last part
it is one chip. The devices of a target can be compiled for and do not run.
"""

import contextlib
import difflib
import importlib.util
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows, which has no libtpu either
    fcntl = None  # type: ignore[assignment]

LOCK_SECONDS = 600.0  # how long to wait for another process that uses libtpu


class Unavailable(RuntimeError):
    """The compiler of a target cannot be used here. The message is one line that says why, and the cure."""


class Chip(NamedTuple):
    """A kind of accelerator.

    The peaks are those of matrix products at JAX's default precision: TPUs multiply float32 in one pass of bfloat16,
    and GPUs in TF32. So no product of that dtype is faster.
    """

    bandwidth: float  # bytes/s of the main memory
    peak: dict[str, float]  # flop/s, by the dtype of the operands
    memory: float  # bytes
    largest: int  # the most chips of one program: a TPU's pod, a GPU's host
    axes: int  # of a TPU's topology; 1 for a GPU
    source: str


_TPU = "https://cloud.google.com/tpu/docs/"
CHIPS = {
    "tpu": {
        "v5e": Chip(819e9, {"float32": 197e12, "bfloat16": 197e12}, 16e9, 256, 2, _TPU + "v5e"),
        "v5p": Chip(2765e9, {"float32": 459e12, "bfloat16": 459e12}, 95e9, 8960, 3, _TPU + "v5p"),
        "v6e": Chip(1640e9, {"float32": 918e12, "bfloat16": 918e12}, 32e9, 256, 2, _TPU + "v6e"),
    },
    "cuda": {
        "h100": Chip(3.35e12, {"float32": 495e12, "bfloat16": 989e12}, 80e9, 8, 1,
                     "https://www.nvidia.com/en-us/data-center/h100/ (SXM, without sparsity)"),
        "b200": Chip(8e12, {"float32": 1.125e15, "bfloat16": 2.25e15}, 180e9, 8, 1,
                     "https://www.nvidia.com/en-us/data-center/dgx-b200/ (an eighth of it, without sparsity)"),
    },
}  # fmt: skip

# What XLA asks a GPU for: the properties that `cudaGetDeviceProperties` gives on that GPU. XLA's repository publishes
# the same ones for many GPUs (xla/backends/gpu/target_config/specs).
_COMMON_PROPERTIES = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49152, "shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448,
    "registers_per_core_limit": 65536, "registers_per_block_limit": 65536, "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
}  # fmt: skip
_PROPERTIES: dict[str, dict[str, float | int]] = {
    "h100": {
        "core_count": 132, "clock_rate_ghz": 1.98, "memory_bandwidth": 3_352_320_000_000, "l2_cache_size": 52_428_800,
        "device_memory_size": 84_978_434_048,
    },
    "b200": {
        "core_count": 148, "clock_rate_ghz": 1.965, "memory_bandwidth": 7_672_320_000_000,
        "l2_cache_size": 132_644_864, "device_memory_size": 191_514_411_008,
    },
}  # fmt: skip
_CAPABILITY = {"h100": 9, "b200": 10}
_DEVICE_NAME = {"h100": "NVIDIA H100 80GB HBM3", "b200": "NVIDIA B200"}
_CUDNN = "major: 9 minor: 8"

# Each platform: the module of its compiler, what installs it, and where it has wheels.
_CUDA_MODULES = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
_WHEELS = {"tpu": ("x86_64",), "cuda": ("x86_64", "aarch64")}
_EXTRAS = {"tpu": "pip install 'jax[tpu]'", "cuda": "pip install 'jax[cuda12]'"}
_ENVIRONMENT = {
    # Without these, libtpu looks for a TPU's metadata server, and JAX's CUDA plugin for a driver.
    "tpu": {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"},
    "cuda": {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
}


class Target(NamedTuple):
    """What to compile for: a platform, a chip, and how many of them in which arrangement."""

    platform: str  # "tpu" or "cuda"
    chip: str
    topology: tuple[int, ...]

    @property
    def name(self) -> str:
        """The target's name, complete."""
        return f"{self.platform}:{self.chip}:{'x'.join(map(str, self.topology))}"

    @property
    def figures(self) -> Chip:
        """The chip's figures."""
        return CHIPS[self.platform][self.chip]

    def environment(self) -> dict[str, str]:
        """Return the variables that a process needs before it imports JAX, to compile for this target."""
        return _ENVIRONMENT[self.platform]

    def require(self) -> None:
        """Raise `Unavailable` if the compiler is not installed, or cannot be."""
        system, machine = platform.system(), platform.machine()
        wanted = _WHEELS[self.platform]
        if system != "Linux" or machine not in wanted:
            raise Unavailable(
                f"{self.name}: its compiler has no wheel for {system} on {machine}; use Linux on {' or '.join(wanted)}"
            )
        modules = ("libtpu",) if self.platform == "tpu" else _CUDA_MODULES
        if not any(_installed(module) for module in modules):
            raise Unavailable(f"{self.name}: its compiler is not installed; {_EXTRAS[self.platform]}")

    def devices(self) -> list[Any]:
        """Return the devices to compile for. The process needs `environment()`; for a TPU, also `only_libtpu`.

        Raises:
            Unavailable: the compiler is not installed, does not start, or does not know the topology.
        """
        self.require()
        lacking = [f"{key}={value}" for key, value in self.environment().items() if os.environ.get(key) != value]
        if lacking:
            raise Unavailable(f"{self.name}: start the process with {' '.join(lacking)}")
        import jax
        from jax.experimental import topologies

        shape = "x".join(map(str, self.topology))
        try:
            if self.platform == "tpu":
                topology = topologies.get_topology_desc(f"{self.chip}:{shape}", platform="tpu")
            else:
                options = {"target_config": target_config(self.chip), "topology": f"1x1x{shape}"}
                topology = topologies.get_topology_desc("", platform="cuda", **options)
        except jax.errors.JaxRuntimeError as error:
            raise Unavailable(f"{self.name}: {_cause(str(error))}") from error
        return list(topology.devices)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _cause(message: str) -> str:
    """Return one line about an error of the compiler's start."""
    if "lockfile" in message:
        return "another process uses libtpu, which allows one at a time; wait for it to end"
    return message.strip().splitlines()[0]


def target(name: str) -> Target:
    """Return the target of that name.

    Raises:
        ValueError: the platform, chip or topology does not exist; the message names near ones, an example or the limit.
    """
    kind, _, rest = name.partition(":")
    chip, _, shape = rest.partition(":")
    known = [f"{k}:{c}" for k, chips in CHIPS.items() for c in chips]
    if f"{kind}:{chip}" not in known:
        near = difflib.get_close_matches(f"{kind}:{chip}", known, 3, 0.6) or known
        raise ValueError(f"target {name!r} must begin with a known platform and chip: {', '.join(near)}")
    figures = CHIPS[kind][chip]
    example = ":".join((kind, chip, "x".join("2" * figures.axes) if kind == "tpu" else "8"))
    if not shape:
        return Target(kind, chip, (1,) * figures.axes)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or (axes := shape.count("x") + 1) > 3 or axes != figures.axes:
        raise ValueError(f"target {name!r} must have a topology of {_numbers(figures.axes)}, for example {example!r}")
    topology = tuple(map(int, shape.split("x")))
    if (chips := math.prod(topology)) > figures.largest:
        where = "pod" if kind == "tpu" else "host"
        raise ValueError(
            f"target {name!r} ({chips} chips) must have at most {figures.largest} chips, the size of a {where}"
        )
    return Target(kind, chip, topology)


def _numbers(axes: int) -> str:
    return "one positive number" if axes == 1 else f"{axes} positive numbers with an x between"


def compiled_for(device: Any, f: Any, args: Any, donated: tuple[int, ...] = ()) -> Any:
    """Compile a function for one device, as it would run there.

    Args:
        device: one of `Target.devices()`, or a real device.
        f: the function.
        args: a tuple of pytrees of arrays, or of anything else with a shape and a dtype.
        donated: numbers of the arguments whose memory the results may use.

    Returns:
        The compiled program, for `programs.facts`.
    """
    import jax
    from jax.sharding import SingleDeviceSharding

    make: Any = jax.ShapeDtypeStruct
    where = SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda a: make(a.shape, a.dtype, sharding=where), args)
    return jax.jit(f, donate_argnums=donated).lower(*shapes).compile()


def target_config(chip: str) -> str:
    """Return the description of a GPU that XLA compiles for (a GpuTargetConfigProto in text form)."""
    properties = {**_COMMON_PROPERTIES, **_PROPERTIES[chip]}
    lines = [f"  {key}: {value}" for key, value in properties.items()]
    return "\n".join([
        "gpu_device_info {", *lines, f"  cuda_compute_capability {{ major: {_CAPABILITY[chip]} }}", "}",
        'platform_name: "CUDA"', f"dnn_version_info {{ {_CUDNN} }}",
        f'device_description_str: "{_DEVICE_NAME[chip]}"', "",
    ])  # fmt: skip


@contextlib.contextmanager
def only_libtpu(seconds: float = LOCK_SECONDS, folder: str = "/tmp") -> Iterator[None]:
    """Wait until no other process uses libtpu, and make jaxnn's others wait. Enter this before libtpu starts.

    libtpu refuses to start while another process has it, and its message advises to delete its lock file. So jaxnn's
    processes take turns by a lock of their own, held until the block ends. They also wait for libtpu's lock.

    Args:
        seconds: how long to wait.
        folder: where libtpu's lock file lies, and ours beside it.

    Raises:
        Unavailable: another process still uses libtpu, the lock belongs to another user, or this system has no libtpu.
    """
    if fcntl is None:
        raise Unavailable(f"libtpu does not run on {sys.platform}; use Linux")
    end = time.monotonic() + seconds
    path = Path(folder) / "jaxnn-libtpu.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise Unavailable(f"{path} cannot be opened ({error.strerror}); let its owner delete it") from error
    with open(descriptor, "r+b") as ours:
        while not (_locks(ours) and _is_free(Path(folder) / "libtpu_lockfile")):
            if time.monotonic() >= end:
                raise Unavailable(f"another process uses libtpu (waited {seconds:g} s); wait for it to end")
            time.sleep(0.2)
        yield


def _locks(file: Any) -> bool:
    """Lock a file of ours; return whether that worked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(path: Path) -> bool:
    """Return whether no other process holds libtpu's lock."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except (BlockingIOError, PermissionError):
        return False
    return True
