"""The gradient of every component in every way to use many devices, against autodiff of its definition on one.

    python scripts/sharding_modes.py [NAME ...] [--devices N]

Names and arguments come from the table in `jaxnn/components.py`; further rows try options and sharded classes. Each row
of the printed table shards some arguments along one axis, rows of data or classes; the others are the same on every
device. A way is right (ok) where each element of each gradient agrees with `jax.vjp` of the definition on one device,
in float64, to 1e-13 (1 + |value|), both as it stands and under `vmap`. Otherwise the largest error or the exception is
printed.

The ways: jit alone; jit over a mesh of Auto, and of Explicit axes (a global view: arrays are sharded, the program is
not); `shard_map` with `check_vma` on and off, differentiated as a whole, or inside, in each device's program; `pmap`.
Inside `shard_map` without `check_vma`, and inside `pmap`, JAX does not know what is the same on all devices: there the
caller sums the gradient of a weight, and a loss whose classes are sharded is differentiated as a whole.
"""

import argparse
import functools
import inspect
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnn
from jaxnn import components as table
from jaxnn.components import Size, TableLine

AXIS = "devices"
SAME, FIRST, SECOND = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)  # the axis that is sharded
TOLERANCE = 1e-13


class Work(NamedTuple):
    """A component, and arrays of which some are sharded over the devices."""

    name: str
    f: Any
    args: tuple[Any, ...]
    sharding: tuple[PartitionSpec, ...]  # of each argument
    out: PartitionSpec = SAME  # of the value
    join: str = ""  # how the losses of the devices' rows become one: "sum", "mean", or "" where they need not
    by_class: bool = False  # the devices share the classes, not the rows
    options: Any = None

    @property
    def floats(self) -> list[int]:
        """The arguments that have a gradient."""
        return [i for i, a in enumerate(self.args) if np.issubdtype(a.dtype, np.floating)]

    def whole(self, *args: Any) -> Any:
        """Call the component as on one device."""
        return self.f(*args, **(self.options or {}))

    def definition(self, *args: Any) -> Any:
        """Call the component's definition."""
        return getattr(self.f, "definition", self.f)(*args, **(self.options or {}))

    def local(self, *args: Any) -> Any:
        """Call it in one device's program."""
        y = self.f(*args, **(self.options or {}), **({"axis_name": AXIS} if self.by_class else {}))
        join = {"sum": lax.psum, "mean": lax.pmean}.get(self.join)
        return join(y, AXIS) if join else y

    def under_vmap(self) -> "Work":
        """Return the same under vmap: two of each sharded array, stacked in a new last axis."""
        over = [None if spec == SAME else -1 for spec in self.sharding]

        def twice(f: Any) -> Any:
            return lambda *args, **options: jax.vmap(functools.partial(f, **options), over, -1)(*args)

        f = twice(self.f)
        f.definition = twice(getattr(self.f, "definition", self.f))
        args = [a if i is None else np.stack([a, np.flip(a)], i) for a, i in zip(self.args, over, strict=True)]
        return self._replace(f=f, args=tuple(args))


# The pieces of work ---------------------------------------------------------------------------------------------------


def works(devices: int) -> Iterator[Work]:
    """Yield every line of the table with its rows sharded, then further options, and classes sharded."""
    n = 2 * devices
    size = Size((n, 6, 4, 2), n, n, 4, (n, 3, n))
    args = {line.name: tuple(map(_in_float64, line.example(size))) for line in table.COMPONENTS}
    for line in table.COMPONENTS:
        yield dropped(args[line.name], n) if line.is_random else by_rows(line, args[line.name])
    yield from pooled(n)
    yield from normalised(args["softmax"][0])
    yield from reduced(args)
    yield from weighted(args, n)


def _in_float64(a: Any) -> Any:
    return a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a


def by_rows(line: TableLine, args: tuple[Any, ...]) -> Work:
    """Return a line of the table with the rows of its arguments sharded."""
    f = _with_definition(line, lambda f: lambda *args: _first(f(*args)))
    sharding = tuple(FIRST if by_row else SAME for by_row in line.by_row)
    if jax.eval_shape(f, *args).shape:
        return Work(line.name, f, args, sharding, FIRST)
    reduction = inspect.signature(line.f).parameters.get("reduction")  # what has none, as a penalty, is a sum
    return Work(line.name, f, args, sharding, join=reduction.default if reduction else "sum")


