"""The cases of one file in a process of their own, for `jaxnn compare`.

A file that is checked may change anything: the modules that others import, JAX's configuration, the working directory.
It may also print, exit, or crash the interpreter. In a process of its own it changes nothing for the other files. The
process reports through a pipe; what the file prints goes to the standard error.
"""

import contextlib
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator
from typing import Any, NamedTuple, NoReturn

from jaxnn.cli import cluster
from jaxnn.cli.terminal import CommandError, one_line
from jaxnn.gradcheck.discovery import Rule, discover
from jaxnn.gradcheck.report import Report

_CHILD = "from jaxnn.cli.isolated import {0}\n{0}()"
MAX_CAUSE = 300  # characters of an error's message: JAX's may be pages long
USAGE, NOT_RUN = 2, 4  # exit codes
END_SECONDS = 5.0  # that a process may take to end after its last report
CASE_SECONDS = 600.0  # that a case may take: an endless loop in a file is not the end of the others


class Asked(NamedTuple):
    """What the command asks of `gradcheck.check`."""

    level: str
    seed: int
    targets: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Return the arguments of the command that ask for the same."""
        targets = ["--target", ",".join(self.targets)] if self.targets else []
        return ["--level", self.level, "--seed", str(self.seed), *targets]


class Result(NamedTuple):
    """What became of a case: its report, or why it could not be run, in one line."""

    name: str
    report: Report | None
    error: str = ""


def run(
    names: list[str], asked: Asked, debug: bool, package: str = "", limit: float | None = None
) -> Generator[Result, None, None]:
    """Check the cases of names that share a process.

    Args:
        names: components, or functions of one file or module, as `cases.find` takes them; or rules of `package`.
        asked: what is asked of `gradcheck.check`.
        debug: print the traceback of a case that cannot be run.
        package: the package whose rules are named; "" for cases.
        limit: the seconds that one case may take; None for ten minutes.

    Yields:
        The results, in the order of the names.

    Raises:
        CommandError: JAX cannot run at all.
    """
    left = list(names)
    while left:  # a case that ends its process is not the end of those after it
        messages = _messages("serve", (left, asked, debug, package), limit or CASE_SECONDS)
        while True:
            try:
                received = next(messages)
            except StopIteration as stop:
                end = stop.value
                break
            if isinstance(received, str):
                left.remove(received)
            else:
                yield received
        if left:
            yield Result(left.pop(0), None, end)


def listed(package: str) -> tuple[list[Rule], dict[str, str]]:
    """Return the rules of a package, found by a process of its own, and the modules that cannot be imported.

    Raises:
        CommandError: it cannot be imported.
    """
    messages = _messages("serve_listing", package, CASE_SECONDS)
    try:
        received: Any = next(messages)
    except StopIteration as stop:
        raise CommandError(f"--package {package!r} cannot be imported: {stop.value}", NOT_RUN) from None
    messages.close()
    return received  # type: ignore[no-any-return]


def _messages(serve: str, request: Any, limit: float) -> Generator[Any, None, str]:
    """Yield what a process sends that runs a function of this module; return how it ended."""
    # The check of shard_map takes two devices. A file may still ask for another number.
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys\nsys.path[:] = {sys.path!r}\n{_CHILD.format(serve)}"],
        env=({} if forced else {"JAX_NUM_CPU_DEVICES": "2"}) | dict(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the child
    )
    assert child.stdin is not None and child.stdout is not None
    late = threading.Event()
    try:
        with contextlib.suppress(BrokenPipeError), child.stdin:
            pickle.dump(request, child.stdin)
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                received = _next_message(child, limit, late)
                if isinstance(received, CommandError):
                    raise received
                yield received
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_SECONDS)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    code = child.returncode
    if late.is_set():
        return f"no result within {limit:g} s"
    return (
        f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"it ends its process (code {code})"
    )


def _next_message(child: Any, limit: float, late: threading.Event) -> Any:
    """Return what the process sends next; if nothing comes in time, set `late` and end it with all that it started."""

    def end() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(limit, end)
    timer.start()
    try:
        return pickle.load(child.stdout)
    finally:
        timer.cancel()


def _begin() -> tuple[Any, Any]:
    """Return what the parent asks for, and a function that sends it a message."""
    request = pickle.load(sys.stdin.buffer)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(message: Any) -> None:
        pickle.dump(message, pipe)
        pipe.flush()

    return request, send


def _end() -> NoReturn:
    sys.stdout.flush()
    os._exit(0)  # not by way of what the file has registered


def serve() -> None:
    """Run the names that the parent sends, and send it each result, and each name that is done."""
    (names, asked, debug, package), send = _begin()
    folder = os.getcwd()
    for name in names:
        os.chdir(folder)  # a file may have changed it
        for result in _results(name, asked, debug, package, send):
            send(result)
        send(name)
    _end()


def serve_listing() -> None:
    """Find the rules of the package that the parent names, and send them."""
    package, send = _begin()
    sys.path.insert(0, "")
    try:
        rules, failed = discover(package)
        send(([dataclasses.replace(rule, rule=None) for rule in rules], failed))
    except BaseException as error:
        cause = f"{type(error).__name__}: {one_line(error)[:MAX_CAUSE]}"
        send(CommandError(f"--package {package!r} cannot be imported: {cause}", NOT_RUN))
    _end()


def _results(name: str, asked: Asked, debug: bool, package: str, send: Any) -> Generator[Result, None, None]:
    """Check the cases of a name; whatever one of them raises, also SystemExit, is its result."""
    from jaxnn.cli import cases, packages

    row = name
    try:
        for case in packages.find(name, package) if package else cases.find(name):
            row = case.name
            try:
                yield Result(row, cases.check(case, name, asked, package))
            except BaseException as error:
                yield Result(row, None, _cause(error, debug, send))
    except BaseException as error:
        yield Result(row, None, _cause(error, debug, send))


def _cause(error: BaseException, debug: bool, send: Any) -> str:
    """Return why a case cannot be run; if JAX cannot run at all, say so instead, and end the process."""
    if debug:
        traceback.print_exception(error)
    try:
        cluster.require_devices()
    except CommandError as fatal:
        fatal.code = 2  # no rule is judged
        send(fatal)
        os._exit(0)
    line = one_line(error)[:MAX_CAUSE]
    return line if isinstance(error, CommandError) else f"{type(error).__name__}: {line}"
