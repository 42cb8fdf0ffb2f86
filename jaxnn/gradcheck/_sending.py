"""Pickle objects for another process: functions by name where they have one, else by value; arrays as NumPy arrays."""

import contextlib
import functools
import importlib
import io
import os
import sys
import types
from collections.abc import Collection
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.tracing.functions import is_ref

# What changes the programs that JAX traces, or their numbers.
SETTINGS = (
    "jax_enable_x64", "jax_custom_vjp3", "jax_custom_jvp3", "jax_remat3", "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_enable_custom_prng", "jax_legacy_prng_key", "jax_softmax_custom_jvp", "jax_use_shardy_partitioner",
    "jax_explicit_x64_dtypes", "jax_use_direct_linearize",
)  # fmt: skip


def settings() -> dict[str, Any]:
    """Return JAX's settings, as another process can set them."""
    found = {name: getattr(jax.config, name) for name in SETTINGS if hasattr(jax.config, name)}
    return {name: value for name, value in found.items() if value is None or isinstance(value, bool | int | str)}


def devices() -> dict[str, Any]:
    """Return the setting for as many virtual CPU devices as this process has; none on other devices."""
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")  # the other process has it, too
    return {} if given or jax.default_backend() != "cpu" else {"jax_num_cpu_devices": jax.device_count()}


def apply(found: dict[str, Any]) -> None:
    """Set JAX up as another process was."""
    for name, value in found.items():
        with contextlib.suppress(RuntimeError):  # the number of devices is decided once, at JAX's first use
            jax.config.update(name, value)  # type: ignore[no-untyped-call]


def path() -> list[str]:
    """Return where Python looks for modules, independent of the folder that it runs in."""
    return [os.path.abspath(p) for p in sys.path]


def packed(obj: Any, by_value: Collection[str] = ()) -> bytes:
    """Return an object as bytes for another process.

    Args:
      obj: any object.
      by_value: the modules that the other process cannot import, or must not.
    """
    buffer = io.BytesIO()
    with contextlib.ExitStack() as stack:
        for module in (sys.modules[name] for name in by_value if name in sys.modules):
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        _Sender(buffer, by_value).dump(obj)
    return buffer.getvalue()


class _Sender(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, buffer: io.BytesIO, by_value: Collection[str]) -> None:
        super().__init__(buffer)
        self.by_value = by_value

    def reducer_override(self, obj: Any) -> Any:
        if is_ref(obj):
            return jax.new_ref, (obj[...],)
        if isinstance(obj, jax.Array) and not isinstance(obj, jax.core.Tracer):
            if jnp.issubdtype(obj.dtype, jax.dtypes.prng_key):
                return _key, (np.asarray(jax.random.key_data(obj)), str(jax.random.key_impl(obj)))
            return jnp.asarray, (np.asarray(obj),)
        if callable(obj) and (name := self._name_of(obj)) is not None:
            by_pickle = isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType)
            if not by_pickle or name != obj.__qualname__:
                return _find, (obj.__module__, name)
        if isinstance(obj, jax.custom_vjp | jax.custom_jvp):
            return object.__new__, (type(obj),), vars(obj)  # the constructor needs the function, which may call it
        return super().reducer_override(obj)

    def _name_of(self, obj: Any) -> str | None:
        """Return the name under which another process finds an object in its module; None if it has none."""
        module = getattr(obj, "__module__", None)
        if not isinstance(module, str) or module in ("__main__", *self.by_value) or module not in sys.modules:
            return None
        qualified, members = getattr(obj, "__qualname__", None), sys.modules[module]
        with contextlib.suppress(AttributeError):
            if isinstance(qualified, str) and functools.reduce(getattr, qualified.split("."), members) is obj:
                return qualified
        return next((name for name, value in vars(members).items() if value is obj), None)


def _find(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _key(data: Any, implementation: str) -> Any:
    return jax.random.wrap_key_data(data, impl=implementation)