def dropped(args: tuple[Any, ...], rows: int) -> Work:
    """Return dropout with a key for each row: one key for all would draw other numbers on several devices."""
    keys = np.random.default_rng(0).integers(0, 2**32, (rows, 2), dtype=np.uint32)
    return Work("dropout", _dropped, (args[0].reshape(rows, -1), keys), (FIRST, FIRST), FIRST)


def pooled(rows: int) -> Iterator[Work]:
    """Yield max-pooling of windows that overlap."""
    images, options = (
        np.random.default_rng(0).standard_normal((rows, 2, 6, 4)),
        {"window": 3, "stride": 2, "padding": 1},
    )
    yield Work("max_pool2d overlapping", jaxnn.max_pool2d, (images,), (FIRST,), FIRST, options=options)


def normalised(x: Any) -> Iterator[Work]:
    """Yield softmax and log_softmax with the classes sharded, and with masks."""
    where = np.random.default_rng(0).random(x.shape) < 0.7
    for f in (jaxnn.softmax, jaxnn.log_softmax):
        masked, name = _keyword(f, "where"), f.__name__
        yield Work(f"{name}, where", masked, (x, where), (FIRST, FIRST), FIRST)
        yield Work(f"{name} by class", f, (x,), (SECOND,), SECOND, by_class=True)
        yield Work(f"{name} by class, where", masked, (x, where), (SECOND, SECOND), SECOND, by_class=True)


def reduced(args: dict[str, Any]) -> Iterator[Work]:
    """Yield the losses with their other reductions, and cross_entropy with the classes sharded."""
    for f in (jaxnn.nll, jaxnn.nll_loss, jaxnn.cross_entropy, jaxnn.binary_cross_entropy, jaxnn.squared_error):
        name = f.__name__
        none, summed = {"reduction": "none"}, {"reduction": "sum"}
        yield Work(f"{name}, none", f, args[name], (FIRST, FIRST), FIRST, options=none)
        yield Work(f"{name}, sum", f, args[name], (FIRST, FIRST), join="sum", options=summed)
    for reduction in ("none", "sum", "mean"):
        yield Work(f"cross_entropy by class, {reduction}", jaxnn.cross_entropy, args["cross_entropy"], (SECOND, SAME),
                   by_class=True, options={"reduction": reduction})  # fmt: skip


def weighted(args: dict[str, Any], classes: int) -> Iterator[Work]:
    """Yield the losses with weights, ignored and smoothed labels, probabilities as labels, and a bias."""
    rng = np.random.default_rng(0)
    weight, bias, soft = (
        rng.uniform(0.5, 2.0, classes),
        rng.standard_normal(classes),
        rng.dirichlet(np.ones(classes), classes),
    )
    (x, labels), cross_entropy = args["cross_entropy"], _keyword(jaxnn.cross_entropy, "weight")
    ignored = {"ignore_index": int(labels[1])}
    summed: dict[str, Any] = {"reduction": "sum", **ignored}
    smooth: dict[str, Any] = {"label_smoothing": 0.1, **ignored}
    rows, by_class = (FIRST, FIRST, SAME), (SECOND, SAME, FIRST)
    arrays = (*args["nll"], weight)
    yield Work("nll, weight", _keyword(jaxnn.nll, "weight"), arrays, rows, join="sum", options=summed)
    arrays = (x, labels, weight)
    yield Work("cross_entropy, weight", cross_entropy, arrays, rows, join="sum", options=summed | smooth)
    yield Work("cross_entropy by class, weight", cross_entropy, arrays, by_class, by_class=True, options=smooth)
    yield Work(
        "cross_entropy, soft", jaxnn.cross_entropy, (x, soft), rows[:2], join="sum", options={"reduction": "sum"}
    )
    arrays = (x, soft, weight)
    yield Work("cross_entropy by class, soft", cross_entropy, arrays, (SECOND, SECOND, FIRST), by_class=True)
    x, w, labels = args["linear_cross_entropy fast"]
    smooth["ignore_index"] = summed["ignore_index"] = int(labels[1])
    arrays = (x, labels, w, bias, weight)
    for memory in ("fast", "lean"):
        options = {"memory": memory, "block_size": 3} | smooth
        yield Work(f"linear_cross_entropy, {memory}, weight", _of_vocabulary, arrays, (FIRST, FIRST, SAME, SAME, SAME),
                   join="sum", options=options | summed)  # fmt: skip
        yield Work(f"linear_cross_entropy by class, {memory}", _of_vocabulary, arrays,
                   (SAME, SAME, FIRST, FIRST, FIRST), by_class=True, options=options)  # fmt: skip


