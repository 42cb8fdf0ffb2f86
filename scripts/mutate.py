"""Mutation testing of the rules: change one token of a rule, and see whether tests and `gradcheck.check` notice.

    python scripts/mutate.py [NAME ...] [--judge tests|check|both] [--list] [--jobs N] [--only TEXT]

NAME is a file (`relu`, `_labels`) or a component (`nll_loss`); all without. A mutant is one small edit of the syntax
tree of a forward or backward rule or of a helper that a rule reaches: sign, operator, comparison, operand order,
dropped term or call, constant, axis, dtype, function. Argument checks, messages, annotations and `.definition`s stay.

Two judges decide by themselves. `tests` runs the component tests of the components that reach the mutated function,
up to the first failure. `check` runs `gradcheck.check` over their cases against the unchanged definition; mutants that
it may accept are listed by patterns, each with the reason, and it is not asked about them.

Each mutant has a process of its own, forked from this one, which has imported JAX and started no backend of it.

All of them take hours, so `mutants.json` keeps, for every function, how many mutants each judge has noticed, once they
are all that it must notice. A function is judged again when it changes, or its line there is removed.
"""

import argparse
import ast
import collections
import contextlib
import copy
import functools
import hashlib
import importlib.machinery
import itertools
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from accepted_mutants import BEYOND_CHECK, EQUIVALENT, ONLY_SPEED

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxnn"
RULES = ("cotangents", "softmax_sums", "blocks", "sharding")
FILES = ["layers/*.py", "losses/*.py", *(f"rules/{name}.py" for name in RULES)]
# How the names of functions of ours begin, where a rule calls them.
OURS = ("_", "sharding.", "Options", "Inputs", "Block", "Statistics", "matrix_product", "smoothed", "weighted")
# Tests of every component: those whose names or sources say so are about a mutant's. Tests of one component alone.
SHARED = ["components/test_components", "components/test_transformations", "components/test_residuals",
          "components/test_errors", "scripts/test_sharding_modes"]  # fmt: skip
OWN = ["layers/test_pooling_indices", "losses/test_penalties", "layers/test_dropout", "layers/test_conv2d_paths",
       "losses/test_linear_cross_entropy"]  # fmt: skip
SECONDS = 120  # for one test, or one case of `check`


def rules() -> Iterator[tuple[str, str, ast.Module, ast.AST, frozenset[str]]]:
    """Yield file, name, tree, node and components of each function or constant that a component reaches."""
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
    """Yield each node below that computes something: itself, its parent, and the container and key it is put at."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults", "ctx"):
            continue
        for key, child in enumerate(value) if isinstance(value, list) else [(field, value)]:
            if isinstance(child, ast.AST) and not is_check(child):
                yield child, node, value if isinstance(value, list) else vars(node), key
                yield from inner(child)


def is_check(node: ast.AST) -> bool:
    """Tell what only checks or documents: raise, a condition to raise, messages, docstrings, calls of checks."""
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
    """Yield what may stand in a node's place."""
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
    """A sign put before an operand, operands exchanged, the call dropped around one, a keyword argument dropped."""
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
    """Tell whether no test can notice it."""
    return mutant.key in EQUIVALENT or mutant.function in ONLY_SPEED


def is_beyond_check(mutant: "Mutant") -> bool:
    """Tell whether `check` may accept it, though the tests may not."""
    return not is_equivalent(mutant) and any(re.search(pattern, mutant.key) for pattern in BEYOND_CHECK)


def must_notice(judge: str, mutant: "Mutant") -> bool:
    """Tell whether a judge has to notice it."""
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


def install(file: str, code: Any) -> None:
    """Make Python load the code in place of the file. For a process of its own."""
    load, path = importlib.machinery.SourceFileLoader.get_code, str(PACKAGE / file)
    importlib.machinery.SourceFileLoader.get_code = lambda s, name: code if s.path == path else load(s, name)


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


@functools.cache
def words_of(source: Any) -> set[str]:
    """Return the words of a function or module, those that follow `jaxnn.` with it."""
    import inspect

    return set(re.findall(r"(?:jaxnn\.)?\w+", inspect.getsource(source) if source else ""))


class _Undocumented(ast.NodeTransformer):
    """Takes out what no mutant is made of and no verdict depends on: docstrings, annotations, formulas, messages."""

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
    """Return a function's code, or a constant's, without what documents it: a change of this needs new verdicts."""
    return ast.unparse(ast.fix_missing_locations(_Undocumented().visit(copy.deepcopy(function))))


Kills = collections.Counter[str]  # what killed how many mutants of a file: it comes first for the next


