"""The gradient of every component in every way to use many devices, against autodiff of its definition on one.

    python scripts/modes.py [NAME ...] [--devices N]

Every row of the table cuts some arguments along one axis over the devices, rows of data or classes; the others are the
same on all of them. A way is right (ok) where each element of each gradient agrees with `jax.vjp` of the plain
definition on one device, in float64, to 1e-13 (1 + |value|), as it stands and under `vmap`; else the largest error is
printed, or the exception.

The ways: jit alone; jit over a mesh of Auto, and of Explicit axes (a global view: the arrays are cut, the program is
not); `shard_map` with `check_vma` on and off, differentiated as a whole, or inside, in each device's own program;
`pmap`. Inside of `shard_map` without `check_vma`, and of `pmap`, JAX does not know what is the same on all devices:
the gradient of a weight is summed by the caller there, and a loss whose classes are cut is differentiated as a whole.
"""

import argparse
import functools
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

AXIS = "devices"
SAME, FIRST, SECOND = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)  # the axis that is cut
TOLERANCE = 1e-13


class Work(NamedTuple):
    """A component at work on arrays of which some are cut over the devices."""

    name: str
    f: Any
    args: tuple[Any, ...]
    cut: tuple[PartitionSpec, ...]  # of each argument
    out: PartitionSpec = SAME  # of the value
    join: str = ""  # how a loss of one device's rows joins the others': "sum", "mean", or "" where it need not
    by_class: bool = False  # the devices share the classes, and not the rows
    options: Any = None

    @property
    def floats(self) -> list[int]:
        """The arguments that have a gradient."""
        return [i for i, a in enumerate(self.args) if np.issubdtype(a.dtype, np.floating)]

    def whole(self, *args: Any) -> Any:
        """Call the component without a word about devices."""
        return self.f(*args, **(self.options or {}))

    def definition(self, *args: Any) -> Any:
        """Call what it was derived from."""
        return getattr(self.f, "definition", self.f)(*args, **(self.options or {}))

    def local(self, *args: Any) -> Any:
        """Call it in one device's program."""
        y = self.f(*args, **(self.options or {}), **({"axis_name": AXIS} if self.by_class else {}))
        join = {"sum": lax.psum, "mean": lax.pmean}.get(self.join)
        return join(y, AXIS) if join else y

    def under_vmap(self) -> "Work":
        """Return the same with two of everything that is cut, in a further axis at the end."""
        over = [None if spec == SAME else -1 for spec in self.cut]

        def twice(f: Any) -> Any:
            return lambda *args, **options: jax.vmap(functools.partial(f, **options), over, -1)(*args)

        f = twice(self.f)
        f.definition = twice(getattr(self.f, "definition", self.f))
        args = [a if i is None else np.stack([a, np.flip(a)], i) for a, i in zip(self.args, over, strict=True)]
        return self._replace(f=f, args=tuple(args))


def works(devices: int) -> Iterator[Work]:
    """Yield every component, with data cut by rows, and those with classes cut by class."""
    rng, n = np.random.default_rng(0), 2 * devices
    normal, c, rows, classes = rng.standard_normal, n, (FIRST, FIRST), (SECOND, SECOND)
    x, p, soft = normal((n, c)), rng.uniform(0.1, 1.0, (n, c)), rng.dirichlet(np.ones(c), n)
    weight, where = rng.uniform(0.5, 2.0, c), rng.random((n, c)) < 0.7
    labels, keys = rng.integers(0, c, n).astype(np.int32), rng.integers(0, 2**32, (n, 2), dtype=np.uint32)
    left_out = {"ignore_index": int(labels[1])}
    images = normal((n, 2, 6, 4))

    yield Work("linear", jaxnn.linear, (normal((n, 3)), normal((4, 3)), normal(4)), (FIRST, SAME, SAME), FIRST)
    for layout, shapes in ("NCHW", ((n, 2, 6, 4), (4, 2, 3, 3))), ("NHWC", ((n, 6, 4, 2), (3, 3, 2, 4))):
        options = {"layout": layout}
        arrays = (*map(normal, shapes), normal(4))
        yield Work(f"conv2d {layout}", jaxnn.conv2d, arrays, (FIRST, SAME, SAME), FIRST, options=options)
        yield Work(f"max_pool2d {layout}", jaxnn.max_pool2d, arrays[:1], (FIRST,), FIRST, options=options)
    overlapping = {"window": 3, "stride": 2, "padding": 1}
    yield Work("max_pool2d overlapping", jaxnn.max_pool2d, (images,), (FIRST,), FIRST, options=overlapping)
    yield Work("max_pool2d_with_indices", _pooled, (images,), (FIRST,), FIRST)
    for f in (jaxnn.relu, jaxnn.sigmoid, jaxnn.tanh):
        yield Work(f.__name__, f, (x,), (FIRST,), FIRST)
    yield Work("dropout", _dropped, (x, keys), rows, FIRST)
    for f in (jaxnn.softmax, jaxnn.log_softmax):
        for cut, by_class in (rows, False), (classes, True):
            name = f"{f.__name__}{' by class' * by_class}"
            yield Work(name, f, (x,), cut[:1], cut[0], by_class=by_class)
            yield Work(f"{name}, where", _keyword(f, "where"), (x, where), cut, cut[0], by_class=by_class)

    for reduction in ("none", "sum", "mean"):
        options = {"reduction": reduction}
        how: Any = {"join": "", "out": FIRST} if reduction == "none" else {"join": reduction}
        for f, arrays in (
            (jaxnn.nll, (p, labels)), (jaxnn.nll_loss, (np.log(p), labels)), (jaxnn.cross_entropy, (x, labels)),
            (jaxnn.binary_cross_entropy, (x, p)), (jaxnn.squared_error, (x, p)),
        ):  # fmt: skip
            yield Work(f"{f.__name__}, {reduction}", f, arrays, rows, options=options, **how)
        yield Work(f"cross_entropy by class, {reduction}", jaxnn.cross_entropy, (x, labels), (SECOND, SAME),
                   by_class=True, options=options)  # fmt: skip
    summed: dict[str, Any] = {"reduction": "sum", **left_out}
    weighted, cut = _keyword(jaxnn.cross_entropy, "weight"), (FIRST, FIRST, SAME)
    arrays = (p, labels, weight)
    yield Work("nll, weight", _keyword(jaxnn.nll, "weight"), arrays, cut, join="sum", options=summed)
    smooth: dict[str, Any] = {"label_smoothing": 0.1, **left_out}
    yield Work("cross_entropy, weight", weighted, arrays, cut, join="sum", options=summed | smooth)
    yield Work("cross_entropy by class, weight", weighted, arrays, (SECOND, SAME, FIRST), by_class=True, options=smooth)
    yield Work("cross_entropy, soft", jaxnn.cross_entropy, (x, soft), rows, join="sum", options={"reduction": "sum"})
    yield Work("cross_entropy by class, soft", weighted, (x, soft, weight), (*classes, FIRST), by_class=True)
    arrays = (normal((n, 3)), labels, normal((c, 3)), normal(c), weight)
    for memory in ("fast", "lean"):
        options = {"memory": memory, "block_size": 3}
        yield Work(f"linear_cross_entropy, {memory}", _of_vocabulary, arrays, (FIRST, FIRST, SAME, SAME, SAME),
                   join="sum", options=options | summed | smooth)  # fmt: skip
        cut = (SAME, SAME, FIRST, FIRST, FIRST)
        yield Work(f"linear_cross_entropy by class, {memory}", _of_vocabulary, arrays, cut, by_class=True,
                   options=options | smooth)  # fmt: skip
    for f in (jaxnn.l1_penalty, jaxnn.l2_penalty):
        yield Work(f.__name__, f, (x,), (FIRST,), join="sum")


