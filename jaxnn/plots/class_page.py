"""The page of a class: how many hand-ins passed, the most frequent mistakes, and a row for each hand-in."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxnn.plots.comparison import STYLE, text_of

Row = Mapping[str, Any]

MORE_STYLE = """
.ok{color:var(--less)}.no{color:var(--more);font-weight:600}.share{display:inline-block;height:.8rem;
background:var(--less);vertical-align:-.05em;margin-right:.5rem}.class td{vertical-align:top}
.class :is(th,td):nth-child(-n+3){white-space:nowrap;overflow-wrap:normal}.class ul{margin:0;padding-left:1.1rem}
"""


def page(graded: Mapping[str, Any], title: str, source: str, versions: Mapping[str, str]) -> str:
    """Return the class as one self-contained page, without scripts.

    Args:
        graded: "hand_ins", a row for each with "student", "file", "exercise", "passed", "error", "mistakes" and
            "gradients" (each with "name", "passed" and "feedback", a list of lines); "passed", how many did; and
            "mistakes", how many have each mistake, the most frequent first
        title: the heading of the page
        source: the command that made the page
        versions: names and versions of the software

    Returns:
        The text of an HTML file; write it as UTF-8.
    """
    rows = graded["hand_ins"]
    about = [*(f"{text_of(k)} {text_of(v)}" for k, v in versions.items()), time.strftime("%Y-%m-%d %H:%M %Z")]
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text_of(title)}</title><style>{STYLE}{MORE_STYLE}</style></head>
<body><header>
<h1>{text_of(title)}</h1>
<p class="meta"><code>{text_of(source)}</code><br>{" · ".join(about)}</p>
</header><main>
<p class="summary">{graded["passed"]} of {len(rows)} hand-ins passed.</p>
{_by_exercise(rows)}
<h2>Mistakes</h2>
{_mistakes(graded["mistakes"], len(rows))}
<h2>Hand-ins</h2>
{_hand_ins(rows)}
</main></body></html>
"""


def _by_exercise(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(row["exercise"] for row in rows)
    body = []
    for name in names:
        of_name = [row for row in rows if row["exercise"] == name]
        passed, unjudged = sum(row["passed"] for row in of_name), sum(bool(row["error"]) for row in of_name)
        body.append(
            f"<tr><th scope=row><code>{text_of(name)}</code></th><td>{_bar(passed, len(of_name))}</td>"
            f"<td>{len(of_name) - passed - unjudged}</td><td>{unjudged}</td></tr>"
        )
    head = "<tr><th>exercise</th><th>passed</th><th>not passed</th><th>could not be judged</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


def _bar(count: int, of: int) -> str:
    return f'<span class="share" style="width:{8 * count / max(1, of):.2f}rem"></span>{count} of {of}'


def _mistakes(counts: Mapping[str, int], hand_ins: int) -> str:
    if not counts:
        return "<p>None.</p>"
    body = "".join(
        f"<tr><th scope=row>{text_of(name)}</th><td>{_bar(n, hand_ins)}</td></tr>" for name, n in counts.items()
    )
    return f"<table><thead><tr><th>mistake</th><th>hand-ins</th></tr></thead><tbody>{body}</tbody></table>"


def _hand_ins(rows: Sequence[Row]) -> str:
    head = "<tr><th>student</th><th>exercise</th><th>passed</th><th>what is wrong</th></tr>"
    return f'<table class="class"><thead>{head}</thead><tbody>{"".join(map(_hand_in, rows))}</tbody></table>'


def _hand_in(row: Row) -> str:
    mark = "–" if row["error"] else '<span class="ok">✓</span>' if row["passed"] else '<span class="no">✗</span>'
    right = sum(gradient["passed"] for gradient in row["gradients"])
    share = f" {right} of {len(row['gradients'])}" if row["gradients"] and not row["error"] else ""
    file = "" if row["file"] == f"{row['student']}.py" else f"<br><small>{text_of(row['file'])}</small>"
    return (
        f"<tr><th scope=row>{text_of(row['student'])}{file}</th>"
        f"<td><code>{text_of(row['exercise'])}</code></td><td>{mark}{share}</td><td>{_wrong(row)}</td></tr>"
    )


def _wrong(row: Row) -> str:
    if row["error"]:
        return text_of(row["error"])
    wrong = [gradient for gradient in row["gradients"] if not gradient["passed"]]
    items = (f"<li><b>{text_of(g['name'])}</b>: {'; '.join(map(text_of, g['feedback']))}</li>" for g in wrong)
    return f"<ul>{''.join(items)}</ul>" if wrong else ""
