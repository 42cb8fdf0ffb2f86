"""What the compilers of TPUs and GPUs make of jaxnn, and of the best plain JAX; counted without a TPU or a GPU.

    python scripts/accelerators.py [GROUP ...] [--targets NAME ...] [--only TEXT] [--json]
    python scripts/accelerators.py --readme

The groups, all by default:
  components   value and gradient of every component, in float32 and bfloat16
  vocabulary   linear_cross_entropy over 256,000 classes
  convnet      the convnet's gradient and its step, at several batch sizes
  models       the gradients of the other models
  epoch        one step of the scanned epoch, as `jaxnn train` runs it
  scale        data-parallel epochs and sharded vocabularies, on one host up to a pod

Each target is compiled for in a process of its own, one at a time. `pip install 'jax[tpu]'` or `'jax[cuda12]'` installs
its compiler; a target without one is left out, with a line that says why. Bytes are those of the final program's
kernels (jaxnn/accelerators/programs.py says how they are counted). “Bound” is computed from the chip's bandwidth and
peak (scripts/README.md), not measured. Where the chip of a target is present, the programs also run, and their time
stands beside the bound.

`--json` keeps the results in scripts/accelerators/CHIP.json; `--readme` writes tables and pictures from these files.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxnn.accelerators.targets import LOCK_SECONDS, Target, Unavailable, compiled_for, only_libtpu, target

TARGETS = ("tpu:v5e", "tpu:v5p", "tpu:v6e", "cuda:h100", "cuda:b200")
GROUPS = ("components", "vocabulary", "convnet", "models", "epoch", "scale")
# What JAX calls the chips; a machine that has one runs the programs, too.
KINDS = {
    "TPU v5 lite": "tpu:v5e", "TPU v5": "tpu:v5p", "TPU v6 lite": "tpu:v6e",
    "NVIDIA H100 80GB HBM3": "cuda:h100", "NVIDIA B200": "cuda:b200",
}  # fmt: skip
RUNS, SECONDS = 3, 0.2  # samples of a time; how long one sample takes at least
PACKAGES = ("jax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "optax", "flax")
BUSY, GIVEN_UP = 75, 76  # exit codes: libtpu is in use; a program took too long
LIMIT = 600.0  # seconds: a program that takes longer to compile is given up
Row = dict[str, Any]


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--targets", nargs="+", default=TARGETS, metavar="NAME", help="tpu:v5e, cuda:h100, …")
    parser.add_argument("--only", default="", metavar="TEXT", help="the work whose group, name or dtype has this text")
    parser.add_argument("--json", action="store_true", help="keep the results in scripts/accelerators/")
    parser.add_argument("--readme", action="store_true", help="write the tables and pictures; compile nothing")
    parser.add_argument("--compile-into", type=Path, help=argparse.SUPPRESS)  # in the process of one target
    parser.add_argument("--present", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if unknown := [g for g in options.groups if g not in GROUPS]:
        parser.exit(2, f"accelerators.py: error: unknown group {unknown[0]!r}, must be one of {', '.join(GROUPS)}\n")
    try:
        options.targets = [target(name) for name in options.targets]
    except ValueError as error:
        parser.exit(2, f"accelerators.py: error: {error}\n")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Compile for the targets one after the other, and report; return the exit code."""
    options = options_of(argv)
    if options.compile_into:
        compile_all(options)
        return 0
    import accelerator_tables as tables

    if options.readme:
        tables.write()
        return 0
    present, done = present_target(), 0
    for each in options.targets:
        try:
            results = in_own_process(each, options, present == f"{each.platform}:{each.chip}")
        except Unavailable as error:
            print(f"accelerators.py: left out: {error}", file=sys.stderr)
            continue
        tables.print_table(results)
        done += 1
        if options.json:
            tables.keep(results)
    return 0 if done else 1


