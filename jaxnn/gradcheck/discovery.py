"""Find the hand-written derivative rules that an installed package defines."""

import contextlib
import dataclasses
import functools
import gc
import importlib
import inspect
import os
import pkgutil
import re
import types
from collections.abc import Iterator
from typing import Any

import jax

from jaxnn.tracing.kinds import HiPrim

# Modules that are not imported: tests, benchmarks, exporters to other frameworks, and accelerator-only kernels.
PASSED_OVER = re.compile(
    r"_test$|\btest_|_test_|\.tests?\b|\.testing\b|conftest|\.bench$|\.examples\b|__main__|mosaic|jax2tf|jax\.tools"
    r"|\.cloud_tpu|collect_profile|\.contrib\.tfp|patch_ipdb"
)
MAKERS = {"custom_vjp", "custom_jvp", "custom_gradient", "filter_custom_vjp", "filter_custom_jvp"}
# The methods that give a rule to what a maker returns. A function without them may only ask `isinstance`.
GIVERS = re.compile("custom_gradient$|defvjp|defjvp|def_fwd$")
WRAPPERS = ("jax._src.custom_derivatives", "equinox._ad")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of a package, named by the place of its definition, or by the function whose call makes it.

    Attributes:
      library: the package.
      name: where the function is defined, "mypkg.norms.rms_norm".
      kind: "custom_vjp", "custom_jvp", "custom_gradient" or "HiPrim".
      public: the shortest public name; "" if there is none.
      made_by_call: whether the rule is made when the function `name` is called.
      file: the file of the definition.
      line: the line there.
      rule: what is called; None for a HiPrim, and for a rule that is made by a call.
    """

    library: str
    name: str
    kind: str
    public: str = ""
    made_by_call: bool = False
    file: str = ""
    line: int = 0
    rule: Any = dataclasses.field(default=None, compare=False, repr=False)

    def is_reached(self, called: set[str]) -> bool:
        """Whether it is among the definitions that were called; "<locals>." in their names may be left out."""
        plain = {name.replace("<locals>.", "") for name in called}
        own = self.name.replace("<locals>.", "")
        return any(name.startswith(own + ".") for name in plain) if self.made_by_call else own in plain


def discover(library: str) -> tuple[list[Rule], dict[str, str]]:
    """Import a package with all its modules, and find its rules.

    Args:
      library: the package's name, as it is imported.

    Returns:
      The rules, by name; and for each module that cannot be imported the reason.

    Raises:
      Exception: what importing the package itself raises.

    Example:
      >>> rules, failed = discover("jaxnn.losses")
      >>> [rule.kind for rule in rules if rule.name == "jaxnn.losses.nll._nll"]
      ['custom_vjp']
    """
    modules, failed = imported(library)
    public = public_names(modules)
    found = {}
    # `type(o)`: `isinstance` also reads `o.__class__`, at which a third-party object may warn.
    for rule in (o for o in gc.get_objects() if issubclass(type(o), jax.custom_vjp | jax.custom_jvp)):
        f = definition(rule, library)
        if named(f).startswith(library + ".") and "_defvjp.<locals>" not in named(f):
            place = file_and_line(f)
            found[named(f)] = Rule(library, named(f), _kind(rule), public.get(id(rule), ""), False, *place, rule)
    for primitive in _primitives(HiPrim):
        if named(primitive).startswith(library + "."):
            found[named(primitive)] = Rule(library, named(primitive), "HiPrim", "", False, *file_and_line(primitive))
    for f in functions(modules):
        names = {name for code in codes(f.__code__) for name in code.co_names}
        kinds = sorted(MAKERS & names)
        if kinds and any(map(GIVERS.match, names)):
            made = Rule(library, named(f), kinds[0].removeprefix("filter_"), "", True, *file_and_line(f))
            found.setdefault(named(f), made)
    return sorted(found.values(), key=lambda rule: rule.name), failed


def _kind(rule: Any) -> str:
    code = getattr(rule.fun, "__code__", None)
    if code is not None and code.co_filename.endswith("custom_derivatives.py"):
        return "custom_gradient"
    return "custom_vjp" if isinstance(rule, jax.custom_vjp) else "custom_jvp"


def file_and_line(f: Any) -> tuple[str, int]:
    """Return where a function or a class is defined; "" and 0 if it has no code."""
    parts = list(vars(f).values()) if inspect.isclass(f) else [f]
    code = next((part.__code__ for part in parts if hasattr(part, "__code__")), None)
    if code is None:
        return "", 0
    line = code.co_firstlineno
    with contextlib.suppress(TypeError, OSError):  # a class that was made by calling `type`: its first method's line
        line = inspect.getsourcelines(f)[1] if inspect.isclass(f) else line
    return os.path.abspath(code.co_filename), line


def _primitives(base: Any) -> Iterator[Any]:
    """Yield the HiPrims that have a definition (`expand`), and not the base classes without one."""
    for primitive in base.__subclasses__():
        if primitive.expand is not HiPrim.expand:
            yield primitive
        yield from _primitives(primitive)


def imported(library: str) -> tuple[list[types.ModuleType], dict[str, str]]:
    """Import every module of a package, also private ones, which hold the rules."""
    package = importlib.import_module(library)
    modules, failed = [package], {}
    for info in pkgutil.walk_packages(getattr(package, "__path__", ()), library + ".", onerror=lambda name: None):
        if not PASSED_OVER.search(info.name):
            try:
                modules.append(importlib.import_module(info.name))
            except (Exception, SystemExit) as error:  # whatever a module of a package without its extras does
                failed[info.name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return modules, failed


def public_names(modules: list[types.ModuleType]) -> dict[int, str]:
    """Return the shortest public name of each rule that is a public object, or thinly wrapped by one."""
    names: dict[int, str] = {}
    for module in modules:
        if any(part.startswith("_") or part == "internal" for part in module.__name__.split(".")):
            continue
        for attribute, value in list(vars(module).items()):
            if not attribute.startswith("_") and (rule := unwrapped(value)) is not None:
                name = f"{module.__name__}.{attribute}"
                names[id(rule)] = min(names.get(id(rule), name), name, key=lambda n: (n.count("."), len(n)))
    return names


def unwrapped(value: Any) -> Any:
    """Return the rule in a public object, within jit, partial and functools.wraps; None if there is none."""
    for _ in range(8):
        if isinstance(value, jax.custom_vjp | jax.custom_jvp):
            return value
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(inner := getattr(value, "__dict__", {}), dict):
            value = inner.get("__wrapped__") or inner.get("fn_wrapped") or inner.get("fn")  # the last two are equinox's
    return None


def definition(rule: Any, library: str = "") -> Any:
    """Return the function that a rule was written for, without the wrappers of jax.custom_gradient and equinox.

    If it is of another package than `library`, a function of `library` that it closes over is preferred: the other
    package has wrapped it.
    """
    f = _without_partials(rule.fun)
    if getattr(f, "__module__", "") in WRAPPERS:
        cells = dict(zip(f.__code__.co_freevars, f.__closure__ or (), strict=True))
        inner = next((cells[name].cell_contents for name in ("fun", "fn", "self") if name in cells), f)
        f = inspect.unwrap(getattr(inner, "fn", inner))
    if not library or named(f).startswith(library + "."):
        return f
    return next((g for g in _closed_over(f) if named(g).startswith(library + ".")), f)


def _without_partials(f: Any) -> Any:
    f = inspect.unwrap(f)
    while isinstance(f, functools.partial):
        f = inspect.unwrap(f.func)
    return f


def _closed_over(f: Any) -> Iterator[Any]:
    """Yield the functions that a function closes over."""
    for cell in getattr(f, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not yet filled
            if inspect.isfunction(inner := _without_partials(cell.cell_contents)):
                yield inner


def named(f: Any) -> str:
    """Return where a function is defined."""
    return f"{getattr(f, '__module__', '?')}.{getattr(f, '__qualname__', repr(f))}"


def functions(modules: list[types.ModuleType]) -> Iterator[types.FunctionType]:
    """Yield the functions and methods that modules define."""
    for module in modules:
        for value in list(vars(module).values()):
            members = list(vars(value).values()) if inspect.isclass(value) else [value]
            for member in members:
                if isinstance(member, staticmethod | classmethod | property):
                    member = member.fget if isinstance(member, property) else member.__func__
                with contextlib.suppress(Exception):  # objects that answer every attribute, lazy modules
                    member = inspect.unwrap(member)
                if isinstance(member, types.FunctionType) and member.__module__ == module.__name__:
                    yield member


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a function's code and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)
