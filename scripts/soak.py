"""Test what training promises about its files, by kills, stops and damage; about seven minutes.

    python scripts/soak.py [kill] [stop] [flip] [idx] [--count N] [--seed N]

kill: kill -9 at 50 random moments, resuming each time; the parameters at the end are those of an undisturbed run.
stop: SIGTERM at 20 random moments; exit code 143, and the same parameters at the end.
flip: change 500 bytes of a saved step, one at a time; each is noticed, and the step before is used.
idx:  2,000 damaged IDX files; each is refused in one line with its name, with at most 300 MB more than a whole file.

Without a name, all four run. The exit code is 1 if anything does not hold. `tests/` has a short form of each.
"""

import argparse
import functools
import gzip
import hashlib
import os
import platform
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = [sys.executable, "-c", "import sys; from jaxnn.cli import main; sys.exit(main())"]
OPTIONS = ["train", "--quiet", "--model", "mlp", "--epochs", "40", "--checkpoint-every", "5"]


def training(folder: Path) -> list[str]:
    """Return the command of a run that resumes from what is saved."""
    return [*COMMAND, *OPTIONS, "--resume", "--checkpoint-dir", str(folder / "steps"), "--output", str(folder / "out")]


def result(folder: Path) -> str:
    """Return the SHA-256 of a run's parameters."""
    digest = hashlib.sha256()
    with np.load(folder / "out" / "params.npz") as archive:
        for name in sorted(set(archive.files) - {"config"}):
            digest.update(name.encode() + archive[name].tobytes())
    return digest.hexdigest()


def undisturbed(folder: Path) -> tuple[str, float]:
    """Return the result of an undisturbed run, and its time in seconds."""
    start = time.monotonic()
    subprocess.run(training(folder), check=True)
    return result(folder), time.monotonic() - start


def interrupted(folder: Path, number: int, count: int, chosen: random.Random, seconds: float) -> list[tuple[int, str]]:
    """Send a signal to `count` starts of a run at random moments, then let it finish; return how each start ended."""
    ends = []
    while len(ends) < count:
        process = subprocess.Popen(training(folder), stderr=subprocess.PIPE, text=True)
        # Half of the signals come early in a start, the others at any time of the run.
        time.sleep(chosen.uniform(0.5, seconds if chosen.random() < 0.5 else 5))
        process.send_signal(number)
        code, error = process.wait(120), process.stderr.read()  # type: ignore[union-attr]
        if code == 0:  # it had finished: start again from nothing
            shutil.rmtree(folder / "steps")
            shutil.rmtree(folder / "out")
            continue
        ends.append((code, error))
    subprocess.run(training(folder), check=True)
    return ends


