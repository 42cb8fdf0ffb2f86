"""The formulas of JAX's own operations, and where those of hand-written rules are found.

y is the operation's value, dy the gradient that arrives at it, dx what goes on to its argument x: the notation of the
components' derivations. i runs over the elements of arrays of equal shape; [·] is 1 where its condition holds, else 0.
"""

import ast
import re
from typing import Any, NamedTuple

from jaxnn.graph import _source
from jaxnn.graph._program import Instruction, operation_of
from jaxnn.rules.component import FORMULAS, Formulas
from jaxnn.tracing import kinds
from jaxnn.tracing.jaxprs import open_jaxpr

UNCHANGED = "The gradient passes unchanged."
NEGATED = "The gradient passes with the opposite sign."
FLAT = "Constant between jumps: a small change of x changes nothing."
BACK = "Each number passes its gradient back to where it was read."


def _elementwise(definition: str, derivative: str, meaning: str) -> Formulas:
    return Formulas(rf"y_i = {definition}", {"x": (rf"dx_i = dy_i\,{derivative}", meaning)})


def _moved(name: str, back: str, meaning: str = BACK) -> Formulas:
    return Formulas(rf"y = \text{{{name}}}(x)", {"x": (rf"dx = \text{{{back}}}(dy)", meaning)})


def _condition(symbol: str) -> Formulas:
    return Formulas(rf"y_i = [a_i {symbol} b_i]", dict.fromkeys("ab", ("", "")))


_MATCH = r"\frac{[x_i = y]}{\#\{k : x_k = y\}}"

