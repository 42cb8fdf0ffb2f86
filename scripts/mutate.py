"""Mutation testing of the rules: make one small edit of a rule, and see whether tests and `gradcheck.check` notice.

    python scripts/mutate.py [NAME ...] [--judge tests|check|both] [--list] [--jobs N] [--only TEXT]

NAME is a file (`relu`, `_labels`) or a component (`nll_loss`); the default is all. `mutants.py` makes the mutants.

There are two judges. `tests` runs the tests of the components that reach the mutated function, up to the first failure.
`check` runs `gradcheck.check` over their cases, with the unchanged definition as reference. Each must notice every
mutant, except those in `accepted_mutants.py`: neither judge must notice what is in EQUIVALENT, and only the tests what
is in BEYOND_CHECK. Each entry has its reason.

Each mutant is judged in a process of its own, forked from this one, which has imported JAX and started no backend.

A complete run takes hours. Once a judge has noticed every mutant of a function that it must notice, `mutants.json`
keeps their number. To judge a function again, change it or remove its line there.
"""

import argparse
import collections
import contextlib
import functools
import hashlib
import importlib.machinery
import itertools
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accepted_mutants import BEYOND_CHECK, EQUIVALENT
from mutants import FILES, PACKAGE, ROOT, Mutant, is_beyond_check, is_equivalent, must_notice, mutants, rules, text_of

# SHARED tests are of every component: a mutant runs those that name one of its own. OWN tests are of one component.
SHARED = ["components/test_components", "components/test_transformations", "components/test_residuals",
          "components/test_errors", "components/test_platforms", "scripts/test_sharding_modes"]  # fmt: skip
OWN = ["layers/test_pooling_indices", "layers/test_max_pool2d_tiles", "losses/test_penalties", "layers/test_dropout",
       "layers/test_conv2d_paths", "losses/test_linear_cross_entropy"]  # fmt: skip
SECONDS = 120  # of CPU time, for one test or one case of `check`


def limit_time() -> None:
    """End this process after `SECONDS` of CPU time, and after twenty minutes: waiting takes no CPU time."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(1200)  # long: a process that is paused for other measurements is not a mutant that hangs


def install(file: str, code: Any) -> None:
    """Make Python load the code in place of the file, in this process."""
    load, path = importlib.machinery.SourceFileLoader.get_code, str(PACKAGE / file)
    importlib.machinery.SourceFileLoader.get_code = lambda s, name: code if s.path == path else load(s, name)


@functools.cache
def words_of(source: Any) -> set[str]:
    """Return the words in the source of a function or module; a word after `jaxnn.` keeps that prefix."""
    import inspect

    return set(re.findall(r"(?:jaxnn\.)?\w+", inspect.getsource(source) if source else ""))


Kills = collections.Counter[str]  # what failed for how many mutants of a file: the next mutant runs it first


class Selection:
    """A plugin of pytest: it selects the tests of a mutant's components, and orders them.

    The tests that noticed most mutants so far run first. Then the first case of every test runs, then the second of
    every test: a different test finds more than another case of the same one.
    """

    def __init__(self, mutant: Mutant, kills: Kills) -> None:
        self.wanted = {mutant.function} - mutant.components | {f"jaxnn.{component}" for component in mutant.components}
        self.kills, self.failed = kills, ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        earlier: collections.Counter[str] = collections.Counter()
        order = {}
        for item in filter(self.is_about, items):
            test = item.nodeid.partition("[")[0]
            order[item] = -self.kills[item.nodeid], earlier[test]
            earlier[test] += 1
        items[:] = sorted(order, key=lambda item: order[item])

    def is_about(self, item: Any) -> bool:
        """Tell whether a test names one of the wanted functions: in its id or source; in OWN, in its file's source."""
        whole = f"{item.path.parent.name}/{item.path.stem}" in OWN
        named = {f"jaxnn.{word}" for word in re.findall(r"\w+", item.nodeid)}
        return not self.wanted.isdisjoint(named | words_of(getattr(item, "module" if whole else "function", None)))

    def pytest_runtest_setup(self) -> None:
        limit_time()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = report.nodeid if report.failed else self.failed


