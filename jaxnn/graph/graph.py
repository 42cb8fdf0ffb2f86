"""The graph as data: its nodes and edges, and how it is printed, saved and shown in a notebook."""

import dataclasses
import html
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.files import write_whole

HostArray = np.ndarray[Any, Any]
LARGEST_TENSOR = 20_000  # elements, above which to_dict() holds a summary


SUFFIXES = (".html", ".htm")


@dataclasses.dataclass(frozen=True)
class Edge:
    """An operand of a node: an edge from the node that is read to the node that reads it.

    Attributes:
      argument: the name of the operation's argument ("x", "w").
      node: the name of the node that is read.
      local: the Jacobian, shape (M, N): rows are the M elements of the reading node, columns the N of the one that is
        read. None if it has more than 4,096 elements, or if no gradient passes.
      downstream: upstream × local, this edge's part of the gradient, in the read node's shape; None if none passes.
      formula: the formula of the downstream gradient, in LaTeX.
      meaning: a sentence on the local derivative.
    """

    argument: str
    node: str
    local: HostArray | None
    downstream: HostArray | None
    formula: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Node:
    """A value, what it is computed from, and its gradient.

    Attributes:
      name: unique in the graph: "W0", "x1", "y", "ℓ".
      operation: "conv2d", "add", "input", "constant".
      kind: "input", "rule" (a hand-written derivative), "operation" or "constant".
      value: the array.
      upstream: ∂ℓ/∂value, the sum of the downstream gradients of all edges from this node; None if no gradient flows.
      inputs: the edges to what it reads.
      formula: the definition, in LaTeX.
      source: the line of the user's code, "model.py:12".
      by_rule, by_autodiff, by_difference: for a floating-point input, ∂ℓ/∂value by the rules (upstream again), by JAX
        from the rules' definitions, and by numeric differences (masked where not computed); else None.
      difference_step: the step of the differences, relative to the size of an element.
      kinks: where the differences to the left and to the right disagree: f has no derivative there, and rules follow
        conventions.
    """

    name: str
    operation: str
    kind: str
    value: HostArray
    upstream: HostArray | None = None
    inputs: tuple[Edge, ...] = ()
    formula: str = ""
    source: str = ""
    by_autodiff: HostArray | None = None
    by_difference: np.ma.MaskedArray[Any, Any] | None = None
    difference_step: float | None = None
    kinks: HostArray | None = None

    @property
    def by_rule(self) -> HostArray | None:
        """∂ℓ/∂value by the hand-written rules; for inputs only, like `by_autodiff` and `by_difference`."""
        return self.upstream if self.kind == "input" else None