class Selection:
    """A plugin of pytest: only the tests of a mutant's components, those that killed most before first.

    Then the first case of each test, the second of each, and so on: other tests see more than other cases.
    """

    def __init__(self, mutant: Mutant, kills: Kills) -> None:
        self.wanted = {mutant.function} - mutant.components | {f"jaxnn.{component}" for component in mutant.components}
        self.kills, self.failed = kills, ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        earlier: collections.Counter[str] = collections.Counter()
        order = {}
        for item in filter(self.is_about, items):
            test = item.nodeid.partition("[")[0]
            order[item] = -self.kills[item.nodeid], earlier[test]
            earlier[test] += 1
        items[:] = sorted(order, key=lambda item: order[item])

    def is_about(self, item: Any) -> bool:
        """Tell whether its name (a case's begins with the component) or its source says so: OWN tests', the file's."""
        whole = f"{item.path.parent.name}/{item.path.stem}" in OWN
        named = {f"jaxnn.{word}" for word in re.findall(r"\w+", item.nodeid)}
        return not self.wanted.isdisjoint(named | words_of(getattr(item, "module" if whole else "function", None)))

    def pytest_runtest_setup(self) -> None:
        signal.alarm(SECONDS)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = report.nodeid if report.failed else self.failed


def by_tests(mutant: Mutant, code: Any, kills: Kills) -> str:
    """Return the first component test that fails."""
    import pytest

    if code:
        install(mutant.file, code)
    import jaxnn  # noqa: F401 (before pytest, which would load files that it is given in its own way)

    selection = Selection(mutant, kills)
    files = [f"tests/{name}.py" for name in SHARED + OWN]
    files += [  # with the components' doctests
        str(path) for glob in FILES for path in PACKAGE.glob(glob)
        if any(f"\ndef {component}(" in path.read_text() for component in mutant.components)
    ]  # fmt: skip
    spared = ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "--tb=no"]  # what takes time and tells nothing
    status = pytest.main(["-xq", *spared, *files], plugins=[selection])
    return "" if status == pytest.ExitCode.OK else selection.failed or f"pytest: {status!r}"


def by_check(mutant: Mutant, code: Any, kills: Kills) -> str:
    """Return the first case in which `gradcheck.check` fails for the mutant, and how, and not for the unchanged."""
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", 4)
    sys.path.insert(0, str(ROOT / "tests"))
    import jaxnn as unchanged

    for name in [name for name in sys.modules if name.partition(".")[0] == "jaxnn"]:
        del sys.modules[name]
    if code:
        install(mutant.file, code)
    from cases import CASES, Case, normal

    import jaxnn
    from jaxnn import gradcheck

    # Blocks of a single sample, and rows more for any channels: the small arguments would have neither.
    cpu: Any = importlib.import_module("jaxnn.layers._conv2d_cpu")
    cpu._samples_in = lambda *_: 1
    cpu.rows_more = lambda geometry, x, w, stride, *_: 3 if stride[0] == 1 else 0
    key, tree = np.array([1, 2], np.uint32), lambda rng: ([rng.standard_normal((3, 4)), rng.standard_normal(2)],)
    scores = lambda rng: (rng.standard_normal((3, 4)), key)  # noqa: E731
    cases = [
        *CASES,
        *(Case(f"dropout-{rate}", jaxnn.dropout, scores, {"rate": rate}, ("key",)) for rate in (0.4, 0.0, 1.0)),
        Case("indices", jaxnn.max_pool2d_with_indices, normal((2, 5, 6)), {"window": 3, "stride": 2, "padding": 1}),
        *(Case(f.__name__, f, tree) for f in (jaxnn.l1_penalty, jaxnn.l2_penalty)),
    ]
    cases = [case for case in cases if case.f.__name__ in mutant.components]
    one_each = list({case.f.__name__: case for case in reversed(cases)}.values())

    def failures(f: Any, *args: Any, **options: Any) -> set[tuple[str, str]]:
        rows = gradcheck.check(f, *args, **options).rows
        # Another value than the reference's is a note to `check`, as a straight-through function has one; what raises
        # under shard_map is unsupported.
        told = ("NOTE", "primal"), ("UNSUPPORTED", "shard_map")
        return {(r.check, r.path) for r in rows if r.status == "FAIL" or (r.status, r.check) in told}

    def arguments(case: Case, *dtypes: str) -> Any:
        made, turns = case.make(np.random.default_rng(zlib.crc32(case.id.encode()))), itertools.cycle(dtypes)
        return jax.tree.map(lambda a: jax.numpy.asarray(a, next(turns) if a.dtype == float else a.dtype), made)

    # The quick core for every case, on an accelerator's path too; one case of each component in other dtypes, mixed
    # ones too, and with all checks.
    elsewhere = [case for case in cases if case.f is jaxnn.conv2d]
    rounds = [("rule", "float32", "cpu", cases), ("rule", "float32", "default", elsewhere)]
    rounds += [("rule", dtypes, "cpu", one_each) for dtypes in ("bfloat16", "float16", "float64", "float32 float64")]
    rounds += [("full", "float32", "cpu", one_each)]
    # The first case of each round before the second of any, those that killed most before them all.
    trials = {f"{case.id}, {level}, {dtypes}, {path}": (i, level, dtypes, path, case)
              for level, dtypes, path, those in rounds for i, case in enumerate(those)}  # fmt: skip
    for name in sorted(trials, key=lambda name: (-kills[name], trials[name][0])):
        _, level, dtypes, path, case = trials[name]
        jax.config.update("jax_enable_x64", "float64" in dtypes)
        jax.clear_caches()
        jax.lax.platform_dependent = lambda *args, path=path, **paths: paths.get(path, paths["default"])(*args)
        signal.alarm(SECONDS)
        args = arguments(case, *dtypes.split())
        component = getattr(unchanged, case.f.__name__)
        # The definition of dropout draws other bits: there the unchanged rule is the reference.
        reference = functools.partial(case.call, component if case.f is jaxnn.dropout else component.definition)
        failed = failures(functools.partial(case.call, case.f), *args, level=level, reference=reference)
        if failed:
            unmutated = functools.partial(case.call, component)
            failed -= failures(unmutated, *args, level=level, reference=reference)
        if failed:
            return f"{name}: " + "; ".join(f"{check} of {path}" for check, path in sorted(failed))
    return ""


