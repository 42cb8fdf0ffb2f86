"""Gradient descent on the notes' polynomial, L(w) = Σ (f_w(x) − t)² with f_w(x) = w₂x² + w₁x + w₀.

Full-batch gradient descent, random mini-batches and single examples, each until it converges, are compared with the
least-squares solution. The decrease of the loss that the gradient predicts, η ‖∇L‖², is compared with the measured one,
up to an η that is too large. At the end the line y = wx + b with b fixed is fitted, in one parameter.

Source: Neural Networks Basics, "A simple example (linear regression)", "Why GD works", "A linear regression example",
"A problem of the gradient descent", "Stochastic gradient descent"; Multi-class classification and backpropagation,
"Recap: Gradient Descent".
"""

import argparse
import functools
import sys

import _experiment as experiment
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

import jaxnn

TRUE_W = (1.0, -2.0, 3.0)  # of the points, before the noise
NOISE = 0.3
BATCHES = {"full batch": None, "mini-batches of 10": 10, "one example": 1}
SLOWER = 30  # passes after which η has halved, for mini-batches and single examples
CONVERGED = {None: 1e-6, 10: 1e-8, 1: 1e-8}  # relative change of w in a pass
BLOCK = 500  # passes in one compiled loop; after it convergence is tested


def loss(w: Float[Array, "3"], x: Float[Array, " n"], t: Float[Array, " n"]) -> Float[Array, ""]:
    """Return the summed loss of the polynomial with the coefficients w = (w₀, w₁, w₂)."""
    y = jaxnn.linear(jnp.stack([jnp.ones_like(x), x, x**2], axis=1), w[None])[:, 0]
    return jaxnn.squared_error(y, t, reduction="sum")


