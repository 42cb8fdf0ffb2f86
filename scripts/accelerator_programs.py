"""The programs that `accelerators.py` compiles: value and gradient of each component, networks, and their training.

The arguments are shapes alone; no data is drawn. Each piece of work has ours and the ways to do it in plain JAX.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import convnets
import jax
import jax.numpy as jnp
import numpy as np
import workloads
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from libraries import In, optax
from residuals import of_floats
from workloads import lax_conv, lax_pool, plain_cross_entropy, reshaped_pool

import jaxnn
from jaxnn import components as table
from jaxnn import models
from jaxnn.components import Size, TableLine
from jaxnn.training import epoch, make_optimizer, make_step
from jaxnn.training.step import init_state

DTYPES = ("float32", "bfloat16")
# Activations of the convnet at batch 1,024; 8,192 rows of ImageNet's classes; the vocabulary of a language model.
SIZE = Size((1024, 24, 24, 64), 8192, 1000, 128, (8192, 2304, 256000))
BATCHES = (64, 1024, 8192)
IMAGE, CLASSES, TRAINING_IMAGES = (28, 28, 1), 10, 55000  # those of MNIST that `jaxnn train` trains on
EPOCH_BATCH = 64
SHARD_BATCH = 64  # rows of a batch on each device
GROUPS = ("components", "vocabulary", "convnet", "models", "epoch", "scale")
SINGLE = tuple(group for group in GROUPS if group != "scale")
CHIPS = {"tpu:v5e": (4, 16, 64, 256), "cuda:h100": (8,)}  # of the data-parallel epoch
VOCABULARY_CHIPS = {"tpu:v5e": (4, 16), "cuda:h100": (8,)}


class Program(NamedTuple):
    """One program: a jitted function and the shapes of its arguments."""

    side: str  # "jaxnn" or "jax"
    name: str  # of the way
    f: Callable[..., Any]
    args: tuple[Any, ...]
    donated: tuple[int, ...] = ()


class Work(NamedTuple):
    """A piece of work in one dtype, and all programs that do it."""

    group: str
    name: str
    dtype: str
    programs: Callable[[], list[Program]]  # made when they are wanted: tracing takes time


class _NoData:
    """Stands for NumPy's generator of random numbers: arrays of the shape asked for, that take no memory."""

    def standard_normal(self, shape: Any, dtype: Any) -> Any:
        """Return zeros."""
        return np.broadcast_to(np.zeros((), dtype), shape)

    def integers(self, low: Any, high: Any, size: Any, dtype: Any) -> Any:
        """Return zeros."""
        return np.broadcast_to(np.zeros((), dtype), size)

    def uniform(self, low: Any, high: Any, size: Any) -> Any:
        """Return zeros."""
        return np.broadcast_to(np.zeros((), np.float32), size)


def works(groups: tuple[str, ...], only: str) -> Iterator[Work]:
    """Yield the work of these groups on one chip whose name has `only` in it."""
    made = {"components": components, "vocabulary": vocabulary, "convnet": convnet, "models": networks, "epoch": epochs}
    for group in groups:
        for dtype in DTYPES:
            yield from (work for work in made[group](dtype) if only in f"{work.group} {work.name} {work.dtype}")


