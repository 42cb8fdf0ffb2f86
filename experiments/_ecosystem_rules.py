"""Find the custom derivative rules of the installed libraries, and see which of them a call reaches."""

import contextlib
import dataclasses
import functools
import gc
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
from typing import Any

import jax

TFP = "tensorflow_probability.substrates.jax"
LIBRARIES = {  # what is imported: the distribution it is installed from
    "jax": "jax",
    "optax": "optax",
    "flax": "flax",
    "equinox": "equinox",
    "lineax": "lineax",
    "diffrax": "diffrax",
    "optimistix": "optimistix",
    "chex": "chex",
    "distrax": "distrax",
    "rlax": "rlax",
    "haiku": "dm-haiku",
    "numpyro": "numpyro",
    "blackjax": "blackjax",
    "ott": "ott-jax",
    "penzai": "penzai",
    "flashbax": "flashbax",
    "jaxopt": "jaxopt",
    "e3nn_jax": "e3nn-jax",
    "tokamax": "tokamax",
    "jax_cce": "jax-cce",
    TFP: "tfp-nightly",
}
# Tests, benchmarks, exporters to other frameworks, and kernels that import only on their own accelerator.
PASSED_OVER = re.compile(
    r"_test$|\btest_|_test_|\.tests?\b|\.testing\b|conftest|\.bench$|\.examples\b|__main__|mosaic|jax2tf|jax\.tools"
    r"|\.cloud_tpu|collect_profile|\.contrib\.tfp|patch_ipdb"
)
MAKERS = {"custom_vjp", "custom_jvp", "custom_gradient", "filter_custom_vjp", "filter_custom_jvp"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of a library, named by the place of its definition, or by the function whose call makes it."""

    library: str
    name: str
    kind: str
    public: str = ""
    made_by_call: bool = False

    def is_reached(self, called: set[str]) -> bool:
        """Whether it is among the definitions that a trace has called."""
        return (
            any(name.startswith(self.name + ".<locals>") for name in called)
            if self.made_by_call
            else self.name in called
        )


def discover(library: str) -> tuple[list[Rule], dict[str, str]]:
    """Return the rules of a library, and for each module that cannot be imported the reason."""
    modules, failed = imported(library)
    public = public_names(modules)
    found = {}
    for rule in (o for o in gc.get_objects() if isinstance(o, jax.custom_vjp | jax.custom_jvp)):
        name = named(definition(rule))
        if name.startswith(library + ".") and "_defvjp.<locals>" not in name:
            found[name] = Rule(library, name, type(rule).__name__, public.get(id(rule), ""))
    for f in functions(modules):
        kinds = sorted({name for code in codes(f.__code__) for name in MAKERS & set(code.co_names)})
        if kinds:
            found.setdefault(named(f), Rule(library, named(f), kinds[0].removeprefix("filter_"), made_by_call=True))
    return sorted(found.values(), key=lambda rule: rule.name), failed


def imported(library: str) -> tuple[list[types.ModuleType], dict[str, str]]:
    """Import every module of a library, also private ones, which hold the rules."""
    package = importlib.import_module(library)
    modules, failed = [package], {}
    for info in pkgutil.walk_packages(package.__path__, library + ".", onerror=lambda name: None):
        if not PASSED_OVER.search(info.name):
            try:
                modules.append(importlib.import_module(info.name))
            except (Exception, SystemExit) as error:  # whatever a module of a library without its extras does
                failed[info.name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return modules, failed


def public_names(modules: list[types.ModuleType]) -> dict[int, str]:
    """Return the shortest public name of each rule that is a public object, or thinly wrapped by one."""
    names: dict[int, str] = {}
    for module in modules:
        if any(part.startswith("_") or part == "internal" for part in module.__name__.split(".")):
            continue
        for attribute, value in vars(module).items():
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


def definition(rule: Any) -> Any:
    """Return the function that a rule was written for, without the wrappers of jax.custom_gradient and equinox."""
    f = inspect.unwrap(rule.fun)
    while isinstance(f, functools.partial):
        f = inspect.unwrap(f.func)
    if getattr(f, "__module__", "") in ("jax._src.custom_derivatives", "equinox._ad"):
        cells = dict(zip(f.__code__.co_freevars, f.__closure__ or (), strict=True))
        inner = next((cells[name].cell_contents for name in ("fun", "fn", "self") if name in cells), f)
        f = inspect.unwrap(getattr(inner, "fn", inner))
    return f


def named(f: Any) -> str:
    """Return where a function is defined."""
    return f"{getattr(f, '__module__', '?')}.{getattr(f, '__qualname__', repr(f))}"


def functions(modules: list[types.ModuleType]) -> Iterator[types.FunctionType]:
    """Yield the functions and methods that modules define."""
    for module in modules:
        for value in list(vars(module).values()):
            members = vars(value).values() if inspect.isclass(value) else (value,)
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


@contextlib.contextmanager
def recording() -> Iterator[dict[str, str]]:
    """Collect the definitions of all rules that are called, each with its kind."""
    called: dict[str, str] = {}
    kinds = (jax.custom_vjp, jax.custom_jvp)
    originals = [kind.__call__ for kind in kinds]

    def recorded(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            called[named(definition(self))] = type(self).__name__
            return original(self, *args, **kwargs)

        return call

    for kind, original in zip(kinds, originals, strict=True):
        kind.__call__ = recorded(original)
    try:
        yield called
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.__call__ = original


def resolve(path: str) -> Any:
    """Import what a dotted path names."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            return functools.reduce(getattr, parts[i:], importlib.import_module(".".join(parts[:i])))
    raise ModuleNotFoundError(path)


def short(name: str) -> str:
    """Return a name as people write it."""
    return name.replace(TFP, "tfp")


def versions() -> dict[str, str]:
    """Return the version of each library, "" where it is not installed."""
    found = {}
    for library, distribution in LIBRARIES.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(distribution)
    return {library: found.get(library, "") for library in LIBRARIES}