OPERATIONS = {
    "add": Formulas(r"y_i = a_i + b_i", {"a": ("da_i = dy_i", UNCHANGED), "b": ("db_i = dy_i", UNCHANGED)}),
    "sub": Formulas(r"y_i = a_i - b_i", {"a": ("da_i = dy_i", UNCHANGED), "b": ("db_i = -dy_i", NEGATED)}),
    "mul": Formulas(
        r"y_i = a_i\,b_i",
        {
            "a": (r"da_i = dy_i\,b_i", "The product changes by b for each unit of a."),
            "b": (r"db_i = dy_i\,a_i", "The product changes by a for each unit of b."),
        },
    ),
    "div": Formulas(
        r"y_i = \frac{a_i}{b_i}",
        {
            "a": (r"da_i = \frac{dy_i}{b_i}", "The quotient changes by 1/b for each unit of a."),
            "b": (r"db_i = -\frac{dy_i\,a_i}{b_i^2}", "The quotient falls as b grows, fastest near 0."),
        },
    ),
    "neg": _elementwise(r"-x_i", "(-1)", NEGATED),
    "exp": _elementwise(r"e^{x_i}", "y_i", "exp is its own derivative."),
    "exp2": _elementwise(r"2^{x_i}", r"y_i \log 2", "In proportion to the value, as for exp."),
    "expm1": _elementwise(r"e^{x_i} - 1", "e^{x_i}", "As for exp: the 1 is constant."),
    "log": _elementwise(r"\log x_i", r"\frac{1}{x_i}", "Steep near 0, flat for large x."),
    "log1p": _elementwise(r"\log(1 + x_i)", r"\frac{1}{1 + x_i}", "As for log, at 1 + x."),
    "tanh": _elementwise(r"\tanh x_i", "(1 - y_i^2)", "1 at 0; far from 0 tanh hardly changes."),
    "logistic": _elementwise(
        r"\frac{1}{1 + e^{-x_i}}", "y_i\\,(1 - y_i)", "At most 1/4, at x = 0; far from 0 a sigmoid hardly changes."
    ),
    "sin": _elementwise(r"\sin x_i", r"\cos x_i", "The slope of sin is cos."),
    "cos": _elementwise(r"\cos x_i", r"(-\sin x_i)", "The slope of cos is −sin."),
    "erf": _elementwise(r"\operatorname{erf}(x_i)", r"\frac{2}{\sqrt{\pi}} e^{-x_i^2}", "A bell curve around 0."),
    "sqrt": _elementwise(r"\sqrt{x_i}", r"\frac{1}{2 y_i}", "Steep near 0: infinite at 0 itself."),
    "rsqrt": _elementwise(r"\frac{1}{\sqrt{x_i}}", r"\left(-\frac{y_i}{2 x_i}\right)", "Falls, steeply near 0."),
    "square": _elementwise(r"x_i^2", r"2 x_i", "Twice the value."),
    "abs": _elementwise(r"|x_i|", r"\left([x_i \ge 0] - [x_i < 0]\right)", "+1 or −1: the side of 0 on which x lies."),
    "sign": _elementwise(r"\operatorname{sign}(x_i)", "0", FLAT),
    "floor": _elementwise(r"\lfloor x_i \rfloor", "0", FLAT),
    "ceil": _elementwise(r"\lceil x_i \rceil", "0", FLAT),
    "round": _elementwise(r"\operatorname{round}(x_i)", "0", FLAT),
    "pow": Formulas(
        r"y_i = a_i^{b_i}",
        {
            "a": (r"da_i = dy_i\,b_i\,a_i^{b_i - 1}", "The power rule."),
            "b": (r"db_i = dy_i\,y_i \log a_i", "In proportion to the value, as for exp."),
        },
    ),
    "max": Formulas(
        r"y_i = \max(a_i, b_i)",
        {
            "a": (r"da_i = dy_i \left([a_i > b_i] + \tfrac12 [a_i = b_i]\right)", "1 where larger, half at a tie."),
            "b": (r"db_i = dy_i \left([b_i > a_i] + \tfrac12 [a_i = b_i]\right)", "1 where larger, half at a tie."),
        },
    ),
    "min": Formulas(
        r"y_i = \min(a_i, b_i)",
        {
            "a": (r"da_i = dy_i \left([a_i < b_i] + \tfrac12 [a_i = b_i]\right)", "1 where smaller, half at a tie."),
            "b": (r"db_i = dy_i \left([b_i < a_i] + \tfrac12 [a_i = b_i]\right)", "1 where smaller, half at a tie."),
        },
    ),
    "gt": _condition(">"),
    "ge": _condition(r"\ge"),
    "lt": _condition("<"),
    "le": _condition(r"\le"),
    "eq": _condition("="),
    "ne": _condition(r"\ne"),
    "clamp": Formulas(
        r"y_i = \min(\max(x_i, a_i), b_i)",
        {
            "a": (r"da_i = dy_i\,[x_i < a_i]", "1 where x is below a, else 0."),
            "x": (r"dx_i = dy_i\,[a_i < x_i < b_i]", "1 between the bounds, else 0."),
            "b": (r"db_i = dy_i\,[x_i > b_i]", "1 where x is above b, else 0."),
        },
    ),
    "clip": Formulas(
        r"y_i = \min(\max(x_i, a_i), b_i)",
        {
            "x": (
                r"dx_i = dy_i \left([a_i < x_i < b_i] + \tfrac12 [x_i \in \{a_i, b_i\}]\right)",
                "1 between the bounds, half on one of them, else 0.",
            ),
            "a": (r"da_i = dy_i \left([x_i < a_i] + \tfrac12 [x_i = a_i]\right)", "1 below a, half at a, else 0."),
            "b": (r"db_i = dy_i \left([x_i > b_i] + \tfrac12 [x_i = b_i]\right)", "1 above b, half at b, else 0."),
        },
    ),
    "select_n": Formulas(
        r"y_i = a_i\text{ where } c_i\text{ is 0, else }b_i",
        {
            "c": ("", ""),
            "a": (r"da_i = dy_i\,[c_i = 0]", "1 where a was chosen, else 0."),
            "b": (r"db_i = dy_i\,[c_i = 1]", "1 where b was chosen, else 0."),
        },
    ),
    "where": Formulas(
        r"z_i = x_i\text{ where } c_i\text{, else }y_i",
        {
            "condition": ("", ""),
            "x": (r"dx_i = dz_i\,[c_i]", "1 where the condition holds, else 0."),
            "y": (r"dy_i = dz_i\,[\neg c_i]", "1 where the condition does not hold, else 0."),
        },
    ),
    "relu": _elementwise(r"\max(x_i, 0)", "[x_i > 0]", "1 where x is positive, else 0: a gradient passes or stops."),
    "silu": _elementwise(
        r"x_i\,\sigma(x_i)", r"\sigma(x_i)\,(1 + x_i\,\sigma(-x_i))", "Near 1 for large x, near 0 for very negative x."
    ),
    "softplus": _elementwise(r"\log(1 + e^{x_i})", r"\sigma(x_i)", "Between 0 and 1: a smooth step."),
    "reduce_sum": Formulas(r"y = \sum_i x_i", {"x": (r"dx_i = dy", "The sum changes as much as the term.")}),
    "reduce_max": Formulas(r"y = \max_i x_i", {"x": (rf"dx_i = dy\,{_MATCH}", "1 at the largest; ties share it.")}),
    "reduce_min": Formulas(r"y = \min_i x_i", {"x": (rf"dx_i = dy\,{_MATCH}", "1 at the smallest; ties share it.")}),
    "reduce_prod": Formulas(
        r"y = \prod_i x_i", {"x": (r"dx_i = dy \prod_{k \ne i} x_k", "The product of all the other factors.")}
    ),
    "cumsum": Formulas(
        r"y_i = \sum_{k \le i} x_k", {"x": (r"dx_k = \sum_{i \ge k} dy_i", "A term is part of every later sum.")}
    ),
    "reduce_window_max": Formulas(
        r"y_w = \max_{i \in w} x_i",
        {"x": (r"dx_i = \sum_w dy_w\,[x_i\text{ is the maximum of window }w]", "1 at the largest of each window.")},
    ),
    "conv_general_dilated": Formulas(
        r"y_{o,i} = \sum_{c,k} w_{o,c,k}\,x_{c,i+k}",
        {
            "x": (r"dx_{c,i+k} = \sum_{o,k} dy_{o,i}\,w_{o,c,k}", "An output changes with a pixel by its weight."),
            "w": (r"dw_{o,c,k} = \sum_i dy_{o,i}\,x_{c,i+k}", "An output changes with a weight by its pixel."),
        },
    ),
    "reshape": _moved("reshape", "reshape", "The same numbers in another shape: each passes its gradient back."),
    "transpose": _moved("transpose", "transpose", "The same numbers, axes exchanged: each passes its gradient back."),
    "rev": _moved("reverse", "reverse"),
    "flip": _moved("reverse", "reverse"),
    "convert_element_type": Formulas("y_i = x_i", {"x": ("dx_i = dy_i", "The same number in another type.")}),
    "broadcast_in_dim": Formulas(
        "y_{ki} = x_i", {"x": (r"dx_i = \sum_k dy_{ki}", "x is read many times: the gradients of its copies add up.")}
    ),
    "slice": _moved("slice", "put among zeros", "1 for the elements in the slice, 0 for the others."),
    "split": _moved("part", "put among zeros", "1 for the elements in this part, 0 for the others."),
    "dynamic_slice": _moved("slice", "put among zeros", "1 for the elements in the slice, 0 for the others."),
    "gather": Formulas(
        "y_i = x_{n_i}",
        {
            "x": (r"dx_k = \sum_i dy_i\,[n_i = k]", "An element gets the gradients of all places where it is read."),
            "n": ("", ""),
        },
    ),
    "pad": Formulas(
        r"y = \operatorname{pad}(x)",
        {
            "x": (r"dx = \operatorname{crop}(dy)", BACK),
            "c": (r"dc = \sum_{i\text{ outside}} dy_i", "The filler is read at every padded place."),
        },
    ),
    "concatenate": Formulas(
        r"y = (x_0, x_1, \dots)", {"*": (r"dx_k = \text{its part of }dy", "Each part passes its gradient back.")}
    ),
    "stop_gradient": Formulas("y = x", {}),
    "scan": Formulas(
        r"(c_{t+1}, y_t) = f(c_t, x_t)",
        {"*": (r"dc_t = dc_{t+1}\,\frac{\partial c_{t+1}}{\partial c_t} + \dots", "Every iteration adds its part.")},
    ),
    "cond": Formulas("y = f_k(x)", {"*": (r"dx = dy\,\frac{\partial f_k}{\partial x}", "That of the branch taken.")}),
    "while": Formulas(r"c \leftarrow f(c)\text{ while }p(c)", {}),
    "remat": Formulas(
        "y = f(x)",
        {"*": (r"dx = dy\,\frac{\partial f}{\partial x}", "That of f, for which f's values are computed again.")},
    ),
}  # fmt: skip


