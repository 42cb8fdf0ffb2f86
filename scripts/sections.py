"""Generated sections of READMEs: the text between `<!-- NAME: written by COMMAND -->` and `<!-- end of NAME -->`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def rewritten(text: str, name: str, body: str) -> str:
    """Return a README's text with the section of that name written anew."""
    parts = re.split(rf"(<!-- {name}: [^\n]*-->\n|<!-- end of {name} -->\n)", text)
    if len(parts) != 5:
        sys.exit(f"a README must have one `<!-- {name}: written by … -->` and one `<!-- end of {name} -->` below it")
    return "".join((*parts[:2], f"\n{body.strip()}\n\n", *parts[3:]))


def rewrite(path: Path, name: str, body: str) -> None:
    """Write a section of a README anew."""
    path.write_text(rewritten(path.read_text(encoding="utf-8"), name, body), encoding="utf-8")


def cell(text: object) -> str:
    """Return a text as a cell of a table in Markdown shows it."""
    return str(text).replace("|", "\\|").replace("<", "&lt;")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [f"| {' | '.join(map(cell, row))} |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