JUDGES: dict[str, Callable[..., str]] = {"tests": by_tests, "check": by_check}


def judged(tasks: list[tuple[str, Mutant]], jobs: int, programs: str) -> Iterator[tuple[str, Mutant, str, float]]:
    """Yield each task with what failed and its seconds, as its process ends.

    Most programs of a mutant are the unchanged library's: they are compiled once, and kept in a directory that one
    process uses at a time, as JAX's cache on disk has no lock.
    """
    kills: dict[tuple[str, str], Kills] = collections.defaultdict(collections.Counter)
    waiting, running, slots = list(reversed(tasks)), {}, [f"{programs}/{i}" for i in range(jobs)]
    while waiting or running:
        while waiting and slots:
            judge, mutant = waiting.pop()
            slot, (read, write) = slots.pop(), os.pipe()
            code = mutant.tree and mutant.compiled()  # here, as an error of ours would count as a mutant's
            if (pid := os.fork()) == 0:
                alone(functools.partial(JUDGES[judge], mutant, code, kills[judge, mutant.file]), write, slot)
            os.close(write)
            running[pid] = judge, mutant, read, slot, time.monotonic()
        pid, status = os.wait()
        judge, mutant, read, slot, start = running.pop(pid)
        slots.append(slot)
        with open(read) as pipe:
            text = pipe.read()
        failed = json.loads(text) if text else f"the process ended: {os.waitstatus_to_exitcode(status)}"
        kills[judge, mutant.file][failed.partition(": ")[0]] += 1
        yield judge, mutant, failed, time.monotonic() - start


