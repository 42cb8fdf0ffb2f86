"""The checker run over the custom derivative rules of other libraries: one table of verdicts, each with its repro.

    python experiments/ecosystem.py
    python experiments/ecosystem.py --only ott.math.utils.norm
    python experiments/ecosystem.py --list

Every custom_vjp and custom_jvp of the installed libraries is found, public or behind a public function, and checked
through a public function at the arguments of `EXAMPLES`. A rule that no example reaches has a row that says so. A FAIL
is computed a second time without the checker (`CONFIRMED`), or else stands as unconfirmed.

Needs, in a virtual environment of its own: pip install -e . 'jax==0.10.2' matplotlib rich mpmath scipy optax flax
equinox lineax diffrax optimistix chex distrax rlax dm-haiku numpyro blackjax ott-jax penzai flashbax jaxopt e3nn-jax
tokamax tfp-nightly flatbuffers. A library that is not installed has a row as well.
"""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # shard_map needs two, before JAX starts
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("EQX_ON_ERROR", "nan")  # equinox and what is built on it: NaN, and no exception, at bad points

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib
import importlib.metadata
import inspect
import json
import logging
import math
import pkgutil
import re
import shlex
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import rich.console
import rich.markup
import rich.progress
import rich.table
from scipy import special

from jaxnn import gradcheck

OUT = Path("results/ecosystem")
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
    TFP: "tfp-nightly",
}
# Tests, benchmarks, exporters to other frameworks, and kernels that import on their own accelerator only.
PASSED_OVER = re.compile(
    r"_test$|\btest_|_test_|\.tests?\b|\.testing\b|conftest|\.bench$|\.examples\b|__main__|mosaic|jax2tf|jax\.tools"
    r"|\.cloud_tpu|collect_profile|\.contrib\.tfp|patch_ipdb"
)
MAKERS = {"custom_vjp", "custom_jvp", "custom_gradient", "filter_custom_vjp", "filter_custom_jvp"}


# --- discovery ---


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of a library, named by where it is defined, or by the function that makes it when it is called."""

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
    """Return the rules of a library, and why some of its modules cannot be imported."""
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
    """Import every module of a library, private ones too: they hold the rules."""
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
    """Return the shortest public name of each rule that is, or is thinly wrapped by, a public object."""
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
    """Return the rule that a public object is, or is a jit, partial or functools.wraps of; None if there is none."""
    for _ in range(8):
        if isinstance(value, jax.custom_vjp | jax.custom_jvp):
            return value
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(inner := getattr(value, "__dict__", {}), dict):
            value = inner.get("__wrapped__") or inner.get("fn_wrapped") or inner.get("fn")  # the last two are equinox's
    return None


def definition(rule: Any) -> Any:
    """Return the function that a rule was written for, within what jax.custom_gradient and equinox put around it."""
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
    """Collect the definitions of the rules that are called, each with its kind."""
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


# --- example arguments ---

Make = Callable[[np.random.Generator], Any]


@dataclasses.dataclass(frozen=True)
class Example:
    """A public function with arguments.

    Attributes:
      name: the function, as it is imported.
      args: makers of arrays, and whatever else the function takes.
      label: tells the examples of a function apart.
      call: calls the function, given first, where plain arguments do not do.
      kwargs: of the function.
      options: of `gradcheck.check`.
    """

    name: str
    args: tuple[Any, ...]
    label: str = ""
    call: Callable[..., Any] | None = None
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """Return what the table calls it."""
        return short(self.name) + (f" [{self.label}]" if self.label else "")

    @property
    def library(self) -> str:
        """Return the library it belongs to."""
        return next(library for library in LIBRARIES if self.name.startswith(library + "."))

    def function(self) -> Callable[..., Any]:
        """Return what is checked."""
        f = resolve(self.name)
        if self.call is None:
            return f

        def called(*args: Any, **kwargs: Any) -> Any:
            return self.call(f, *args, **kwargs)

        called.__name__ = self.name.rpartition(".")[2] + "_" * bool(self.label) + re.sub(r"\W+", "_", self.label)
        return called

    def arguments(self, seed: int) -> tuple[Any, ...]:
        """Make the arguments."""
        rng = np.random.default_rng(seed)
        return tuple(a(rng) if isinstance(a, types.FunctionType) else a for a in self.args)


def short(name: str) -> str:
    """Return a name as people write it."""
    return name.replace(TFP, "tfp")


def normal(*shape: int, scale: float = 1.0) -> Make:
    """Make a normal array."""
    return lambda rng: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


def uniform(low: float, high: float, *shape: int) -> Make:
    """Make an array between two bounds."""
    return lambda rng: jnp.asarray(rng.uniform(low, high, shape), jnp.float32)


def complex_normal(*shape: int) -> Make:
    """Make a complex array."""
    return lambda rng: jnp.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape), jnp.complex64)


def array(value: Any, dtype: Any = jnp.float32) -> Make:
    """Make the array given."""
    return lambda rng: jnp.asarray(value, dtype)


def simplex(*shape: int) -> Make:
    """Make rows of probabilities."""
    return lambda rng: jnp.asarray(rng.dirichlet(np.ones(shape[-1]), shape[:-1]), jnp.float32)


def positive_definite(n: int) -> Make:
    """Make a positive definite matrix."""

    def make(rng: np.random.Generator) -> Any:
        a = rng.standard_normal((n, n))
        return jnp.asarray(a @ a.T / n + np.eye(n), jnp.float32)

    return make


def symmetric(n: int) -> Make:
    """Make a symmetric matrix."""
    return lambda rng: jnp.asarray((a := rng.standard_normal((n, n))) + a.T, jnp.float32)


def low_rank(n: int) -> Make:
    """Make a square matrix of one rank too few."""
    return lambda rng: jnp.asarray(rng.standard_normal((n, n - 1)) @ rng.standard_normal((n - 1, n)), jnp.float32)


def newton(g: Callable[[Any], Any], x: Any) -> Any:
    """Find a root of an elementwise function."""
    return jax.lax.fori_loop(0, 30, lambda _, x: x - g(x) / jax.grad(lambda v: jnp.sum(g(v)))(x), x)


def square_root(custom_root: Any, a: Any) -> Any:
    """Find √a as a root."""
    return custom_root(lambda x: x * x - a, jnp.ones_like(a), newton, lambda g, y: y / g(jnp.ones_like(y)))


def decay(odeint: Any, y: Any, times: Any, rate: Any) -> Any:
    """Solve y' = sin t − k y."""
    return odeint(lambda y, t, k: jnp.sin(t) - k * y, y, times, rate, rtol=1e-6, atol=1e-6)


def exported(export: Any, x: Any) -> Any:
    """Call a function that was exported and read again, with its gradient."""
    written = export(jax.jit(lambda x: jnp.sin(x) * x))(jax.ShapeDtypeStruct((3,), jnp.float32)).serialize(vjp_order=2)
    return jax.export.deserialize(written).call(x)


def splash(make: Any, q: Any, k: Any, v: Any) -> Any:
    """Run splash attention without a TPU."""
    masks = resolve("jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask")
    return make(masks.MultiHeadMask([masks.CausalMask((128, 128))]), interpret=True)(q, k, v)


def loop(while_loop: Any, x: Any) -> Any:
    """Run a loop that is differentiated backwards."""
    body = lambda carry: (carry[0] + 1, carry[1] + jnp.sin(carry[1]))  # noqa: E731
    return while_loop(lambda carry: carry[0] < 5, body, (0, x), max_steps=8, kind="checkpointed")[1]


def cubic_root(root_find: Any, a: Any) -> Any:
    """Find y with y³ + y = a."""
    solver = resolve("optimistix.Newton")(1e-7, 1e-7)
    return root_find(lambda y, a: y**3 + y - a, solver, jnp.ones_like(a), a).value


