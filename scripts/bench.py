"""Speed and memory of jaxnn beside the fastest idiomatic JAX written without it, and beside PyTorch.

    python scripts/bench.py [GROUP ...] [--rounds N] [--json FILE]
    python scripts/bench.py --quick
    python scripts/bench.py --readme

The groups, all by default:
  convnet        run time of whole training steps
  memory         peak memory of the convnet's gradient, as compiled
  compile        compile time of the convnet's step
  components     run time, forward and backward, of a batch and of single examples under `vmap`
  convolutions   run time, forward and backward, of conv2d in more shapes, also beside its matrix products alone
  optimisations  run time with each optimisation on and off

First each variant's value and gradients are compared with jaxnn's in float64; if one disagrees, the benchmark stops
with exit code 1. Then all variants take turns in this process, in random order each round, so that other load on the
machine affects all of them alike. A ratio is the median of the rounds' ratios; its quartiles stand beside it. If N
rounds take less than N seconds, more follow until N seconds have passed, because short calls are noisier. After three
rounds only variants within 25 % of their library's best go on. A library's figure is that of its best variant.

JAX and PyTorch use the same number of threads. A call of less than 50 ms is preceded by as many untimed calls: they
fill its caches, and let the other library's threads go to sleep.

Achieved bytes/s count each argument and result once; flop/s count the matrix products alone. Peak memory is what XLA
reserves for temporaries; PyTorch's is known on a GPU only. Committed results lie in scripts/speed/NAME.json, written by
`--json`; `--readme` writes the tables and pictures from them.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import libraries
import numpy as np
from bench_components import components, with_and_without
from bench_convnet import chained, compilation, convnet, memory
from bench_convolutions import convolutions
from bench_timing import Disagreement, Variant, dtype_of, jax_run, measure
from libraries import device, on_gpu, torch_device, torch_run
from speed_tables import SIDES, Row, cells, print_table, write

MODES = {"cpu": ("float32",), "gpu": ("TF32", "bfloat16")}


GROUPS: dict[str, Callable[[str, int], Iterator[Row]]] = {
    "convnet": convnet, "memory": memory, "compile": compilation, "components": components,
    "convolutions": convolutions, "optimisations": with_and_without,
}  # fmt: skip
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # by the flag, the widest first
QUICK_ROUNDS, QUICK_GROUPS = 5, {
    "convnet": functools.partial(convnet, quick=True), "memory": memory, "compile": compilation,
    "components": functools.partial(components, quick=True),
}  # fmt: skip


def ceilings(mode: str, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return each library's bytes/s of a copy and flop/s of a matrix product of `size`."""
    dtype = dtype_of(mode)
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    held = [jnp.ones(16 * size * size, dtype)]
    product, negative = jax.jit(jnp.matmul), jax.jit(jnp.negative, donate_argnums=0)
    products = [Variant("jax", "product", jax_run(lambda: product(a, a)))]
    copies = [Variant("jax", "copy", jax_run(functools.partial(chained, negative, held)))]
    if libraries.torch:
        b = libraries.tensor(np.asarray(a), torch_device(), "")
        source = libraries.torch.ones(held[0].size, dtype=b.dtype, device=b.device)
        target = libraries.torch.empty_like(source)
        products.append(Variant("torch", "product", torch_run(lambda: libraries.torch.mm(b, b))))
        copies.append(Variant("torch", "copy", torch_run(lambda: target.copy_(source))))
    for variants in (products, copies):
        measure([v.calibrated() for v in variants], rounds)
    moved = 2.0 * 16 * size * size * dtype.dtype.itemsize
    return {
        SIDES[p.side]: {"flop_per_second": 2.0 * size**3 / p.median, "bytes_per_second": moved / c.median}
        for p, c in zip(products, copies, strict=True)
    }


def processor_of(about: dict[str, str]) -> str:
    """Return the processor's name, family, model and widest vectors, from what /proc/cpuinfo says of it."""
    if "model name" not in about:
        return ""
    vectors = next((text for flag, text in VECTORS.items() if flag in about.get("flags", "").split()), "")
    facts = [f"family {about.get('cpu family', '?')}, model {about.get('model', '?')}", *filter(None, [vectors])]
    return f"{about['model name']} ({', '.join(facts)})"


def machine() -> dict[str, Any]:
    """Return hardware, versions, date and load."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    modules = {"jax": jax, "torch": libraries.torch, "optax": libraries.optax, "flax": libraries.optional("flax")}
    return {
        "versions": {"Python": platform.python_version()} | {k: m.__version__ for k, m in modules.items() if m},
        "device": jax.devices()[0].device_kind, "cpu": processor_of(about) or platform.processor(),
        "cores": cores, "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked options."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, help="rounds, at least (25; --quick: 5)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the ten rows that are asked for most, without scans and PyTorch's compiler: 4 minutes",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument(
        "--readme", action="store_true", help="write the tables and pictures from committed results; measure nothing"
    )
    options = parser.parse_args(argv)
    if unknown := [g for g in options.groups if g not in GROUPS]:
        parser.error(f"unknown group {unknown[0]!r}, must be one of {', '.join(GROUPS)}")
    if options.quick and options.groups:
        parser.error(f"--quick has its own groups: leave out {options.groups[0]!r}")
    options.rounds = (QUICK_ROUNDS if options.quick else 25) if options.rounds is None else options.rounds
    if options.rounds < 1:
        parser.error(f"--rounds ({options.rounds}) must be at least 1")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json ({options.json}) must lie in a folder that exists")
    for module in ("matplotlib",) if options.readme else ("rich",):
        if libraries.optional(module) is None:
            parser.error(f"{module} is missing; it is in the extra `train`")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit code."""
    options = options_of(argv)
    try:
        if options.readme:
            write()
            return 0
        results = measured(options)
    except Disagreement as error:
        print(f"bench.py: error: {error}", file=sys.stderr)
        return 1
    print_table(results)
    if options.json:
        options.json.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run the groups, and return everything that is reported."""
    groups, rounds = options.groups or list(GROUPS), options.rounds
    chosen = QUICK_GROUPS if options.quick else {group: GROUPS[group] for group in groups}
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch uses the GPU's memory, too
    # Compile times are those of a first run.
    jax.config.update("jax_enable_compilation_cache", False)  # type: ignore[no-untyped-call]
    command = " ".join(["python scripts/bench.py", *(["--quick"] if options.quick else groups), f"--rounds {rounds}"])
    results: dict[str, Any] = {"command": command, "machine": machine(), "ceilings": {}, "rows": []}
    wanted = {"torch": libraries.torch, "flax": libraries.linen, "optax": libraries.optax}
    if missing := [name for name, module in wanted.items() if not module]:
        print(f"not installed, and left out: {', '.join(missing)}", file=sys.stderr)
    if libraries.torch:
        libraries.torch.set_num_threads(results["machine"]["cores"])
        if on_gpu():
            libraries.torch.set_float32_matmul_precision("high")  # TF32, as JAX's default
    for mode in MODES[device()]:
        results["ceilings"][mode] = ceilings(mode, 8192 if on_gpu() else 2048, rounds)
        for group, rows_of in chosen.items():
            for r in rows_of(mode, rounds):
                results["rows"].append(r)
                ratios = (f"{f['value']:.3g} {f['figure']}" for f in r["figures"] if f["figure"][:2] == "of")
                print(f"{group}: {cells(r, {})[0]}: {', '.join(ratios)}", file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
