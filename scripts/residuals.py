"""What a backward pass keeps, and the compiled peak memory of a gradient: the rule beside autodiff of its definition.

    python scripts/residuals.py            # counts, prints the table, and writes scripts/residuals.json
    python scripts/residuals.py --readme   # writes the table in scripts/README.md from that file

Residuals are the arrays that `jax.vjp` keeps: some of its arguments, and new ones, counted from shapes. Peak memory is
what XLA reserves for temporaries in the compiled value and gradient (`memory_analysis().temp_size_in_bytes`). Nothing
is run. Names and arguments come from the table in `jaxnn/components.py`.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from sections import ROOT, rewrite, table

from jaxnn import components

FILE, README = ROOT / "scripts" / "residuals.json", ROOT / "scripts" / "README.md"
HEAD = [
    "component", "rule keeps: inputs", "new", "autodiff keeps: inputs", "new", "peak memory: rule", "autodiff",
]  # fmt: skip


def main() -> int:
    """Count and print, or write the README's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write the README's table; count nothing")
    if parser.parse_args().readme:
        rewrite(README, "residuals", section())
        return 0
    FILE.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    print(section())
    return 0


def measured() -> dict[str, Any]:
    """Count all components of the table."""
    run = {"jax": jax.__version__, "python": platform.python_version(), "device": jax.devices()[0].device_kind}
    return run | {"bytes": {line.name: counted(line) for line in components.COMPONENTS}}


def counted(line: components.TableLine) -> list[int]:
    """Return a component's bytes, in the order of the table's columns."""
    args = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in line.example(components.BENCHMARK))

    def rule(*args: Any) -> Any:
        return differentiable(line(*args))

    def autodiff(*args: Any) -> Any:
        return differentiable(line.definition(*args))

    return [*saved(rule, args), *saved(autodiff, args), peak(rule, args), peak(autodiff, args)]


def differentiable(y: Any) -> Any:
    """Return the output that has a gradient, the first of several."""
    return y[0] if isinstance(y, tuple) else y


def section() -> str:
    """Return the table in Markdown, from the committed bytes."""
    results = json.loads(FILE.read_text(encoding="utf-8"))
    rows = [[f"`{name}`", *map(shown, sizes)] for name, sizes in results["bytes"].items()]
    run = f"jax {results['jax']}, Python {results['python']}, {results['device']}"
    return "\n".join([*table(HEAD, rows), "", f"`python scripts/residuals.py`; {run}."])


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
    """Return the bytes of what `jax.vjp` keeps: of the arguments, and of new arrays."""

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
    sys.exit(main())