def _first(y: Any) -> Any:
    """Return the output that has a gradient."""
    return y[0] if isinstance(y, tuple) else y


def _with_definition(f: Any, wrap: Callable[[Any], Any]) -> Any:
    """Wrap a component and its definition alike."""
    wrapped = wrap(f)
    wrapped.definition = wrap(f.definition)
    return wrapped


def _keyword(f: Any, name: str) -> Any:
    """Pass the last argument by its keyword."""
    return _with_definition(f, lambda f: lambda *args, **options: f(*args[:-1], **{name: args[-1]}, **options))


def _vocabulary(f: Any) -> Any:
    return lambda x, labels, w, b, weight, **options: f(x, w, labels, b=b, weight=weight, **options)


_of_vocabulary = _with_definition(jaxnn.linear_cross_entropy, _vocabulary)


def _dropped(x: Any, keys: Any) -> Any:
    return jax.vmap(lambda x, key: jaxnn.dropout(x, 0.4, key))(x, keys)


def _dropped_by_definition(x: Any, keys: Any) -> Any:
    return x * _dropped(jnp.ones(x.shape), keys)  # dropout's own definition draws other bits


_dropped.definition = _dropped_by_definition  # type: ignore[attr-defined]


# The ways -------------------------------------------------------------------------------------------------------------


def _gradient(work: Work, f: Any, args: Any, dy: Any) -> tuple[Any, ...]:
    """Return the cotangents of the floating arguments of f."""

    def of_floats(*floats: Any) -> Any:
        given = dict(zip(work.floats, floats, strict=True))
        return f(*(given.get(i, a) for i, a in enumerate(args)))

    y, vjp = jax.vjp(of_floats, *(args[i] for i in work.floats))
    return tuple(vjp(_like(dy, y)))


def _like(dy: Any, y: Any) -> Any:
    """Return the upstream gradient in y's type: it may vary over the devices where dy does not."""
    axes = tuple(jax.typeof(y).manual_axis_type.varying - jax.typeof(dy).manual_axis_type.varying)
    return lax.pcast(dy, axes, to="varying") if axes else dy


def _global_view(kind: AxisType, work: Work, mesh: jax.sharding.Mesh, dy: Any) -> Any:
    mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=(kind,))
    with jax.set_mesh(mesh):
        place = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))  # noqa: E731
        args = [place(a, spec) for a, spec in zip(work.args, work.sharding, strict=True)]
        return jax.jit(lambda args, dy: _gradient(work, work.whole, args, dy))(args, place(dy, work.out))


def _around(check_vma: bool, work: Work, mesh: jax.sharding.Mesh, dy: Any) -> Any:
    mapped = jax.shard_map(work.local, mesh=mesh, in_specs=work.sharding, out_specs=work.out, check_vma=check_vma)
    return jax.jit(lambda args, dy: _gradient(work, mapped, args, dy))(work.args, dy)


def _inside(check_vma: bool, work: Work, mesh: jax.sharding.Mesh, dy: Any) -> Any:
    """Differentiate in each device's own program the loss of its own rows."""
    f = work.local if work.by_class else work.whole
    specs = tuple(work.sharding[i] for i in work.floats)

    def local(args: Any, dy: Any) -> Any:
        dy = dy / lax.axis_size(AXIS) if work.join == "mean" else dy
        gradient = _gradient(work, f, args, dy)
        if check_vma:
            return gradient
        return tuple(lax.psum(g, AXIS) if spec == SAME else g for g, spec in zip(gradient, specs, strict=True))

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(work.sharding, work.out), out_specs=specs, check_vma=check_vma)
    return jax.jit(mapped)(work.args, dy)