@dataclasses.dataclass(frozen=True)
class Graph:
    """A computation graph at given arguments.

    Attributes:
      function: the name of the function.
      output: the name of the node that is its result.
      nodes: each after those it reads, inputs first.
      caption: a note on how the numeric differences were computed.
    """

    function: str
    output: str
    nodes: tuple[Node, ...]
    caption: str

    def __getitem__(self, name: str) -> Node:
        """Return the node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"`name` ({name!r}) must be one of {', '.join(node.name for node in self.nodes)}")

    def __str__(self) -> str:
        """Return a table of at most 100 columns."""
        rows = [(n.name, _call(n), _shape(n.value), _range(n.value), _norm(n.upstream)) for n in self.nodes]
        rows.insert(0, ("name", "operation", "shape", "value", "|upstream|"))
        widths = [min(w, max(len(row[k]) for row in rows)) for k, w in enumerate(_WIDTHS)]
        inputs = ", ".join(n.name for n in self.nodes if n.kind == "input")
        title = f"{self.function}({inputs}) = {_range(self[self.output].value)}"
        return "\n".join(
            [_shortened(title, sum(_WIDTHS) + 2 * (len(_WIDTHS) - 1)), *(_line(row, widths) for row in rows)]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data that JSON can hold; numbers that are not finite become strings."""
        return {
            "function": self.function,
            "output": self.output,
            "caption": self.caption,
            "nodes": [_node_dict(node) for node in self.nodes],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph as one self-contained HTML page.

        Args:
          path: the file to write, which must end in .html or .htm.

        Raises:
          ValueError: if the path has another suffix.
          OSError: if the file cannot be written.
        """
        from jaxnn.graph._page import page

        if Path(path).suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"`path` ({os.fspath(path)!r}) must end in {' or '.join(SUFFIXES)}: a graph is an HTML page"
            )
        write_whole(path, page(self.to_dict()).encode())

    def _repr_html_(self) -> str:
        """Show the page in a notebook, in a frame: its styles and scripts stay its own."""
        from jaxnn.graph._page import page

        return (
            f'<iframe srcdoc="{html.escape(page(self.to_dict()))}" style="width: 100%; height: 720px; border: 0" '
            f'title="Computation graph of {html.escape(self.function)}"></iframe>'
        )


_WIDTHS = (16, 34, 16, 16, 10)  # of the columns of text: 100 characters with two between columns


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [_shortened(cell, width) for cell, width in zip(row, widths, strict=True)]
    left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
    return "  ".join([*left, *right]).rstrip()


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _call(node: Node) -> str:
    return f"{node.operation}({', '.join(e.node for e in node.inputs)})" if node.inputs else node.operation


def _shape(x: HostArray) -> str:
    return str(x.shape).replace(" ", "")


def _range(x: HostArray) -> str:
    """Write a number, or the smallest and the largest of several."""
    if x.size == 0:
        return "none"
    low, high = (float(of(x)) + 0.0 for of in (np.min, np.max))  # NaN if there is one
    return f"{low:.4g}" if x.size == 1 or low == high or np.isnan(low) else f"{low:.3g} … {high:.3g}"


def _norm(x: HostArray | None) -> str:
    return "" if x is None else f"{np.linalg.norm(x.astype(np.float64)):.3g}"


def _node_dict(node: Node) -> dict[str, Any]:
    gradients = None
    if node.by_rule is not None:
        gradients = {
            "rule": _tensor_dict(node.by_rule),
            "autodiff": _tensor_dict(node.by_autodiff),
            "difference": _tensor_dict(node.by_difference),
            "step": node.difference_step,
            "kinks": [] if node.kinks is None else np.flatnonzero(node.kinks).tolist(),
            "argument": node.name,
        }
    return {
        "name": node.name,
        "operation": node.operation,
        "kind": node.kind,
        "dtype": str(node.value.dtype),
        "shape": list(node.value.shape),
        "value": _tensor_dict(node.value),
        "upstream": _tensor_dict(node.upstream),
        "formula": node.formula,
        "mathml": _mathml(node.formula),
        "source": node.source,
        "inputs": [
            {
                "argument": edge.argument,
                "node": edge.node,
                "formula": edge.formula,
                "mathml": _mathml(edge.formula),
                "meaning": edge.meaning,
                "local": _tensor_dict(edge.local),
                "downstream": _tensor_dict(edge.downstream),
            }
            for edge in node.inputs
        ],
        "gradients": gradients,
    }


def _mathml(formula: str) -> str:
    if not formula:
        return ""
    try:
        from latex2mathml.converter import convert
    except ImportError as error:
        raise ImportError(
            "formulas are turned into MathML by latex2mathml, which cannot be imported: pip install latex2mathml"
            " (or, in a clone, pip install '.[train]')"
        ) from error
    return str(convert(formula))


def _tensor_dict(array: HostArray | np.ma.MaskedArray[Any, Any] | None) -> dict[str, Any] | None:
    if array is None:
        return None
    tensor = {"shape": list(array.shape), "dtype": str(array.dtype), "truncated": array.size > LARGEST_TENSOR}
    if array.size > LARGEST_TENSOR:
        return {**tensor, "data": None, "summary": _summary(np.ma.compressed(array))}
    missing = np.ma.getmaskarray(array).reshape(-1)
    flat = np.ma.getdata(array).reshape(-1)
    return {**tensor, "data": [None if m else _json_number(x) for x, m in zip(flat, missing, strict=True)]}


def _summary(x: HostArray) -> dict[str, Any]:
    x = x.astype(np.float64)
    return {
        "min": _json_number(np.min(x)),
        "max": _json_number(np.max(x)),
        "mean": _json_number(np.mean(x)),
        "norm": _json_number(np.linalg.norm(x)),
        "zeros": int(np.sum(x == 0)),
    }


def _json_number(x: Any) -> int | float | str:
    if isinstance(x, np.bool_ | np.integer):
        return int(x)
    x = float(x)
    if math.isfinite(x):
        return float(f"{x:.9g}")
    return "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"
