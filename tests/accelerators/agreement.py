"""Compile components for a TPU, and print by how many bytes the count differs from the compiler's own analysis.

    python agreement.py NAME ...

libtpu's analysis counts a copy into the chip's memory at its start and at its end, and a bitcast that joins slices as
if it wrote them. Both are added here before the comparison.
"""

import sys

import accelerator_programs

from jaxnn.accelerators import hlo, programs
from jaxnn.accelerators.targets import compiled_for, only_libtpu, target


def main():
    """Print a line for each program."""
    with only_libtpu():
        device = target("tpu:v5e").devices()[0]
        for name in sys.argv[1:]:
            (work,) = accelerator_programs.works(("components",), f"components {name} float32")
            for program in work.programs():
                compiled = compiled_for(device, program.f, program.args)
                found, entry = programs.facts(compiled, "tpu"), hlo.parse(compiled.as_text()).entry
                twice = sum(k.read + k.written for k in found.kernels if k.opcode == "copy-start")
                joined = sum(i.nbytes for i in entry.instructions.values() if i.opcode == "custom-call")
                counted = found.bytes + twice + joined
                print(
                    name,
                    program.name,
                    round(1e4 * (compiled.cost_analysis()["bytes accessed"] / counted - 1)),
                    sep=": ",
                )


if __name__ == "__main__":
    main()
