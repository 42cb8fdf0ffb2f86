"""The mutants of the rules: every small edit of the syntax tree of a forward or backward rule, or of what it reaches.

An edit changes a sign, operator, comparison, the order of operands, a constant, axis, dtype or function, or drops a
term or a call. Argument checks, messages, annotations, formulas and `.definition`s are left alone.
"""

import ast
import collections
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from accepted_mutants import BEYOND_CHECK, EQUIVALENT, ONLY_SPEED

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxnn"
RULES = ("cotangents", "softmax_sums", "blocks", "sharding")
FILES = ["layers/*.py", "losses/*.py", *(f"rules/{name}.py" for name in RULES)]
# How the names of our own functions and classes begin in a call whose first two arguments a mutant exchanges.
OURS = ("_", "sharding.", "Options", "Inputs", "Block", "Statistics", "matrix_product", "smoothed", "weighted")


def rules() -> Iterator[tuple[str, str, ast.Module, ast.AST, frozenset[str]]]:
    """Yield file, name, tree, node and components of each function or constant that a component's rule uses."""
    trees = {str(p.relative_to(PACKAGE)): ast.parse(p.read_text()) for g in FILES for p in sorted(PACKAGE.glob(g))}
    modules = {"jaxnn." + file[:-3].replace("/", "."): file for file in trees}
    nodes: dict[tuple[str, str], ast.AST] = {}
    methods = set()
    edges: dict[tuple[str, str], set[tuple[str, str]]] = collections.defaultdict(set)
    for file, tree in trees.items():
        methods |= {(file, n.name) for top in tree.body if isinstance(top, ast.ClassDef) for n in top.body
                    if isinstance(n, ast.FunctionDef)}  # fmt: skip
        for node in [n for top in tree.body for n in (top.body if isinstance(top, ast.ClassDef) else [top])]:
            if isinstance(node, ast.FunctionDef):
                nodes[file, node.name] = node
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).lstrip("_").isupper():
                nodes[file, ast.unparse(node.targets[0])] = node
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # _f.defvjp(_f_fwd, _f_bwd)
                edges[file, node.value.func.value.id] |= {(file, rule.id) for rule in node.value.args}
    for (file, name), node in nodes.items():
        imports = [n for n in trees[file].body if isinstance(n, ast.ImportFrom)]
        source = {a.asname or a.name: (n.module, a.name) for n in imports for a in n.names}
        for n in (n for n, *_ in inner(node) if isinstance(n, ast.Name | ast.Attribute)):
            used = n.id if isinstance(n, ast.Name) else n.attr
            base = ast.unparse(n.value) if isinstance(n, ast.Attribute) else ""
            module, original = source.get(used, ("", used))
            owned = (file, used), (modules.get(module), original), (modules.get(".".join(source.get(base, ""))), used)
            of_classes = {(modules.get(n.module), used) for n in imports} & methods if base else set()
            edges[file, name] |= {*owned} & nodes.keys() | of_classes
    reached: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for at, node in nodes.items():
        todo = [at] if any("defined_by" in ast.unparse(d) for d in getattr(node, "decorator_list", ())) else []
        while todo:
            if at[1] not in reached[now := todo.pop()]:
                reached[now].add(at[1])
                todo += edges[now]
    for (file, name), components in sorted(reached.items()):
        yield file, name, trees[file], nodes[file, name], frozenset(components)


def inner(node: ast.AST) -> Iterator[tuple[Any, ast.AST, Any, Any]]:
    """Yield each node below that computes something, with its parent, and its container and key there."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults", "ctx"):
            continue
        for key, child in enumerate(value) if isinstance(value, list) else [(field, value)]:
            if isinstance(child, ast.AST) and not is_check(child):
                yield child, node, value if isinstance(value, list) else vars(node), key
                yield from inner(child)


def is_check(node: ast.AST) -> bool:
    """Tell whether a node only checks or documents: raise, its condition, messages, docstrings, calls of checks."""
    if isinstance(node, ast.If):
        return isinstance(node.body[0], ast.Raise)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Raise | ast.JoinedStr) or "check" in name_of(node) or "arguments." in name_of(node)


def name_of(node: ast.AST) -> str:
    """Return the called function's name: "where" of `jnp.where(...)`, "arguments.pair" of a function of ours."""
    text = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return text if text.startswith((*OURS, "arguments.")) else text.rpartition(".")[2]


