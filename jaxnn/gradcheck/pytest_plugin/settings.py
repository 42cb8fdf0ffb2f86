"""The settings of the plugin, from the command line, the ini file, and [tool.jaxnn.gradcheck] of pyproject.toml."""

import dataclasses
import importlib.util
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

TABLE = "[tool.jaxnn.gradcheck]"
KEYS = {"level", "packages", "seconds", "report", "baseline", "save", "rules"}
OF_A_RULE = {"reference", "rtol", "skip"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user has asked for.

    Attributes:
      level: "rule" or "full".
      packages: the packages whose rules are checked; none for the project's own.
      seconds: the time that all checks together may take.
      report: the file to write what was found to.
      baseline: the file of the known failures.
      update: whether to write the baseline.
      save: the folder for scripts that reproduce the failures.
      rules: options of `gradcheck.check` for single rules, by name.
    """

    level: str
    packages: tuple[str, ...]
    seconds: float
    report: str
    baseline: str
    update: bool
    save: str
    rules: dict[str, dict[str, Any]]

    @staticmethod
    def of(config: pytest.Config) -> "Settings | None":
        """Read the settings; the command line comes before the ini file, and that before pyproject.toml.

        Returns:
          The settings; None if nothing is to be checked.

        Raises:
          pytest.UsageError: if a setting is invalid.
        """
        table = _table(config.rootpath / "pyproject.toml") if _may_be_on(config) else {}

        def chosen(name: str, default: Any) -> Any:
            option = config.getoption(f"gradcheck_{name}" if name != "level" else "gradcheck")
            ini = config.getini(f"gradcheck_{name}" if name != "level" else "gradcheck")
            return next((value for value in (option, ini, table.get(name)) if value), default)

        level = chosen("level", "")
        if not level:
            return None
        if level not in ("rule", "full"):
            raise pytest.UsageError(f"gradcheck={level!r} must be 'rule' or 'full'")
        update, baseline = config.getoption("gradcheck_update"), chosen("baseline", "")
        if update and not baseline:
            raise pytest.UsageError("--gradcheck-update needs --gradcheck-baseline FILE, the file to write")
        report = chosen("report", "")
        if report and Path(report).suffix not in (".json", ".html"):
            raise pytest.UsageError(f"--gradcheck-report {report!r} must end in .json or .html")
        return Settings(
            level, _packages(chosen("packages", ())), _seconds(chosen("seconds", math.inf)), report, baseline, update,
            chosen("save", ""), _rules(config.getini("gradcheck_rules"), table.get("rules", {})),
        )  # fmt: skip

    def options(self, name: str) -> dict[str, Any]:
        """Return the options for a rule: those of the first entry that its dotted name ends with."""
        return next((o for known, o in self.rules.items() if f".{name}".endswith(f".{known}")), {})

    def known(self) -> dict[str, Any] | None:
        """Return the known failures of the baseline; None if there is no such file.

        Raises:
          pytest.UsageError: if the file cannot be read, or is something else.
        """
        if not self.baseline or (self.update and not Path(self.baseline).exists()):
            return None
        try:
            content = json.loads(Path(self.baseline).read_text())
            return {failure_key(f): f for f in content["gradcheck baseline"]}
        except FileNotFoundError:
            raise pytest.UsageError(
                f"--gradcheck-baseline {self.baseline}: no such file; add --gradcheck-update to write it"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise pytest.UsageError(
                f"--gradcheck-baseline {self.baseline} is no baseline of gradcheck ({type(error).__name__}); "
                "write a new one with --gradcheck-update"
            ) from None


def failure_key(failure: dict[str, Any]) -> str:
    """Return what identifies a failure: the rule and the types of its arguments."""
    return f"{failure['rule']} {failure['arguments']}"


def _may_be_on(config: pytest.Config) -> bool:
    """Whether pyproject.toml exists and mentions jaxnn, so that it has to be read."""
    path = config.rootpath / "pyproject.toml"
    return path.is_file() and b"jaxnn" in path.read_bytes()


def _table(path: Path) -> dict[str, Any]:
    try:
        tool = tomllib.loads(path.read_text()).get("tool", {})
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"{path} cannot be read: {error}") from None
    table: dict[str, Any] = tool.get("jaxnn", {}).get("gradcheck", {})
    if unknown := set(table) - KEYS:
        raise pytest.UsageError(f"{TABLE} has an unknown key {min(unknown)!r}; it may have {', '.join(sorted(KEYS))}")
    return table


def _packages(given: Any) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else [n for part in given for n in part.split(",")]
    packages = tuple(name.strip() for name in names if name.strip())
    for name in packages:
        if not _exists(name):
            raise pytest.UsageError(f"--gradcheck-packages: no package {name!r} can be imported here")
    return packages


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _seconds(given: Any) -> float:
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = -1.0
    if not seconds > 0:
        raise pytest.UsageError(f"--gradcheck-seconds {given!r} must be a positive number of seconds")
    return seconds


def _rules(lines: list[str], table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of single rules: from lines "NAME: reference=a.b rtol=1e-3 skip=kinks", and from the table."""
    found = {name: dict(options) for name, options in table.items()}
    for line in lines:
        name, _, rest = line.partition(":")
        found[name.strip()] = dict(part.partition("=")[::2] for part in rest.split())
    for name, options in found.items():
        if not options or set(options) - OF_A_RULE:
            raise pytest.UsageError(
                f"gradcheck_rules: {name!r} has {', '.join(options) or 'no options'}; it must have some of "
                f"{', '.join(sorted(OF_A_RULE))}, as in 'norms.rms_norm: reference=norms.plain rtol=1e-3 skip=kinks'"
            )
        found[name] = _checked(name, options)
    return found


def _checked(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a rule with their types."""
    found = dict(options)
    if "rtol" in options:
        try:
            found["rtol"] = float(options["rtol"])
        except (TypeError, ValueError):
            raise pytest.UsageError(f"gradcheck_rules: rtol={options['rtol']!r} of {name!r} must be a number") from None
    skip = skipped(found.pop("skip", ()))
    return found | ({"skip": skip} if skip else {})


def skipped(given: Any) -> bool | tuple[str, ...]:
    """Return which checks to skip, or whether to leave the rule out: of a list, "kinks,vmap", True, or "true"."""
    if isinstance(given, str):
        word = given.lower()
        return word == "true" if word in ("true", "false") else tuple(given.split(","))
    return tuple(given) if isinstance(given, list | tuple) else bool(given)
