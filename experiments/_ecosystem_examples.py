"""Example calls into other libraries: for each function with a rule, arguments at which it is checked."""

import dataclasses
import functools
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _ecosystem_rules import LIBRARIES, TFP, resolve, short
from packaging.version import Version

Make = Callable[[np.random.Generator], Any]


@dataclasses.dataclass(frozen=True)
class Example:
    """A public function with arguments.

    Attributes:
      name: the function, as it is imported.
      args: functions that make arrays, and other arguments as they are.
      label: distinguishes the examples of a function.
      call: calls the function, its first argument, where a plain call is not enough.
      kwargs: keyword arguments of the function.
      options: keyword arguments of `gradcheck.check`.
      since: the first version of the library that has it, "" for every version.
    """

    name: str
    args: tuple[Any, ...]
    label: str = ""
    call: Callable[..., Any] | None = None
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    since: str = ""

    @property
    def title(self) -> str:
        """Return what the table calls it."""
        return short(self.name) + (f" [{self.label}]" if self.label else "")

    @property
    def library(self) -> str:
        """Return the library it belongs to."""
        return next(library for library in LIBRARIES if self.name.startswith(library + "."))

    def is_in(self, version: str) -> bool:
        """Whether this version of the library has it; "" means that the library is not installed."""
        return bool(version) and (not self.since or Version(version) >= Version(self.since))

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


def sine_of_module(custom_vjp: Any, x: Any, y: Any) -> Any:
    """Compute y sin x of a module's two parameters, with the rule of flax's own example."""
    nnx = resolve("flax.nnx")
    f = custom_vjp(lambda m: jnp.sin(m.x[...]) * m.y[...], graph_updates=True)

    def backward(residuals: Any, cotangents: Any) -> Any:
        m, ((dm,), dy) = residuals, cotangents
        dm = jax.tree.map(lambda leaf: leaf, dm)
        dm["x"][...], dm["y"][...] = dy * jnp.cos(m.x[...]) * m.y[...], dy * jnp.sin(m.x[...])
        return (dm,)

    f.defvjp(lambda m: (f(m), m), backward)
    return f(nnx.Dict(x=nnx.Param(x), y=nnx.Param(y)))


def plain_cross_entropy(x: Any, labels: Any, w: Any) -> Any:
    """Compute what tokamax's cross entropy does."""
    return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(x @ w), labels[:, None], -1))


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
    # In float32 the backward solver needs ridge and tolerances: without them it fails on every third problem.
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
    # The adjoint is another differential equation: it agrees within the solver's tolerance.
    Example(
        "jax.experimental.ode.odeint", (normal(2), array([0.0, 0.5, 1.2]), uniform(0.5, 1.5, 2)), call=decay,
        options={"rtol": 1e-3},
    ),
    # Kernels have only the rule's derivative: the reference computes the same in plain JAX.
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
    # It scales the derivative and not the value, on purpose.
    Example("optax.scale_gradient", (normal(3, 4), 0.3), options={"reference": lambda x, scale: scale * x}),
    Example("optax.safe_softmax_cross_entropy", (normal(3, 4), simplex(3, 4))),
    Example("optax.safe_softmax_cross_entropy", (array([-np.inf, 1.0, 2.0]), array([0.0, 0.4, 0.6])), "logit -inf"),
    Example("optax.projections.projection_simplex", (normal(5),)),
    Example("optax.projections.projection_simplex", (normal(5), array(2.0)), "scale"),
    # Straight-through: the derivative of the value before it is rounded to eight bits. For scale and history the rules
    # return new values, not derivatives: the layers keep them in a collection named _overwrite_with_gradient.
    Example(
        FP8 + "in_qdq", (jnp.float32, E4M3, normal(3, 4), array([0.01]), array(np.full(4, 3.0))),
        options={"reference": lambda compute, kind, x, scale, history: x, "argnums": (2,)},
    ),
    # Here the cotangent is rounded to eight bits, three of them significand, and clipped at the largest one so far.
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
    Example("flax.nnx.custom_vjp", (normal(3), normal(3)), "module", sine_of_module),
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
    # JAX cannot differentiate its loops, so the reference computes the same in plain JAX. A block has 2048 classes.
    *(
        Example(
            "tokamax.linear_softmax_cross_entropy_loss",
            (normal(3, 4), array([0, 2, 1], jnp.int32), normal(4, classes)), f"chunked, {classes} classes",
            lambda loss, *args: loss(*args, implementation="chunked_xla"),
            options={"reference": plain_cross_entropy}, since="0.0.17",
        )
        for classes in (37, 2048)
    ),
    *(
        Example(
            "jax_cce.linear_cross_entropy", (normal(6, 4), normal(37, 4), array([0, 36, 5, 11, 36, 7], jnp.int32)),
            f"chunk_size={size}", kwargs={"chunk_size": size},
        )
        for size in (37, 16)
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
SKIPPED = {  # a rule, or a prefix of rules: the reason why no example reaches it
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