OPERATORS = {
    "Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "FloorDiv": "Mult", "Mod": "FloorDiv", "Pow": "Mult",
    "LShift": "RShift", "RShift": "LShift", "BitAnd": "BitOr", "BitOr": "BitAnd", "BitXor": "BitOr",
}  # fmt: skip
SYMMETRIC = ast.Add | ast.Mult | ast.BitAnd | ast.BitOr | ast.BitXor
COMPARISONS = {
    "Gt": ("GtE", "Lt"), "GtE": ("Gt", "LtE"), "Lt": ("LtE", "Gt"), "LtE": ("Lt", "GtE"), "Eq": ("NotEq",),
    "NotEq": ("Eq",), "Is": ("IsNot",), "IsNot": ("Is",), "In": ("NotIn",), "NotIn": ("In",),
}  # fmt: skip
NAMES = {
    "maximum": "minimum", "max": "min", "min": "max", "any": "all", "sum": "mean", "mean": "sum", "ones": "zeros",
    "zeros": "ones", "ones_like": "zeros_like", "zeros_like": "ones_like", "greater_equal": "greater", "log1p": "log",
    "psum": "pmax", "pmax": "psum", "floor": "ceil", "ceil": "floor", "prod": "sum", "add": "subtract",
    "union": "intersection",
    "float32": "bfloat16", "int32": "int8", "uint32": "int32", "uint8": "int8",
}  # fmt: skip
STRINGS = {"NCHW": "NHWC", "OIHW": "HWIO", "HWIO": "OIHW", "H": "W", "W": "H", "O": "I", "I": "O", "N": "C", "C": "N",
           "HW": "WH", "sum": "none", "none": "sum"}  # fmt: skip
UNWRAPPED = {"abs", "exp", "log", "log1p", "sign", "square", "logistic", "rev", "stop_gradient", "cotangent",
             "vary_with", "accumulation_dtype", "broadcast_to", "psum", "pcast", "tuple", "moveaxis", "repeat",
             "pad"}  # fmt: skip
METHODS = {"astype", "reshape", "swapaxes", "transpose"}  # dropped likewise
SIGNED = {"where": (1, 2), "sum": (0,), "exp": (0,), "log": (0,), "log1p": (0,), "logistic": (0,),
          "maximum": (0, 1), "cotangent": (0,), "dot_general": (0,), "broadcast_to": (0,), "max": (0,)}  # fmt: skip
SWAPPED = {"where": 1, "dot_general": 0, "conv_general_dilated": 0, "greater_equal": 0}  # the first of the two


def edits(node: Any, parent: Any) -> Iterator[ast.AST]:
    """Yield the nodes to put in a node's place."""
    match node:
        case ast.UnaryOp():
            yield node.operand
        case ast.AugAssign():
            yield ast.AugAssign(node.target, getattr(ast, OPERATORS[type(node.op).__name__])(), node.value)
            yield ast.Pass()
        case ast.BinOp():  # a sign, another operator, the operands exchanged, or one of them alone
            if isinstance(node.op, ast.Mult | ast.Div) and not isinstance(parent, ast.BinOp):
                yield ast.UnaryOp(ast.USub(), node)
            yield ast.BinOp(node.left, getattr(ast, OPERATORS[type(node.op).__name__])(), node.right)
            if not isinstance(node.op, SYMMETRIC):
                yield ast.BinOp(node.right, node.op, node.left)
            yield from (node.left, node.right)
        case ast.BoolOp():
            yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
            yield from node.values
        case ast.Compare():
            for i, op in enumerate(node.ops):
                for other in COMPARISONS[type(op).__name__]:
                    yield ast.Compare(
                        node.left, [*node.ops[:i], getattr(ast, other)(), *node.ops[i + 1 :]], node.comparators
                    )
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (ast.Constant(value + d) for d in ((-1, 1) if value else (1,)))
        case ast.Constant(value=value) if value in STRINGS:
            yield ast.Constant(STRINGS[value])
        case ast.Tuple() if not isinstance(parent, ast.Subscript):  # neighbours exchanged
            for i, pair in enumerate(zip(node.elts[1:], node.elts, strict=False)):
                yield ast.Tuple([*node.elts[:i], *pair, *node.elts[i + 2 :]], node.ctx)
        case ast.Call():
            yield from edits_of_call(node)
    name = getattr(node, "attr", getattr(node, "id", None))
    called = isinstance(parent, ast.Call) and node is parent.func
    if name in NAMES and (isinstance(node, ast.Attribute) or called):
        attribute = isinstance(node, ast.Attribute)
        yield ast.Attribute(node.value, NAMES[name], node.ctx) if attribute else ast.Name(NAMES[name], node.ctx)
    if name in ("dtype", "accumulator") and isinstance(parent, ast.keyword | ast.Call) and not called:
        yield ast.parse("jnp.bfloat16", mode="eval").body
    if isinstance(node, ast.Name | ast.Call) and isinstance(parent, ast.If | ast.IfExp) and node is parent.test:
        yield ast.UnaryOp(ast.Not(), node)


