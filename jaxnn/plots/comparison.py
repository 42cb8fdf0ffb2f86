"""A page that compares rules with automatic gradients: a table of all checked functions, and the evidence for each."""

import html
import math
import time
from collections.abc import Mapping
from typing import Any

Entry = Mapping[str, Any]  # the report of a checked function, as a dictionary with its "errors"
Axis = tuple[int, int, float, float]  # the lowest and the highest power of ten, and their coordinates

MARKS = {"FAIL": "✗", "INCONCLUSIVE": "?", "UNSUPPORTED": "○", "PASS": "✓", "NOTE": "·"}  # also the order of the rows
COSTS = {
    "residual_bytes": "residual bytes",
    "temporary_bytes": "temporary memory",
    "milliseconds": "time",
    "bytes_accessed": "memory traffic",
    "flops": "arithmetic",
}
RATIOS = {key: COSTS[key] for key in ("residual_bytes", "temporary_bytes", "milliseconds")}
UNITS = {
    "bytes": (1024, ("B", "KiB", "MiB", "GiB", "TiB")),
    "flops": (1000, ("flop", "kflop", "Mflop", "Gflop", "Tflop")),
}
MISSING = "–"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
REACH = 8  # the end of the bars' scale
LEFT, RIGHT, TOP, BOTTOM = 44, 384, 46, 236  # the frame of a curve, in a picture of 400 × 280

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1d1d1f;--grey:#5f6368;--line:#d9dce0;--soft:#f5f6f8;--less:#0072b2;
--more:#b34700}
@media screen and (prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e6e6e6;--grey:#a3a8ae;--line:#3a3e44;
--soft:#1f2226;--less:#56b4e9;--more:#ff9b5e}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:70rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2.2rem 0 .4rem}
h3,h4{font-size:1rem;margin:0}h3{display:inline}
p{margin:.4rem 0;max-width:46rem}code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
a{color:var(--less);text-decoration-thickness:1px;text-underline-offset:.3em}.meta,.note,caption{color:var(--grey);font-size:.9em}
.summary{font-size:1.1rem}.status{white-space:nowrap}.FAIL{color:var(--more);font-weight:600}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-size:1em;padding:0 0 .5rem;max-width:46rem}
th,td{text-align:left;vertical-align:baseline;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{padding-left:0}th:last-child,td:last-child{padding-right:0}
tbody th{font-weight:500}thead th{color:var(--grey);font-weight:500;line-height:1.3;vertical-align:bottom}
thead [scope=colgroup]{text-align:center;padding-bottom:.1rem}.number{text-align:right;white-space:nowrap}
.stack th:first-child,.stack td:nth-child(2){min-width:7.5rem}
.stack thead tr+tr :nth-child(n+3){text-align:center}
.bar{display:inline-block;vertical-align:-.1em;width:5.5rem;height:.8rem;margin-left:.5rem}
.bar line{stroke:var(--grey)}.less{fill:var(--less)}.more{fill:var(--more)}
section{border-bottom:1px solid var(--line);scroll-margin-top:.5rem}
section:target>details>summary{background:var(--soft)}
summary{cursor:pointer;padding:.45rem .3rem}details>div{padding:.3rem 0 1.4rem 1.2rem}
.failure{border-left:3px solid var(--more);padding:.1rem 0 .1rem .8rem;margin:.6rem 0 1rem}
.pair{display:flex;flex-wrap:wrap;gap:1rem 2.5rem;align-items:flex-start;margin:.6rem 0 1.2rem}
.pair>*{flex:1 1 19rem;min-width:0}figure{margin:0;max-width:29rem}figure svg{display:block;width:100%;height:auto}
svg text{fill:var(--ink);font-size:12px}.frame,.grid,.best,.curve{fill:none;stroke:var(--line)}
.frame{stroke:var(--grey)}.best{stroke:var(--grey);stroke-dasharray:3 3}.curve{stroke:var(--less);stroke-width:2}
.dot{fill:var(--less)}.open{fill:var(--paper);stroke:var(--less);stroke-width:2}
.rows td:nth-child(2){width:30%}.rows td:first-child{width:9rem;white-space:nowrap}
@media screen and (max-width:63rem){.bar{width:3rem}th,td{padding:.3rem}}
@media screen and (max-width:55rem){
:is(.stack,.rows),:is(.stack,.rows) :is(tbody,caption){display:block}
:is(.stack,.rows) thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.stack tr{display:grid;grid-template-columns:repeat(6,1fr);gap:.15rem .6rem;padding:.6rem 0}
.rows tr{display:grid;grid-template-columns:8.5rem 1fr;padding:.4rem 0}.rows td:nth-child(3){grid-column:1/3}
.stack tr,.rows tr{border-bottom:1px solid var(--line)}
.stack th,.stack td,.rows td{border:0;padding:0;width:auto!important;text-align:left;grid-column:span 2}
.rows td{grid-column:auto}.stack th,.stack td:nth-child(-n+4){grid-column:span 3}
.stack td[data-label]::before{content:attr(data-label);display:block;color:var(--grey);font-size:.75rem}
.bar{display:block;width:5.5rem;margin:.1rem 0 0}details>div{padding-left:.3rem}}
@media print{@page{margin:16mm}body{max-width:none;padding:0;font-size:10pt}a{color:inherit;text-decoration:none}
h2,h3,h4,summary,caption{break-after:avoid}table{font-size:8.5pt}.bar{width:3.5rem;height:.6rem}
th,td{padding:.2rem .4rem}tr,figure,.failure,.pair{break-inside:avoid}}
"""


def page(entries: list[dict[str, Any]], title: str, source: str, versions: dict[str, str]) -> str:
    """Return the comparison as one self-contained page, without scripts.

    Args:
        entries: the report of each checked function, as a dictionary, in the order of the table; "costs", "sweep" and
            "errors" may be missing, and a number may be the string "nan" or "inf"; with an "error" the function could
            not be run
        title: the heading of the page
        source: what made the page, such as a command line
        versions: names and versions of the software, and the device

    Returns:
        The text of an HTML file; write it as UTF-8.
    """
    about = [*(f"{text_of(k)} {text_of(v)}" for k, v in versions.items()), time.strftime("%Y-%m-%d %H:%M %Z")]
    sections = "\n".join(_section(number, entry) for number, entry in enumerate(entries))
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text_of(title)}</title><style>{STYLE}</style></head>
<body><header>
<h1>{text_of(title)}</h1>
<p class="meta"><code>{text_of(source)}</code><br>{" · ".join(about)}</p>
</header><main>
{_summary(entries)}
{_overview(entries)}
<h2>Function by function</h2>
<p class="note">Each curve shows the distance between the rule's derivative and the numeric one, a central difference
with step h. For a right rule it is a V: large steps have an error from curvature, small ones from rounding. For a wrong
rule it levels off at the rule's own error. Residual bytes are what the forward pass keeps for the backward pass. The
other costs are those of value and gradient together.</p>
{sections}
</main></body></html>
"""


# ------------------------------------------------------------------------------------------- text


def text_of(value: Any) -> str:
    """Return a value as text, with HTML escaped."""
    return html.escape(str(value))


def _float(value: Any) -> float | None:
    """Return a number that may be given as None or as the string "nan" or "inf"."""
    return None if value is None else float(value)


def _number(value: Any, digits: int = 3) -> str:
    """Return a number in printed form: 0.0125, 1.25×10⁻⁷, 1 − 2i, ∞."""
    if isinstance(value, str) and value.endswith(("j", "j)")):
        z = complex(value)
        return f"{_number(z.real, digits)} {'−' if z.imag < 0 else '+'} {_number(abs(z.imag), digits)}i"
    x = _float(value)
    if x is None or not math.isfinite(x):
        return MISSING if x is None else "nan" if math.isnan(x) else "∞" if x > 0 else "−∞"
    text = f"{x:.{digits}g}" if x == 0 or 1e-3 <= abs(x) < 10**digits else f"{x:.{digits - 1}e}"
    mantissa, _, exponent = text.replace("-", "−", int(x < 0)).partition("e")
    return f"{mantissa}×{_power(int(exponent))}" if exponent else mantissa


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _cost(key: str, value: Any) -> str:
    """Return a cost with its unit."""
    x = _float(value)
    if x is None or not math.isfinite(x):
        return MISSING
    if key == "milliseconds":
        return f"{_number(x)} ms"
    base, units = UNITS["flops" if key == "flops" else "bytes"]
    power = sum(x >= base**k for k in range(1, len(units)))
    return f"{x / base**power:.{1 if power else 0}f} {units[power]}"


def _status(status: str, text: str = "") -> str:
    return f'<span class="status {status}">{MARKS[status]} {text or status}</span>'


def _verdict(entry: Entry) -> str:
    """Return the verdict on a function, and the number of checks without a result."""
    statuses = [row["status"] for row in entry["rows"]]
    remarks = [f"{statuses.count(s)}&nbsp;{s.lower()}" for s in ("INCONCLUSIVE", "UNSUPPORTED") if s in statuses]
    status = {"right": "PASS", "unproven": "INCONCLUSIVE"}.get(entry["verdict"], "FAIL")
    return f'{_status(status, entry["verdict"])} <span class="note">{", ".join(remarks)}</span>'


def _table(kind: str, caption: str, head: str, rows: list[str]) -> str:
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="{kind}"><caption>{caption}</caption><thead>{head}</thead><tbody>\n{body}</tbody></table>'


def _columns(*names: str) -> str:
    return "".join(f'<th scope="col" class="number">{name}</th>' for name in names)


# ------------------------------------------------------------------------------------------- overview


def _summary(entries: list[dict[str, Any]]) -> str:
    """Return the number of functions, and those of each verdict other than right, with links."""
    parts = [_count(len(entries), "function").capitalize()]
    for verdict in dict.fromkeys(entry["verdict"] for entry in entries if not entry["ok"]):
        links = [_link(number, entry) for number, entry in enumerate(entries) if entry["verdict"] == verdict]
        parts.append(f"{len(links)} {verdict}: {', '.join(links)}")
    return f'<p class="summary">{"; ".join(parts if len(parts) > 1 else [*parts, "all right"])}.</p>'


def _link(number: int, entry: Entry) -> str:
    return f'<a href="#f{number}"><code>{text_of(entry["name"])}</code></a>'


def _overview(entries: list[dict[str, Any]]) -> str:
    """Return the table of all functions."""
    caption = (
        "The largest relative error of each rule, and its cost: custom divided by automatic, below 1 if the custom "
        f"rule needs less. Bars are logarithmic, from 1/{REACH} to {REACH}; a pointed bar goes beyond. The line marks "
        f"1: a bar to the left is a gain of the custom rule, one to the right a loss. {MISSING} means not measured."
    )
    names = ["to automatic", "to numeric", *RATIOS.values()]
    head = (
        '<tr><th scope="col" rowspan="2">function</th><th scope="col" rowspan="2">verdict</th>'
        '<th scope="colgroup" colspan="2">largest relative error</th>'
        '<th scope="colgroup" colspan="3">custom / automatic</th></tr>\n'
        f"<tr>{_columns(*names)}</tr>"
    )
    return _table("stack", caption, head, [_overview_row(k, entry) for k, entry in enumerate(entries)])


def _overview_row(number: int, entry: Entry) -> str:
    errors = entry.get("errors") or {}
    cells = {f"error to {kind}": _number(errors.get(kind), 2) for kind in ("automatic", "numeric")}
    cells |= {name: _ratio_text(entry, key) + _bar(entry, key) for key, name in RATIOS.items()}
    numbers = "".join(f'<td class="number" data-label="{label}">{cell}</td>' for label, cell in cells.items())
    return f'<th scope="row">{_link(number, entry)}</th><td>{_verdict(entry)}</td>{numbers}'


def _pair(entry: Entry, key: str) -> list[float | None]:
    """Return the costs of custom and of automatic; None for a missing one."""
    costs = entry.get("costs") or {}
    return [_float((costs.get(kind) or {}).get(key)) for kind in ("custom", "automatic")]


def _ratio(entry: Entry, key: str) -> float | None:
    """Return custom's cost divided by automatic's: None if one is unknown, 1 if both are 0."""
    custom, automatic = _pair(entry, key)
    if custom is None or automatic is None or not math.isfinite(custom) or not math.isfinite(automatic):
        return None
    if automatic == 0:
        return math.inf if custom else 1.0
    return custom / automatic


def _ratio_text(entry: Entry, key: str) -> str:
    ratio = _ratio(entry, key)
    if ratio == 1 and _pair(entry, key)[0] == 0:
        return "both 0"
    return f"{ratio:.2f}" if ratio is not None and 0.01 <= ratio < 100 else _number(ratio)


def _bar(entry: Entry, key: str) -> str:
    """Draw a ratio as a bar to the left or to the right of the line at 1."""
    ratio = _ratio(entry, key)
    if ratio is None:
        return '<span class="bar"></span>'
    share = math.log(ratio, REACH) if ratio > 0 else -math.inf
    end = 44 + 42 * max(-1.0, min(1.0, share))
    neck = end - math.copysign(5, share) if abs(share) > 1 else end
    return (
        f'<svg class="bar" viewBox="0 0 88 12" role="img"><title>{_ratio_text(entry, key)}, custom / automatic</title>'
        f'<path class="{"less" if share < 0 else "more"}" d="M44 2H{neck:.1f}L{end:.1f} 6L{neck:.1f} 10H44z"/>'
        '<line x1="44" x2="44" y1="0" y2="12"/></svg>'
    )


# ------------------------------------------------------------------------------------------- sections


def _section(number: int, entry: Entry) -> str:
    """Return the section of one function; it is open if its rule is not right."""
    if entry.get("error"):
        return f"""<section id="f{number}"><details open>
<summary><h3><code>{text_of(entry["name"])}</code></h3> {_verdict(entry)}</summary>
<div class="failure"><p>{text_of(entry["error"])}</p></div></details></section>"""
    rows = sorted(entry["rows"], key=lambda row: [*MARKS].index(row["status"]))
    failed = [row for row in rows if row["status"] == "FAIL"]
    return f"""<section id="f{number}"><details{"" if entry["ok"] else " open"}>
<summary><h3><code>{text_of(entry["name"])}</code></h3> {_verdict(entry)}</summary>
<div>
{"".join(_failure(row) for row in failed)}
<div class="pair">{_curve(entry)}{_costs(entry)}</div>
{_others(rows[len(failed) :])}
<p class="meta">Run again: <code>{text_of(entry["repro"])}</code> (seed {text_of(entry["seed"])}, \
{_number(entry["seconds"])} s)</p>
</div></details></section>"""


def _failure(row: Entry) -> str:
    """Return a failed check: what is wrong, where the error is largest, and what may be the cause."""
    lines = [
        f"<h4>{_status('FAIL')} {text_of(row['check'])}: {text_of(row['path'])}</h4><p>{text_of(row['message'])}</p>"
    ]
    if e := row.get("evidence"):
        index = list(e["index"] or ())
        given = {
            kind: "nothing" if e[kind] is None else _number(e[kind], 6) for kind in ("custom", "automatic", "numeric")
        }
        lines.append(
            f"<p>Largest error at <code>{text_of(row['path'])}{index or ''}</code>: the rule gives {given['custom']}, "
            f"automatic {given['automatic']} and numeric {given['numeric']}; {text_of(e['agree'])}. The rule is off by "
            f"{_number(e['absolute'])} (relative {_number(e['relative'])}, or {_number(e['ulp'])} units in the last "
            f"place); the tolerance is {_number(e['tolerance'])}.</p>"
        )
    if row.get("hint"):
        lines.append(f"<p><strong>Hint:</strong> {text_of(row['hint'])}</p>")
    return f'<div class="failure">{"".join(lines)}</div>'


def _others(rows: list[Entry]) -> str:
    """Return the table of the checks that did not fail."""
    lines = [
        f"<td>{_status(row['status'])}</td><td>{text_of(row['check'])}: {text_of(row['path'])}</td>"
        f"<td>{text_of(row['message'])}</td>"
        for row in rows
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("status", "check", "finding"))
    return _table("rows", "Checks without a failure", f"<tr>{head}</tr>", lines) if rows else ""


def _costs(entry: Entry) -> str:
    """Return the table of the rule's costs and those of automatic."""
    lines = []
    for key, name in COSTS.items():
        cells = [*(_cost(key, x) for x in _pair(entry, key)), _ratio_text(entry, key)]
        lines.append(f'<th scope="row">{name}</th>' + "".join(f'<td class="number">{cell}</td>' for cell in cells))
    head = f'<tr><th scope="col">cost</th>{_columns("custom", "automatic", "ratio")}</tr>'
    return _table("costs", "Costs", head, lines)


# ------------------------------------------------------------------------------------------- curve


def _curve(entry: Entry) -> str:
    """Draw the distance of the numeric derivative over the step size; both axes are logarithmic."""
    read = [(float(h), float(distance)) for h, distance in entry.get("sweep") or ()]
    points = sorted((h, d) for h, d in read if 0 < h < math.inf and 0 <= d < math.inf)
    if not points:
        return '<p class="note">No curve over step sizes was recorded.</p>'
    positive = [d for _, d in points if d > 0]
    exact = len(positive) < len(points)  # a distance of 0 has no logarithm: it is drawn on a line at the bottom
    across, up = _axis([h for h, _ in points], LEFT, RIGHT), _axis(positive, BOTTOM - 22 if exact else BOTTOM, TOP)
    placed = [(_at(across, math.log10(h)), _at(up, math.log10(d)) if d else BOTTOM - 6) for h, d in points]
    best = min(range(len(points)), key=lambda k: (points[k][1], -points[k][0]))
    dots = [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in placed]
    dots[best] = dots[best].replace("dot", "open").replace('r="3"', 'r="5"')
    name, (h, d), (x, y) = text_of(entry["name"]), points[best], placed[best]
    anchor = "start" if x < 150 else "end" if x > 280 else "middle"
    return f"""<figure><svg viewBox="0 0 400 280" role="img">
<title>{name}: the distance of the numeric derivative over the step size, smallest at h = {_number(h)}</title>
<text x="2" y="14">relative distance of the numeric derivative</text>
{_grid(across, up)}{f'<text x="{LEFT - 6}" y="{BOTTOM - 2}" text-anchor="end">0</text>' if exact else ""}
<rect class="frame" x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"/>
<path class="best" d="M{x:.1f} {y:.1f}V{TOP}"/>
<text x="{x:.1f}" y="{TOP - 6}" text-anchor="{anchor}">best: h = {_number(h)}, distance {_number(d, 2)}</text>
<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>{"".join(dots)}
<text x="{(LEFT + RIGHT) / 2}" y="274" text-anchor="middle">step size h</text></svg></figure>"""


def _axis(values: list[float], start: float, end: float) -> Axis:
    """Return the axis from `start` to `end` whose powers of ten enclose all values, with a margin."""
    logs = [math.log10(value) for value in values] or [-16.0]
    return math.floor(min(logs) - 0.1), math.ceil(max(logs) + 0.1), start, end


def _at(axis: Axis, exponent: float) -> float:
    low, high, start, end = axis
    return start + (end - start) * (exponent - low) / (high - low)


def _grid(across: Axis, up: Axis) -> str:
    """Draw the grid at powers of ten, at most seven on each axis."""
    parts = []
    for k in range(across[0], across[1] + 1, math.ceil((across[1] - across[0]) / 6)):
        x = f"{_at(across, k):.1f}"
        parts.append(f'<path class="grid" d="M{x} {TOP}V{BOTTOM}"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 17}" text-anchor="middle">{_power(k)}</text>')
    for k in range(up[0], up[1] + 1, math.ceil((up[1] - up[0]) / 6)):
        y = _at(up, k)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_power(k)}</text>')
    return "".join(parts)
