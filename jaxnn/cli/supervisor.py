"""One process of a distributed run, under a parent that lives through whatever ends it.

When a peer is dead, JAX's runtime aborts the process from a thread of its own, with a page of C++ and exit code 134;
when a peer hangs, nothing ends at all; and a stopped process can do nothing about itself. So the run is a child
process. The parent asks it every half a second whether it is there, hears of every chunk of steps, ends a child
that has gone silent, and turns its end into an exit code and one line. The child ends when its parent is gone.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from jaxnn.cli.terminal import noting, signal_name

HEARTBEAT = 20  # seconds after which JAX calls a silent process dead
SILENCE = 45.0  # seconds without an answer, or a chunk of steps of half a second, after which a run is called stuck
STARTING = 600.0  # seconds before the first: to connect, to read the data, to compile
# What a child says: it is there; it has met the others; a chunk of steps, or what follows an epoch, has ended; the
# training has.
HERE, CONNECTED, STEPPED, TRAINED = b"h", b"c", b"s", b"t"
LOST = "another process of the run is dead or out of reach"
_PIPES = "JAXNN_SUPERVISOR"
# After a failure it does not wait for the others, as JAX would at the interpreter's end.
_CHILD = """
import os, sys
from jaxnn.cli import main
code = main(sys.argv[1:])
sys.stdout.flush()
if code:
    os._exit(code)
"""


class End(NamedTuple):
    """How a run ended."""

    code: int  # to exit with
    unexplained: str  # a line where the child could not say why, or ""
    connected: bool  # to the other processes


def run(arguments: list[str]) -> End:
    """Run the command in a child process, to its end."""
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-c", f"import sys\nsys.path[:] = {sys.path!r}{_CHILD}", *arguments],
            env={**os.environ, "TMPDIR": folder, _PIPES: f"{from_parent} {to_parent} {Path(folder, 'runtime.log')}"},
            pass_fds=(from_parent, to_parent),
            start_new_session=True,  # a terminal's Ctrl-C comes from the parent alone: a second one would end at once
        )
        os.close(from_parent)
        os.close(to_parent)
        signals: list[int] = []
        with noting(lambda number, _: signals.append(number)):
            said, stuck = _watch(child, from_child, to_child, signals)
    os.close(from_child)
    os.close(to_child)
    connected = CONNECTED in said
    if stuck:
        return End(1, stuck, connected)
    if child.returncode < 0 and signals and not connected:
        return End(128 + signals[0], f"stopped by {signal_name(signals[0])} before the training", True)
    if child.returncode == -signal.SIGABRT:  # by JAX
        return End(1, LOST, connected)
    if child.returncode < 0:
        by = signal.Signals(-child.returncode)
        why = " (out of memory, or this process was stopped for a while?)" if by == signal.SIGKILL else ""
        return End(1, f"the process was ended by {by.name}{why}", connected)
    return End(child.returncode, "", connected)


def _watch(child: "subprocess.Popen[bytes]", from_child: int, to_child: int, signals: list[int]) -> tuple[bytes, str]:
    """Wait for the child's end, or bring it about when it is stuck; return what it said, and how it is stuck."""
    said, passed_on, asked = b"", 0, 0.0
    answered = moved = time.monotonic()
    while child.poll() is None:
        if (now := time.monotonic()) - asked >= 0.5:
            with contextlib.suppress(BrokenPipeError):
                os.write(to_child, b".")
            asked = now
        for number in signals[passed_on:]:
            # Until it has met the others it sits in C++, where no handler of Python's is heard.
            child.send_signal(number if CONNECTED in said else signal.SIGKILL)
        passed_on = len(signals)
        if select.select([from_child], [], [], 0.5)[0]:
            words = os.read(from_child, 4096)
            if not words:  # it has closed its end: it is ending
                child.wait()
            said, answered = bytes(set(said + words)), time.monotonic()
            moved = answered if words.strip(HERE) else moved
        now = time.monotonic()
        if stuck := _stuck(said, now - answered, now - moved):
            child.kill()
            child.wait()
            return said, stuck
    return said, ""


def _stuck(said: bytes, silent: float, unmoved: float) -> str:
    """Return how a child is stuck that gave no answer, and took no step, for so many seconds; "" if it is not."""
    if HERE in said and TRAINED not in said and silent > SILENCE:
        return f"it did not answer within {SILENCE:.0f} seconds: it is stopped or stuck"
    # Before the first chunk it compiles; after the last it draws, and waits for who draws.
    limit = SILENCE if STEPPED in said and TRAINED not in said else STARTING
    if unmoved > limit:
        why = f"no step ended within {limit:.0f} seconds: a process of the run is dead or stuck"
        return f"{why} (or a step takes longer: take a smaller --batch-size)"
    return ""


class Child:
    """The child's side."""

    def __init__(self, from_parent: int, to_parent: int, noise: str) -> None:
        """Listen to the parent, and keep what C++ says out of the terminal."""
        self._to_parent = to_parent
        log = os.open(noise, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for name, stream in ("stdout", 1), ("stderr", 2):
            setattr(sys, name, os.fdopen(os.dup(stream), "w", buffering=1, errors="backslashreplace"))
            os.dup2(log, stream)
        threading.Thread(target=self._listen, args=(from_parent,), daemon=True).start()

    def _listen(self, from_parent: int) -> None:
        """Answer the parent; end when it is gone, or stopped and of no use: it tells of the end when it goes on."""
        while select.select([from_parent], [], [], HEARTBEAT)[0] and os.read(from_parent, 4096):
            self.says(HERE)
        os.kill(os.getpid(), signal.SIGKILL)

    def says(self, word: bytes) -> None:
        """Tell the parent how far it is."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._to_parent, word)


def child() -> Child | None:
    """Return the child's side, in a child."""
    pipes = os.environ.pop(_PIPES, "")
    if not pipes:
        return None
    from_parent, to_parent, noise = pipes.split(" ", 2)
    return Child(int(from_parent), int(to_parent), noise)