def present_target() -> str:
    """Return the target name of this machine's accelerator; "" if there is none or it is not in `KINDS`."""
    if not any(next(Path("/dev").glob(pattern), None) for pattern in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*")):
        return ""
    code = "import jax; print(jax.devices()[0].device_kind)"
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return KINDS.get(probe.stdout.strip().rpartition("\n")[2], "")


def in_own_process(each: Target, options: argparse.Namespace, present: bool) -> dict[str, Any]:
    """Compile for a target in a process of its own, and return the results.

    A program that takes longer than `LIMIT` is given up: its process is killed, and a new one goes on with the next.
    """
    each.require()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {} if present else each.environment()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "programs"
        file.touch()
        command = [sys.executable, __file__, *options.groups, "--targets", each.name, "--only", options.only,
                   "--compile-into", str(file), *(["--present"] if present else [])]  # fmt: skip
        end = time.monotonic() + LOCK_SECONDS
        while (code := watched(subprocess.Popen(command, env=environment), file)) in (BUSY, GIVEN_UP):
            if code == BUSY and time.monotonic() > end:
                break
            time.sleep(1)  # a process that knows nothing of our lock started libtpu first
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not lines:
        raise Unavailable(f"{each.name}: nothing was compiled (exit code {code})")
    if code:
        print(f"accelerators.py: {each.name}: the compiler's process ended with {code}", file=sys.stderr)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"target": f"{each.platform}:{each.chip}", "versions": versions(), "date": date, "rows": joined(lines)}


def watched(process: subprocess.Popen[bytes], file: Path) -> int:
    """Wait for a process that appends lines to a file; kill it if a line that it began takes longer than `LIMIT`."""
    size, since = file.stat().st_size, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        text = file.read_text(encoding="utf-8")
        if len(text) != size:
            size, since = len(text), time.monotonic()
        if time.monotonic() - since > LIMIT and text and not text.endswith("\n"):
            process.kill()
            process.wait()
            return given_up(file, f"it took more than {LIMIT:g} s to compile")
    text = file.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        return given_up(file, f"the compiler's process ended with {process.returncode}")
    return process.returncode


def given_up(file: Path, error: str) -> int:
    """End a line with an error, and return the exit code that says so."""
    write(file, json.dumps({"error": error})[1:] + "\n")
    return GIVEN_UP


def joined(lines: list[Row]) -> list[Row]:
    """Group the lines, one a program, into rows, one a piece of work."""
    rows: dict[str, Row] = {}
    for line in lines:
        row = rows.setdefault(json.dumps(line["work"]), {**line.pop("work"), "programs": []})
        row["programs"].append(line)
    return list(rows.values())


