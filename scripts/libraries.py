"""The libraries beside which jaxnn is measured, None where one is not installed, and how PyTorch is called."""

import functools
import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def optional(name: str) -> Any:
    """Return the module, or None where it is not installed."""
    return importlib.import_module(name) if importlib.util.find_spec(name.partition(".")[0]) else None


torch, linen, optax = (optional(name) for name in ("torch", "flax.linen", "optax"))


class In(NamedTuple):
    """A function that takes and returns its arrays in another layout."""

    layout: str
    f: Callable[..., Any]

    def axes(self, argument: int | str, *, shifted: bool = False) -> tuple[int, ...] | None:
        """Return how the canonical axes of an argument, or of "y", are permuted; shifted by one axis in front."""
        axes = AXES.get(self.layout, {}).get(argument)
        return (0, *(i + 1 for i in axes)) if axes and shifted else axes


AXES: dict[str, dict[int | str, tuple[int, ...]]] = {
    "NCHW": {0: (0, 3, 1, 2), 1: (3, 2, 0, 1), "y": (0, 3, 1, 2)},
    "IO": {1: (1, 0)},  # weights as (inputs, outputs), Flax's way
}


def torch_run(call: Callable[[], Any]) -> Callable[[int], Any]:
    """Return a function that calls n times and waits."""

    def run(n: int) -> None:
        for _ in range(n):
            call()
        if torch_device() == "cuda":
            torch.cuda.synchronize()

    return run


def device() -> str:
    """Return "gpu" or "cpu": the kind of JAX's default device."""
    return "gpu" if on_gpu() else "cpu"


def on_gpu() -> bool:
    """Return whether JAX's default device is a GPU."""
    return jax.default_backend() == "gpu"


def torch_device() -> str:
    """Return PyTorch's name of the device that JAX uses."""
    return "cuda" if on_gpu() else "cpu"


def torch_facts(name: str, call: Callable[[], Any]) -> dict[str, float]:
    """Call twice, and return the seconds to compile, and the peak of the GPU's memory above what was held."""
    before = time.perf_counter()
    call()
    facts = {"compile_seconds": time.perf_counter() - before} if "compile" in name else {}
    if torch_device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        facts["temporary_bytes"] = float(torch.cuda.max_memory_allocated() - held)
    return facts


IMAGE_FORMS = ("eager", "channels_last", "channels_last, compile")


def torch_ways(f: Callable[..., Any], *, images: bool = False) -> dict[str, Any]:
    """Return a function of `torch.nn.functional` and tensors in PyTorch's forms: layouts of images, compiled or not."""
    if torch is None:
        return {}
    eager = functools.partial(f, torch.nn.functional)
    if not images:
        return {"eager": eager, "compile": torch.compile(eager, dynamic=False)}
    compiled = torch.compile(eager, dynamic=False)
    return {name: In("NCHW", compiled if "compile" in name else eager) for name in IMAGE_FORMS}


def tensor(a: Any, device: str, name: str) -> Any:
    """Return the array as a tensor, in the memory order that the form's name says."""
    kept = np.asarray(a, np.float32 if a.dtype == jnp.bfloat16 else a.dtype)  # NumPy and PyTorch share no bfloat16
    t = torch.tensor(kept.astype(np.int64) if kept.dtype == np.int32 else kept, device=device)
    t = t.to(torch.bfloat16) if a.dtype == jnp.bfloat16 else t
    return t.contiguous(memory_format=torch.channels_last) if "channels_last" in name and t.ndim == 4 else t
