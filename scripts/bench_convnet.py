"""The groups `convnet`, `memory` and `compile`: training steps of the convnet, its memory and its compile time."""

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import convnets
import jax
import jax.numpy as jnp
import libraries
import numpy as np
from bench_timing import (
    NET_TOLERANCE,
    Variant,
    agree,
    compiled,
    dtype_of,
    jax_run,
    measure,
    row,
    unless_it_fails,
)
from convnets import Net, TorchNet
from jax import lax
from libraries import device, on_gpu, torch_device, torch_facts, torch_run
from speed_tables import Row, targets

from jaxnn import models

STEPS = UNROLL = 5  # unrolled, no loop is left: XLA's CPU convolutions are slow inside one
IMAGE = (28, 28, 1)
BATCH_SIZES = {"cpu": (64,), "gpu": (64, 1024, 8192)}


def batches(size: int) -> tuple[Any, Any, Any]:
    """Return the images, labels and keys of STEPS steps."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((STEPS, size, *IMAGE), np.float32))
    return (
        images,
        jnp.asarray(rng.integers(0, 10, (STEPS, size)), jnp.int32),
        jax.random.split(jax.random.key(0), STEPS),
    )


def check_net(net: Net, mode: str, params: Any, x: Any, y: Any, truth: Any) -> None:
    """Require a network's loss and gradient, without dropout, to be jaxnn's."""
    value, gradient = jax.jit(jax.value_and_grad(net.loss))(net.convert(params), x, y, None)
    agree(
        f"convnet by {net.name}", mode, (value, flat(gradient)), (truth[0], flat(net.convert(truth[1]))), NET_TOLERANCE
    )


def flat(gradient: Any) -> Any:
    """Return a gradient as one vector."""
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(gradient)])


def truth_of_net(params: Any, x: Any, y: Any) -> Any:
    """Return the loss and its gradient by jaxnn in float64, without dropout."""
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
        found = jax.jit(jax.value_and_grad(convnets.our_loss(jnp.float64)))(params, x, y, None)
        return jax.tree.map(np.asarray, found)


def forms(net: Net, mode: str, params: Any, data: tuple[Any, Any, Any], quick: bool = False) -> Iterator[Variant]:
    """Yield a network's training in forms that take the same steps: step by step, an unrolled scan, a plain scan.

    A quick run has the first form alone: the others take longer to compile than to run.
    """
    split = [jax.tree.map(lambda a, i=i: a[i], data) for i in range(STEPS)]
    one = jax.jit(net.step, donate_argnums=0)

    def stepwise(params: Any) -> Any:
        for batch in split:
            params, _ = one(params, batch)
        return params

    def scan(unroll: int) -> Any:
        run = jax.jit(lambda p, data: lax.scan(net.step, p, data, unroll=unroll), donate_argnums=0)
        return run, lambda params: run(params, data)[0]

    programs = {"stepwise": (one, split[0], stepwise)}
    for name, unroll in () if quick else ((f"unroll {UNROLL}", UNROLL), ("scan", 1)):
        run, call = scan(unroll)
        programs[name] = (run, data, call)
    first = None
    for name, (program, argument, call) in programs.items():
        state = jax.tree.map(jnp.copy, net.convert(params))
        _, facts = compiled(program, state, argument)
        chain = functools.partial(chained, call, [state])
        moved = flat(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, chain(), net.convert(params)))
        first = moved if first is None else first
        agree(f"convnet by {net.name}, {name}, beside step by step", mode, [moved], [first], NET_TOLERANCE)
        yield Variant(net.side, f"{net.name}, {name}", jax_run(chain), STEPS, facts=facts).calibrated()


def chained(call: Callable[[Any], Any], state: list[Any]) -> Any:
    """Continue from the state that the last call left."""
    state[0] = call(state[0])
    return state[0]


def torch_form(name: str, mode: str, params: Any, data: tuple[Any, Any, Any], truth: Any) -> Variant:
    """Return PyTorch's training in one form."""
    net = TorchNet(name, params, torch_device(), dtype_of(mode))
    images = [libraries.tensor(np.asarray(x).reshape(len(x), 1, *IMAGE[:2]), net.device, name) for x in data[0]]
    labels = [libraries.tensor(np.asarray(y), net.device, name) for y in data[1]]
    value = net.backward(images[0], labels[0], False)
    gradient, turned = [p.grad.double().cpu().numpy() for p in net.params], convnets.to_nchw(truth[1])
    expected = [turned[layer][key] for layer in convnets.LINEN for key in ("w", "b")]
    agree(
        f"convnet by PyTorch's {name}", mode, (value.item(), flat(gradient)), (truth[0], flat(expected)), NET_TOLERANCE
    )
    facts = torch_facts(name, lambda: net.step(images[0], labels[0]))
    step = net.stepper(images[0], labels[0])

    def train() -> None:
        for x, y in zip(images, labels, strict=True):
            step(x, y)

    return Variant("torch", name, torch_run(train), STEPS, facts=facts).calibrated()