def gradient_of_the_notes(w: np.ndarray, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return Σ 2 (f_w(x) − t) (1, x, x²), in NumPy."""
    return sum(
        2 * (w[2] * xi**2 + w[1] * xi + w[0] - ti) * np.array([1, xi, xi**2]) for xi, ti in zip(x, t, strict=True)
    )


gradient = jax.grad(loss)


@functools.partial(jax.jit, static_argnames=("batch_size", "passes"))
def descend(
    w: Array, x: Array, t: Array, key: Array, rate: float, first: Array, *, batch_size: int | None, passes: int
):
    """Make passes over the data, w ← w − ηᵗ ∇L(w; D'), each in a new random order; return w after each pass.

    With mini-batches η has to fall (the notes' ηᵗ): with a constant η, w would circle the minimum for ever.
    """
    n = x.shape[0]
    size = batch_size or n

    def one_pass(w: Array, number: Array) -> tuple[Array, Array]:
        order = jax.random.permutation(jax.random.fold_in(key, number), n).reshape(-1, size)
        eta = rate if batch_size is None else rate / (1 + number / SLOWER)
        w, _ = lax.scan(lambda w, rows: (w - eta * gradient(w, x[rows], t[rows]), None), w, order)
        return w, w

    return lax.scan(one_pass, w, first + jnp.arange(passes))[1]


def until_it_converges(x, t, key, rate, batch_size, most):
    """Descend until a pass changes w by less than `CONVERGED`; return w before the first and after each pass."""
    history = [np.zeros((1, 3), np.float32)]
    for first in range(0, most, BLOCK):
        w = jnp.asarray(history[-1][-1])
        after = np.asarray(
            descend(w, x, t, key, rate, jnp.int32(first), batch_size=batch_size, passes=min(BLOCK, most - first))
        )
        with np.errstate(all="ignore"):  # a descent that diverges ends here and fails its claims
            moved = np.linalg.norm(after - np.vstack([w, after[:-1]]), axis=1) / np.linalg.norm(after, axis=1)
        rest = np.flatnonzero(~(moved > CONVERGED[batch_size]))
        history.append(after[: rest[0] + 1] if len(rest) else after)
        if len(rest):
            break
    return np.concatenate(history)


def measure(options: argparse.Namespace) -> experiment.Results:
    """Run the experiment."""
    key = jax.random.key(options.seed)
    keys = jax.random.split(key, 3)
    x = jax.random.uniform(keys[0], (options.points,), minval=-1, maxval=1)
    t = TRUE_W[0] + TRUE_W[1] * x + TRUE_W[2] * x**2 + NOISE * jax.random.normal(keys[1], x.shape)
    X, T = np.stack([np.ones(len(x)), x, np.square(x)], 1).astype(np.float64), np.asarray(t, np.float64)
    best, *_ = np.linalg.lstsq(X, T)
    least, hessian = np.sum((X @ best - T) ** 2), 2 * X.T @ X
    steepest = np.linalg.eigvalsh(hessian)[-1]
    start = np.zeros(3)
    excess = lambda w: np.maximum(np.sum((X @ w.T - T[:, None]) ** 2, axis=0) - least, 0)  # noqa: E731

    claims = [
        experiment.at_most(
            "the gradient by rule is the notes' Σ 2 (f − t)(1, x, x²): largest relative difference",
            np.max(np.abs(gradient(jnp.zeros(3), x, t) / gradient_of_the_notes(start, X[:, 1], T) - 1)),
            1e-5,
        )
    ]
    rows, curves = [], {}
    for name, batch_size in experiment.progress(BATCHES.items(), "descending"):
        rate = 1 / steepest if batch_size is None else 1 / (2 * batch_size * 3)  # ‖(1, x, x²)‖² is at most 3
        w = until_it_converges(x, t, keys[2], rate, batch_size, options.passes)
        above = excess(w.astype(np.float64))
        error = np.linalg.norm(w[-1] - best) / np.linalg.norm(best)
        sooner = next((number for number, a in enumerate(above) if a < 0.01 * above[0]), len(w) - 1)
        rows.append([name, rate, sooner, len(w) - 1, error])
        shown = np.unique(np.geomspace(1, len(w), 120).astype(int)) - 1
        curves[name] = {"pass": shown.tolist(), "excess": experiment.numbers(above[shown], 4)}
        claims.append(experiment.at_most(f"{name}: distance from the least-squares solution, relative", error, 1e-4))
    passes = {row[0]: row[2] for row in rows}
    claims.append(
        experiment.at_least(
            "update sooner: passes until 99% of the excess loss are gone, full batch over one example",
            passes["full batch"] / passes["one example"],
            5,
        )
    )
    claims_of_decrease, decrease = measure_decrease(x, t, X, T, hessian)
    claims_of_line, line = measure_line(options.seed)
    return {
        "claims": claims + claims_of_decrease + claims_of_line,
        "tables": [
            experiment.table(
                "Passes over the data until 99% of the excess loss are gone, and until w stands still",
                ["descent", "first η", "passes to 1%", "passes in all", "relative error"],
                rows,
            ),
            line,
        ],
        "curves": curves,
        "decrease": decrease,
        "points": {"x": experiment.numbers(x, 4), "t": experiment.numbers(t, 4), "w": experiment.numbers(best)},
    }


def measure_decrease(x, t, X, T, hessian):
    """Compare the decrease of the loss in one step with η ‖∇L‖², for tiny η up to one that is too large."""
    w = jnp.zeros(3)
    g = np.asarray(gradient(w, x, t), np.float64)
    exact = lambda v: np.sum((X @ v - T) ** 2)  # noqa: E731
    steepest = np.linalg.eigvalsh(hessian)[-1]
    etas = np.concatenate([[1e-4], np.linspace(0.05, 3, 60)]) / steepest
    measured = np.array([exact(np.zeros(3)) - exact(-eta * g) for eta in etas])
    predicted = etas * (g @ g)
    second_order = predicted - etas**2 * (g @ hessian @ g) / 2

    def after(multiple: float) -> float:
        eta, w = multiple / steepest, np.zeros(3, np.float32)
        for _ in range(60):
            w = w - eta * np.asarray(gradient(jnp.asarray(w, jnp.float32), x, t))
        return exact(w) / exact(np.zeros(3))

    first_order = abs(measured[0] / predicted[0] - 1)
    remainder = np.max(np.abs(measured - second_order) / predicted)
    claims = [
        experiment.at_most("η ‖∇L‖² predicts the decrease as η → 0: |measured / predicted − 1|", first_order, 1e-3),
        experiment.at_most("less ½ η² ∇L H ∇Lᵀ it is exact: largest error, relative to η ‖∇L‖²", remainder, 1e-5),
        experiment.at_most("η = 1.9 / λ: loss after 60 steps, relative to the first", after(1.9), 1),
        experiment.at_least("η = 2.1 / λ: loss after 60 steps, relative to the first", after(2.1), 1),
    ]
    return claims, {
        "eta": experiment.numbers(etas * steepest, 4),
        "measured": experiment.numbers(measured / predicted[0] * etas[0], 5),
        "predicted": experiment.numbers(predicted / predicted[0] * etas[0], 5),
    }


def measure_line(seed):
    """Fit w of y = wx + b with b known, by dL/dw = 2x(wx + b − y)."""
    w_true, b = 2.0, 1.0
    x = np.random.default_rng(seed).uniform(-1, 1, 20)
    y = w_true * x + b
    x32, y32 = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def line_loss(w: Array) -> Array:
        return jaxnn.squared_error(
            jaxnn.linear(x32[:, None], w.reshape(1, 1), jnp.full(1, b))[:, 0], y32, reduction="sum"
        )

    rows, w, eta = [], jnp.float32(0), 0.5 / np.sum(2 * x**2)
    slope = jax.jit(jax.grad(line_loss))
    worst = 0.0
    for step in range(31):
        by_rule, by_hand = float(slope(w)), float(np.sum(2 * x * (float(w) * x + b - y)))
        worst = max(worst, abs(by_rule - by_hand) / np.sum(2 * np.abs(x * y)))
        if step in (0, 1, 2, 3, 5, 10, 30):
            rows.append([step, float(w), by_rule, by_hand])
        w = w - eta * by_rule
    claims = [
        experiment.at_most("line: dL/dw by rule is Σ 2x(wx + b − y), relative to its terms", worst, 1e-6),
        experiment.at_most("line: |w − 2| after 31 steps", abs(float(w) - w_true), 1e-5),
    ]
    columns = ["step", "w", "dL/dw by rule", "Σ 2x(wx + b − y)"]
    return claims, experiment.table("The line y = wx + 1 in one parameter, w = 2", columns, rows)


CAPTIONS = {
    "polynomial_regression": (
        "Left: the data and the parabola of least squares. Middle: the loss above its minimum against passes over the "
        "data; single examples learn sooner, full batches more steadily. Right: the decrease of the loss in one step, "
        "predicted by the gradient and measured."
    ),
}


def draw(results: experiment.Results) -> dict[str, Figure]:
    """Draw the fit, the loss against the passes, and the predicted decrease."""
    figure, ((fit, passes, decrease),) = experiment.panels(1, 3)
    points = results["points"]
    x = np.linspace(-1, 1, 100)
    fit.plot(points["x"], points["t"], ".", color=experiment.GREY, label="data")
    fit.plot(x, np.polynomial.Polynomial(points["w"])(x), color=experiment.VERMILION, label="least squares")
    fit.set(title="The data and the minimum", xlabel="x", ylabel="t")
    fit.legend()
    for name, curve in results["curves"].items():
        passes.loglog(np.array(curve["pass"]) + 1, np.maximum(curve["excess"], 1e-12), label=name)
    passes.set(title="Update sooner: loss above the minimum", xlabel="passes over the data + 1", ylim=(1e-7, None))
    passes.legend()
    curve = results["decrease"]
    decrease.plot(curve["eta"], curve["predicted"], label="predicted, η ‖∇L‖²")
    decrease.plot(curve["eta"], curve["measured"], label="measured")
    decrease.axhline(0, color=experiment.GREY, linewidth=0.8)
    decrease.set(title="Decrease of L in one step", xlabel="η times the largest curvature", ylabel="decrease / ‖∇L‖²")
    decrease.legend()
    return {"polynomial_regression": figure}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--points", type=int, choices=(50, 100, 200), default=50, help="examples (default 50)")
    parser.add_argument(
        "--passes", type=experiment.positive, default=50_000, help="most passes over the data (default 50000)"
    )


if __name__ == "__main__":
    sys.exit(experiment.main(__doc__, add_options, measure, draw))
