"""The three losses −log p, 1 − p and −p, and their arithmetic in float32, bfloat16 and float16."""

import functools
import math

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

import jaxnn

LOG, INVERSE, MINUS = "−log p", "1 − p", "−p"
DTYPES = ("float32", "bfloat16", "float16")
STEP = 0.5  # between two gaps: all three dtypes hold its multiples up to 128
GAPS = np.arange(-20, 120 + STEP, STEP)
RIGHT = 0.01  # the relative error below which a loss counts as right
EPS = {name: float(jnp.finfo(name).eps) for name in DTYPES}


def of_true(p: Float[Array, "*n c"], t: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Return p_t of each row."""
    return jnp.take_along_axis(p, t[..., None], -1)[..., 0]


LOSSES = {
    LOG: lambda p, t: jaxnn.nll(p, t, reduction="none"),
    INVERSE: lambda p, t: 1 - of_true(p, t),
    MINUS: lambda p, t: -of_true(p, t),
}
VALUES = {LOG: lambda p: -jnp.log(p), INVERSE: lambda p: 1 - p, MINUS: lambda p: -p}  # of p_t, in its dtype


def naive(x: Float[Array, "n c"]) -> Float[Array, " n"]:
    """Return −log p_0, computed from p, in x's dtype."""
    return VALUES[LOG](jaxnn.softmax(x)[:, 0])


def fused(x: Float[Array, "n c"]) -> Float[Array, " n"]:
    """Return −log p_0 from the logits."""
    return jaxnn.cross_entropy(x, jnp.zeros(len(x), jnp.int32), reduction="none")


def logits(gaps: np.ndarray, dtype: str) -> Float[Array, "n 2"]:
    """Return rows of two logits: 0 for the true class, and the gap for the other."""
    return jnp.stack([jnp.zeros(len(gaps), dtype), jnp.asarray(gaps, dtype)], 1)


def relative_error(measured: Array, truth: np.ndarray) -> np.ndarray:
    """Return |measured / truth − 1|; inf where it is not finite."""
    return np.nan_to_num(np.abs(np.asarray(measured, np.float64) / truth - 1), nan=np.inf)


def first_gap(wrong: np.ndarray, gaps: np.ndarray) -> float:
    """Return the first gap that is wrong, or the last gap if none is."""
    return float(gaps[np.argmax(wrong)] if wrong.any() else gaps[-1])


def measure_precision():
    """Find the gaps between two logits at which −log p loses its digits, compared with float64."""
    above = GAPS >= 0
    far = np.append(GAPS[above], [128, 256, 512, 1000])
    sigmoid = 1 / (1 + np.exp(-far))
    claims, rows, curves = [], [], {}
    for dtype in DTYPES:
        x, far_x, eps, limits = logits(GAPS, dtype), logits(far, dtype), EPS[dtype], jnp.finfo(dtype)
        errors = {form.__name__: relative_error(form(x), np.logaddexp(0, GAPS)) for form in (naive, fused)}
        infinite = first_gap(np.isinf(np.asarray(naive(x), np.float64)), GAPS)
        least, most = -math.log(float(limits.tiny)), -math.log(float(limits.smallest_subnormal) / 2)
        reaches = []
        for error in errors.values():
            wrong = error > RIGHT
            below = first_gap(wrong[~above][::-1], GAPS[~above][::-1])
            reaches += [below, first_gap(wrong[above], GAPS[above]) if wrong[above].any() else "none"]
        rows.append([dtype, infinite, f"{least:.1f} to {most:.1f}", *reaches])
        log_p = np.logaddexp(0, far)
        t = jnp.zeros(len(far), jnp.int32)
        by_way_of_p = jax.grad(lambda x, t=t: jnp.sum(LOSSES[LOG](jaxnn.softmax(x), t)))(far_x)
        in_one = jax.grad(lambda x: jnp.sum(fused(x)))(far_x)
        claims += [
            experiment.at_most(
                f"{dtype}: −log softmax is inf from a gap at which p underflows, {least:.1f} to {most:.1f}: distance",
                max(least - infinite, infinite - most, 0), STEP,
            ),
            experiment.at_most(
                f"{dtype}: cross_entropy up to a gap of 1000: largest relative error",
                relative_error(fused(far_x), log_p).max(), 4 * EPS["float32"],
            ),
            experiment.at_most(
                f"{dtype}: log_softmax up to a gap of 1000: largest relative error",
                relative_error(-jaxnn.log_softmax(far_x)[:, 0], log_p).max(), eps,
            ),
            experiment.at_least(
                f"{dtype}: gaps whose gradient is NaN by way of p", jnp.sum(jnp.isnan(by_way_of_p[:, 0])), 1
            ),
            experiment.at_most(
                f"{dtype}: the fused gradient is p − e(t) up to a gap of 1000: largest error",
                np.max(np.abs(np.asarray(in_one, np.float64) - np.stack([-sigmoid, sigmoid], 1))), eps,
            ),
        ]  # fmt: skip
        curves[dtype] = {form: experiment.numbers(np.clip(error, 1e-9, 2), 3) for form, error in errors.items()}
    columns = ["dtype", "naive: inf from", "p underflows at"]
    columns += [f"{form}: wrong {side}" for form in ("naive", "fused") for side in ("up to", "from")]
    title = f"−log p of two logits, by the gap from the true one up to the other; wrong: by more than {RIGHT:.0%}"
    return claims, experiment.table(title, columns, rows), curves


def measure_differences():
    """Count the different values of each loss at p = 1/2, 1/4, 1/8, …, down to the dtype's smallest number."""
    claims, rows = [], []
    for dtype in DTYPES:
        limits = jnp.finfo(dtype)
        p = jnp.asarray(np.ldexp(1.0, -np.arange(1, 1 - limits.minexp)), dtype)
        rows.append([dtype, len(p), *(len(np.unique(np.float64(value(p)))) for value in VALUES.values())])
        claims += [
            experiment.at_least(f"{dtype}: values of −log p, of the values of p", rows[-1][2] / len(p), 1),
            experiment.at_most(
                f"{dtype}: values of 1 − p, which is 1 below eps/4", rows[-1][3], limits.nmant + 2
            ),
        ]  # fmt: skip
    return claims, experiment.table(
        "Different values of the losses at p = 1/2, 1/4, 1/8, …", ["dtype", "p", LOG, INVERSE, MINUS], rows
    )


@functools.partial(jax.jit, static_argnums=0)
def running(step, values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the running product or sum, rounded to the values' dtype after each."""
    _, after = lax.scan(lambda total, v: (step(total, v),) * 2, values[0], values[1:])
    return jnp.append(values[:1], after)


def measure_product(trained: Float[Array, " n"]):
    """Multiply probabilities of the true class, and add their logarithms."""
    claims, rows, curves = [], [], {}
    cases = {"p = 1/10": np.full(len(trained), 0.1), "trained": np.asarray(trained, np.float64)}
    for case, p in cases.items():
        truth = -math.fsum(np.log(p))
        curves[case] = {}
        for dtype in DTYPES:
            product = np.float64(running(jnp.multiply, jnp.asarray(p, dtype)))
            gone = int(np.argmax(np.append(product, 0) == 0)) + 1
            log_p, t = jnp.asarray(np.log(p), dtype), jnp.zeros(len(p), jnp.int32)
            sums = -np.float64(running(jnp.add, log_p))
            total = float(jaxnn.nll_loss(log_p[:, None], t, reduction="sum"))
            rows.append([case, dtype, gone if gone <= len(p) else "never", truth, total, sums[-1]])
            rounding = EPS[dtype] / 2 + math.sqrt(len(p)) * EPS["float32"]  # of each log p, and of a sum in float32
            error = abs(total / truth - 1)
            claims.append(experiment.at_most(f"{case}, {dtype}: Σ −log p by nll_loss, relative error", error, rounding))
            if case == "p = 1/10":
                limits = jnp.finfo(dtype)
                ends = [float(limits.tiny), float(limits.smallest_subnormal) / 2]
                least, most = (math.log(end) / math.log(0.1) for end in ends)
                claims.append(
                    experiment.at_most(
                        f"{case}, {dtype}: the product is 0 after {least:.1f} to {most:.1f} factors: distance",
                        max(least - gone, gone - most, 0), 1,
                    )
                )  # fmt: skip
            curves[case][dtype] = {"product": experiment.numbers(np.log10(product[: gone - 1]), 4)}
            curves[case][dtype] |= {"sum": experiment.numbers(sums, 4)} if case == "p = 1/10" else {}
        curves[case]["truth"] = experiment.numbers(-np.cumsum(np.log(p)), 4)
    p, eps = cases["p = 1/10"][:200], np.finfo(np.float64).eps
    difference = abs(math.log(math.prod(p)) - math.fsum(np.log(p)))
    bound = (len(p) + abs(math.fsum(np.log(p)))) * eps  # a rounding of each factor, and of the logarithm
    claims.append(
        experiment.at_most("−log Π p is Σ −log p: difference, 200 factors of 1/10 in float64", difference, bound)
    )
    columns = ["p", "dtype", "product is 0 after", "Σ −log p", "by nll_loss", "added up in the dtype"]
    return claims, experiment.table("A product of probabilities and the sum of their logarithms", columns, rows), curves