def struct(a: Any, dtype: Any = None) -> Any:
    """Return an array's shape, in `dtype` if it is floating."""
    floating = dtype is not None and jnp.issubdtype(a.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(a.shape, dtype if floating else a.dtype)


# Components -----------------------------------------------------------------------------------------------------------


def components(dtype: str) -> Iterator[Work]:
    """Yield every component but linear_cross_entropy."""
    for line in table.COMPONENTS:
        if not line.name.startswith("linear_cross_entropy"):
            yield Work("components", line.name, dtype, functools.partial(of_component, line, dtype))


def vocabulary(dtype: str) -> Iterator[Work]:
    """Yield linear_cross_entropy, fast and lean."""
    for line in table.COMPONENTS:
        if line.name.startswith("linear_cross_entropy"):
            yield Work("vocabulary", line.name, dtype, functools.partial(of_component, line, dtype))


def of_component(line: TableLine, dtype: str) -> list[Program]:
    """Return value and gradients of a component: by its rule, and each way that plain JAX has."""
    given = [struct(a, dtype) for a in line.args(_NoData(), SIZE)]  # type: ignore[arg-type]
    ours = In(line.options.get("layout", ""), line)
    canonical = [permuted(a, ours.axes(i), back=True) for i, a in enumerate(given)]
    aux = isinstance(jax.eval_shape(line, *given), tuple)
    of_definition = {"the definition": ours._replace(f=line.definition)}
    ways = {"rule": ours, **workloads.jax_peers().get(line.name, of_definition)}
    found = []
    for name, way in ways.items():
        way = way if isinstance(way, In) else In("", way)
        if {way.layout, ours.layout} == {"NHWC", "NCHW"}:
            continue  # whose images lie in one layout would have to transpose them for the other
        args = [permuted(a, way.axes(i)) for i, a in enumerate(canonical)]
        y = jax.eval_shape(way.f, *args)
        both = functools.partial(value_and_gradients, way.f, aux)
        found.append(Program("jaxnn" if way.f is line else "jax", name, both, (args, struct(y[0] if aux else y))))
    return found


def permuted(a: Any, axes: tuple[int, ...] | None, *, back: bool = False) -> Any:
    """Return the shape with its axes permuted, or permuted back."""
    if axes is None:
        return a
    order = np.argsort(axes) if back else axes
    return jax.ShapeDtypeStruct(tuple(a.shape[i] for i in order), a.dtype)


def value_and_gradients(f: Any, aux: bool, args: Any, dy: Any) -> Any:
    """Return a function's value and the gradients of its floating arguments."""
    f, floats = of_floats(f, args)
    y, vjp, *more = jax.vjp(f, *floats, has_aux=aux)  # type: ignore[call-overload]
    return y, vjp(dy), more


# Networks -------------------------------------------------------------------------------------------------------------


def convnet(dtype: str) -> Iterator[Work]:
    """Yield the convnet's gradient and its step."""
    for batch in BATCHES:
        yield Work("convnet", f"gradient, batch {batch}", dtype, functools.partial(of_convnet, batch, dtype, True))
        yield Work("convnet", f"step, batch {batch}", dtype, functools.partial(of_convnet, batch, dtype, False))


def of_convnet(batch: int, dtype: str, gradient: bool) -> list[Program]:
    """Return the convnet's gradient, or its step, by each library."""
    x, y = jax.ShapeDtypeStruct((batch, *IMAGE), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    key, found = jax.eval_shape(jax.random.key, 0), []
    for net in nets(jnp.dtype(dtype)):
        init = jax.eval_shape(lambda net=net: net.convert(models.convnet.init(jax.random.key(0), IMAGE, CLASSES)))
        if gradient:
            found.append(Program(net.side, net.name, jax.value_and_grad(net.loss), (init, x, y, key)))
        else:
            found.append(Program(net.side, net.name, net.step, (init, (x, y, key)), (0,)))
    return found


def nets(dtype: Any) -> list[convnets.Net]:
    """Return the convnets of the benchmark, and the one that pools by a maximum over two axes of reshaped images."""

    def loss(params: Any, x: Any, y: Any, key: Any) -> Any:
        logits = plain_convnet(convnets.cast(params, dtype), convnets.cast(x, dtype), reshaped_pool("NHWC"), key)
        return plain_cross_entropy(logits, y)

    return [*convnets.nets(dtype), convnets.Net("jax", "lax NHWC, reshape, max", loss)]


def networks(dtype: str) -> Iterator[Work]:
    """Yield the gradients of the other models, as `jaxnn train` takes them."""
    for name in ("softmax", "mlp", "cnn"):
        for batch in BATCHES:
            yield Work("models", f"{name}, batch {batch}", dtype, functools.partial(of_network, name, batch, dtype))


def of_network(name: str, batch: int, dtype: str) -> list[Program]:
    """Return the gradient of a model's loss, by jaxnn and in plain JAX."""
    params = jax.eval_shape(lambda: models.MODELS[name].init(jax.random.key(0), IMAGE, CLASSES))
    x, y = jax.ShapeDtypeStruct((batch, *IMAGE), jnp.uint8), jax.ShapeDtypeStruct((batch,), jnp.int32)
    key = jax.eval_shape(jax.random.key, 0)
    return [
        Program(side, way, jax.value_and_grad(loss, has_aux=True), (params, (x, y), key))
        for side, way, loss in losses(name, dtype)
    ]


def losses(name: str, dtype: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the loss of a model that `jaxnn train` minimises: by jaxnn, and each way in plain JAX."""
    yield "jaxnn", "rules", models.Classifier(models.MODELS[name], 33.3, 78.6, dtype).loss()
    pools = {"reduce_window": lax_pool("NHWC"), "reshape, max": reshaped_pool("NHWC")}
    for way, pool in pools.items() if name in ("cnn", "convnet") else {"plain": lax_pool("NHWC")}.items():
        yield "jax", way, functools.partial(plain_loss, PLAIN[name], pool, jnp.dtype(dtype))


def plain_loss(apply: Any, pool: Any, dtype: Any, params: Any, batch: Any, key: Any) -> Any:
    """Return a model's loss and the sums for the metrics, as one writes them in JAX; the label −1 counts nothing."""
    images, labels = batch
    x = ((images.astype(jnp.float32) - 33.3) / 78.6).astype(dtype)
    logits = apply(convnets.cast(params, dtype), x, pool, key).astype(jnp.float32)
    counted = labels >= 0
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
    total, count = jnp.sum(jnp.where(counted, each, 0)), jnp.sum(counted)
    sums = {"nll": total, "correct": jnp.sum((jnp.argmax(logits, -1) == labels) & counted), "count": count}
    return total / count, sums


def plain_softmax(p: Any, x: Any, pool: Any, key: Any) -> Any:
    """Return the logits of softmax regression."""
    return dense(p["linear"], x.reshape(len(x), -1))


def plain_mlp(p: Any, x: Any, pool: Any, key: Any) -> Any:
    """Return the logits of the deep network."""
    h = jax.nn.relu(dense(p["linear1"], x.reshape(len(x), -1)))
    return dense(p["linear3"], jax.nn.relu(dense(p["linear2"], h)))


def plain_cnn(p: Any, x: Any, pool: Any, key: Any) -> Any:
    """Return the logits of the notes' network."""
    h = pool(jax.nn.relu(lax_conv("NHWC")(x, p["W0"], jnp.zeros((), x.dtype))))
    return h.reshape(len(x), -1) @ p["W1"].T


def plain_convnet(p: Any, x: Any, pool: Any, key: Any) -> Any:
    """Return the logits of the network with two convolutions."""
    conv, keys = lax_conv("NHWC"), jax.random.split(key)
    h = jax.nn.relu(conv(x, p["conv1"]["w"], p["conv1"]["b"]))
    h = pool(jax.nn.relu(conv(h, p["conv2"]["w"], p["conv2"]["b"])))
    h = drop(h.reshape(len(x), -1), 0.25, keys[0])
    return dense(p["linear2"], drop(jax.nn.relu(dense(p["linear1"], h)), 0.5, keys[1]))


def dense(p: Any, x: Any) -> Any:
    """Return Wx + b."""
    return x @ p["w"].T + p["b"]


def drop(x: Any, rate: float, key: Any) -> Any:
    """Return x with some numbers replaced by 0."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


PLAIN = {"softmax": plain_softmax, "mlp": plain_mlp, "cnn": plain_cnn, "convnet": plain_convnet}


# Training -------------------------------------------------------------------------------------------------------------


def epochs(dtype: str) -> Iterator[Work]:
    """Yield the scanned epoch of every model; its length is an argument, so that its figures are those of one step."""
    for name in models.MODELS:
        work = functools.partial(of_epoch, name, dtype, EPOCH_BATCH, None)
        yield Work("epoch", f"{name}, a step of an epoch, batch {EPOCH_BATCH}", dtype, work)


def of_epoch(name: str, dtype: str, batch: int, mesh: Mesh | None) -> list[Program]:
    """Return a model's epoch as `jaxnn train` runs it, by jaxnn and in plain JAX."""
    return [epoch_of(side, way, name, loss, batch, mesh) for side, way, loss in losses(name, dtype)]


def epoch_of(side: str, way: str, name: str, loss: Any, batch: int, mesh: Mesh | None) -> Program:
    """Return the epoch with this loss: on one device, or on the devices of a mesh, `batch` rows together."""
    optimizer = make_optimizer("adam", 1e-3, 1000)
    step = make_step(loss, optimizer, axis_name=None if mesh is None else mesh.axis_names[0])
    state = jax.eval_shape(
        lambda: init_state(models.MODELS[name].init(jax.random.key(0), IMAGE, CLASSES), optimizer, jax.random.key(1))
    )
    images = jax.ShapeDtypeStruct((TRAINING_IMAGES, *IMAGE), jnp.uint8)
    labels = jax.ShapeDtypeStruct((TRAINING_IMAGES,), jnp.int32)
    rows = jax.ShapeDtypeStruct((-(-TRAINING_IMAGES // batch), batch), jnp.int32)
    batches, number = epoch.Batches(images, labels, rows), jax.ShapeDtypeStruct((), jnp.int32)
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        state, images, labels, number = jax.tree.map(lambda a: placed(a, whole), (state, images, labels, number))
        batches = epoch.Batches(images, labels, placed(rows, NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))))
    run = functools.partial(epoch.run_steps.__wrapped__, step, mesh=mesh)
    return Program(side, way, run, (state, batches, number, number), (0,))


def placed(a: Any, sharding: Any) -> Any:
    """Return a shape on these devices."""
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)


# Many devices ---------------------------------------------------------------------------------------------------------


def parameter_bytes(name: str) -> int:
    """Return the bytes of a model's parameters and sums: what a step of training must exchange at least."""
    params = jax.eval_shape(lambda: models.MODELS[name].init(jax.random.key(0), IMAGE, CLASSES))
    sums = 4 * 4  # the loss, and the three metrics, one of which is the number of rows, as float32
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(params)) + sums


def data_parallel(devices: list[Any], dtype: str) -> Program:
    """Return the convnet's epoch on these devices, with SHARD_BATCH rows of each batch on each."""
    mesh = Mesh(np.array(devices), ("devices",))
    side, way, loss = next(losses("convnet", dtype))
    return epoch_of(side, way, "convnet", loss, SHARD_BATCH * len(devices), mesh)


def sharded_vocabulary(devices: list[Any], dtype: str) -> Iterator[Program]:
    """Yield linear_cross_entropy with the classes shared by these devices; and the plain loss, partitioned by XLA."""
    mesh, (n, features, words) = Mesh(np.array(devices), ("classes",)), SIZE.vocabulary
    same, by_class = PartitionSpec(), PartitionSpec("classes")
    shapes = ((n, features), dtype, same), ((words, features), dtype, by_class), ((n,), jnp.int32, same)
    args = tuple(jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, where)) for s, d, where in shapes)
    for memory in ("fast", "lean"):
        loss = functools.partial(jaxnn.linear_cross_entropy, memory=memory, axis_name="classes")
        whole = jax.shard_map(loss, mesh=mesh, in_specs=(same, by_class, same), out_specs=same)
        yield Program("jaxnn", memory, jax.value_and_grad(whole, (0, 1)), args)
    plain = jax.value_and_grad(lambda x, w, t: plain_cross_entropy(x @ w.T, t), (0, 1))
    yield Program("jax", "plain loss", plain, args)
