"""One process of a distributed run, in a child process that its parent supervises.

When a peer dies, JAX's runtime aborts the process from one of its own threads, with a page of C++ messages and exit
code 134. When a peer hangs, nothing ends. A process that was stopped cannot end itself. So the run is a child process.
Its parent asks every half a second whether the child is alive, receives an event after every chunk of steps, kills a
child that makes no progress, and turns its end into an exit code and one line. The child ends when its parent is gone.
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

from jaxnn.cli.signals import signal_name, stop_signals_call

ASK_EVERY = 0.5  # seconds between two questions of the parent, and between two looks for a signal
HEARTBEAT = 20  # seconds after which JAX treats a silent process as dead
# Seconds without an answer, or without a chunk of steps (which takes about half a second), after which a run is stuck.
SILENCE = 45.0
# The same before the first chunk and after the last: a process that responds but makes no progress gets ten minutes, to
# connect, to read the data, to compile, or to wait for the pictures.
STARTING = 600.0
# The events that a child reports: it is alive; it has connected to the others; a chunk of steps, or the work after an
# epoch, has ended; the training has ended.
ALIVE, CONNECTED, STEPPED, TRAINED = b"a", b"c", b"s", b"t"
LOST = "another process of the run is dead or cannot be reached"
_PIPES = "JAXNN_SUPERVISOR"
# After a failure the child exits at once; a normal exit would wait for the other processes.
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

    code: int  # the exit code
    unexplained: str  # the line to print if the child printed none, otherwise ""
    connected: bool  # whether it had connected to the other processes


def run(arguments: list[str]) -> End:
    """Run the command in a child process, and wait for its end."""
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-c", f"import sys\nsys.path[:] = {sys.path!r}{_CHILD}", *arguments],
            env={**os.environ, "TMPDIR": folder, _PIPES: f"{from_parent} {to_parent} {Path(folder, 'runtime.log')}"},
            pass_fds=(from_parent, to_parent),
            start_new_session=True,  # so that Ctrl-C reaches the child once, from its parent: a second one kills it
        )
        os.close(from_parent)
        os.close(to_parent)
        signals: list[int] = []
        with stop_signals_call(lambda number, _: signals.append(number)):
            events, stuck = _watch(child, from_child, to_child, signals)
    os.close(from_child)
    os.close(to_child)
    connected = CONNECTED in events
    if stuck:
        return End(1, stuck, connected)
    if child.returncode < 0 and signals and not connected:
        return End(128 + signals[0], f"stopped by {signal_name(signals[0])} before the training", True)
    if child.returncode == -signal.SIGABRT:  # JAX's runtime aborts when a peer is lost
        return End(1, LOST, connected)
    if child.returncode < 0:
        by = signal.Signals(-child.returncode)
        why = " (out of memory, or its parent was stopped for a while?)" if by == signal.SIGKILL else ""
        return End(1, f"the process was ended by {by.name}{why}", connected)
    return End(child.returncode, "", connected)


def _watch(child: "subprocess.Popen[bytes]", from_child: int, to_child: int, signals: list[int]) -> tuple[bytes, str]:
    """Wait for the child's end, and kill it if it is stuck; return the events it reported, and how it is stuck."""
    events, forwarded, asked = b"", 0, 0.0
    answered = progressed = time.monotonic()
    while child.poll() is None:
        if (now := time.monotonic()) - asked >= ASK_EVERY:
            with contextlib.suppress(BrokenPipeError):
                os.write(to_child, b".")
            asked = now
        for number in signals[forwarded:]:
            # Until it has connected, the child waits in C++, where Python's signal handlers do not run.
            child.send_signal(number if CONNECTED in events else signal.SIGKILL)
        forwarded = len(signals)
        if select.select([from_child], [], [], ASK_EVERY)[0]:
            new = os.read(from_child, 4096)
            if not new:  # the child has closed the pipe: it is ending
                child.wait()
            events, answered = bytes(set(events + new)), time.monotonic()
            progressed = answered if new.strip(ALIVE) else progressed
        now = time.monotonic()
        if stuck := _stuck(events, now - answered, now - progressed):
            child.kill()
            child.wait()
            return events, stuck
    return events, ""


def _stuck(events: bytes, silent: float, idle: float) -> str:
    """Return how a child is stuck, "" if it is not: it was `silent`, and made no progress, for so many seconds."""
    if ALIVE in events and TRAINED not in events and silent > SILENCE:
        return f"the training process did not answer for {SILENCE:.0f} seconds: it is stopped or stuck"
    limit = SILENCE if STEPPED in events and TRAINED not in events else STARTING
    if idle > limit:
        why = f"no step ended within {limit:.0f} seconds: a process of the run is dead or stuck"
        return f"{why} (or a step takes longer: choose a smaller --batch-size)"
    return ""


class Child:
    """The child's end of the two pipes."""

    def __init__(self, from_parent: int, to_parent: int, log_path: str) -> None:
        """Answer the parent from a thread, and send what C++ prints to a log file."""
        self._to_parent = to_parent
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for name, stream in ("stdout", 1), ("stderr", 2):
            setattr(sys, name, os.fdopen(os.dup(stream), "w", buffering=1, errors="backslashreplace"))
            os.dup2(log, stream)
        threading.Thread(target=self._answer, args=(from_parent,), daemon=True).start()

    def _answer(self, from_parent: int) -> None:
        """Answer the parent's questions. If they cease, the parent is gone or stopped: end this process."""
        while select.select([from_parent], [], [], HEARTBEAT)[0] and os.read(from_parent, 4096):
            self.report(ALIVE)
        os.kill(os.getpid(), signal.SIGKILL)

    def report(self, event: bytes) -> None:
        """Report an event to the parent."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._to_parent, event)


def child() -> Child | None:
    """Return the child's side if this process is a supervised child."""
    pipes = os.environ.pop(_PIPES, "")
    if not pipes:
        return None
    from_parent, to_parent, log_path = pipes.split(" ", 2)
    return Child(int(from_parent), int(to_parent), log_path)