def versions() -> dict[str, str]:
    """Return the versions of what took part."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


# In the process of one target -----------------------------------------------------------------------------------------


def compile_all(options: argparse.Namespace) -> None:
    """Compile all programs for one target that are not in the file yet, and write a line of JSON for each.

    The line's first half is written before the program is compiled. So what cannot be compiled is known, too.
    """
    (each,) = options.targets
    groups = tuple(options.groups or GROUPS)
    done = len(options.compile_into.read_text(encoding="utf-8").splitlines())
    try:
        with only_libtpu() if each.platform == "tpu" and not options.present else contextlib.nullcontext():
            for work, device, program in itertools.islice(programs_of(each, groups, options), done, None):
                line = {"work": work, "side": program.side, "name": program.name}
                write(options.compile_into, json.dumps(line, ensure_ascii=False)[:-1] + ", ")
                facts = measured(program, each, device, work["dtype"], options.present)
                write(options.compile_into, json.dumps(facts, ensure_ascii=False)[1:] + "\n")
                print(said(line, facts), file=sys.stderr, flush=True)
    except Unavailable as error:
        print(f"accelerators.py: {error}", file=sys.stderr)
        sys.exit(BUSY if "another process" in str(error) else 1)


def write(file: Path, text: str) -> None:
    """Append to a file."""
    with file.open("a", encoding="utf-8") as end:
        end.write(text)


def programs_of(each: Target, groups: tuple[str, ...], options: argparse.Namespace) -> Iterator[tuple[Row, Any, Any]]:
    """Yield what the work is, the device, and the program, for all programs of one target."""
    import accelerator_programs as programs
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # compile times are those of a first run
    device = jax.devices()[0] if options.present else each.devices()[0]
    for work in programs.works(tuple(g for g in groups if g != "scale"), options.only):
        for program in work.programs():
            yield {"group": work.group, "name": work.name, "dtype": work.dtype}, device, program
    if "scale" in groups:
        yield from scaled(each, options.only)


def measured(program: Any, each: Target, device: Any, dtype: str, present: bool) -> Row:
    """Compile one program for a device, or for those where its arguments lie, and return its facts.

    Where it does not compile, return the error in one line.
    """
    import jax

    from jaxnn.accelerators import programs as counted

    before = time.perf_counter()
    try:
        with jax.numpy_dtype_promotion("standard"):
            if device is None:
                compiled = jax.jit(program.f, donate_argnums=program.donated).lower(*program.args).compile()
            else:
                compiled = compiled_for(device, program.f, program.args, program.donated)
        seconds = time.perf_counter() - before
        facts = counted.facts(compiled, each.platform)
    except Exception as error:
        return {"error": " ".join(str(error).split())[:300], "error_kind": type(error).__name__}
    facts = facts.of_a_turn() if facts.open_loops else facts  # of an epoch, one step
    cost = compiled.cost_analysis() or {}
    chip = each.figures
    found = {
        "bytes": facts.bytes, "main_bytes": facts.main_bytes, "compiler_bytes": cost.get("bytes accessed"),
        "flops": facts.flops, "launches": facts.launches, "temporary_bytes": facts.temporary_bytes,
        "memory": facts.memory, "compile_seconds": round(seconds, 3),
        "bound": max(facts.main_bytes / chip.bandwidth, facts.flops / chip.peak[dtype]),
        "open_loops": len(facts.open_loops), "opaque": facts.opaque,
        "largest": [[k.name, k.source, k.bytes] for k in facts.largest],
        "collectives": [c._asdict() for c in facts.collectives],
    }  # fmt: skip
    runs = present and not facts.open_loops  # the length of the others is a part of the data
    return found | ({"seconds": timed(compiled, program.args, bool(program.donated))} if runs else {})


def timed(compiled: Any, args: Any, donated: bool) -> float:
    """Return the seconds of one run on the present device: the median of samples of many runs.

    Where the first argument is donated, each run continues with the first result of the last one.
    """
    import jax
    import jax.numpy as jnp

    def made(a: Any) -> Any:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        return jax.random.normal(jax.random.key(1), a.shape, a.dtype) if floating else jnp.zeros(a.shape, a.dtype)

    first, *rest = jax.tree.map(made, args)
    samples = []
    for _ in range(1 + RUNS):  # the first sample only warms up
        before, runs = time.perf_counter(), 0
        while not runs or time.perf_counter() - before < SECONDS:
            results = jax.block_until_ready(compiled(first, *rest))
            first, runs = results[0] if donated else first, runs + 1
        samples.append((time.perf_counter() - before) / runs)
    return sorted(samples[1:])[RUNS // 2]


def scaled(each: Target, only: str) -> Iterator[tuple[Row, None, Any]]:
    """Yield the programs for many chips, for the targets that have them; their arguments lie on the devices."""
    import accelerator_programs as programs

    for count in programs.CHIPS.get(f"{each.platform}:{each.chip}", ()):
        devices = several(each, count).devices()
        for dtype in programs.DTYPES:
            work = {"group": "scale", "name": f"convnet, {programs.SHARD_BATCH} rows a chip", "dtype": dtype,
                    "devices": count, "least": programs.parameter_bytes("convnet")}  # fmt: skip
            if only in f"scale {work['name']} {dtype}":
                yield work, None, programs.data_parallel(devices, dtype)
    for count in programs.VOCABULARY_CHIPS.get(f"{each.platform}:{each.chip}", ()):
        devices = several(each, count).devices()
        for dtype in programs.DTYPES:
            name = "linear_cross_entropy, the classes over the chips"
            work = {"group": "scale", "name": name, "dtype": dtype, "devices": count}
            if only in f"scale {work['name']} {dtype}":
                yield from ((work, None, program) for program in programs.sharded_vocabulary(devices, dtype))


def several(each: Target, count: int) -> Target:
    """Return the target with so many of its chips, in a square where there are axes for it."""
    if each.platform == "cuda":
        return each._replace(topology=(count,))
    side = round(count**0.5)
    return each._replace(topology=(side, count // side, *(1,) * (each.figures.axes - 2)))


def said(line: Row, facts: Row) -> str:
    """Return a line about a program."""
    work = line["work"]
    found = facts.get("error", "")[:200] or (
        f"moves {facts['main_bytes'] / 1e6:.4g} MB, keeps {facts['temporary_bytes'] / 1e6:.4g} MB, "
        f"compiled in {facts['compile_seconds']:.1f} s"
    )
    return f"{work['group']}: {work['name']}, {work['dtype']}, {line['name']}: {found}"


if __name__ == "__main__":
    sys.exit(main())
