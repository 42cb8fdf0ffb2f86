"""What is recorded of a rule: its calls, one for each signature, and how to call it again."""

import dataclasses
import functools
import math
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck import _sending
from jaxnn.gradcheck._subject import argument_names
from jaxnn.gradcheck.pytest_plugin.places import constants_of
from jaxnn.tracing.functions import is_array

SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c", "bool": "bool"}


@dataclasses.dataclass
class Rule:
    """A rule that was reached.

    Attributes:
      name: its name, with the module's.
      file: the file where it is defined.
      line: the line there.
      kind: "custom_vjp", "custom_jvp" or "HiPrim".
      differentiated: whether a test differentiated it.
      tests: the tests that called it, in order.
      records: what is recorded, by signature.
    """

    name: str
    file: str
    line: int
    kind: str
    differentiated: bool = False
    tests: dict[str, None] = dataclasses.field(default_factory=dict)
    records: dict[str, "Record"] = dataclasses.field(default_factory=dict)

    def record(self, rule: Any, tree: Any, leaves: list[Any]) -> "Record":
        """Return the record of a signature, a new one at its first call."""
        x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
        mesh = jax.sharding.get_abstract_mesh()
        axes = {str(name): mesh.shape[name] for name in mesh.manual_axes}
        constants = constants_of(rule)
        signature = signature_of(rule, tree, leaves) + "".join(f", over {n}={size}" for n, size in axes.items())
        signature += f"; with {constants}" if constants else ""
        key = f"{signature} {x64}"
        if key not in self.records:
            self.records[key] = Record(self, rule, tree, signature, x64, axes)
        return self.records[key]