def _power(n: int) -> Formulas:
    down = f"{n}\\,x_i^{{{n - 1}}}" if n != 2 else r"2\,x_i"
    return _elementwise(f"x_i^{{{n}}}", down, "The power rule.")


def _product(dimensions: Any, a_ndim: int, b_ndim: int) -> Formulas:
    """Return the formulas of a product of two arrays, with a letter for each axis."""
    (a_summed, b_summed), (a_batch, b_batch) = dimensions
    letters = iter("kijlmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    a, b = [""] * a_ndim, [""] * b_ndim
    for i, j in zip([*a_summed, *a_batch], [*b_summed, *b_batch], strict=True):
        a[i] = b[j] = next(letters)
    batch = [a[i] for i in a_batch]
    a = [x or next(letters) for x in a]
    b = [x or next(letters) for x in b]
    free_a = [x for x in a if x not in b]
    free_b = [x for x in b if x not in a]

    def term(name: str, indices: list[str]) -> str:
        return rf"{name}_{{{''.join(indices)}}}" if indices else name

    def total(indices: list[str]) -> str:
        return rf"\sum_{{{','.join(indices)}}} " if indices else ""

    y = [*batch, *free_a, *free_b]
    summed = [a[i] for i in a_summed]
    return Formulas(
        rf"{term('y', y)} = {total(summed)}{term('a', a)}\,{term('b', b)}",
        {
            "a": (
                rf"{term('da', a)} = {total(free_b)}{term('dy', y)}\,{term('b', b)}",
                "Each product changes by the b in it.",
            ),
            "b": (
                rf"{term('db', b)} = {total(free_a)}{term('dy', y)}\,{term('a', a)}",
                "Each product changes by the a in it.",
            ),
        },
    )


class Argument(NamedTuple):
    """An argument of an operation: its name, the formula of its cotangent, and a sentence on the local derivative."""

    name: str
    formula: str
    meaning: str


def formulas_of(instruction: Instruction) -> tuple[str, list[Argument]]:
    """Return the definition of an instruction's operation, and its arguments, one for each operand."""
    if instruction.eqn is None:
        return "", []
    find = _of_rule if instruction.kind == "rule" else _of_operation
    formulas, names, default_meaning = find(instruction.eqn)
    definition = formulas.definition or rf"y = \text{{{instruction.operation}}}({', '.join(map(_tex, names))})"
    arguments = []
    for name in names:
        head = re.split(r"[\[.]", name)[0]
        partial = rf"d{_tex(name)} = dy\,\frac{{\partial y}}{{\partial {_tex(name)}}}", default_meaning
        formula, meaning = formulas.gradients.get(head) or formulas.gradients.get("*") or partial
        arguments.append(Argument(name, formula, meaning))
    return definition, arguments


NONE = Formulas("", {})


def _of_rule(eqn: Any) -> tuple[Formulas, list[str], str]:
    """Return a hand-written rule's formulas, its operands' names, and the meaning of those without a formula."""
    call = kinds.rule_call(eqn)
    place = None if call is None or call.traced is None else _source.place_of(call.traced)
    function = None if place is None else _source.function_at(place)
    formulas = NONE if place is None else FORMULAS.get((place.file, place.name), NONE)
    docstring = "" if function is None else (ast.get_docstring(function) or "").split("\n")[0]
    meaning = f"Hand-written rule {operation_of(eqn)}" + (f": {docstring}" if docstring else "")
    return formulas, _source.arguments_of(eqn, function), meaning


def _of_operation(eqn: Any) -> tuple[Formulas, list[str], str]:
    """Return the same for an operation of JAX."""
    operation, count = operation_of(eqn), len(eqn.invars)
    if operation == "integer_pow":
        formulas = _power(eqn.params["y"])
    elif operation == "dot_general":
        formulas = _product(eqn.params["dimension_numbers"], *(v.aval.ndim for v in eqn.invars))
    else:
        formulas = OPERATIONS.get(operation, NONE)
    names = [name for name in formulas.gradients if name != "*"]
    if not names and eqn.primitive.name == "jit":
        names = list(open_jaxpr(eqn.params["jaxpr"]).debug_info.arg_names or ())
    elif not names and kinds.rule_call(eqn) is not None:
        names = _source.arguments_of(eqn, None)
    if not names or len(names) > count:
        names = _source.numbered_arguments(count)
    names += [f"n[{k}]" for k in range(count - len(names))]
    return formulas, names, f"JAX's own derivative of {operation}."


def _tex(name: str) -> str:
    """Write an argument's name in LaTeX: a letter, a letter with an index, or upright text."""
    if re.fullmatch(r"[A-Za-z]", name):
        return name
    numbered = re.fullmatch(r"([a-z])\[(\d+)\]", name)
    return f"{numbered[1]}_{{{numbered[2]}}}" if numbered else rf"\text{{{name}}}"