def edits_of_call(node: ast.Call) -> Iterator[ast.AST]:
    """Yield the call with a sign before an operand, with operands exchanged, replaced by one, or less a keyword."""
    name, args = name_of(node), node.args

    def with_arguments(changed: dict[int, ast.expr]) -> ast.Call:
        return ast.Call(node.func, [changed.get(i, a) for i, a in enumerate(args)], node.keywords)

    for i in SIGNED.get(name, ()):
        if i < len(args) and not isinstance(args[i], ast.UnaryOp) and not name_of(args[i]).startswith("zeros"):
            yield with_arguments({i: ast.UnaryOp(ast.USub(), args[i])})
    i = SWAPPED.get(name, 0)
    if (name in SWAPPED or name.startswith(OURS)) and len(args) > i + 1:
        yield with_arguments({i: args[i + 1], i + 1: args[i]})
    if name == "where":
        yield from args[1:]
    if name in METHODS and isinstance(node.func, ast.Attribute):
        yield node.func.value
    if name in UNWRAPPED and args:
        yield args[0]
    for i in range(len(node.keywords)):
        yield ast.Call(node.func, args, node.keywords[:i] + node.keywords[i + 1 :])


def is_equivalent(mutant: "Mutant") -> bool:
    """Tell whether no test can notice a mutant."""
    return mutant.key in EQUIVALENT or mutant.function in ONLY_SPEED


def is_beyond_check(mutant: "Mutant") -> bool:
    """Tell whether `check` may accept a mutant that the tests must notice."""
    return not is_equivalent(mutant) and any(re.search(pattern, mutant.key) for pattern in BEYOND_CHECK)


def must_notice(judge: str, mutant: "Mutant") -> bool:
    """Tell whether a judge must notice a mutant."""
    return not is_equivalent(mutant) and not (judge == "check" and is_beyond_check(mutant))


class Mutant(NamedTuple):
    """One edit. Without a tree it is the library as it stands."""

    components: frozenset[str]
    file: str = ""
    key: str = ""  # the name that edits elsewhere do not change
    id: str = ""  # with line and column
    tree: Any = None
    place: Any = None
    new: Any = None

    @property
    def of(self) -> str:
        """The file and the function that it is in."""
        return self.key.partition(":")[0]

    @property
    def function(self) -> str:
        """The name of that function."""
        return self.of.rpartition(" ")[2]

    def compiled(self) -> Any:
        """Return the code of the mutated file."""
        container, key = self.place
        old, container[key] = container[key], self.new
        code = compile(ast.fix_missing_locations(self.tree), PACKAGE / self.file, "exec")
        container[key] = old
        return code


def mutants() -> list[Mutant]:
    """Return every mutant, each with another text of its function."""
    found = []
    for file, name, tree, function, components in rules():
        seen, count = {ast.unparse(function)}, collections.Counter[str]()
        for node, parent, container, key in list(inner(function)):
            atom = isinstance(node, ast.Constant | ast.Name | ast.Attribute) and not isinstance(parent, ast.stmt)
            context = parent if atom else node
            for new in edits(node, parent):
                before = ast.unparse(context)
                container[key] = new
                mutated, after = ast.unparse(function), ast.unparse(context if atom else new)
                container[key] = node
                if mutated not in seen:
                    seen.add(mutated)
                    text = f"{name}: {before} -> {after}"
                    count[text] += 1
                    text += f" #{count[text]}" if count[text] > 1 else ""
                    names = f"{file} {text}", f"{file}:{node.lineno}:{node.col_offset} {text}"
                    found.append(Mutant(components, file, *names, tree, (container, key), copy.deepcopy(new)))
    return found


class _Undocumented(ast.NodeTransformer):
    """Removes what no mutant changes and no verdict depends on: docstrings, annotations, formulas and messages."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list = [d for d in node.decorator_list if not ast.unparse(d).startswith("with_formulas(")]
        node.returns = None
        if ast.get_docstring(node) is not None:
            del node.body[0]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return ast.Assign([node.target], node.value) if node.value else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)


def text_of(function: ast.AST) -> str:
    """Return the code of a function or constant without its documentation: if that changes, it is judged again."""
    return ast.unparse(ast.fix_missing_locations(_Undocumented().visit(copy.deepcopy(function))))


Kills = collections.Counter[str]  # what killed how many mutants of a file: it comes first for the next
