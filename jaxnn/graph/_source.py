"""Where an equation of a jaxpr comes from: the user's line, the function it calls, and that function's parameters."""

import ast
import linecache
import re
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxnn.rules.component import FORMULAS
from jaxnn.tracing.jaxprs import open_jaxpr
from jaxnn.tracing.kinds import rule_call

_PACKAGE = str(Path(__file__).parents[1])
_JAX = str(Path(jax.__file__).parent)


class Place(NamedTuple):
    """Where a function was written, as its jaxpr says."""

    name: str
    file: str
    line: int


def place_of(jaxpr: Any) -> Place | None:
    """Return the place of the function that a jaxpr is the trace of."""
    match = re.fullmatch(r"(.*) at (.*):(\d+)", str(open_jaxpr(jaxpr).debug_info.func_src_info))
    return Place(match[1], match[2], int(match[3])) if match else None


def is_library(file: str) -> bool:
    """Whether a file belongs to an installed package, and not to the user's code."""
    return re.search(r"[/\\](site|dist)-packages[/\\]", file) is not None


def is_library_function(place: Place) -> bool:
    """Whether a function is a library's own.

    A wrapper that a library puts around the user's function carries the user's name, which its file does not define.
    """
    return is_library(place.file) and (place.file.startswith(_JAX) or function_at(place) is not None)


def line_of(eqn: Any) -> str:
    """Return the line of the user's code that an equation comes from: "model.py:12"."""
    own = [(file, line) for file, line in _frames(eqn) if not is_library(file) and not file.startswith(_PACKAGE)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def is_in_component(eqn: Any) -> bool:
    """Whether an equation comes from a component: from a file that has a rule with formulas."""
    files = {file for file, _ in FORMULAS}
    return any(file in files for file, _ in _frames(eqn))


def _frames(eqn: Any) -> list[tuple[str, int]]:
    """Return the files and lines that led to an equation, the innermost last."""
    trace = eqn.source_info.traceback
    if trace is None:
        return []
    return [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(trace.as_python_traceback())]


def function_at(place: Place) -> ast.FunctionDef | None:
    """Return the syntax tree of a function, if its source can be read (that of a notebook's cell can)."""
    try:
        tree = ast.parse("".join(linecache.getlines(place.file)))
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == place.name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first <= place.line <= node.lineno:
                return node
    return None


def arguments_of(eqn: Any, function: ast.FunctionDef | None) -> list[str]:
    """Name the operands of a custom rule's call by its function's parameters: "x", "params.w"."""
    count = len(eqn.invars)
    call = rule_call(eqn)
    known = None if call is None or call.traced is None else open_jaxpr(call.traced).debug_info.arg_names
    if known is not None and len(known) == count:
        return [re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", name) for name in known]  # "p['w'][0]" is p.w.0
    parameters = [] if function is None else _differentiable_parameters(function)
    tree = _argument_tree(eqn)
    if tree is not None and tree.num_leaves == count and len(tree.children()) <= len(parameters):
        numbered = jax.tree.unflatten(tree, range(count))
        named = zip(parameters, numbered, strict=False)
        return [
            ".".join([name, jax.tree_util.keystr(path, simple=True, separator=".")]).strip(".")
            for name, argument in named
            for path, _ in jax.tree_util.tree_flatten_with_path(argument)[0]
        ]
    if count <= len(parameters):  # a batched rule, which has no tree
        return parameters[:count]
    return numbered_arguments(count)


def numbered_arguments(count: int) -> list[str]:
    """Number the operands, where no names are known."""
    return ["x"] if count == 1 else [f"x[{k}]" for k in range(count)]


def _argument_tree(eqn: Any) -> Any:
    """Return the structure of the arguments that a custom_vjp rule differentiates."""
    backward = getattr(eqn.params.get("bwd"), "f_transformed", None)
    held = getattr(backward, "args", ())
    return next((a for a in held if isinstance(a, jax.tree_util.PyTreeDef)), None)


def _differentiable_parameters(function: ast.FunctionDef) -> list[str]:
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    static: set[Any] = set()
    for decorator in function.decorator_list:
        for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
            if keyword.arg in ("nondiff_argnums", "nondiff_argnames"):
                try:
                    value = ast.literal_eval(keyword.value)
                except ValueError:
                    continue
                static.update(value if isinstance(value, tuple | list) else (value,))
    return [name for i, name in enumerate(names) if i not in static and name not in static]