def backsolve(diffeqsolve: Any, y: Any, rate: Any) -> Any:
    """Solve y' = sin t − k y, and its adjoint backwards."""
    d = resolve("diffrax")
    term, steps = d.ODETerm(lambda t, y, k: jnp.sin(t) - k * y), d.PIDController(1e-7, 1e-7)
    adjoint = d.BacksolveAdjoint()
    return diffeqsolve(term, d.Tsit5(), 0.0, 1.0, 0.05, y, rate, stepsize_controller=steps, adjoint=adjoint).ys[-1]


def fixed_point(fixpoint_iter: Any, x: Any) -> Any:
    """Find √x by Heron's iteration."""
    step = lambda i, x, y, compute_error: 0.5 * (y + x / y)  # noqa: E731
    return fixpoint_iter(lambda i, x, y: i < 8, step, 2, 8, 2, x, jnp.ones_like(x))


def legendre(cost: Any, z: Any) -> Any:
    """Evaluate the Legendre transform of a regularized cost."""
    return cost(resolve("ott.geometry.regularizers").L1()).h_legendre(z)


def transport(solve: Any, x: Any, y: Any) -> Any:
    """Return the entropic transport plan, in which the potentials' free constant cancels."""
    cloud = resolve("ott.geometry.pointcloud").PointCloud(x, y, epsilon=0.5)
    # In float32 the backward solver needs the ridge and the tolerances: without, it fails on every third problem.
    tolerances = {"ridge_kernel": 0.1, "rtol": 1e-4, "atol": 1e-4}
    implicit = resolve("ott.solvers.linear.implicit_differentiation.ImplicitDiff")(solver_kwargs=tolerances)
    return solve(cloud, threshold=1e-6, max_iterations=5000, implicit_diff=implicit).matrix


def descend(solver: Any, a: Any) -> Any:
    """Find w with 2 w + 4 w³ = a: gradient descent, differentiated implicitly."""
    return solver(lambda w, a: jnp.sum(w**2 + w**4 - a * w), maxiter=5000, tol=1e-7).run(jnp.zeros_like(a), a).params


def harmonics(spherical_harmonics: Any, x: Any, normalize: bool = False) -> Any:
    """Evaluate spherical harmonics."""
    irreps = resolve("e3nn_jax").Irreps("0e+1o+2e+3o")
    return spherical_harmonics(irreps, x, normalize=normalize, normalization="component").array


def adjoint(solver: Any, c: Any) -> Any:
    """Solve y' = −c y at time 1."""
    solved = solver(rtol=1e-7, atol=1e-7).solve(
        lambda t, y, c: -c * y, 0.0, jnp.array([1.0, 2.0]), solution_times=[1.0], constants={"c": c}
    )
    return solved.states


def attention(mha: Any, q: Any, k: Any, v: Any) -> Any:
    """Run the attention kernel without a GPU."""
    return mha(q, k, v, None, 0.5, interpret=True)