@dataclasses.dataclass
class Record:
    """The call of a rule with arguments of certain types.

    Attributes:
      called: the rule, a function.
      tree: the structure of its arguments.
      signature: their types, "x f32[8,128], eps=1e-06".
      x64: whether jax_enable_x64 was on.
      axes: the axes of a mesh over which the call was mapped by shard_map, and their sizes.
      varying: for each leaf, over which of them it varies; None for one that is no tracer of an array.
      checks_varying: whether shard_map kept account of what varies (check_vma=True).
      leaves: the arguments of the hardest call; None while there is none.
      hardness: how well these test a rule (values.py).
      batched: whether a call was one of a batch, under vmap.
      seen: how many calls brought values.
      marks: how many calls with tracers were marked.
      runs: how often a copy of a program was run for its values.
      left_out: why no arguments were kept.
      tests: the tests that made such a call, in order.
      options: of `gradcheck.check`, as a test's marker has them.
    """

    rule: Any
    called: Any
    tree: Any
    signature: str
    x64: bool
    axes: dict[str, int]
    varying: list[Any] = dataclasses.field(default_factory=list)
    checks_varying: bool = False
    leaves: list[Any] | None = None
    hardness: float = -1.0
    batched: bool = False
    seen: int = 0
    marks: int = 0
    runs: int = 0
    left_out: str = ""
    tests: dict[str, None] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def devices(self) -> int:
        return math.prod(self.axes.values())

    def note_axes(self, leaves: list[Any]) -> None:
        """Note over which axes of the mesh each leaf varies."""
        self.varying = [_varying(x) if isinstance(x, jax.core.Tracer) and is_array(x) else None for x in leaves]
        self.checks_varying = any(self.varying)

    def stacked(self, shards: list[list[Any]]) -> list[Any]:
        """Return the arguments of all devices: those that vary have the axes of the mesh in front."""
        sizes = tuple(self.axes.values())

        def together(leaf: int) -> Any:
            first = shards[0][leaf]
            if not is_array(first) or not self.is_stacked(leaf):
                return first
            kept = tuple(n if name in self._over(leaf) else 1 for name, n in self.axes.items())
            whole = np.stack([np.asarray(s[leaf]) for s in shards]).reshape(*sizes, *np.shape(first))
            return whole[tuple(slice(0, k) for k in kept)]

        return [together(leaf) for leaf in range(len(shards[0]))]

    def _over(self, leaf: int) -> set[str]:
        """Return the axes over which a leaf varies: all, where shard_map does not keep account."""
        return set(self.varying[leaf]) if self.checks_varying else set(self.axes)

    def is_stacked(self, leaf: int) -> bool:
        return bool(self.axes) and self.varying[leaf] is not None

    def call(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return a function, and arguments and keyword arguments to check it at."""
        leaves = [jnp.asarray(x) if isinstance(x, np.ndarray) and is_array(x) else x for x in self.leaves or ()]
        args, kwargs = jax.tree.unflatten(self.tree, leaves)
        return (self._over_mesh() if self.axes else self.called), args, kwargs

    def _over_mesh(self) -> Any:
        """Return the rule as a function that is mapped over a mesh, as in the recorded call."""
        auto = (jax.sharding.AxisType.Auto,) * len(self.axes)
        mesh = jax.make_mesh(tuple(self.axes.values()), tuple(self.axes), axis_types=auto)
        P = jax.sharding.PartitionSpec
        leaf_specs = [
            P(*(n if n in self._over(i) else None for n in self.axes)) if self.is_stacked(i) else P()  # type: ignore[no-untyped-call]
            for i in range(len(self.leaves or ()))
        ]
        front = len(self.axes)

        @functools.wraps(self.called)
        def mapped(*args: Any, **kwargs: Any) -> Any:
            leaves = jax.tree.leaves((args, kwargs))
            arrays = [i for i, x in enumerate(leaves) if is_array(x)]

            def on_a_device(*shards: Any) -> Any:
                filled = list(leaves)
                for i, x in zip(arrays, shards, strict=True):
                    filled[i] = x.reshape(x.shape[front:]) if self.is_stacked(i) else x
                args, kwargs = jax.tree.unflatten(self.tree, filled)
                y = self.called(*args, **kwargs)
                return jax.tree.map(lambda y: y.reshape((1,) * front + y.shape), y)

            specs = tuple(leaf_specs[i] for i in arrays)
            out = P(*self.axes)  # type: ignore[no-untyped-call]
            over = jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=out, check_vma=self.checks_varying)
            return over(*(leaves[i] for i in arrays))

        return mapped


def _varying(x: Any) -> tuple[str, ...]:
    aval = jax.typeof(x)
    kept = getattr(aval, "vma", None)  # before jax 0.12
    return tuple(kept if kept is not None else aval.manual_axis_type.varying)


def signature_of(rule: Any, tree: Any, leaves: list[Any]) -> str:
    """Return the types of arguments: "x f32[8,128], eps=1e-06"."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(tree, leaves))[0]]
    names = argument_names(rule, paths)
    return ", ".join(_type_text(name, x) for name, x in zip(names, leaves, strict=True))


def _type_text(name: str, x: Any) -> str:
    if not is_array(x):
        text = repr(x)
        return f"{name}={text if len(text) < 30 and ' at 0x' not in text else type(x).__name__}"
    dtype = str(x.dtype)
    letters = dtype.rstrip("0123456789")
    short = SHORT.get(letters, letters) + dtype[len(letters) :]
    return f"{name} {short}[{','.join(map(str, np.shape(x)))}]"


def save(record: Record, file: str, by_value: Collection[str]) -> None:
    """Write a record to a file, for another process; raise what its pickling raises."""
    alone = dataclasses.replace(record, rule=None, tests={})
    settings = _sending.settings() | _sending.devices()
    Path(file).write_bytes(_sending.packed(settings) + _sending.packed(alone, by_value))


def load(file: str, *, set_up: bool = True) -> Record:
    """Read a record; set JAX up as it was, except where the record is only looked at."""
    with open(file, "rb") as saved:
        settings = pickle.load(saved)
        if set_up:
            _sending.apply(settings)
        return pickle.load(saved)  # type: ignore[no-any-return]
