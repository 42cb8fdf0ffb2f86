"""A run of pytest with the plugin: it records in each process that runs tests, and checks in the one that reports."""

import contextlib
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxnn.gradcheck.pytest_plugin import results
from jaxnn.gradcheck.pytest_plugin.judging import NOT_CHECKED, SECONDS, Job, judged, not_checked, outcome
from jaxnn.gradcheck.pytest_plugin.settings import OF_A_RULE, TABLE, Settings, skipped

INSTALLED = {"site-packages", "dist-packages", ".venv", "venv", ".tox", ".nox"}


class Session:
    """What is recorded and found in one run.

    Attributes:
      folder: where the processes save what they record.
      rules: what was reached, each with its signatures, as JSON can hold it.
    """

    def __init__(self, config: pytest.Config, settings: Settings, folder: str) -> None:
        self.config, self.settings, self.folder = config, settings, folder
        self.known = None if hasattr(config, "workerinput") else settings.known()
        self.rules: dict[str, dict[str, Any]] = {}
        self.recorder: Any = None
        self.stack = contextlib.ExitStack()
        self.test_modules: set[str] = set()
        self.seconds = 0.0
        self.problems: list[str] = []

    # --- in a process that runs tests ---

    def start(self, items: list[pytest.Item]) -> None:
        """Start recording."""
        from jaxnn.gradcheck.pytest_plugin.recording import Recorder, recording

        self.test_modules = {item.module.__name__ for item in items if hasattr(item, "module")}
        self.recorder = Recorder(self._is_wanted)
        self.stack.enter_context(recording(self.recorder))

    def _is_wanted(self, place: Any) -> bool:
        packages = self.settings.packages
        if packages:
            return any(f"{place.module}.".startswith(f"{package}.") for package in packages)
        file, root = Path(place.file), self.config.rootpath
        if file.is_relative_to(root) and not INSTALLED & set(file.relative_to(root).parts):
            return True
        top = place.module.split(".")[0]
        return any((folder / top / "__init__.py").is_file() for folder in (root, root / "src"))

    @contextlib.contextmanager
    def test(self, item: pytest.Item) -> Iterator[None]:
        """Note which test runs, and what its marker says."""
        if self.recorder is None:
            yield
            return
        options: dict[str, Any] = {}
        for marker in item.iter_markers("gradcheck"):
            options = {**marker.kwargs, **options}
        skip = skipped(options.pop("skip", ()))
        self.recorder.test = item.nodeid
        self.recorder.options = options | ({"skip": skip} if isinstance(skip, tuple) and skip else {})
        with self.recorder.pause() if skip is True else contextlib.nullcontext():
            yield
        self.recorder.test, self.recorder.options = "", {}

    def finish(self) -> list[dict[str, Any]]:
        """Stop recording, save the records, and return what describes them as JSON can hold it."""
        self.stack.close()
        if self.recorder is None:
            return []
        numbers = itertools.count()
        with self.recorder.pause():
            return [self._gathered(rule, numbers) for rule in self.recorder.rules.values()]

    def _gathered(self, rule: Any, numbers: Iterator[int]) -> dict[str, Any]:
        file = Path(rule.file)
        root = self.config.rootpath
        return {
            "name": rule.name,
            "file": file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file),
            "line": rule.line,
            "kind": rule.kind,
            "differentiated": rule.differentiated,
            "tests": list(rule.tests),
            "signatures": [self._saved(rule, record, numbers) for record in rule.records.values()],
        }

    def _saved(self, rule: Any, record: Any, numbers: Iterator[int]) -> dict[str, Any]:
        """Save a record; check it here if another process cannot have it."""
        from jaxnn.gradcheck.pytest_plugin.records import save

        found = {"arguments": record.signature, "x64": record.x64, "tests": list(record.tests)}
        if record.leaves is None:
            why = record.left_out or "no values were seen: its program was compiled before, or elsewhere, or never ran"
            return found | {"outcome": not_checked(why)}
        if unknown := set(record.options) - OF_A_RULE:
            known = ", ".join(sorted(OF_A_RULE))
            why = f"the marker `gradcheck` of a test has an unknown option {min(unknown)!r}; it may have {known}"
            return found | {"outcome": not_checked(why)}
        options = self.settings.options(rule.name) | record.options
        if options.get("skip") is True:
            return found | {"outcome": not_checked(f"left out by skip=true in gradcheck_rules, or in rules of {TABLE}")}
        file = os.path.join(self.folder, f"{os.getpid()}-{next(numbers)}.pkl")
        own = {key: value for key, value in options.items() if key == "reference" and not isinstance(value, str)}
        job = Job(file, self.settings.level, {key: value for key, value in options.items() if key not in own})
        record.options = own
        try:
            save(record, file, self.test_modules)
        except Exception:  # a part of it exists in this process alone
            return found | {"outcome": _limited(outcome, SECONDS[job.level], record, job)}
        return found | {"job": vars(job)}

    # --- in the process that reports ---

    def add(self, gathered: list[dict[str, Any]]) -> None:
        """Add what a process has recorded."""
        for rule in gathered:
            key = f"{rule['file']}:{rule['line']}:{rule['name']}:{rule['kind']}"
            known = self.rules.setdefault(key, rule | {"tests": [], "signatures": [], "differentiated": False})
            known["tests"] = list(dict.fromkeys(known["tests"] + rule["tests"]))
            known["differentiated"] |= rule["differentiated"]
            for signature in rule["signatures"]:
                self._add_signature(known["signatures"], signature)

    def _add_signature(self, known: list[dict[str, Any]], new: dict[str, Any]) -> None:
        same = [s for s in known if (s["arguments"], s["x64"]) == (new["arguments"], new["x64"])]
        if not same:
            known.append(new)
            return
        same[0]["tests"] = list(dict.fromkeys(same[0]["tests"] + new["tests"]))
        if "job" not in same[0] and ("job" in new or same[0]["outcome"]["verdict"] == NOT_CHECKED):
            known[known.index(same[0])] = new | {"tests": same[0]["tests"]}

    def judge(self) -> bool:
        """Check what was recorded; return whether there is a failure that is not known."""
        began = time.monotonic()
        of_each = [rule["signatures"] for rule in self.rules.values()]
        in_turn = [s for s in itertools.chain(*itertools.zip_longest(*of_each)) if s and "job" in s]
        outcomes = judged([Job(**s["job"]) for s in in_turn], self.settings.seconds)
        for signature, found in zip(in_turn, outcomes, strict=True):
            signature["outcome"] = found
        self.seconds = time.monotonic() - began
        failures = results.failures(self.rules)
        self.problems = results.compared(failures, self.known, self.rules)
        self._write(failures)
        shutil.rmtree(self.folder, ignore_errors=True)
        return bool(self.problems if self.known is not None else failures) and not self.settings.update

    def _write(self, failures: list[dict[str, Any]]) -> None:
        settings = self.settings
        if settings.save:
            results.save(failures, Path(settings.save))
        if settings.report:
            results.report(self.rules, Path(settings.report), self.seconds)
        if settings.update:
            results.baseline(failures, Path(settings.baseline))
        results.into_junit(self.config, failures)

    def show(self, terminal: Any) -> None:
        """Print what was found."""
        results.show(terminal, self.rules, self.problems, self.known, self.seconds, self.settings)


class _OverTime(BaseException):
    pass


def _limited(check: Callable[..., dict[str, Any]], seconds: float, *args: Any) -> dict[str, Any]:
    """Return the outcome of a check in this process, stopped when the time is over, where it can be interrupted."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        return check(*args)

    def over(*_: Any) -> None:
        raise _OverTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return check(*args)
    except _OverTime:
        return not_checked(f"it did not finish within {seconds:.0f} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