def plain_attention(q: Any, k: Any, v: Any) -> Any:
    """Compute what the attention kernel does, in any dtype: jax.nn's function computes in float32."""
    weights = jax.nn.softmax(0.5 * jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def splash_attention(q: Any, k: Any, v: Any) -> Any:
    """Compute what the splash kernel does."""
    heads_last = [jnp.swapaxes(x, 0, 1) for x in (q, k, v)]
    return jnp.swapaxes(jax.nn.dot_product_attention(*heads_last, scale=1.0, is_causal=True), 0, 1)


def normalized(x: Any, weight: Any, bias: Any, *static: Any, centre: bool = True) -> Any:
    """Compute what the normalization kernels do."""
    x = x - jnp.mean(x, -1, keepdims=True) if centre else x
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * weight + bias


def fp8_dot(dot: Any, lhs: Any, rhs: Any) -> Any:
    """Multiply matrices in eight bits, scaled to the largest number of each."""
    one, history = jnp.ones(1), jnp.full(4, 3.0)
    scales = {f"{side}_scale": one / 50 for side in ("lhs", "rhs", "grad")}
    histories = {f"{side}_amax_history": history for side in ("lhs", "rhs", "grad")}
    return dot(lhs, rhs, MATMUL, preferred_element_type=jnp.float32, **scales, **histories)


JSP, MATH, DIST, OPS = "jax.scipy.special.", TFP + ".math.", TFP + ".distributions.", "jax.experimental.pallas.ops."
FP8, OTT, PARETO = "flax.linen.fp8_ops.", "ott.math.utils.", "numpyro.distributions.DoublyTruncatedPowerLaw"
MATMUL = (((1,), (0,)), ((), ()))
E4M3, E5M2 = jnp.dtype("float8_e4m3fn"), jnp.dtype("float8_e5m2")
POWER_LAW = (array([-2.0, 1.5, 0.5]), array([0.5, 0.3, 0.2]), array([2.0, 3.0, 2.5]))
AT_MINUS_1 = (array([-1.0, -1.0, -1.0]), *POWER_LAW[1:])
WHERE = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
INTERPRETED = (1, 3, 1e-5, "triton", True)  # the Pallas kernels' options, the last for machines without a GPU
QKV = (normal(1, 16, 1, 16),) * 3
SHAPE = (uniform(0.5, 3.0, 4), uniform(0.5, 3.0, 4))


def method(name: str, *static: Any) -> Callable[..., Any]:
    """Return a call of a distribution's method at the last argument."""
    return lambda distribution, *args: getattr(distribution(*args[:-1], *static), name)(args[-1])


EXAMPLES = (
    Example("jax.nn.relu", (normal(3, 4),)),
    Example("jax.nn.relu", (array([0.0, -0.0, 1.0, -1.0]),), "zeros"),
    Example("jax.nn.relu6", (normal(3, 4, scale=4.0),)),
    Example("jax.nn.relu6", (array([0.0, 6.0, -1.0, 3.0, 7.0]),), "kinks"),
    Example("jax.nn.log1mexp", (uniform(0.1, 3.0, 3, 4),)),
    Example("jax.nn.log1mexp", (array([1e-4, 0.6931472, 1.0, 20.0]),), "ends"),
    Example("jax.nn.softmax", (normal(3, 5),)),
    Example("jax.nn.softmax", (normal(3, 5),), "axis=0, where", kwargs={"axis": 0, "where": WHERE}),
    Example("jax.numpy.logaddexp", (normal(3, 4), normal(3, 4))),
    Example("jax.numpy.logaddexp", (normal(3, 4, scale=50.0), normal(4)), "broadcast"),
    Example("jax.numpy.logaddexp2", (normal(3, 4), normal(3, 4))),
    Example("jax.numpy.i0", (normal(3, 4),)),
    Example("jax.numpy.i0", (array([0.0, 1.0, -2.0]),), "zero"),
    Example("jax.numpy.frexp", (normal(3, 4),)),
    Example("jax.numpy.sinc", (normal(3, 4),)),
    Example("jax.numpy.sinc", (array([0.0, 1.0, -2.0, 0.5]),), "zero"),
    Example("jax.numpy.linalg.det", (normal(4, 4),)),
    Example("jax.numpy.linalg.det", (low_rank(4),), "rank 3 of 4"),
    Example("jax.numpy.linalg.det", (normal(1, 1),), "1 x 1"),
    Example("jax.numpy.linalg.slogdet", (normal(4, 4),)),
    Example("jax.numpy.linalg.slogdet", (normal(2, 2),), "2 x 2"),
    Example("jax.numpy.linalg.slogdet", (normal(2, 4, 4),), "qr", kwargs={"method": "qr"}),
    Example("jax.numpy.linalg.slogdet", (complex_normal(3, 3),), "complex"),
    Example("jax.numpy.linalg.pinv", (normal(4, 3),), "tall"),
    Example("jax.numpy.linalg.pinv", (normal(3, 4),), "wide"),
    Example("jax.numpy.linalg.pinv", (symmetric(3),), "hermitian", kwargs={"hermitian": True}),
    Example("jax.numpy.linalg.pinv", (complex_normal(4, 3),), "complex"),
    Example(JSP + "dawsn", (normal(3, 4, scale=3.0),)),
    Example(JSP + "erfcx", (normal(3, 4),)),
    Example(JSP + "erfcx", (array([8.0, 10.0, 12.0, 50.0]),), "large"),
    Example(JSP + "owens_t", (normal(3, 4), normal(3, 4))),
    Example(JSP + "wofz", (complex_normal(3, 4),)),
    Example(JSP + "entr", (uniform(0.1, 2.0, 3, 4),)),
    Example(JSP + "expi", (uniform(0.2, 3.0, 3, 4),)),
    Example(JSP + "expi", (uniform(-3.0, -0.2, 3, 4),), "negative"),
    Example(JSP + "expn", (2, uniform(0.1, 4.0, 3, 4)), "n=2"),
    Example(JSP + "exp1", (uniform(0.1, 4.0, 3, 4),)),
    Example(JSP + "hyp1f1", (uniform(0.5, 2.0, 4), uniform(0.5, 2.0, 4), uniform(0.1, 2.0, 4))),
    Example(JSP + "hyp1f1", (array([0.0, 1.0, 2.0]), array([1.5, 1.0, 3.0]), array([0.5, 0.5, 0.5])), "a=0, a=b"),
    Example(JSP + "hyp2f1", (uniform(0.5, 2.0, 4), uniform(0.5, 2.0, 4), uniform(2.5, 4.0, 4), uniform(0.05, 0.6, 4))),
    Example(JSP + "log_ndtr", (normal(3, 4),)),
    Example(JSP + "log_ndtr", (array([-30.0, -9.0, -5.0, 0.0, 4.0, 6.0]),), "tails"),
    Example(JSP + "logit", (uniform(0.05, 0.95, 3, 4),)),
    Example(JSP + "poch", (uniform(0.5, 3.0, 3, 4), uniform(0.5, 3.0, 3, 4))),
    Example(JSP + "sici", (uniform(0.3, 3.5, 3, 4),)),
    Example(JSP + "sici", (array([5.0, 20.0, -3.0, -6.0]),), "large"),
    Example(JSP + "xlog1py", (normal(3, 4), uniform(-0.5, 2.0, 3, 4))),
    Example(JSP + "xlogy", (normal(3, 4), uniform(0.1, 2.0, 3, 4))),
    Example(JSP + "zeta", (uniform(1.5, 4.0, 3, 4), uniform(0.5, 3.0, 3, 4))),
    Example(JSP + "zeta", (array([0.5]), array([1.0])), "x < 1"),
    Example(JSP + "fresnel", (normal(3, 4, scale=2.0),)),
    Example("jax.lax.custom_root", (uniform(0.5, 4.0, 3),), call=square_root),
    Example("jax.export.export", (normal(3),), "call", exported),
    # The adjoint is solved as a differential equation of its own: equal within the solver's tolerance.
    Example(
        "jax.experimental.ode.odeint", (normal(2), array([0.0, 0.5, 1.2]), uniform(0.5, 1.5, 2)), call=decay,
        options={"rtol": 1e-3},
    ),
    # Kernels have no derivative but the rule's: the reference is what they compute, written out.
    Example(
        OPS + "gpu.layer_norm.layer_norm", (normal(2, 3, 8), normal(8), normal(8), *INTERPRETED),
        options={"reference": normalized},
    ),
    Example(
        OPS + "gpu.rms_norm.rms_norm", (normal(2, 3, 8), normal(8), normal(8), *INTERPRETED),
        options={"reference": functools.partial(normalized, centre=False)},
    ),
    Example(OPS + "gpu.attention.mha", QKV, call=attention, options={"reference": plain_attention}),
    Example(OPS + "tpu.flash_attention.mha_reference", (*(normal(1, 1, 4, 3),) * 3, normal(1, 1, 4, 4))),
    Example(
        OPS + "tpu.megablox.ops.gmm", (normal(16, 8), normal(2, 8, 8), array([10, 6], jnp.int32)),
        call=lambda gmm, lhs, rhs, sizes: gmm(lhs, rhs, sizes, jnp.float32, (8, 8, 8), interpret=True),
        options={"reference": jax.lax.ragged_dot},
    ),
    Example(
        OPS + "tpu.splash_attention.splash_attention_kernel.make_splash_mha_single_device",
        (normal(1, 128, 128, scale=0.1), normal(1, 128, 128), normal(1, 128, 128)), "causal", splash,
        options={"reference": splash_attention, "level": "rule"},
    ),
    # Its purpose is another derivative than its value's: the scaled one.
    Example("optax.scale_gradient", (normal(3, 4), 0.3), options={"reference": lambda x, scale: scale * x}),
    Example("optax.safe_softmax_cross_entropy", (normal(3, 4), simplex(3, 4))),
    Example("optax.safe_softmax_cross_entropy", (array([-np.inf, 1.0, 2.0]), array([0.0, 0.4, 0.6])), "logit -inf"),
    Example("optax.projections.projection_simplex", (normal(5),)),
    Example("optax.projections.projection_simplex", (normal(5), array(2.0)), "scale"),
    # Straight-through: the derivative of the value before it is rounded to eight bits. What the rules return for scale
    # and history is no derivative: the layers keep these in a collection named _overwrite_with_gradient.
    Example(
        FP8 + "in_qdq", (jnp.float32, E4M3, normal(3, 4), array([0.01]), array(np.full(4, 3.0))),
        options={"reference": lambda compute, kind, x, scale, history: x, "argnums": (2,)},
    ),
    # Here the cotangent is rounded to eight bits, three of them the significand's, and cut at the largest one so far.
    Example(
        FP8 + "out_qdq", (jnp.float32, E5M2, normal(3, 4), array([0.01]), array(np.full(4, 3.0))),
        options={
            "reference": lambda compute, kind, x, scale, history: x,
            "argnums": (2,), "level": "rule", "skip": ("linearity",), "rtol": 0.125,
        },
    ),
    Example(
        FP8 + "fp8_scaled_dot_general", (normal(3, 4), normal(4, 2)), call=fp8_dot,
        options={"reference": jnp.matmul, "skip": ("linearity",), "level": "rule", "rtol": 0.125},
    ),
    Example(FP8 + "dot_general_with_precision", (normal(3, 4), normal(4, 2), MATMUL)),
    Example("equinox.internal.nextafter", (normal(3, 4),)),
    Example("equinox.internal.prevbefore", (normal(3, 4),)),
    Example("equinox.internal.while_loop", (normal(3),), "checkpointed", loop),
    Example(
        "equinox.error_if", (normal(3, 4),), call=lambda error_if, x: error_if(x, jnp.any(x > 1e30), "large"),
        options={"skip": ("extremes",)},  # the error is for them
    ),
    Example("lineax.internal.two_norm", (normal(3, 4),)),
    Example("lineax.internal.two_norm", (normal(1),), "one element"),
    Example("lineax.internal.max_norm", (normal(3, 4),)),
    Example("optimistix.root_find", (normal(3),), call=cubic_root),
    Example("diffrax.diffeqsolve", (normal(2), uniform(0.5, 1.5, 2)), "BacksolveAdjoint", backsolve),
    Example("distrax.multiply_no_nan", (normal(3, 4), normal(3, 4))),
    Example("distrax.Multinomial", (simplex(3),), "entropy", lambda d, p: d(3, probs=p).entropy()),
    Example("distrax.VonMises", (array(0.3), uniform(0.5, 2.0, 3), uniform(-1.0, 1.0, 3)), "cdf", method("cdf")),
    Example("rlax.clip_gradient", (normal(3, 4), -1.0, 1.0), options={"reference": lambda x, low, high: x}),
    Example("numpyro.distributions.util.log1mexp", (uniform(-3.0, -0.1, 3, 4),)),
    Example(PARETO, (*POWER_LAW, uniform(0.6, 1.9, 3)), "log_prob", method("log_prob")),
    Example(PARETO, (*POWER_LAW, uniform(0.6, 1.9, 3)), "cdf", method("cdf")),
    Example(PARETO, (*AT_MINUS_1, uniform(0.6, 1.9, 3)), "cdf, alpha=-1", method("cdf")),
    Example(PARETO, (*POWER_LAW, uniform(0.1, 0.9, 3)), "icdf", method("icdf")),
    Example(PARETO, (*AT_MINUS_1, uniform(0.1, 0.9, 3)), "icdf, alpha=-1", method("icdf")),
    Example(OTT + "norm", (normal(4),)),
    Example(OTT + "norm", (array([0.0, 0.0, 0.0]),), "zero"),
    Example(OTT + "norm", (normal(3, 4), None, -1), "axis=-1"),
    Example(OTT + "logsumexp", (normal(3, 4), -1, False, uniform(0.2, 2.0, 3, 4)), "b"),
    Example(OTT + "logsumexp", (normal(3, 4), -1, False, normal(3, 4), True), "return_sign"),
    Example(OTT + "logsumexp", (array([[-np.inf] * 3, [0.0, 1.0, 2.0]]), -1), "row of -inf"),
    Example(OTT + "logsumexp", (normal(3, 4), -1, True), "keepdims"),
    Example(OTT + "softmin", (normal(3, 4), array(0.5), -1)),
    Example(OTT + "lambertw", (uniform(0.1, 3.0, 3, 4),)),
    Example(OTT + "lambertw", (array([0.0, -0.2, 1.0, 20.0]),), "zero"),
    Example("ott.math.matrix_square_root.sqrtm", (positive_definite(3),)),
    Example("ott.math.matrix_square_root.sqrtm_only", (positive_definite(3),)),
    Example("ott.math.matrix_square_root.inv_sqrtm_only", (positive_definite(3),)),
    Example("ott.math.fixed_point_loop.fixpoint_iter_backprop", (uniform(0.5, 3.0, 3),), call=fixed_point),
    Example("ott.geometry.costs.RegTICost", (normal(4, scale=3.0),), "h_legendre", legendre),
    Example("ott.solvers.linear.solve", (normal(4, 2), normal(3, 2)), "plan", transport, options={"rtol": 1e-2}),
    Example("jaxopt.projection.projection_simplex", (normal(5),)),
    Example("jaxopt.projection.projection_sparse_simplex", (normal(5), 3)),
    Example("jaxopt.isotonic.isotonic_l2_pav", (normal(5),)),
    Example("jaxopt.isotonic.isotonic_l2_pav", (array([1.0, 3.0, 2.0, 2.5, 0.0, 5.0]),), "blocks"),
    Example("jaxopt.GradientDescent", (normal(3),), "run", descend),
    Example("e3nn_jax.spherical_harmonics", (normal(2, 3),), call=harmonics),
    Example("e3nn_jax.spherical_harmonics", (normal(2, 3),), "normalize", functools.partial(harmonics, normalize=True)),
    Example("tokamax.layer_norm", (normal(3, 8), normal(8), normal(8))),
    Example("tokamax.layer_norm", (normal(3, 8), normal(8), None), "rms", kwargs={"subtract_mean": False}),
    Example("tokamax.dot_product_attention", (normal(1, 4, 2, 8),) * 3, kwargs={"implementation": "xla"}),
    Example(
        "tokamax.dot_product_attention", (normal(1, 4, 2, 8),) * 3, "chunked, causal",
        kwargs={"implementation": "xla_chunked", "is_causal": True},
    ),
    Example("tokamax.gated_linear_unit", (normal(3, 4), normal(4, 2, 5)), kwargs={"activation": jax.nn.swish}),
    Example("tokamax.ragged_dot", (normal(6, 4), normal(2, 4, 5), array([4, 2], jnp.int32))),
    Example(
        "tokamax.linear_softmax_cross_entropy_loss", (normal(3, 4), array([0, 2, 1], jnp.int32), normal(4, 5)),
    ),
    Example(
        "tokamax.triangle_multiplication",
        (normal(3, 3, 4), array(np.ones((3, 3)), bool), normal(4, 2, 5), normal(4, 2, 5), normal(5, 4), normal(4, 4),
         normal(4), normal(4), normal(5), normal(5), "incoming"),
    ),
    Example(MATH + "betainc", (*SHAPE, uniform(0.1, 0.9, 4))),
    Example(MATH + "betaincinv", (*SHAPE, uniform(0.1, 0.9, 4))),
    Example(MATH + "dawsn", (normal(4, scale=3.0),)),
    Example(MATH + "erfcx", (normal(4),)),
    Example(MATH + "igammainv", (uniform(0.5, 3.0, 4), uniform(0.1, 0.9, 4))),
    Example(MATH + "igammacinv", (uniform(0.5, 3.0, 4), uniform(0.1, 0.9, 4))),
    Example(MATH + "lambertw", (array([0.0, -0.2, 1.0, 20.0]),)),
    Example(MATH + "lbeta", SHAPE),
    Example(MATH + "lbeta", (uniform(8.0, 30.0, 4), uniform(8.0, 30.0, 4)), "large"),
    Example(MATH + "log_gamma_difference", (uniform(0.5, 3.0, 4), uniform(3.0, 20.0, 4))),
    Example(MATH + "owens_t", (normal(4), normal(4))),
    # "Gradients with respect to the first parameter `v` are currently not defined", their documentation says.
    *(
        Example(MATH + name, (uniform(0.5, 3.0, 4), uniform(0.5, 4.0, 4)), options={"argnums": (1,), "level": "rule"})
        for name in ("bessel_ive", "bessel_kve", "log_bessel_ive", "log_bessel_kve", "bessel_iv_ratio")
    ),
    Example(MATH + "log_cosh", (normal(3, 4),)),
    Example(MATH + "hpsd_logdet", (positive_definite(3),)),
    Example(MATH + "hpsd_solve", (positive_definite(3), normal(3, 2))),
    Example(MATH + "hpsd_quadratic_form_solve", (positive_definite(3), normal(3, 1)), "one column"),
    Example(MATH + "hpsd_quadratic_form_solve", (positive_definite(3), normal(3, 2)), "two columns"),
    Example(MATH + "hpsd_quadratic_form_solvevec", (positive_definite(3), normal(3))),
    Example(MATH + "reduce_kahan_sum", (normal(3, 4),), call=lambda f, x: f(x, axis=-1).total),
    Example(
        MATH + "psd_kernels.MaternThreeHalves", (normal(3, 2), normal(4, 2), array(0.7)), "matrix",
        lambda kernel, x, y, scale: kernel(length_scale=scale).matrix(x, y),
    ),
    Example(MATH + "ode.DormandPrince", (array(0.7),), "solve", adjoint),
    *(
        Example(f"{TFP}.experimental.math.{name}", (uniform(0.2, 2.0, 3, 4),))
        for name in ("exp_pade_4_4", "expm1_pade_4_4", "log1p_pade_4_4", "log_pade_4_4")
    ),
    Example(
        TFP + ".experimental.bijectors.ScalarFunctionWithInferredInverse", (normal(3),), "inverse",
        lambda bijector, y: bijector(lambda x: x**3 + x).inverse(y),
    ),
    Example(
        TFP + ".experimental.distributions.marginal_fns.retrying_cholesky", (positive_definite(3),),
        call=lambda cholesky, matrix: cholesky(matrix)[0],
    ),
    Example(DIST + "StudentT", (uniform(1.0, 5.0, 4), normal(4)), "cdf", lambda d, df, x: d(df, 0.0, 1.0).cdf(x),
            options={"level": "rule"}),
    Example(
        DIST + "StudentT", (uniform(1.0, 5.0, 4), uniform(0.1, 0.9, 4)), "quantile",
        lambda d, df, p: d(df, 0.0, 1.0).quantile(p), options={"level": "rule"},
    ),
    Example(DIST + "VonMises", (uniform(0.5, 2.0, 4), uniform(-1.0, 1.0, 4)), "cdf", lambda d, k, x: d(0.0, k).cdf(x)),
    Example(DIST + "NoncentralChi2", (*SHAPE, uniform(0.5, 5.0, 4)), "cdf", method("cdf"), options={"level": "rule"}),
    Example(
        DIST + "NoncentralChi2", (*SHAPE, uniform(0.1, 0.9, 4)), "quantile", method("quantile"),
        options={"level": "rule"},
    ),
)  # fmt: skip

SKIPPED = {  # a rule, or a prefix of rules: why no example reaches it
    "jax._src.ad_checkpoint.": "internal to rematerialization policies",
    "jax._src.custom_derivatives.custom_gradient": "makes a rule of the caller's functions",
    "jax._src.cudnn.": "needs cuDNN on a GPU",
    "jax._src.state.discharge._eval_jaxpr_ad_error": "raises on purpose",
    OPS + "gpu.attention_mgpu.": "a kernel for Hopper GPUs",
    OPS + "tpu.flash_attention._flash_attention": "a TPU kernel without an interpreted mode",
    OPS + "tpu.splash_attention.splash_attention_kernel._attention_reference": "the reference of a kernel's tests",
    "jax.experimental.rnn.": "needs cuDNN on a GPU",
    "flax.core.lift.": "makes a rule of the caller's functions",
    "flax.linen.transforms.": "makes a rule of the caller's functions",
    "flax.nnx.transforms.": "makes a rule of the caller's functions",
    "equinox._ad.": "makes a rule of the caller's functions, or raises on purpose",
    "equinox._pretty_print.": "prints rules",
    "equinox.debug.": "prints and stops on NaN; the identity otherwise",
    "jaxopt._src.perturbations.": "a Monte Carlo estimate of a smoothed function's derivative",
    "ott.solvers.linear.semidiscrete.": "used inside the solver's steps only",
    "distrax._src.distributions.von_mises._von_mises_sample": "a sample's: float32 and float64 draw other samples",
    "tokamax._src.benchmarking.": "used by the benchmarks only",
    "tokamax._src.ops.experimental.tpu.": "a TPU kernel",
    "tokamax._src.ops.flex_attention.": "not exported",
    TFP + ".internal.custom_gradient.": "raises on purpose, or makes a rule of the caller's functions",
    TFP + ".internal.distribute_lib.": "internal to sharded distributions",
    TFP + ".distributions.mixture_same_family.": "a sample's; raises on purpose in second order",
    TFP + ".distributions.gamma.": "a sample's: float32 and float64 draw other samples",
    TFP + ".distributions.inverse_gaussian.": "a sample's: float32 and float64 draw other samples",
    TFP + ".distributions.two_piece_normal.": "a sample's: float32 and float64 draw other samples",
    TFP + ".distributions.von_mises._von_mises_sample": "a sample's: float32 and float64 draw other samples",
    TFP + ".math.hypergeometric.": "minutes a call; of x alone",
}


# --- what failed, computed without the checker ---

mp.mp.dps = 40
DOCUMENTED = {"rlax.clip_gradient": "Identity but the gradient in the backward pass is clipped."}


def against(rule: Any, truth: Any, how: str, tolerance: float = 1e-5) -> str:
    """Tell a rule's number from another calculation's; "" if they agree."""
    a, b = float(rule), float(truth)
    same = a == b or (math.isnan(a) and math.isnan(b)) or (math.isfinite(b) and abs(a - b) <= tolerance * abs(b))
    return "" if same else f"rule {a:.7g}, {how} {b:.7g}"


def raised(calculation: Callable[[], Any]) -> str:
    """Tell what a calculation raises; "" if it raises nothing."""
    try:
        calculation()
    except Exception as error:
        return f"raises {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return ""


def together(*findings: str) -> str:
    """Join findings; "" if one of them is missing, as then not everything is confirmed."""
    return "; ".join(findings) if all(findings) else ""


def half(*values: Any) -> Any:
    """Return an array in bfloat16."""
    return jnp.asarray(values, jnp.bfloat16)


def central(f: Callable[[float], float], x: float, step: float) -> float:
    """Differentiate numerically, in float64."""
    return float((8 * (f(x + step) - f(x - step)) - (f(x + 2 * step) - f(x - 2 * step))) / (12 * step))


def hyp1f1_at_zero() -> str:
    rule = jax.grad(jax.scipy.special.hyp1f1)(0.0, 1.5, 0.5)
    return against(rule, mp.diff(lambda a: mp.hyp1f1(a, 1.5, 0.5), 0), "∂/∂a at (0, 1.5, 0.5) by mpmath")


def log_ndtr_tail() -> str:
    def at(x: float) -> str:
        x = float(np.float32(x))
        return against(jax.grad(jax.scipy.special.log_ndtr)(x), mp.npdf(x) / mp.ncdf(x), f"at {x:.7g} by mpmath")

    return together(at(-30.0), at(-900.0), at(-3e5))


def zeta_below_one() -> str:
    zeta = jax.scipy.special.zeta
    value, ruled = zeta(0.5, 1.0), jax.value_and_grad(zeta)(0.5, 1.0)[0]
    return against(ruled, value, "zeta(0.5, 1) without derivative")


def gmm_batched() -> str:
    rng = np.random.default_rng(0)
    lhs, rhs, dy = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((16, 8), (2, 8, 8), (16, 8)))
    gmm, sizes = resolve(OPS + "tpu.megablox.ops.gmm"), jnp.array([10, 6], jnp.int32)

    def gradient(lhs: Any, rhs: Any) -> Any:
        return jax.vjp(lambda rhs: gmm(lhs, rhs, sizes, jnp.float32, (8, 8, 8), interpret=True), rhs)[1](dy)[0]

    batched = jax.vmap(gradient)(jnp.stack([lhs, lhs]), jnp.stack([rhs, rhs]))
    return against(jnp.isnan(batched).sum(), 2 * jnp.isnan(gradient(lhs, rhs)).sum(), "NaN of 256 under vmap, without")


