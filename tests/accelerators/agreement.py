"""Compile components for a TPU, and print by how many bytes the count differs from the compiler's own analysis.

    python agreement.py NAME ...

libtpu's analysis counts a copy into the chip's memory at its start and at its end, and a bitcast that joins slices as
if it wrote them. Both are added here before the comparison.
"""

import sys

import accelerator_programs
import jax
from jax.sharding import SingleDeviceSharding

from jaxnn.accelerators import hlo, programs
from jaxnn.accelerators.targets import only_libtpu, target

with only_libtpu():
    where = SingleDeviceSharding(target("tpu:v5e").devices()[0])
    for name in sys.argv[1:]:
        (work,) = accelerator_programs.works(("components",), f"components {name} float32")
        for program in work.programs():
            args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), program.args)
            compiled = jax.jit(program.f).lower(*args).compile()
            found, entry = programs.facts(compiled, "tpu"), hlo.parse(compiled.as_text()).entry
            twice = sum(k.read + k.written for k in found.kernels if k.opcode == "copy-start")
            joined = sum(i.nbytes for i in entry.instructions.values() if i.opcode == "custom-call")
            counted = found.bytes + twice + joined
            print(name, program.name, round(1e4 * (compiled.cost_analysis()["bytes accessed"] / counted - 1)), sep=": ")
