"""With the compiler of a TPU, where it is installed: the count agrees with its own, and collectives are found."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxnn.accelerators.targets import target

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT, ROOT / "scripts"]

pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="pip install '.[tpu]' switches this on"),
]


def run(*argv):
    """Run Python where libtpu may start; return what it prints."""
    environment = {**os.environ, **target("tpu:v5e").environment(), "PYTHONPATH": os.pathsep.join(map(str, FOLDERS))}
    found = subprocess.run([sys.executable, *map(str, argv)], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_count_is_that_of_the_compiler():
    lines = run(Path(__file__).parent / "agreement.py", "linear", "relu", "softmax", "log_softmax", "l2_penalty")
    differences = {line.rpartition(": ")[0]: int(line.rpartition(": ")[2]) for line in lines.splitlines()}
    assert len(differences) > 5 and all(abs(d) <= 1 for d in differences.values()), differences  # of ten thousand


COLLECTIVE = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxnn.accelerators import programs
from jaxnn.accelerators.targets import only_libtpu, target

def f(x):
    return jax.lax.fori_loop(0, 3, lambda _, c: jax.lax.psum(c, "i"), x)

with only_libtpu():
    mesh = Mesh(np.array(target("tpu:v5e:2x2").devices()), ("i",))
    f = jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    x = jax.ShapeDtypeStruct((9, 64), "float32", sharding=NamedSharding(mesh, PartitionSpec()))
    print(programs.facts(jax.jit(f).lower(x).compile(), "tpu").collectives)
"""


def test_a_collective_in_a_loop_is_found():
    (line,) = run("-c", COLLECTIVE).splitlines()
    assert line == f"(Collective(kind='all-reduce', bytes={9 * 64 * 4}, times=3, in_loop=True),)"