def attended(q: Any, k: Any, dy: Any) -> Any:
    """Return ∂/∂v of attention, softmax(q kᵀ)ᵀ dy, in float64."""
    scores = np.float64(q) @ np.float64(k).T
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).T @ np.float64(dy)


def farthest(rule: Any, truth: Any, how: str, tolerance: float) -> str:
    """Tell the element that is off the most."""
    error = np.abs(np.float64(rule) - truth)
    i = np.unravel_index(error.argmax(), error.shape)
    return against(rule[i], truth[i], f"∂/∂v{list(map(int, i))} {how} by NumPy", tolerance)


def mha_reference_half() -> str:
    rng = np.random.default_rng(0)
    q, k, v, dy = (jnp.asarray(8 * rng.standard_normal((4, 3)), jnp.bfloat16) for _ in range(4))
    f = resolve(OPS + "tpu.flash_attention.mha_reference")
    dv = jax.vjp(lambda v: f(q[None, None], k[None, None], v[None, None], None), v)[1](dy[None, None])[0]
    return farthest(dv, attended(q, k, dy), "in bfloat16", 0.05)


def mha_large() -> str:
    rng = np.random.default_rng(0)
    q, k, v, dy = (jnp.asarray(rng.standard_normal((16, 16)), jnp.float32) for _ in range(4))
    q, k = 1e4 * q, 1e4 * k
    f = lambda v: attention(resolve(OPS + "gpu.attention.mha"), *(x[None, :, None] for x in (q, k, v)))[0, :, 0]  # noqa: E731
    return farthest(jax.vjp(f, v)[1](dy)[0], attended(0.5 * q, k, dy), "at 10⁴ times normal q and k", 0.05)


