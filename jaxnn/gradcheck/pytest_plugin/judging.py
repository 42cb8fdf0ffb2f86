"""Check recorded calls in other processes: the run goes on if a rule hangs or kills its process."""

import contextlib
import dataclasses
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SECONDS = {"rule": 60.0, "full": 180.0}  # for one call
START = 60.0  # for the process to start
PROCESSES = 4  # at most, and no more than there are cores
STARTED_WITH = "import sys; sys.path[:] = {path!r}; from jaxnn.gradcheck.pytest_plugin.judging import main; main()"
NOT_CHECKED = "not checked"


@dataclasses.dataclass(frozen=True)
class Job:
    """A recorded call to check.

    Attributes:
      file: where the call is saved.
      level: the level of the check.
      options: other options of `gradcheck.check`; a reference by its name.
    """

    file: str
    level: str
    options: dict[str, Any]


def judged(jobs: list[Job], seconds: float) -> list[dict[str, Any]]:
    """Return the outcome of each job: its verdict, the rows that decide it, and the time.

    Args:
      jobs: what to check.
      seconds: the time for all of them.
    """
    end = time.monotonic() + seconds
    idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()

    def outcome_in_a_child(job: Job) -> dict[str, Any]:
        left = end - time.monotonic()
        if left <= 0:
            return not_checked("left out: the time of --gradcheck-seconds is over")
        try:
            child = idle.get_nowait()
        except queue.Empty:
            child = _Child()
        found = child.outcome(job, min(left, SECONDS[job.level]))
        if not child.has_ended:
            idle.put(child)
        return found

    try:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, PROCESSES)) as pool:
            return list(pool.map(outcome_in_a_child, jobs))
    finally:
        while not idle.empty():
            idle.get().end()


def not_checked(why: str) -> dict[str, Any]:
    return {"verdict": NOT_CHECKED, "message": why, "rows": [], "seconds": 0.0}


class _Child:
    """The process that checks: it reads a job a line, and answers with an outcome a line."""

    def __init__(self) -> None:
        from jaxnn.gradcheck import _sending

        code = STARTED_WITH.format(path=_sending.path())
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self.answers: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.is_ready = False

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.answers.put(line)
        self.answers.put("")

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def outcome(self, job: Job, seconds: float) -> dict[str, Any]:
        started = time.monotonic()
        try:
            if not self.is_ready:
                self.is_ready = bool(self.answers.get(timeout=START))
            print(json.dumps(dataclasses.asdict(job)), file=self.process.stdin, flush=True)
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.end()
            return not_checked(f"it did not finish within {seconds:.0f} s")
        except OSError:
            answer = ""
        if not answer:
            code = self.process.wait()
            self.end()
            return not_checked(f"it ended the process that checks it, with exit code {code}")
        found: dict[str, Any] = json.loads(answer)
        return found | {"seconds": time.monotonic() - started}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what it did not read
                pipe.close()  # type: ignore[union-attr]


# --- in the child ---


def main() -> None:
    """Answer each line of standard input, a job, with a line of standard output, its outcome."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a rule prints goes to standard error, not among the answers
    importlib.import_module("jaxnn.gradcheck.checker")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(outcome_of(Job(**json.loads(line)))), file=answers, flush=True)
    os._exit(0)  # a thread that a rule has started must not keep the process


def outcome_of(job: Job) -> dict[str, Any]:
    """Check a saved call."""
    from jaxnn.gradcheck.pytest_plugin.records import load
    from jaxnn.tracing.errors import first_line

    try:
        record = load(job.file)
    except Exception as error:
        return not_checked(f"it cannot be loaded in another process: {first_line(error)}")
    return outcome(record, job)


def outcome(record: Any, job: Job) -> dict[str, Any]:
    """Check a recorded call."""
    from jaxnn.tracing.errors import first_line

    try:
        report = report_of(record, job)
    except Exception as error:
        return not_checked(f"it cannot be called again: {first_line(error)}")
    rows = [dataclasses.asdict(row) for row in (report.failures or report.undecided)]
    short = [{key: row[key] for key in ("check", "path", "status", "message", "hint")} for row in rows]
    return {"verdict": report.verdict, "message": "", "rows": short, "seconds": report.seconds, "text": str(report)}


def report_of(record: Any, job: Job) -> Any:
    """Return the report of a recorded call: of a batch too, if it was one of a batch."""
    import jax

    from jaxnn.gradcheck.checker import check
    from jaxnn.gradcheck.checks import FULL, RULE
    from jaxnn.gradcheck.checks.transformations import vmap

    options = record.options | job.options  # of these, those that JSON cannot hold are in the record
    if isinstance(options.get("reference"), str):
        options["reference"] = _found(options["reference"])
    level = job.level
    if record.batched and level == "rule":  # a rule that is right alone may be wrong in a batch
        others = set(FULL) - set(RULE) - {vmap.__name__}
        level, options["skip"] = "full", (*options.get("skip", ()), *others)
    with jax.enable_x64(record.x64):
        f, args, kwargs = record.call()
        return check(f, *args, kwargs=kwargs, level=level, **options)


def _found(name: str) -> Any:
    """Return the object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