def _pmap(work: Work, mesh: jax.sharding.Mesh, dy: Any) -> Any:
    """Differentiate pmap as a whole; a value that is the same everywhere counts once."""
    devices = mesh.size

    def split(a: Any, spec: PartitionSpec) -> Any:
        if spec == SAME:
            return a
        axis = len(spec) - 1
        parts = a.reshape(*a.shape[:axis], devices, a.shape[axis] // devices, *a.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis, 0)

    def mapped(*args: Any) -> Any:
        in_axes = tuple(None if spec == SAME else 0 for spec in work.sharding)
        y = jax.pmap(work.local, AXIS, in_axes=in_axes)(*map(split, args, work.sharding))
        if work.out == SAME:
            return jnp.sum(y, 0) / devices
        axis = len(work.out) - 1
        y = jnp.moveaxis(y, 0, axis)
        return y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])

    return _gradient(work, mapped, list(map(jnp.asarray, work.args)), dy)


WAYS: dict[str, Callable[[Work, jax.sharding.Mesh, Any], Any]] = {
    "jit": lambda work, _, dy: jax.jit(lambda args, dy: _gradient(work, work.whole, args, dy))(work.args, dy),
    "Auto": functools.partial(_global_view, AxisType.Auto),
    "Explicit": functools.partial(_global_view, AxisType.Explicit),
    "shard_map": functools.partial(_around, True),
    "unchecked": functools.partial(_around, False),
    "inside": functools.partial(_inside, True),
    "inside, unchecked": functools.partial(_inside, False),
    "pmap": _pmap,
}


def verdict(work: Work, way: str, mesh: jax.sharding.Mesh) -> str:
    """Return "ok", "-" for what is not asked of a way, or what is wrong."""
    if work.by_class and work.out == SAME and way == "inside, unchecked":
        return "-"
    shape = jax.eval_shape(work.definition, *work.args).shape
    dy = jnp.cos(jnp.arange(np.prod(shape, dtype=int), dtype=float)).reshape(shape) + 0.5
    truth = jax.jit(lambda args: _gradient(work, work.definition, args, dy))(list(map(jnp.asarray, work.args)))
    try:
        found = WAYS[way](work, mesh, np.asarray(dy))
        errors = [_error(a, b) for a, b in zip(found, truth, strict=True)]
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return "ok" if max(errors) <= TOLERANCE else f"{max(errors):.1e}"


def _error(found: Any, truth: Any) -> float:
    """Return the largest |found − truth| / (1 + |truth|); NaN and infinities are to be where they are in truth."""
    a, b = np.asarray(found), np.asarray(truth)
    if a.shape != b.shape or a.dtype != b.dtype or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(b)
    return float(np.max(np.abs(a - b)[finite] / (1 + np.abs(b[finite])), initial=0.0))


def make_mesh(devices: int) -> jax.sharding.Mesh:
    """Return a mesh of that many devices."""
    return jax.make_mesh((devices,), (AXIS,), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))


def main() -> int:
    """Print the table; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of the rows' names (default: all)")
    parser.add_argument("--devices", type=int, default=4, help="number of devices, virtual ones on a CPU (default: 4)")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    jax.config.update("jax_enable_x64", True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    mesh = make_mesh(options.devices)
    kind = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {options.devices} x {kind}, float64\n")
    widths = [max(len(way), 4) for way in WAYS]
    print(f"{'':38}", *(f"{way:{width}}" for way, width in zip(WAYS, widths, strict=True)), sep="  ")
    wrong = []
    for work in works(options.devices):
        if options.names and not any(work.name.startswith(name) for name in options.names):
            continue
        cells = []
        for way in WAYS:
            both = [verdict(work, way, mesh), verdict(work.under_vmap(), way, mesh)]
            bad = [f"{kind}: {v}" for kind, v in zip(("plain", "vmap"), both, strict=True) if v not in ("ok", "-")]
            wrong += [f"{work.name}, {way}, {text}" for text in bad]
            cells.append("WRONG" if bad else both[0])
        print(
            f"{work.name:38}", *(f"{c:{width}}" for c, width in zip(cells, widths, strict=True)), sep="  ", flush=True
        )
    print("", *wrong, f"{len(wrong)} wrong", sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