def simplex_half(name: str, *static: Any) -> str:
    f, x = resolve(name), half(0.1, 0.2, 0.4)
    found = raised(lambda: jax.grad(lambda x: f(x, *static)[0])(x))
    return together(found, f"the value exists: {np.float32(f(x, *static))}")


def multinomial_entropy() -> str:
    entropy = lambda p: resolve("distrax.Multinomial")(3, probs=p).entropy()  # noqa: E731
    found = raised(lambda: jax.grad(entropy)(jnp.array([0.2, 0.3, 0.5])))
    tilted = central(lambda t: float(entropy(jnp.array([0.2 + t, 0.3 - t, 0.5]))), 0.0, 1e-2)
    return together(found, f"along (1, -1, 0) it is {tilted:.4g} by central difference")


def clipped() -> str:
    rule = jax.vjp(lambda x: resolve("rlax.clip_gradient")(x, -1.0, 1.0), jnp.float32(0.5))[1](jnp.float32(2.0))[0]
    return against(rule, 2.0, "cotangent through the identity")


def power(name: str, *values: float, dtype: Any = jnp.float32, compiled: bool = False) -> tuple[float, ...]:
    """Return the rule's derivatives by alpha, low and high of a method at (alpha, low, high, x)."""
    derivative = jax.grad(lambda *p: getattr(resolve(PARETO)(*p[:3]), name)(p[3]), (0, 1, 2))
    return (jax.jit(derivative) if compiled else derivative)(*(jnp.asarray(v, dtype) for v in values))