def kill(folder: Path, count: int, chosen: random.Random) -> tuple[str, bool]:
    """Kill runs, each of them ten times."""
    expected, seconds = undisturbed(folder / "whole")
    same = 0
    for run in range(-(-count // 10)):
        place = folder / f"killed {run}"
        ends = interrupted(place, signal.SIGKILL, min(10, count - 10 * run), chosen, seconds)
        silent = all(error == "" for _, error in ends)
        same += len(ends) * (silent and result(place) == expected)
    text = f"{same} of {count} kills leave no error message and the parameters of the undisturbed run"
    return text, same == count


def stop(folder: Path, count: int, chosen: random.Random) -> tuple[str, bool]:
    """Stop runs by SIGTERM."""
    expected, seconds = undisturbed(folder / "whole")
    ends = interrupted(folder / "stopped", signal.SIGTERM, count, chosen, seconds)
    # −15: Python had not yet installed its handler.
    orderly = sum(code == 143 and error.count("\n") == 1 for code, error in ends)
    early = sum(code == -signal.SIGTERM for code, _ in ends)
    same = result(folder / "stopped") == expected
    text = f"{orderly} of {count} end with 143 and a line, {early} while Python starts; the same parameters: {same}"
    return text, same and orderly + early == count


def flip(folder: Path, count: int, chosen: random.Random) -> tuple[str, bool]:
    """Flip bytes of the newest step."""
    from jaxnn.training import newest_step

    undisturbed(folder)
    steps = sorted((folder / "steps").glob("step-*"))
    newest, before = steps[-1], int(steps[-2].name[5:])
    places = [(path, at) for path in newest.iterdir() for at in range(path.stat().st_size)]
    manifest = [place for place in places if place[0].name == "manifest"]
    tried = manifest + chosen.sample(places, max(0, count - len(manifest)))
    noticed = 0
    for path, at in tried:
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[at] ^= chosen.randrange(1, 256)
        path.write_bytes(damaged)
        saved, lines = newest_step(folder / "steps")
        noticed += saved is not None and saved.step == before and len(lines) == 1
        path.write_bytes(content)
    found = newest_step(folder / "steps")[0]
    whole = found is not None and found.step > before
    return f"{noticed} of {len(tried)} flipped bytes are noticed (all {len(manifest)} of the manifest)", (
        whole and noticed == len(tried)
    )


def idx(folder: Path, count: int, chosen: random.Random) -> tuple[str, bool]:
    """Read damaged IDX files."""
    from jaxnn.data.idx import DataError, read_idx

    folder.mkdir()
    shape = (60_000, 28, 28)
    whole = struct.pack(">4B3I", 0, 0, 8, 3, *shape) + bytes(47_040_000)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(whole)
    read_idx(path)
    baseline, refused, lines, slowest = _peak(), 0, 0, 0.0
    for number in range(count):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        _DAMAGES[number % len(_DAMAGES)](path, whole, chosen)
        start = time.monotonic()
        try:
            read_idx(path)
        except DataError as error:
            refused += 1
            lines += str(error).count("\n") == 0 and str(path) in str(error)
        slowest = max(slowest, time.monotonic() - start)
    more = (_peak() - baseline) / 1e6
    counts = f"{refused} of {count} damaged files refused, {lines} in one line with the name"
    text = f"{counts}; {more:.0f} MB more at the peak than for a whole file, {slowest:.2f} s at most"
    return text, refused == lines == count and more < 300


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _header(chosen: random.Random) -> bytes:
    sizes = [chosen.choice([0, 1, 28, 60_000, 2**31, 2**32 - 1]) for _ in range(3)]
    header = struct.pack(">4B3I", *[chosen.choice([0, 0, 0, 8, 255]) for _ in range(2)], 8, 3, *sizes)
    return header if np.prod(np.array(sizes, object)) != 47_040_000 else bytes(16)


def _bomb(path: Path, _: bytes, chosen: random.Random) -> None:
    """Ten gigabytes of zeros, gzipped: the same piece of a stream again and again."""
    head = struct.pack(">4B3I", 0, 0, 8, 3, *chosen.choice([(60_000, 28, 28), (2**32 - 1, 1, 1), (1, 1, 1)]))
    with path.open("wb") as file:
        file.write(gzip.compress(head))
        file.write(160 * _zeros())


@functools.cache
def _zeros() -> bytes:
    return gzip.compress(bytes(1 << 26))


def _gzipped(path: Path, whole: bytes, chosen: random.Random) -> None:
    data = bytearray(gzip.compress(whole[: chosen.randrange(1000, 100_000)]))
    data[chosen.randrange(len(data))] ^= chosen.randrange(1, 256)
    path.write_bytes(data[: chosen.randrange(len(data))])


def _link(path: Path, _: bytes, chosen: random.Random) -> None:
    path.symlink_to(chosen.choice([path, path.parent, "/dev/zero", "/dev/null", "/nowhere"]))


_DAMAGES: list[Callable[[Path, bytes, random.Random], Any]] = [
    lambda path, whole, chosen: path.write_bytes(whole[: chosen.randrange(1 << 20)]),
    lambda path, whole, chosen: path.write_bytes(_header(chosen) + bytes(chosen.randrange(4096))),
    lambda path, whole, chosen: path.write_bytes(chosen.randbytes(chosen.randrange(1, 4096))),
    lambda path, whole, chosen: path.write_bytes(b"<!DOCTYPE html>\n<html>404</html>"),
    lambda path, whole, chosen: path.write_bytes(b""),
    lambda path, whole, chosen: path.mkdir(),
    _bomb,
    _gzipped,
    _link,
    lambda path, whole, chosen: path.write_bytes(gzip.compress(bytes(chosen.randrange(1, 4096)))),
    lambda path, whole, chosen: path.write_bytes(whole[:16] + bytes(chosen.randrange(1 << 16))),
]


CHECKS = {"kill": (kill, 50), "stop": (stop, 20), "flip": (flip, 500), "idx": (idx, 2000)}


def main() -> int:
    """Run the checks; 1 if one does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(CHECKS)} (default: all)")
    parser.add_argument("--count", type=int, help="number of repetitions (default: as in the docstring)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.names) - CHECKS.keys():
        parser.error(f"unknown name {sorted(unknown)[0]!r}, must be one of {', '.join(CHECKS)}")
    import jax

    print(f"jax {jax.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, seed {options.seed}")
    all_hold = True
    for name in options.names or CHECKS:
        check, count = CHECKS[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            text, holds = check(Path(folder) / name, options.count or count, random.Random(options.seed))
        all_hold &= holds
        print(f"{'ok' if holds else 'WRONG':6}{name}: {text} ({time.monotonic() - start:.0f} s)", flush=True)
    return int(not all_hold)


if __name__ == "__main__":
    sys.exit(main())
