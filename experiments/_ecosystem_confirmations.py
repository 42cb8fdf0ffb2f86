"""Second calculations of what failed, each without the checker."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
from _ecosystem_examples import DIST, MATH, OPS, OTT, PARETO, adjoint, attention, sine_of_module
from _ecosystem_rules import resolve
from scipy import special

mp.mp.dps = 40  # significant digits

DOCUMENTED = {"rlax.clip_gradient": "Identity but the gradient in the backward pass is clipped."}


def against(rule: Any, truth: Any, how: str, tolerance: float = 1e-5) -> str:
    """Describe the difference of a rule's number from another calculation's; "" if they agree."""
    a, b = float(rule), float(truth)
    same = a == b or (math.isnan(a) and math.isnan(b)) or (math.isfinite(b) and abs(a - b) <= tolerance * abs(b))
    return "" if same else f"rule {a:.7g}, {how} {b:.7g}"


def raised(calculation: Callable[[], Any]) -> str:
    """Describe what a calculation raises; "" if it raises nothing."""
    try:
        calculation()
    except Exception as error:
        return "raises " + f"{type(error).__name__}: {error}".splitlines()[0][:180]
    return ""


def together(*findings: str) -> str:
    """Join findings; "" if one is missing, because then not everything is confirmed."""
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
    """Describe the element with the largest error."""
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


def twice_sine(x: Any) -> Any:
    return sine_of_module(resolve("flax.nnx.custom_vjp"), x, jnp.float32(2.0))


def sine_twice() -> str:
    rule = jax.grad(jax.grad(twice_sine))(jnp.float32(1.0))
    return against(rule, -2 * np.sin(1.0), "d²(2 sin x)/dx² at 1 by NumPy")


def sine_under_remat() -> str:
    x = jnp.float32(1.0)
    found = raised(lambda: jax.grad(jax.checkpoint(twice_sine))(x))
    return together(
        "grad of remat " + found if found else "", f"grad without remat gives {jax.grad(twice_sine)(x):.6g}"
    )


def padded_classes() -> str:
    rng = np.random.default_rng(0)
    x, w, labels = rng.standard_normal((3, 4)), rng.standard_normal((4, 37)), np.array([0, 2, 1])
    logits = x @ w
    truth = np.sum(special.logsumexp(logits, -1) - logits[np.arange(3), labels])
    f = resolve("tokamax.linear_softmax_cross_entropy_loss")
    loss = f(jnp.float32(x), jnp.int32(labels), jnp.float32(w), implementation="chunked_xla")
    return against(loss, truth, "the loss over 37 classes by NumPy")


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
        against(power(name, *at)[0], power(name, *at, compiled=True)[0], f"∂/∂alpha at {at} compiled", 5e-5),
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
    "flax.nnx.custom_vjp [module]": {("second_order",): sine_twice, ("staging",): sine_under_remat},
    "tokamax.linear_softmax_cross_entropy_loss [chunked, 37 classes]": {(*WRONG, "primal"): padded_classes},
    "distrax.Multinomial [entropy]": {("signature",): multinomial_entropy},
    "rlax.clip_gradient": {(*WRONG, "linearity"): clipped},
    PARETO + " [log_prob]": {WRONG: power_log_prob},
    PARETO + " [cdf]": {("precision",): power_half},
    PARETO + " [cdf, alpha=-1]": {
        ("gradient",): functools.partial(power_at_minus_1, "cdf", -1.0, 0.3, 3.0, 1.2, by_high=True),
        ("precision", "staging", "vmap", "shard_map"): functools.partial(power_rounding, "cdf", -1.0, 0.5, 2.0, 1.2),
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