def power_law(name: str, alpha: Any, low: Any, high: Any, x: Any) -> Any:
    """Return the closed form."""
    b = alpha + 1
    if name == "log_prob":
        return mp.log(b * x**alpha / (high**b - low**b))
    if name == "cdf":
        return mp.log(x / low) / mp.log(high / low) if b == 0 else (x**b - low**b) / (high**b - low**b)
    return low * (high / low) ** x if b == 0 else (low**b + x * (high**b - low**b)) ** (1 / b)


def power_truth(name: str, argument: int, *values: float) -> Any:
    """Return the derivative of the closed form by mpmath."""
    point = [mp.mpf(np.float32(v).item()) for v in values]
    moved = lambda t: power_law(name, *(v if i != argument else t for i, v in enumerate(point)))  # noqa: E731
    return mp.diff(moved, point[argument], h=mp.mpf("1e-12"))


def power_log_prob() -> str:
    at = ("log_prob", -2.0, 0.5, 2.0, 1.0)
    _, low, high = power(*at)
    return together(
        against(low, power_truth("log_prob", 1, *at[1:]), f"∂/∂low at {at[1:]} by mpmath"),
        against(high, power_truth("log_prob", 2, *at[1:]), "∂/∂high by mpmath"),
    )


def power_half() -> str:
    at = (-16.0, 0.5, 2.0, 1.0)
    rule = power("cdf", *at, dtype=jnp.float16)[0]
    return against(rule, power_truth("cdf", 0, *at), f"∂/∂alpha at {at} by mpmath", 0.05)


def power_at_minus_1(name: str, *at: float, by_high: bool = False) -> str:
    alpha, _, high = power(name, *at)
    found = [against(alpha, power_truth(name, 0, *at), f"∂/∂alpha at {at} by mpmath", 1e-2)]
    if by_high:
        found.append(against(high, power_truth(name, 2, *at), "∂/∂high by mpmath"))
    return together(*found)


def power_rounding(name: str, *at: float) -> str:
    return together(
        against(power(name, *at)[0], power(name, *at, compiled=True)[0], f"∂/∂alpha at {at} compiled", 1e-3),
        against(power(name, *at, dtype=jnp.bfloat16)[0], power_truth(name, 0, *at), "in bfloat16, by mpmath", 0.05),
    )


def power_mixed() -> str:
    rule = jax.grad(jax.grad(lambda low, alpha: resolve(PARETO)(alpha, low, 2.0).icdf(0.5)), 1)(0.5, -1.0)
    truth = mp.diff(
        lambda low, alpha: power_law("icdf", alpha, low, mp.mpf(2), mp.mpf(0.5)), (mp.mpf(0.5), mp.mpf(-1)), (1, 1),
        h=mp.mpf("1e-12"),
    )  # fmt: skip
    return against(rule, truth, "∂²/∂low ∂alpha at (-1, 0.5, 2, 0.5) by mpmath")


def norm_of_zero() -> str:
    norm, x = resolve(OTT + "norm"), jnp.zeros(3)
    return against(jax.value_and_grad(norm)(x)[0], norm(x), "norm(0, 0, 0) without derivative")


def logsumexp_of_nothing() -> str:
    f, x = resolve(OTT + "logsumexp"), jnp.full(3, -jnp.inf)
    return against(jax.value_and_grad(f)(x)[0], f(x), "logsumexp(-inf, -inf, -inf) without derivative")


def logsumexp_kept() -> str:
    f, x = resolve(OTT + "logsumexp"), jnp.ones((2, 3))
    return together(
        raised(lambda: jax.grad(lambda x: f(x, -1, True).sum())(x)), f"the value exists: {f(x, -1, True)[0]}"
    )


def softmin_gamma() -> str:
    rule = jax.grad(resolve(OTT + "softmin"), 1)(jnp.array([1.0, 2.0, 3.0]), 0.5)
    return against(rule, mp.diff(lambda g: -g * mp.log(sum(mp.exp(-x / g) for x in (1, 2, 3))), 0.5), "∂/∂γ by mpmath")


def lambertw_twice(name: str) -> str:
    return against(jax.grad(jax.grad(resolve(name)))(0.0), mp.diff(mp.lambertw, 0, 2), "W''(0) by mpmath")


def quadratic_form() -> str:
    matrix, rhs = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, 2.0], [3.0, -1.0]])
    f = lambda x: resolve(MATH + "hpsd_quadratic_form_solve")(jnp.float32(matrix), x)[0, 1]  # noqa: E731
    truth = np.linalg.solve(matrix, rhs)[0, 1]  # ∂(Xᵀ M⁻¹ X)₀₁ / ∂X₀₀ = (M⁻¹ X)₀₁
    return against(jax.grad(f)(jnp.float32(rhs))[0, 0], truth, "∂y[0, 1]/∂rhs[0, 0] by NumPy")


def ode_compiled() -> str:
    f = lambda c: jnp.sum(adjoint(resolve(MATH + "ode.DormandPrince"), c))  # noqa: E731
    eager = float(jax.grad(f)(jnp.float32(0.7)))
    found = raised(lambda: jax.jit(jax.grad(f))(jnp.float32(0.7)))
    return together("jit(grad) " + found if found else "", f"grad without jit gives {eager:.6g}")


def gamma_difference() -> str:
    y = 19.0
    rule = jax.grad(resolve(MATH + "log_gamma_difference"), 1)(0.75, y)
    return together(
        against(rule, mp.digamma(y) - mp.digamma(y + 0.75), "∂/∂y at (0.75, 19) by mpmath", 1e-6),
        against(
            jax.grad(resolve(MATH + "log_gamma_difference"), 1)(*half(0.75, y)),
            mp.digamma(y) - mp.digamma(y + 0.75), "in bfloat16", 2e-2,
        ),
    )  # fmt: skip


def inverse_gamma(name: str, truth: Callable[[float, float], float]) -> str:
    first = lambda a: central(lambda a: truth(a, 0.4), a, 1e-3)  # noqa: E731
    rule = jax.grad(jax.grad(resolve(MATH + name)))(1.5, 0.4)
    return against(rule, central(first, 1.5, 1e-3), "∂²/∂a² at (1.5, 0.4) from SciPy's values", 1e-2)


