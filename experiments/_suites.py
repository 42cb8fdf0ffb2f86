"""The test suites of public libraries: those parts that reach the library's own rules, and how to get and run them.

Nothing of these libraries is kept here. The tests come from the source distribution of the version that is installed,
from the repository at that version's tag where the source distribution has no tests, or they are installed with the
library. They are brought into a cache folder at run time.
"""

import dataclasses
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SDIST, INSTALLED = "source distribution", "installed with the library"


@dataclasses.dataclass(frozen=True)
class Suite:
    """The part of a library's tests that reaches its rules, within about a minute of one CPU core.

    Attributes:
      distribution: what `pip` calls the library.
      version: the version whose tests these are.
      package: what is imported; rules that are defined in it are the library's own.
      source: SDIST, INSTALLED, or a repository and its tag, "owner/name@tag".
      arguments: arguments of pytest, run in the folder of the tests.
      needs: distributions that the tests need beside the library.
    """

    distribution: str
    version: str
    package: str
    source: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()


SUITES: tuple[Suite, ...] = ()


def folder(suite: Suite, cache: Path) -> Path:
    """Return the folder in which the suite's tests run. What the cache folder does not hold yet is fetched.

    Raises:
      RuntimeError: if the tests cannot be had.
    """
    if suite.source == INSTALLED:
        return cache
    found = cache / f"{suite.distribution}-{suite.version}"
    if not found.exists():
        (_from_sdist if suite.source == SDIST else _from_repository)(suite, found)
    return found


def pytest_command(suite: Suite, cache: Path, *options: str) -> tuple[list[str], Path]:
    """Return the command that runs a suite, and the folder to run it in."""
    return [sys.executable, "-m", "pytest", "-q", *options, *suite.arguments], folder(suite, cache)


def _from_sdist(suite: Suite, target: Path) -> None:
    name = suite.distribution
    download = ["download", "-q", "--no-deps", "--no-binary", name, f"{name}=={suite.version}"]
    with tempfile.TemporaryDirectory(dir=_made(target.parent)) as temporary:
        _run(suite, [sys.executable, "-m", "pip", *download, "-d", temporary])
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            archive.extractall(temporary, filter="data")
        next(path for path in Path(temporary).iterdir() if path.is_dir()).rename(target)


def _from_repository(suite: Suite, target: Path) -> None:
    name, _, tag = suite.source.partition("@")
    tests = next(part for part in suite.arguments if not part.startswith("-")).partition("/")[0]
    with tempfile.TemporaryDirectory(dir=_made(target.parent)) as temporary:
        clone = ["clone", "-q", "--depth", "1", "--filter=blob:none", "--sparse", "--branch", tag]
        _run(suite, ["git", *clone, f"https://github.com/{name}", temporary + "/tests"])
        _run(suite, ["git", "-C", temporary + "/tests", "sparse-checkout", "set", tests])
        Path(temporary, "tests").rename(target)


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _run(suite: Suite, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"the tests of {suite.distribution} {suite.version} cannot be had ({suite.source}): {reason}")