def by_tests(mutant: Mutant, code: Any, kills: Kills) -> str:
    """Return the first component test that fails."""
    import pytest

    if code:
        install(mutant.file, code)
    import jaxnn  # noqa: F401 (before pytest, which would load files that it is given in its own way)

    selection = Selection(mutant, kills)
    files = [f"tests/{name}.py" for name in SHARED + OWN]
    files += [  # with the components' doctests
        str(path) for glob in FILES for path in PACKAGE.glob(glob)
        if any(f"\ndef {component}(" in path.read_text() for component in mutant.components)
    ]  # fmt: skip
    spared = [
        "-p",
        "no:cacheprovider",
        "-p",
        "no:unraisableexception",
        "--tb=no",
    ]  # they take time and say nothing here
    status = pytest.main(["-xq", *spared, *files], plugins=[selection])
    return "" if status == pytest.ExitCode.OK else selection.failed or f"pytest: {status!r}"


def cases_of_check() -> list[Any]:
    """Return the cases of the tests, with dropout, pooling with indices and the penalties on more arguments."""
    import numpy as np
    from cases import CASES, Case, normal

    import jaxnn

    key, tree = np.array([1, 2], np.uint32), lambda rng: ([rng.standard_normal((3, 4)), rng.standard_normal(2)],)
    scores = lambda rng: (rng.standard_normal((3, 4)), key)  # noqa: E731
    return [
        *CASES,
        *(Case(f"dropout-{rate}", jaxnn.dropout, scores, {"rate": rate}, ("key",)) for rate in (0.4, 0.0, 1.0)),
        Case("indices", jaxnn.max_pool2d_with_indices, normal((2, 5, 6)), {"window": 3, "stride": 2, "padding": 1}),
        *(Case(f.__name__, f, tree) for f in (jaxnn.l1_penalty, jaxnn.l2_penalty)),
    ]


def trials_of(cases: list[Any]) -> dict[str, tuple[int, str, str, str, Any]]:
    """Return by name the order, level, dtypes, path and case of each check.

    Every case runs at level "rule". Components with a form of their own for a TPU or GPU run in that form, too. One
    case of each component also runs in other dtypes, in mixed ones, and at level "full".
    """
    one_each = list({case.f.__name__: case for case in reversed(cases)}.values())
    forms = {"tpu": ("conv2d", "cross_entropy", "linear_cross_entropy", "max_pool2d"),
             "cuda": ("softmax", "log_softmax", "cross_entropy")}  # fmt: skip
    rounds = [("rule", "float32", "cpu", cases)]
    rounds += [("rule", "float32", p, [c for c in cases if c.f.__name__ in names]) for p, names in forms.items()]
    rounds += [("rule", dtypes, "cpu", one_each) for dtypes in ("bfloat16", "float16", "float64", "float32 float64")]
    rounds += [("full", "float32", "cpu", one_each)]
    return {f"{case.id}, {level}, {dtypes}, {path}": (i, level, dtypes, path, case)
            for level, dtypes, path, those in rounds for i, case in enumerate(those)}  # fmt: skip


def by_check(mutant: Mutant, code: Any, kills: Kills) -> str:
    """Return the first case that fails for the mutant and passes for the unchanged library, with the failed checks."""
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", 4)
    sys.path.insert(0, str(ROOT / "tests"))
    import jaxnn as unchanged

    for name in unchanged.__all__:  # load every component now: one loaded later would be the mutant's
        getattr(unchanged, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "jaxnn"]:
        del sys.modules[name]
    if code:
        install(mutant.file, code)
    import jaxnn
    from jaxnn import gradcheck

    # Blocks of one sample, and extra rows for any number of channels: small arguments would have neither.
    cpu: Any = importlib.import_module("jaxnn.layers._conv2d_cpu")
    cpu._samples_in = lambda *_: 1
    cpu.rows_more = lambda geometry, x, w, stride, *_: 3 if stride[0] == 1 else 0
    cases = [case for case in cases_of_check() if case.f.__name__ in mutant.components]

    def failures(f: Any, *args: Any, **options: Any) -> set[tuple[str, str]]:
        rows = gradcheck.check(f, *args, **options).rows
        # `check` reports two things without FAIL: a value that differs from the reference's (NOTE), and an error under
        # shard_map (UNSUPPORTED). For our rules both are failures.
        also = ("NOTE", "primal"), ("UNSUPPORTED", "shard_map")
        return {(r.check, r.path) for r in rows if r.status == "FAIL" or (r.status, r.check) in also}

    def arguments(case: Any, *dtypes: str) -> Any:
        made, turns = case.make(np.random.default_rng(zlib.crc32(case.id.encode()))), itertools.cycle(dtypes)
        return jax.tree.map(lambda a: jax.numpy.asarray(a, next(turns) if a.dtype == float else a.dtype), made)

    trials = trials_of(cases)
    # Those that noticed most mutants first, then the first case of each round before the second of any.
    for name in sorted(trials, key=lambda name: (-kills[name], trials[name][0])):
        _, level, dtypes, path, case = trials[name]
        jax.config.update("jax_enable_x64", "float64" in dtypes)
        jax.clear_caches()
        jax.lax.platform_dependent = lambda *args, path=path, **paths: paths.get(path, paths["default"])(*args)
        limit_time()
        args = arguments(case, *dtypes.split())
        component = getattr(unchanged, case.f.__name__)
        # The definition of dropout draws other bits: there the unchanged rule is the reference.
        reference = functools.partial(case.outputs, component if case.f is jaxnn.dropout else component.definition)
        failed = failures(functools.partial(case.outputs, case.f), *args, level=level, reference=reference)
        if failed:
            unmutated = functools.partial(case.outputs, component)
            failed -= failures(unmutated, *args, level=level, reference=reference)
        if failed:
            return f"{name}: " + "; ".join(f"{check} of {path}" for check, path in sorted(failed))
    return ""