def noncentral_cdf() -> str:
    rule = jax.grad(lambda df: resolve(DIST + "NoncentralChi2")(df, 1.5).cdf(2.0))(3.0)
    return against(rule, central(lambda df: special.chndtr(2.0, df, 1.5), 3.0, 1e-3), "∂/∂df from SciPy's values")


def noncentral_quantile() -> str:
    df, shift = jax.grad(lambda df, n: resolve(DIST + "NoncentralChi2")(df, n).quantile(0.4), (0, 1))(3.0, 1.5)
    return together(
        against(df, central(lambda df: special.chndtrix(0.4, df, 1.5), 3.0, 1e-2), "∂/∂df from SciPy's values"),
        against(shift, central(lambda n: special.chndtrix(0.4, 3.0, n), 1.5, 1e-2), "∂/∂noncentrality"),
    )


WRONG = ("gradient", "kinks", "extremes", "precision")  # a wrong derivative fails wherever it is compared
CONFIRMED: dict[str, dict[tuple[str, ...], Callable[[], str]]] = {
    "jax.scipy.special.hyp1f1 [a=0, a=b]": {("gradient",): hyp1f1_at_zero},
    "jax.scipy.special.log_ndtr": {("extremes",): log_ndtr_tail},
    "jax.scipy.special.log_ndtr [tails]": {WRONG: log_ndtr_tail},
    "jax.scipy.special.zeta [x < 1]": {("primal",): zeta_below_one},
    OPS + "gpu.attention.mha": {("extremes",): mha_large},
    OPS + "tpu.megablox.ops.gmm": {("vmap",): gmm_batched},
    OPS + "tpu.flash_attention.mha_reference": {("precision",): mha_reference_half},
    **{
        title: {("precision",): functools.partial(simplex_half, *call)}
        for title, call in {
            "optax.projections.projection_simplex": ("optax.projections.projection_simplex",),
            "optax.projections.projection_simplex [scale]": ("optax.projections.projection_simplex",),
            "jaxopt.projection.projection_sparse_simplex": ("jaxopt.projection.projection_sparse_simplex", 3),
        }.items()
    },
    "distrax.Multinomial [entropy]": {("signature",): multinomial_entropy},
    "rlax.clip_gradient": {(*WRONG, "linearity"): clipped},
    PARETO + " [log_prob]": {WRONG: power_log_prob},
    PARETO + " [cdf]": {("precision",): power_half},
    PARETO + " [cdf, alpha=-1]": {
        ("gradient",): functools.partial(power_at_minus_1, "cdf", -1.0, 0.3, 3.0, 1.2, by_high=True),
        ("precision", "staging", "vmap", "shard_map"): functools.partial(power_rounding, "cdf", -1.0, 0.3, 3.0, 1.2),
    },
    PARETO + " [icdf, alpha=-1]": {
        ("gradient",): functools.partial(power_at_minus_1, "icdf", -1.0, 0.5, 2.0, 0.4),
        ("precision", "staging", "vmap", "shard_map"): functools.partial(power_rounding, "icdf", -1.0, 0.5, 2.0, 0.4),
        ("second_order",): power_mixed,
    },
    OTT + "norm [zero]": {("primal",): norm_of_zero},
    OTT + "logsumexp [row of -inf]": {("primal",): logsumexp_of_nothing},
    OTT + "logsumexp [keepdims]": {("signature",): logsumexp_kept},
    OTT + "softmin": {WRONG: softmin_gamma},
    OTT + "lambertw [zero]": {("second_order",): functools.partial(lambertw_twice, OTT + "lambertw")},
    "tfp.math.lambertw": {("second_order",): functools.partial(lambertw_twice, MATH + "lambertw")},
    "tfp.math.hpsd_quadratic_form_solve [two columns]": {WRONG: quadratic_form},
    "tfp.math.ode.DormandPrince [solve]": {("signature", "staging"): ode_compiled},
    "tfp.math.log_gamma_difference": {("gradient", "precision"): gamma_difference},
    "tfp.math.igammainv": {("second_order",): functools.partial(inverse_gamma, "igammainv", special.gammaincinv)},
    "tfp.math.igammacinv": {("second_order",): functools.partial(inverse_gamma, "igammacinv", special.gammainccinv)},
    "tfp.distributions.NoncentralChi2 [cdf]": {("gradient",): noncentral_cdf},
    "tfp.distributions.NoncentralChi2 [quantile]": {("gradient",): noncentral_quantile},
}


# --- the run ---

SYMBOLS = {  # the worst first
    "FAIL": "#c62828",
    "INCONCLUSIVE": "#f9a825",
    "UNSUPPORTED": "#90a4ae",
    "NOTE": "#bbdefb",
    "PASS": "#66bb6a",
    "": "#ffffff",
}


@dataclasses.dataclass
class Verdict:
    """What came of an example."""

    example: Example
    version: str
    rules: dict[str, str] = dataclasses.field(default_factory=dict)
    report: gradcheck.Report | None = None
    crash: str = ""
    seconds: float = 0.0
    confirmed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return the kinds of the library's rules that were called."""
        return ", ".join(sorted(set(self.rules.values())))

    @property
    def word(self) -> str:
        """Return the verdict in a word, with the checks that failed."""
        if self.crash:
            return "CRASH"
        if not self.report.ok:
            failed = dict.fromkeys(row.check for row in self.report.failures)
            return "FAIL " + ", ".join(failed)
        return "PASS"

    @property
    def remark(self) -> str:
        """Return what qualifies the verdict."""
        if self.crash:
            return ""
        statuses = [row.status for row in self.report.rows]
        counts = [f"{n} {s}" for s in ("UNSUPPORTED", "INCONCLUSIVE") if (n := statuses.count(s))]
        documented = [f"as documented: “{DOCUMENTED[self.example.name]}”"] if self.example.name in DOCUMENTED else []
        found = [*(documented if not self.report.ok else ()), *counts]
        return f" ({', '.join(found)})" if found else ""

    @property
    def notes(self) -> list[str]:
        """Return what is worth reading of the report, the failures first."""
        if self.crash:
            return [self.crash]
        rows = [row for row in self.report.rows if row.status in ("FAIL", "INCONCLUSIVE", "UNSUPPORTED")]
        rows.sort(key=lambda row: list(SYMBOLS).index(row.status))
        return [f"{row.status} {row.check} {row.path}: {row.message}" for row in rows]

    def statuses(self) -> dict[str, str]:
        """Return the worst status of each check."""
        found: dict[str, str] = {}
        for row in self.report.rows if self.report else ():
            found[row.check] = min(found.get(row.check, ""), row.status, key=list(SYMBOLS).index)
        return found

    def to_dict(self, command: str) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "function": self.example.title,
            "library": self.example.library,
            "version": self.version,
            "kind": self.kind,
            "rules": list(self.rules),
            "verdict": self.word,
            "confirmed": self.confirmed,
            "documented": DOCUMENTED.get(self.example.name, ""),
            "notes": self.notes,
            "repro": f"{command} --only {shlex.quote(self.example.title)}",
            "seconds": round(self.seconds, 1),
            "report": self.report.to_dict() if self.report else None,
        }


def examined(example: Example, version: str, seed: int) -> Verdict:
    """Check one example; an error of the checker is a verdict too."""
    verdict = Verdict(example, version)
    jax.clear_caches()  # what is compiled already is not traced again, and its rules would not be seen
    started = time.perf_counter()
    with recording() as called:
        try:
            f, args = example.function(), example.arguments(seed)
            verdict.report = gradcheck.check(f, *args, kwargs=dict(example.kwargs), seed=seed, **example.options)
        except Exception as error:
            verdict.crash = f"{type(error).__name__}: {error}".splitlines()[0]
    verdict.seconds = time.perf_counter() - started
    verdict.rules = {name: kind for name, kind in sorted(called.items()) if name.startswith(example.library + ".")}
    if verdict.report and not verdict.report.ok:
        confirm(verdict)
    return verdict


