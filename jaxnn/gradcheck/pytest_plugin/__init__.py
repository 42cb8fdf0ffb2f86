"""The pytest plugin: every hand-written rule that a project's tests reach is checked at the arguments they used.

    pytest --gradcheck

While the tests run, `recording.py` keeps the arguments of each rule, once for each signature. When they are done,
`judging.py` checks the rules in other processes, and `results.py` prints what was found. Here are the options, and
what pytest calls. JAX is imported only if the option is given.
"""

import tempfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jaxnn.gradcheck.pytest_plugin.session import Session

NAME = "gradcheck"
SETTINGS = pytest.StashKey[Any]()
SESSION = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, on the command line and in the ini file."""
    group = parser.getgroup(NAME, "hand-written JAX gradients (jaxnn)")
    say = group.addoption
    say("--gradcheck", action="store_const", const="rule", dest="gradcheck",
        help="check every hand-written derivative rule that the tests reach; --gradcheck=full checks more")  # fmt: skip
    say("--gradcheck=rule", action="store_const", const="rule", dest="gradcheck", help="the quick core of the checks")
    say("--gradcheck=full", action="store_const", const="full", dest="gradcheck", help="all checks: vmap, jit, dtypes")
    say("--gradcheck-packages", metavar="A,B", help="check the rules defined in these packages (default: the project)")
    say("--gradcheck-seconds", metavar="N", help="time for the checks; what is left out then is named")
    say("--gradcheck-report", metavar="FILE", help="write what was found: FILE.json or FILE.html")
    say("--gradcheck-baseline", metavar="FILE", 
        help="known failures: an error is one that is not in FILE, or an entry that is no longer wrong")  # fmt: skip
    say("--gradcheck-update", action="store_true", help="write the baseline")
    say("--gradcheck-save", metavar="DIR", help="save each failing call as a script that reproduces it alone")
    parser.addini("gradcheck", "rule or full: check the rules that the tests reach", default="")
    parser.addini("gradcheck_packages", "packages whose rules are checked", type="args")
    parser.addini("gradcheck_seconds", "time for the checks", default="")
    parser.addini("gradcheck_report", "file of what was found", default="")
    parser.addini("gradcheck_baseline", "file of the known failures", default="")
    parser.addini("gradcheck_save", "folder of the scripts that reproduce failures", default="")
    rule = "NAME: reference=MODULE.NAME rtol=X skip=CHECK,..."
    parser.addini("gradcheck_rules", f"options of single rules, a line each: {rule}", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and begin a session if it is asked for."""
    config.addinivalue_line(
        "markers", "gradcheck(skip=..., reference=..., rtol=...): how the rules that this test calls are checked"
    )
    from jaxnn.gradcheck.pytest_plugin.settings import Settings

    if (settings := Settings.of(config)) is not None:
        config.stash[SETTINGS] = settings


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where to save its records."""
    if SETTINGS in node.config.stash:
        node.workerinput[NAME] = _session(node.config).folder


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Take the records of a worker of pytest-xdist."""
    if SETTINGS in node.config.stash and hasattr(node, "workeroutput"):
        _session(node.config).add(node.workeroutput.get(NAME, []))


def _session(config: pytest.Config) -> "Session":
    if SESSION not in config.stash:
        from jaxnn.gradcheck.pytest_plugin.session import Session

        folder = getattr(config, "workerinput", {}).get(NAME) or tempfile.mkdtemp(prefix="gradcheck-")
        config.stash[SESSION] = Session(config, config.stash[SETTINGS], folder)
    return config.stash[SESSION]  # type: ignore[no-any-return]


def _records_here(config: pytest.Config) -> bool:
    """Whether the tests run in this process, and not in workers of pytest-xdist."""
    return hasattr(config, "workerinput") or getattr(config.option, "dist", "no") == "no"


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to record, when all conftest files have set JAX up."""
    config = session.config
    if SETTINGS in config.stash and not config.option.collectonly and _records_here(config):
        _session(config).start(session.items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Note which test runs."""
    if SESSION in item.config.stash:
        with item.config.stash[SESSION].test(item):
            return (yield)
    return (yield)


@pytest.hookimpl(tryfirst=True)  # before the file of --junitxml is written
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save the records in a worker; check the rules in the process that reports."""
    if SESSION not in session.config.stash:
        return
    own = session.config.stash[SESSION]
    if hasattr(session.config, "workerinput"):
        session.config.workeroutput[NAME] = own.finish()  # type: ignore[attr-defined]
        return
    own.add(own.finish())
    if own.judge() and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what was found."""
    if SESSION in config.stash:
        config.stash[SESSION].show(terminalreporter)
