"""The page of a graph: the notes' "Back Propagation in Action" as one HTML file that needs nothing else.

The template draws everything itself from the JSON of `Graph.to_dict()`; here that JSON is put in.
"""

import json
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "{{graph}}"


def page(data: dict[str, Any]) -> str:
    """Write a graph as one page: no library, no network.

    Args:
        data: the graph, as `Graph.to_dict()` gives it

    Returns:
        The text of an HTML file, to be written as UTF-8.
    """
    # A script element ends at "</script" wherever that stands, also inside a JSON string: no "<" goes in.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, text, 1)