def confirm(verdict: Verdict) -> None:
    """Compute what failed once more, without the checker."""
    calculations = CONFIRMED.get(verdict.example.title, {})
    found = {checks: calculation() for checks, calculation in calculations.items()}
    for check in dict.fromkeys(row.check for row in verdict.report.failures):
        verdict.confirmed[check] = next((text for checks, text in found.items() if check in checks), "")


def chosen(only: str | None) -> list[Example]:
    """Return the examples of a function, of one by its title, or of a library."""
    found = [e for e in EXAMPLES if not only or only in (e.title, short(e.name), e.name, e.library)]
    if not found:
        raise SystemExit(f"--only {only!r} must be a function, an example or a library; --list shows the functions")
    return found


def versions() -> dict[str, str]:
    """Return the version of each library, "" where it is not installed."""
    found = {}
    for library, distribution in LIBRARIES.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(distribution)
    return {library: found.get(library, "") for library in LIBRARIES}


def unreached(rules: list[Rule], verdicts: list[Verdict]) -> dict[Rule, str]:
    """Return the rules that no example has reached, each with the reason."""
    called = {name for verdict in verdicts for name in verdict.rules}
    missing = [rule for rule in rules if not rule.is_reached(called)]
    reasons = {rule: [why for prefix, why in SKIPPED.items() if rule.name.startswith(prefix)] for rule in missing}
    return {rule: (reasons[rule] or ["no example arguments"])[0] for rule in missing}


def main() -> None:
    """Discover, check, confirm, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", metavar="NAME", help="a function, an example (its name in the table) or a library")
    parser.add_argument("--seed", type=int, default=0, help="of the arguments and of the checker")
    parser.add_argument("--list", action="store_true", help="print what is discovered, and check nothing")
    parser.add_argument("--out", type=Path, default=OUT, help="where results.json and verdicts.png go")
    options, command = parser.parse_args(), sys.argv
    sys.argv = command[:1]  # tokamax reads the command line as well, and refuses options that are not its own
    warnings.simplefilter("ignore")  # of the libraries
    logging.disable(logging.CRITICAL)
    jax.config.update("jax_softmax_custom_jvp", True)  # the rule of jax.nn.softmax is behind this flag
    console = rich.console.Console()
    examples, installed = chosen(options.only), versions()
    rules, unimported = [], {}
    for library in LIBRARIES if options.list or not options.only else ():
        if installed[library]:
            found, failed = discover(library)
            rules += found
            unimported |= failed
    if options.list:
        listed(console, rules, unimported, installed)
        return
    verdicts = []
    for example in rich.progress.track(examples, console=console, disable=not console.is_terminal, transient=True):
        if installed[example.library]:
            verdicts.append(examined(example, installed[example.library], options.seed))
    missing = {} if options.only else unreached(rules, verdicts)
    shown(console, verdicts, missing, rules, installed)
    if not options.only:
        written(options.out, command, verdicts, missing, unimported, installed)
        console.print(f"{options.out}/results.json, {drawn(options.out, verdicts)}")


def listed(
    console: rich.console.Console, rules: list[Rule], unimported: dict[str, str], installed: dict[str, str]
) -> None:
    """Print what was discovered."""
    for library, version in installed.items():
        own = [rule for rule in rules if rule.library == library]
        console.print(f"[bold]{short(library)}[/bold] {version or 'is not installed'}: {len(own)} rules")
        for rule in own:
            where = rule.public or ("made when it is called" if rule.made_by_call else "behind public functions")
            console.print(f"  {rule.kind:<15} {short(rule.name)}  ({short(where)})", soft_wrap=True, highlight=False)
    for module, why in unimported.items():
        console.print(f"not imported: {module}: {why}", soft_wrap=True, highlight=False)


def shown(
    console: rich.console.Console, verdicts: list[Verdict], missing: dict[Rule, str], rules: list[Rule],
    installed: dict[str, str],
) -> None:  # fmt: skip
    """Print the table, and below it what failed."""
    table = rich.table.Table("library", "function", "kind", "verdict", box=None, pad_edge=False)
    for v in verdicts:
        color = "green" if v.word == "PASS" else "magenta" if v.word == "CRASH" else "red"
        table.add_row(
            f"{short(v.example.library)} {v.version}", v.example.title, v.kind, f"[{color}]{v.word}{v.remark}"
        )
    for rule, why in missing.items():
        table.add_row(f"{short(rule.library)} {installed[rule.library]}", short(rule.name), rule.kind, why)
    for library in installed if rules else ():
        if not any(rule.library == library for rule in rules):
            version = installed[library]
            table.add_row(f"{short(library)} {version}", "", "", "no custom rules" if version else "not installed")
    console.print(table)
    say = functools.partial(console.print, soft_wrap=True, markup=False, highlight=False)
    for v in (v for v in verdicts if v.word != "PASS"):
        say(f"\n{v.example.title}: {v.word}{v.remark}")
        for note in v.notes[:8]:
            say(f"  {note}")
        for text in dict.fromkeys(v.confirmed.values()):
            checks = ", ".join(check for check, found in v.confirmed.items() if found == text)
            say(f"  {checks}: {'confirmed: ' + text if text else 'not confirmed, counted as a bug of the checker'}")
    counts = [sum(v.word.startswith(word) for v in verdicts) for word in ("PASS", "FAIL", "CRASH")]
    unconfirmed = sum(not text for v in verdicts for text in v.confirmed.values())
    say(
        f"\n{len(verdicts)} examples: {counts[0]} PASS, {counts[1]} FAIL ({unconfirmed} failed checks not confirmed), "
        f"{counts[2]} CRASH" + (f"; {len(missing)} of {len(rules)} rules not checked" if rules else "")
    )


def written(
    out: Path, command: list[str], verdicts: list[Verdict], missing: dict[Rule, str], unimported: dict[str, str],
    installed: dict[str, str],
) -> None:  # fmt: skip
    """Write results.json."""
    script = f"python {Path(command[0]).as_posix()}"
    content = {
        "command": shlex.join(["python", *command]),
        "python": sys.version.split()[0],
        "versions": installed | {"jaxlib": importlib.metadata.version("jaxlib"), "numpy": np.__version__},
        "verdicts": [v.to_dict(script) for v in verdicts],
        "not checked": [dataclasses.asdict(rule) | {"why": why} for rule, why in missing.items()],
        "not imported": unimported,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(content, indent=1, default=str) + "\n")


def drawn(out: Path, verdicts: list[Verdict]) -> Path:
    """Draw the statuses, functions by checks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.patches
    import matplotlib.pyplot as plt

    ran = [v for v in verdicts if v.report]
    checks = list(dict.fromkeys(row.check for v in ran for row in v.report.rows))
    worst = [list(SYMBOLS).index(v.statuses().get(check, "")) for v in ran for check in checks]
    figure, axes = plt.subplots(figsize=(9, 2 + 0.17 * len(ran)), layout="constrained")
    colors = matplotlib.colors.ListedColormap(list(SYMBOLS.values()))
    image = np.reshape(worst, (len(ran), len(checks)))
    axes.pcolormesh(image, cmap=colors, vmin=-0.5, vmax=len(SYMBOLS) - 0.5, edgecolors="white", linewidth=0.5)
    axes.set_xticks(np.arange(len(checks)) + 0.5, checks, rotation=60, ha="left", fontsize=8)
    axes.set_yticks(np.arange(len(ran)) + 0.5, [v.example.title for v in ran], fontsize=6)
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.tick_params(length=0)
    patches = [matplotlib.patches.Patch(color=color, label=status) for status, color in SYMBOLS.items() if status]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    path = out / "verdicts.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
