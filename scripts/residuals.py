"""What a backward pass keeps, and the compiled peak memory of a gradient: the rule beside autodiff of its definition.

    python scripts/residuals.py

Residuals are the arrays that `jax.vjp` keeps, its arguments and new ones, counted from shapes. Peak memory is what XLA
sets aside for temporaries in the compiled value and gradient (`memory_analysis().temp_size_in_bytes`); nothing is run.
"""

import functools
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxnn


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """Return the type of an argument."""
    return jax.ShapeDtypeStruct(shape, dtype)


N = 64
IMAGES, ROWS, LABELS = array(N, 24, 24, 64), array(N, 1000), array(N, dtype=jnp.int32)
KEY = array(2, dtype=jnp.uint32)
nhwc: dict[str, Any] = {"layout": "NHWC"}
COMPONENTS: dict[str, tuple[Any, tuple[jax.ShapeDtypeStruct, ...], dict[str, Any]]] = {
    "linear": (jaxnn.linear, (array(N, 9216), array(128, 9216), array(128)), {}),
    "conv2d": (jaxnn.conv2d, (array(N, 26, 26, 32), array(3, 3, 32, 64), array(64)), nhwc),
    "relu": (jaxnn.relu, (IMAGES,), {}),
    "sigmoid": (jaxnn.sigmoid, (IMAGES,), {}),
    "tanh": (jaxnn.tanh, (IMAGES,), {}),
    "max_pool2d": (jaxnn.max_pool2d, (IMAGES,), nhwc),
    "dropout": (lambda definition: lambda x, key: _dropout(definition, x, key), (IMAGES, KEY), {}),
    "softmax": (jaxnn.softmax, (ROWS,), {}),
    "log_softmax": (jaxnn.log_softmax, (ROWS,), {}),
    "nll": (jaxnn.nll, (ROWS, LABELS), {}),
    "nll_loss": (jaxnn.nll_loss, (ROWS, LABELS), {}),
    "cross_entropy": (jaxnn.cross_entropy, (ROWS, LABELS), {}),
    "linear_cross_entropy": (jaxnn.linear_cross_entropy, (array(N, 64), array(32768, 64), LABELS), {}),
    "linear_cross_entropy, lean": (
        jaxnn.linear_cross_entropy,
        (array(N, 64), array(32768, 64), LABELS),
        {"memory": "lean"},
    ),
    "binary_cross_entropy": (jaxnn.binary_cross_entropy, (ROWS, ROWS), {}),
    "squared_error": (jaxnn.squared_error, (ROWS, ROWS), {}),
}


def _dropout(definition: bool, x: Any, key: Any) -> Any:
    return (jaxnn.dropout.definition if definition else jaxnn.dropout)(x, 0.5, key)


def main() -> None:
    """Print the table."""
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {device}, batch {N}, float32\n")
    print("| component | rule keeps: inputs | new | autodiff keeps: inputs | new | peak memory: rule | autodiff |")
    print("|---|---|---|---|---|---|---|")
    for name, (component, args, options) in COMPONENTS.items():
        cells = []
        for definition in (False, True):
            if name == "dropout":
                f = component(definition)
            else:
                f = functools.partial(component.definition if definition else component, **options)
            cells.append((saved(f, args), peak(f, args)))
        (rule, rule_peak), (auto, auto_peak) = cells
        columns = (*rule, *auto, rule_peak, auto_peak)
        print(f"| `{name}` | {' | '.join(map(shown, columns))} |")


def of_floats(f: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[..., Any], list[Any]]:
    """Return f as a function of its floating arguments alone, and those."""
    floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]

    def g(*values: Any) -> Any:
        filled = list(args)
        for i, value in zip(floats, values, strict=True):
            filled[i] = value
        return f(*filled)

    return g, [args[i] for i in floats]


def saved(f: Callable[..., Any], args: tuple[Any, ...]) -> tuple[int, int]:
    """Return the bytes of what `jax.vjp` keeps: of the arguments, and beyond them."""

    def leaves(*args: Any) -> list[Any]:
        g, floats = of_floats(f, args)
        return [leaf for leaf in jax.tree.leaves(jax.vjp(g, *floats)[1]) if hasattr(leaf, "dtype")]

    jaxpr = jax.make_jaxpr(leaves)(*args).jaxpr
    given = {id(v) for v in jaxpr.invars}
    kept = {id(v): v.aval for v in jaxpr.outvars if not hasattr(v, "val")}
    size = {at: aval.size * aval.dtype.itemsize for at, aval in kept.items()}
    return sum(n for at, n in size.items() if at in given), sum(n for at, n in size.items() if at not in given)


def peak(f: Callable[..., Any], args: tuple[Any, ...]) -> int:
    """Return the bytes of temporaries of the compiled value and gradient, under a given cotangent."""

    def both(args: tuple[Any, ...], dy: Any) -> Any:
        g, floats = of_floats(f, args)
        y, vjp = jax.vjp(g, *floats)
        return y, vjp(dy)

    compiled = jax.jit(both).lower(args, jax.eval_shape(f, *args)).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def shown(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KB", "MB"):
        if size < 1000 or unit == "MB":
            return f"{size:.0f} {unit}" if size >= 100 or size == int(size) else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


if __name__ == "__main__":
    main()