def _with_definition(f: Any, wrap: Callable[[Any], Any]) -> Any:
    """Wrap a component, and its definition alike."""
    wrapped = wrap(f)
    wrapped.definition = wrap(f.definition)
    return wrapped


def _keyword(f: Any, name: str) -> Any:
    """Give the last argument by its keyword."""
    return _with_definition(f, lambda f: lambda *args, **options: f(*args[:-1], **{name: args[-1]}, **options))


def _vocabulary(f: Any) -> Any:
    return lambda x, labels, w, b, weight, **options: f(x, w, labels, b=b, weight=weight, **options)


_of_vocabulary = _with_definition(jaxnn.linear_cross_entropy, _vocabulary)
_pooled = lambda x: jaxnn.max_pool2d_with_indices(x)[0]  # noqa: E731
_pooled.definition = jaxnn.max_pool2d.definition  # type: ignore[attr-defined]


def _dropped(x: Any, keys: Any) -> Any:
    return jax.vmap(lambda x, key: jaxnn.dropout(x, 0.4, key))(x, keys)


def _dropped_by_definition(x: Any, keys: Any) -> Any:
    return x * _dropped(jnp.ones(x.shape), keys)  # its own definition draws other bits


_dropped.definition = _dropped_by_definition  # type: ignore[attr-defined]


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
        args = [place(a, spec) for a, spec in zip(work.args, work.cut, strict=True)]
        return jax.jit(lambda args, dy: _gradient(work, work.whole, args, dy))(args, place(dy, work.out))


def _around(check_vma: bool, work: Work, mesh: jax.sharding.Mesh, dy: Any) -> Any:
    mapped = jax.shard_map(work.local, mesh=mesh, in_specs=work.cut, out_specs=work.out, check_vma=check_vma)
    return jax.jit(lambda args, dy: _gradient(work, mapped, args, dy))(work.args, dy)


def _inside(check_vma: bool, work: Work, mesh: jax.sharding.Mesh, dy: Any) -> Any:
    """Differentiate in each device's own program the loss of its own rows."""
    f = work.local if work.by_class else work.whole
    specs = tuple(work.cut[i] for i in work.floats)

    def local(args: Any, dy: Any) -> Any:
        dy = dy / lax.axis_size(AXIS) if work.join == "mean" else dy
        gradient = _gradient(work, f, args, dy)
        if check_vma:
            return gradient
        return tuple(lax.psum(g, AXIS) if spec == SAME else g for g, spec in zip(gradient, specs, strict=True))

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(work.cut, work.out), out_specs=specs, check_vma=check_vma)
    return jax.jit(mapped)(work.args, dy)


def _pmap(work: Work, mesh: jax.sharding.Mesh, dy: Any) -> Any:
    """Differentiate pmap as a whole; a value that is the same everywhere counts once."""
    devices = mesh.size

    def cut(a: Any, spec: PartitionSpec) -> Any:
        if spec == SAME:
            return a
        axis = len(spec) - 1
        parts = a.reshape(*a.shape[:axis], devices, a.shape[axis] // devices, *a.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis, 0)

    def mapped(*args: Any) -> Any:
        in_axes = tuple(None if spec == SAME else 0 for spec in work.cut)
        y = jax.pmap(work.local, AXIS, in_axes=in_axes)(*map(cut, args, work.cut))
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
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of rows' names, all by default")
    parser.add_argument("--devices", type=int, default=4, help="virtual ones on a CPU (default: 4)")
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