JUDGES: dict[str, Callable[..., str]] = {"tests": by_tests, "check": by_check}


def judged(tasks: list[tuple[str, Mutant]], jobs: int, programs: str) -> Iterator[tuple[str, Mutant, str, float]]:
    """Yield each task with what failed and its seconds, as its process ends.

    Most programs of a mutant are the unchanged library's: they are compiled once, and kept in a directory that one
    process uses at a time, as JAX's cache on disk has no lock.
    """
    kills: dict[tuple[str, str], Kills] = collections.defaultdict(collections.Counter)
    waiting, running, slots = list(reversed(tasks)), {}, [f"{programs}/{i}" for i in range(jobs)]
    while waiting or running:
        while waiting and slots:
            judge, mutant = waiting.pop()
            slot, (read, write) = slots.pop(), os.pipe()
            code = (
                mutant.tree and mutant.compiled()
            )  # not in the fork, where an error of this script would count as noticed
            if (pid := os.fork()) == 0:
                alone(functools.partial(JUDGES[judge], mutant, code, kills[judge, mutant.file]), write, slot)
            os.close(write)
            running[pid] = judge, mutant, read, slot, time.monotonic()
        pid, status = os.wait()
        judge, mutant, read, slot, start = running.pop(pid)
        slots.append(slot)
        with open(read) as pipe:
            text = pipe.read()
        failed = json.loads(text) if text else f"the process ended: {os.waitstatus_to_exitcode(status)}"
        kills[judge, mutant.file][failed.partition(": ")[0]] += 1
        yield judge, mutant, failed, time.monotonic() - start