def convnet(mode: str, rounds: int, quick: bool = False) -> Iterator[Row]:
    """Measure the training step, with its update, in every form."""
    for size in BATCH_SIZES[device()]:
        data, params = batches(size), models.convnet.init(jax.random.key(0), IMAGE, 10)
        truth = truth_of_net(params, data[0][0], data[1][0])
        variants: list[Variant] = []
        for net in convnets.nets(dtype_of(mode)):
            check_net(net, mode, params, data[0][0], data[1][0], truth)
            variants += forms(net, mode, params, data, quick)
        in_torch = [] if libraries.torch is None else convnets.torch_forms(on_gpu())
        for name in (name for name in in_torch if not quick or "compile" not in name):
            variants += unless_it_fails(name, functools.partial(torch_form, name, mode, params, data, truth))
        measure(variants, rounds)
        limits, name = targets(on_gpu()), f"training step, batch {size}"
        yield row("convnet", name, mode, variants, limits["convnet"], flops=step_flops(size))
        if scans := [v for v in variants if v.name.endswith(", scan")]:
            yield row("convnet", f"{name}, in a plain scan", mode, scans, limits["convnet in a plain scan"])
        del variants
        gc.collect()
    if not quick:
        yield product_alone(BATCH_SIZES[device()][0], mode, rounds)


def product_alone(size: int, mode: str, rounds: int) -> Row:
    """Measure one matrix product alone, conv2's weight gradient from 3 rows of x and 3 columns of dy: the rule's floor.

    The rule computes the columns at both ends by smaller products, and so much fewer columns by this one.
    """
    height, width = (n - 4 for n in IMAGE[:2])
    pixels, inputs, filters = size * height * width, 3 * 32, 3 * 64
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.standard_normal((pixels, n), np.float32), dtype_of(mode)) for n in (inputs, filters))
    program = jax.jit(lambda x, dy: x.T @ dy)
    variants = [Variant("jaxnn", "XLA", jax_run(lambda: program(x, dy)))]
    if libraries.torch:
        a, b = (libraries.tensor(np.asarray(z), torch_device(), "") for z in (x, dy))
        variants.append(Variant("torch", "mm", torch_run(lambda: libraries.torch.mm(a.T, b))))
    measure([v.calibrated() for v in variants], rounds)
    name = f"the matrix product {inputs}×{pixels}×{filters} of conv2's weight gradient, alone"
    return row("convnet", name, mode, variants, {}, flops=2.0 * pixels * inputs * filters)


def step_flops(batch: int) -> float:
    """Return the operations of the matrix products; the first convolution has no gradient of its input."""
    products = 2 * 26 * 26 * 9 * 32, 3 * 24 * 24 * 9 * 32 * 64, 3 * 9216 * 128, 3 * 128 * 10
    return 2.0 * batch * sum(products)


def memory(mode: str, rounds: int) -> Iterator[Row]:
    """Compile the convnet's gradient for 1,024 images, and read off its temporary memory; nothing runs."""
    x, y = jax.eval_shape(lambda: (jnp.zeros((1024, *IMAGE)), jnp.zeros(1024, jnp.int32)))
    variants = []
    for net in convnets.nets(dtype_of(mode)):
        params = jax.eval_shape(lambda net=net: net.convert(models.convnet.init(jax.random.key(0), IMAGE, 10)))
        _, facts = compiled(jax.jit(jax.value_and_grad(net.loss)), params, x, y, jax.eval_shape(jax.random.key, 0))
        variants.append(Variant(net.side, net.name, lambda n: None, samples=[facts["temporary_bytes"]]))
    limits = targets(on_gpu())["memory"]
    yield row("memory", "convnet's gradient, batch 1024", mode, variants, limits, unit="B")


def compilation(mode: str, rounds: int) -> Iterator[Row]:
    """Measure the time to compile the convnet's step; all take turns."""
    data, params = batches(BATCH_SIZES[device()][0]), models.convnet.init(jax.random.key(0), IMAGE, 10)
    batch = jax.tree.map(lambda a: a[0], data)

    def anew(net: Net, params: Any, _: int) -> None:
        jax.clear_caches()  # type: ignore[no-untyped-call]
        jax.jit(net.step, donate_argnums=0).lower(params, batch).compile()

    variants = [
        Variant(n.side, n.name, functools.partial(anew, n, n.convert(params))) for n in convnets.nets(dtype_of(mode))
    ]
    measure(variants, rounds)
    limits = targets(on_gpu())["compile"]
    yield row("compile", f"convnet's step, batch {BATCH_SIZES[device()][0]}", mode, variants, limits)
