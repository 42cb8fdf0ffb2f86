"""How long a check takes: `gradcheck.check` at both levels, beside `jax.test_util.check_grads`.

    python scripts/checker_times.py [--rounds N] [--large]

Each round is a process of its own, in which every check runs twice: "first" includes what Python and JAX do once. The
function is x tanh(x w) of two arrays, with a hand-written rule: of 4 x 6 elements each; with --large of 5 million each,
once. The table has the medians of the rounds, in seconds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from jax.test_util import check_grads

from jaxnn import gradcheck


@jax.custom_vjp
def gate(x, w):
    """Return x tanh(x w)."""
    return x * jnp.tanh(x * w)


def _gate_bwd(residuals, dy):
    x, w = residuals
    y = jnp.tanh(x * w)
    return dy * (y + x * w * (1 - y * y)), dy * x * x * (1 - y * y)


gate.defvjp(lambda x, w: (gate(x, w), (x, w)), _gate_bwd)

CHECKS = {
    "check_grads": lambda *args: check_grads(gate, args, order=1, modes=["rev"]),
    'check, level="rule"': lambda *args: gradcheck.assert_correct(gate, *args, level="rule"),
    'check, level="full"': lambda *args: gradcheck.assert_correct(gate, *args),
}


def seconds(shape: tuple[int, ...], name: str) -> list[float]:
    """Return how long the first and the second check take."""
    x, w = (jax.random.normal(jax.random.key(seed), shape) for seed in (0, 1))
    jax.block_until_ready(gate(x, w))
    found = []
    for _ in range(2):
        started = time.perf_counter()
        CHECKS[name](x, w)
        found.append(time.perf_counter() - started)
    return found


def main() -> None:
    """Measure in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="processes for each check (default 5)")
    parser.add_argument("--large", action="store_true", help="10 million elements in all, a round")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # the name and the shape, in a process of its own
    options = parser.parse_args()
    if options.one:
        print(json.dumps(seconds(tuple(json.loads(options.one[1])), options.one[0])))
        return
    shape, rounds = ([5_000_000], 1) if options.large else ([4, 6], options.rounds)
    names = [name for name in CHECKS if not (options.large and name == "check_grads")]
    measured = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            command = [sys.executable, __file__, "--one", name, json.dumps(shape)]
            measured[name].append(
                json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            )
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, shape {shape}")
    for name, pairs in measured.items():
        first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:<22} first {first:6.2f}  then {second:6.2f}")


if __name__ == "__main__":
    main()