def alone(judge: Callable[[], str], write: int, programs: str) -> None:
    """Run a judge in this forked process, silently, write its verdict to the pipe, and end."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    import jax

    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        failed = judge()
    except BaseException as error:  # whatever a mutant raises, it is noticed
        failed = f"{type(error).__name__}: {error}"
    os.write(write, json.dumps(failed[:300]).encode())
    os._exit(0)


class Ledger:
    """The judges' verdicts; `mutants.json` keeps those of a function once a judge has noticed all it must notice."""

    FILE = Path(__file__).with_name("mutants.json")
    COLUMNS = ("mutants", "equivalent", "beyond check", *(f"{judge} {how}" for judge in JUDGES for how in (
        "noticed", "missed", "not asked")))  # fmt: skip

    def __init__(self, mutants: list[Mutant]) -> None:
        self.mutants: dict[str, list[Mutant]] = collections.defaultdict(list)
        for mutant in mutants:
            self.mutants[mutant.of].append(mutant)
        self.texts = {f"{file} {name}": text_of(function) for file, name, _, function, _ in rules()}
        kept = json.loads(self.FILE.read_text()) if self.FILE.exists() else {}
        self.kept = {of: kept[of] for of in self.mutants if kept.get(of, {}).get("mutants") == self._digest(of)}
        self.verdicts: dict[tuple[str, str], collections.Counter[bool]] = collections.defaultdict(collections.Counter)

    def _digest(self, of: str) -> str:
        """Return a hash of a function's code and of its mutants."""
        keys = (mutant.key for mutant in self.mutants[of])
        return hashlib.sha256("\n".join([self.texts[of], *keys]).encode()).hexdigest()[:16]

    def asked(self, judge: str, of: str) -> int:
        """Return how many of a function's mutants a judge must notice."""
        return sum(must_notice(judge, mutant) for mutant in self.mutants[of])

    def lacks(self, judge: str, mutant: Mutant) -> bool:
        """Tell whether a judge has yet to judge a mutant."""
        return must_notice(judge, mutant) and self.kept.get(mutant.of, {}).get(judge) != self.asked(judge, mutant.of)

    def add(self, judge: str, mutant: Mutant, noticed: bool) -> None:
        """Add a verdict; keep the function's verdicts when they are complete."""
        of, count = mutant.of, self.verdicts[judge, mutant.of]
        count[noticed] += 1
        if count[True] == self.asked(judge, of):
            self.kept.setdefault(of, {"mutants": self._digest(of)})[judge] = count[True]
            lines = [f"{json.dumps(of)}: {json.dumps(self.kept[of])}" for of in sorted(self.kept)]
            whole = self.FILE.with_suffix(".new")
            whole.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            whole.replace(self.FILE)

    def row(self, of: str) -> list[int]:
        """Return a function's counts, as `COLUMNS` names them."""
        mutants = self.mutants[of]
        row = [len(mutants), sum(map(is_equivalent, mutants)), sum(map(is_beyond_check, mutants))]
        for judge in JUDGES:
            asked, count = self.asked(judge, of), self.verdicts[judge, of]
            noticed = asked if self.kept.get(of, {}).get(judge) == asked else count[True]
            row += [noticed, count[False], asked - noticed - count[False]]
        return row

    def report(self, functions: list[str]) -> int:
        """Print a table of the files; 1 if a mutant was missed, or not asked about."""
        print(f"{'file':32}", *self.COLUMNS, sep="  ")
        for file in [*dict.fromkeys(of.split()[0] for of in functions), "all"]:
            rows = [self.row(of) for of in functions if file in (of.split()[0], "all")]
            total = [sum(column) for column in zip(*rows, strict=True)]
            print(f"{file:32}", *(f"{n:{len(title)}}" for n, title in zip(total, self.COLUMNS, strict=True)), sep="  ")
        wrong = [i for i, title in enumerate(self.COLUMNS) if title.endswith(("missed", "not asked"))]
        return int(any(total[i] for i in wrong))


def main() -> int:
    """Mutate, judge, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="files or components, all by default")
    parser.add_argument("--judge", choices=("tests", "check", "both"), default="both")
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="judge only mutants whose id contains this text, whatever is known")
    options = parser.parse_args()

    everything, names = mutants(), set(options.names)
    stale = EQUIVALENT.keys() - {m.key for m in everything}
    if stale := stale | {p for p in BEYOND_CHECK if not any(re.search(p, m.key) for m in everything)}:
        sys.exit("these entries of EQUIVALENT or BEYOND_CHECK match no mutant:\n  " + "\n  ".join(sorted(stale)))
    about = lambda m: {Path(m.file).stem, m.function}  # noqa: E731
    chosen = [m for m in everything if not names or names & about(m) or m.components <= names]
    chosen = [m for m in chosen if options.only in m.id]
    if options.list or not chosen:
        print("\n".join(m.id + " (equivalent)" * is_equivalent(m) for m in chosen))
        return 0

    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "JAXNN_ALL": "1"}
    for name in ("jax.numpy", "jaxtyping", "pytest", "torch"):  # in every process; none starts a backend
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    judges, ledger = list(JUDGES) if options.judge == "both" else [options.judge], Ledger(everything)
    # Functions that few components reach are judged first: they have few tests.
    chosen.sort(key=lambda m: (len(m.components), m.of))
    tasks = [(j, m) for j in judges for m in chosen if options.only or ledger.lacks(j, m)]
    with tempfile.TemporaryDirectory() as programs:
        for judge in {judge for judge, _ in tasks}:  # else an error of the judge would count as noticed
            unchanged = Mutant(
                frozenset().union(*(m.components for j, m in tasks if j == judge)), "rules/cotangents.py"
            )
            for *_, failed, _ in judged([(judge, unchanged)], 1, programs):
                if failed:
                    sys.exit(f"{judge} fails without any mutation: {failed}")
        try:
            for judge, mutant, failed, seconds in judged(tasks, options.jobs, programs):
                if not options.only:
                    ledger.add(judge, mutant, bool(failed))
                if options.only or not failed:
                    print(f"{judge}: {failed or 'missed'}: {mutant.id} ({seconds:.1f} s)", flush=True)
        except KeyboardInterrupt:
            print("interrupted")
    return ledger.report(list(dict.fromkeys(m.of for m in sorted(chosen, key=lambda m: m.of))))


if __name__ == "__main__":
    sys.exit(main())
