"""What is said of the rules: the section at the end, the report, the baseline, scripts that reproduce a failure."""

import html
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from jaxnn.gradcheck.pytest_plugin.judging import NOT_CHECKED
from jaxnn.gradcheck.pytest_plugin.settings import Settings, failure_key

WORST = ("wrong", NOT_CHECKED, "unproven", "right")
SCRIPT = '''"""{name}, {file}:{line}, at {arguments}: {message}.

    python {script}

The arguments are in {arrays}, the call in {call}. {tests} made it.
"""

from pathlib import Path

from jaxnn.gradcheck.pytest_plugin.judging import Job, report_of
from jaxnn.gradcheck.pytest_plugin.records import load

call = str(Path(__file__).with_name({call!r}))
print(report_of(load(call), Job(call, {level!r}, {options!r})))
'''


def failures(rules: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the signatures whose rule is wrong, each with its rule."""
    return [
        {"rule": rule["name"], "arguments": s["arguments"], "message": message(s), "of": rule, "signature": s}
        for rule in rules.values() for s in rule["signatures"] if s["outcome"]["verdict"] == "wrong"
    ]  # fmt: skip


def message(signature: dict[str, Any]) -> str:
    """Return in a line why a signature's rule is not right."""
    outcome = signature["outcome"]
    if not outcome["rows"]:
        return str(outcome["message"])
    row = outcome["rows"][0]
    what = row["hint"] or row["message"]
    return f"{row['path']}: {what}" if row["check"] == "gradient" else f"{row['check']}, {row['path']}: {what}"


def compared(found: list[dict[str, Any]], known: dict[str, Any] | None, rules: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each difference between the failures and the known ones."""
    if known is None:
        return []
    keys = {failure_key(f) for f in found}
    judged = {
        failure_key({"rule": rule["name"], "arguments": s["arguments"]})
        for rule in rules.values() for s in rule["signatures"] if s["outcome"]["verdict"] in ("right", "unproven")
    }  # fmt: skip
    new = [f"new: {key}" for key in sorted(keys - set(known))]
    gone = [f"in the baseline, and no longer wrong: {key}" for key in sorted(set(known) & judged)]
    return new + gone


def line(rule: dict[str, Any], signature: dict[str, Any], settings: Settings) -> str:
    """Return the line of a signature that is not right."""
    word = {"wrong": "FAIL", "unproven": "UNPROVEN", NOT_CHECKED: "NOT CHECKED"}[signature["outcome"]["verdict"]]
    tests = signature["tests"] or rule["tests"]
    saved = signature.get("script")
    option = "--gradcheck=full" if settings.level == "full" else "--gradcheck"
    packages = f" --gradcheck-packages={','.join(settings.packages)}" if settings.packages else ""
    repro = f"python {saved}" if saved else f"pytest {option}{packages} '{tests[0]}'"
    short = rule["name"].rsplit(".", 1)[-1]
    return (
        f"{word} {rule['file']}:{rule['line']} {short} · {message(signature)} · at {signature['arguments']} · "
        f"called by {tests[0]} · repro: {repro}"
    )


def show(
    terminal: Any, rules: dict[str, dict[str, Any]], problems: list[str], known: dict[str, Any] | None,
    seconds: float, settings: Settings,
) -> None:  # fmt: skip
    """Print the section at the end of the run."""
    terminal.section("gradcheck")
    every = [(rule, s) for rule in rules.values() for s in rule["signatures"]]
    every.sort(key=lambda pair: WORST.index(pair[1]["outcome"]["verdict"]))
    for rule, signature in every:
        verdict = signature["outcome"]["verdict"]
        if verdict == "right":
            continue
        key = failure_key({"rule": rule["name"], "arguments": signature["arguments"]})
        is_known = verdict == "wrong" and known is not None and key in known
        terminal.write_line(("known: " if is_known else "") + line(rule, signature, settings), red=verdict == "wrong")
        if verdict == "wrong" and os.environ.get("GITHUB_ACTIONS") and not is_known:
            terminal.write_line(annotation(rule, signature))
    if alone := [rule["name"] for rule in rules.values() if not rule["differentiated"]]:
        terminal.write_line(f"never differentiated by a test: {', '.join(alone)}")
    for problem in problems:
        terminal.write_line(problem, red=True)
    counts = [f"{n} {word}" for word in WORST if (n := sum(s["outcome"]["verdict"] == word for _, s in every))]
    text = f"{len(rules)} rules, {len(every)} signatures: {', '.join(counts) or 'none reached'}; {seconds:.1f} s"
    hint = "" if rules else "; for rules of other packages than the project's own, add --gradcheck-packages=NAME"
    terminal.write_line(f"gradcheck: {text}{hint}")


def annotation(rule: dict[str, Any], signature: dict[str, Any]) -> str:
    """Return a failure as GitHub shows it beside the code."""
    text = f"{rule['name']}: {message(signature)}".replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::error file={rule['file']},line={rule['line']},title=gradcheck::{text}"


def into_junit(config: Any, found: list[dict[str, Any]]) -> None:
    """Add the failures to the file of --junitxml, as properties of the suite."""
    from _pytest.junitxml import xml_key

    if (xml := config.stash.get(xml_key, None)) is not None:
        for failure in found:
            xml.add_global_property(f"gradcheck {failure['rule']} {failure['arguments']}", failure["message"])


def baseline(found: list[dict[str, Any]], path: Path) -> None:
    """Write the failures as the known ones."""
    kept = [{key: failure[key] for key in ("rule", "arguments", "message")} for failure in found]
    path.write_text(json.dumps({"gradcheck baseline": kept}, indent=1) + "\n")


def save(found: list[dict[str, Any]], folder: Path) -> None:
    """Save each failing call: its arguments, and a script that checks it."""
    import numpy as np

    from jaxnn.gradcheck.pytest_plugin.records import load

    folder.mkdir(parents=True, exist_ok=True)
    for number, failure in enumerate(found, 1):
        rule, signature = failure["of"], failure["signature"]
        if "job" not in signature:
            continue
        stem = re.sub(r"\W+", "_", f"{rule['name'].rsplit('.', 1)[-1]}_{number}")
        call, arrays, script = (folder / f"{stem}{end}" for end in (".pkl", ".npz", ".py"))
        shutil.copy(signature["job"]["file"], call)
        leaves = load(str(call), set_up=False).leaves or []
        numbered: dict[str, Any] = {f"argument {i}": x for i, x in enumerate(leaves) if isinstance(x, np.ndarray)}
        np.savez(arrays, **numbered)
        said = [rule["name"], signature["arguments"], failure["message"], signature["tests"][0]]
        name, arguments, message, tests = (text.replace("\\", "\\\\") for text in said)
        script.write_text(SCRIPT.format(
            name=name, file=rule["file"], line=rule["line"], arguments=arguments, message=message, tests=tests,
            script=script.as_posix(), arrays=arrays.name, call=call.name, level=signature["job"]["level"],
            options=signature["job"]["options"],
        ))  # fmt: skip
        signature["script"] = script.as_posix()


def report(rules: dict[str, dict[str, Any]], path: Path, seconds: float) -> None:
    """Write everything that was found, as JSON or as a page."""
    if path.suffix == ".json":
        path.write_text(json.dumps({"rules": list(map(_plain, rules.values())), "seconds": seconds}, indent=1) + "\n")
    else:
        path.write_text(_page(rules, seconds), encoding="utf-8")


def _plain(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a rule with its verdicts, without what only this run needs."""
    signatures = [
        {"arguments": s["arguments"], "x64": s["x64"], "tests": s["tests"], **s["outcome"]} for s in rule["signatures"]
    ]
    verdicts = [s["outcome"]["verdict"] for s in rule["signatures"]]
    return rule | {"verdict": min(verdicts, key=WORST.index, default=NOT_CHECKED), "signatures": signatures}


def _page(rules: dict[str, dict[str, Any]], seconds: float) -> str:
    """Return a page with a table: a row for each signature, the worst first; the whole report opens below it."""
    rows = []
    every = [(rule, s) for rule in rules.values() for s in rule["signatures"]]
    for rule, s in sorted(every, key=lambda pair: WORST.index(pair[1]["outcome"]["verdict"])):
        verdict = s["outcome"]["verdict"]
        cells = [verdict, rule["name"], f"{rule['file']}:{rule['line']}", rule["kind"], s["arguments"], message(s)]
        more = html.escape(s["outcome"].get("text", ""))
        tests = html.escape(", ".join(s["tests"]))
        details = f"<details><summary>{tests}</summary><pre>{more}</pre></details>"
        text = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="{verdict.split()[0]}">{text}<td>{details}</td></tr>')
    heads = "".join(f"<th>{h}</th>" for h in ("verdict", "rule", "place", "kind", "arguments", "why", "called by"))
    style = (
        "body{font:15px system-ui;margin:2em}table{border-collapse:collapse}td,th{padding:.3em .7em;text-align:left;"
        "vertical-align:top;border-bottom:1px solid #ccc}.wrong td:first-child{color:#b00;font-weight:600}"
        ".right td:first-child{color:#060}pre{white-space:pre-wrap}"
    )
    title = f"gradcheck: {len(rules)} rules, {len(every)} signatures, {seconds:.1f} s"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        f"<h1>{title}</h1><table><tr>{heads}</tr>{''.join(rows)}</table></html>\n"
    )