def alone(judge: Callable[[], str], write: int, programs: str) -> None:
    """Run a judge in this forked process, silently, hand over what it says, and end."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    import jax

    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        failed = judge()
    except BaseException as error:  # whatever a mutant raises, it is noticed
        failed = f"{type(error).__name__}: {error}"
    os.write(write, json.dumps(failed[:300]).encode())
    os._exit(0)


class Ledger:
    """What the judges have noticed, for good in `mutants.json` where it is all of a function's mutants."""

    FILE = Path(__file__).with_name("mutants.json")
    COLUMNS = ("mutants", "equivalent", "beyond check", *(f"{judge} {how}" for judge in JUDGES for how in (
        "noticed", "missed", "not asked")))  # fmt: skip

    def __init__(self, mutants: list[Mutant]) -> None:
        self.mutants: dict[str, list[Mutant]] = collections.defaultdict(list)
        for mutant in mutants:
            self.mutants[mutant.of].append(mutant)
        self.texts = {f"{file} {name}": text_of(function) for file, name, _, function, _ in rules()}
        kept = json.loads(self.FILE.read_text()) if self.FILE.exists() else {}
        self.kept = {of: kept[of] for of in self.mutants if kept.get(of, {}).get("mutants") == self._digest(of)}
        self.verdicts: dict[tuple[str, str], collections.Counter[bool]] = collections.defaultdict(collections.Counter)

    def _digest(self, of: str) -> str:
        """Return what changes when a function does, or what is made of it."""
        keys = (mutant.key for mutant in self.mutants[of])
        return hashlib.sha256("\n".join([self.texts[of], *keys]).encode()).hexdigest()[:16]

    def asked(self, judge: str, of: str) -> int:
        """Return how many of a function's mutants a judge must notice."""
        return sum(must_notice(judge, mutant) for mutant in self.mutants[of])

    def lacks(self, judge: str, mutant: Mutant) -> bool:
        """Tell whether a judge has to be asked about a mutant."""
        return must_notice(judge, mutant) and self.kept.get(mutant.of, {}).get(judge) != self.asked(judge, mutant.of)

    def add(self, judge: str, mutant: Mutant, noticed: bool) -> None:
        """Take a verdict; keep the function's when it is complete."""
        of, count = mutant.of, self.verdicts[judge, mutant.of]
        count[noticed] += 1
        if count[True] == self.asked(judge, of):
            self.kept.setdefault(of, {"mutants": self._digest(of)})[judge] = count[True]
            lines = [f"{json.dumps(of)}: {json.dumps(self.kept[of])}" for of in sorted(self.kept)]
            whole = self.FILE.with_suffix(".new")
            whole.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            whole.replace(self.FILE)

    def row(self, of: str) -> list[int]:
        """Return a function's counts, as `COLUMNS` names them."""
        mutants = self.mutants[of]
        row = [len(mutants), sum(map(is_equivalent, mutants)), sum(map(is_beyond_check, mutants))]
        for judge in JUDGES:
            asked, count = self.asked(judge, of), self.verdicts[judge, of]
            noticed = asked if self.kept.get(of, {}).get(judge) == asked else count[True]
            row += [noticed, count[False], asked - noticed - count[False]]
        return row

    def report(self, functions: list[str]) -> int:
        """Print a table of the files; 1 if a mutant was missed, or not asked about."""
        print(f"{'file':32}", *self.COLUMNS, sep="  ")
        for file in [*dict.fromkeys(of.split()[0] for of in functions), "all"]:
            rows = [self.row(of) for of in functions if file in (of.split()[0], "all")]
            total = [sum(column) for column in zip(*rows, strict=True)]
            print(f"{file:32}", *(f"{n:{len(title)}}" for n, title in zip(total, self.COLUMNS, strict=True)), sep="  ")
        wrong = [i for i, title in enumerate(self.COLUMNS) if title.endswith(("missed", "not asked"))]
        return int(any(total[i] for i in wrong))


def main() -> int:
    """Mutate, judge, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="files or components, all by default")
    parser.add_argument("--judge", choices=("tests", "check", "both"), default="both")
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="judge only mutants whose id contains this text, whatever is known")
    options = parser.parse_args()

    everything, names = mutants(), set(options.names)
    stale = EQUIVALENT.keys() - {m.key for m in everything}
    if stale := stale | {p for p in BEYOND_CHECK if not any(re.search(p, m.key) for m in everything)}:
        sys.exit("EQUIVALENT and BEYOND_CHECK name no mutant:\n  " + "\n  ".join(sorted(stale)))
    about = lambda m: {Path(m.file).stem, m.function}  # noqa: E731
    chosen = [m for m in everything if not names or names & about(m) or m.components <= names]
    chosen = [m for m in chosen if options.only in m.id]
    if options.list or not chosen:
        print("\n".join(m.id + " (equivalent)" * is_equivalent(m) for m in chosen))
        return 0

    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "JAXNN_ALL": "1"}
    for name in ("jax.numpy", "jaxtyping", "pytest", "torch"):  # in every process; none starts a backend
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    judges, ledger = list(JUDGES) if options.judge == "both" else [options.judge], Ledger(everything)
    # What few components reach is judged fast.
    chosen.sort(key=lambda m: (len(m.components), m.of))
    tasks = [(j, m) for j in judges for m in chosen if options.only or ledger.lacks(j, m)]
    with tempfile.TemporaryDirectory() as programs:
        if any(judge == "tests" for judge, _ in tasks):
            unchanged = Mutant(
                frozenset().union(*(m.components for j, m in tasks if j == "tests")), "rules/cotangents.py"
            )
            for *_, failed, _ in judged([("tests", unchanged)], 1, programs):
                if failed:
                    sys.exit(f"fails without any mutation: {failed}")
        try:
            for judge, mutant, failed, seconds in judged(tasks, options.jobs, programs):
                if not options.only:
                    ledger.add(judge, mutant, bool(failed))
                if options.only or not failed:
                    print(f"{judge}: {failed or 'missed'}: {mutant.id} ({seconds:.1f} s)", flush=True)
        except KeyboardInterrupt:
            print("interrupted")
    return ledger.report(list(dict.fromkeys(m.of for m in sorted(chosen, key=lambda m: m.of))))


if __name__ == "__main__":
    sys.exit(main())
