"""The right rules, which stretch the checker the other way: no check may fail on any of them."""

import dataclasses
import functools
import importlib.util
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

import jaxnn
from zoo.specimen import (
    RIGHT,
    Make,
    Specimen,
    at_least_float32,
    average,
    correlate,
    elementwise,
    fixed,
    from_output,
    inf,
    layer_norm,
    layer_norm_fwd,
    nan,
    normal,
    one_hot,
    only_of,
    phases,
    right,
    rule,
    squared_length,
    swap,
    total,
    uniform,
    unit,
)


def also_right(**makes: Make) -> None:
    """Put right specimens into the zoo that need no code of their own."""
    RIGHT.extend(Specimen(id.replace("_", "-"), make) for id, make in makes.items())


# ------------------------------------------------------------------------------- textbook, elementwise


also_right(
    sine=lambda: (elementwise(jnp.sin, jnp.cos), (normal(4, 3),)),
    square=lambda: (elementwise(lambda x: x * x, lambda x: 2 * x), (normal(4, 3),)),
    exponential_from_output=lambda: (from_output(jnp.exp, lambda y: y), (normal(4, 3),)),
    tanh_from_output=lambda: (from_output(jnp.tanh, lambda y: (1 - y) * (1 + y)), (normal(4, 3),)),
    sigmoid_from_output=lambda: (from_output(jax.nn.sigmoid, lambda y: y * (1 - y)), (normal(4, 3),)),
    root_from_output=lambda: (from_output(jnp.sqrt, lambda y: 0.5 / y), (uniform(0.5, 2, 4, 3),)),
    logarithm_of_positives=lambda: (elementwise(jnp.log, lambda x: 1 / x), (uniform(0.1, 3, 4, 3),)),
    arcsine_inside_its_domain=lambda: (
        elementwise(jnp.arcsin, lambda x: lax.rsqrt((1 - x) * (1 + x))),
        (uniform(-0.9, 0.9, 5),),
    ),
    cube_by_power=lambda: (elementwise(lambda x: x**3, lambda x: 3 * x**2), (normal(4, 3),)),
    scalar=lambda: (elementwise(jnp.sin, jnp.cos), (fixed(0.3),)),
    size_0=lambda: (elementwise(jnp.sin, jnp.cos), (normal(0, 3),)),
    size_1=lambda: (elementwise(jnp.sin, jnp.cos), (normal(1, 1),)),
    ten_thousand=lambda: (elementwise(jnp.sin, jnp.cos), (normal(100, 100),)),
    ten_million=lambda: (elementwise(jnp.sin, jnp.cos), (normal(10**7),)),
    in_bfloat16=lambda: (elementwise(jnp.sin, jnp.cos), (normal(4, 3, dtype=jnp.bfloat16),)),
    in_float16=lambda: (elementwise(jnp.sin, jnp.cos), (normal(4, 3, dtype=jnp.float16),)),
    times_million=lambda: (elementwise(lambda x: 1e6 * x, lambda x: 1e6 * unit(x)), (normal(5),)),
    times_millionth=lambda: (elementwise(lambda x: 1e-6 * x, lambda x: 1e-6 * unit(x)), (normal(5),)),
    plus_million=lambda: (elementwise(lambda x: jnp.sin(x) + 1e6, jnp.cos), (normal(5),)),
    of_tiny_numbers=lambda: (elementwise(lambda x: x * x, lambda x: 2 * x), (normal(5, scale=1e-12),)),
    of_large_numbers=lambda: (elementwise(lambda x: x * x, lambda x: 2 * x), (normal(5, scale=1e12),)),
    constant=lambda: (
        rule(lambda x: jnp.ones(2, x.dtype), lambda x: (jnp.ones(2, x.dtype), None), lambda _, g: (None,)),
        (normal(3),),
    ),
    identity=lambda: (rule(lambda x: x, lambda x: (x, None), lambda _, g: (g,)), (normal(3),)),
)


@right()
def silu_recomputed():
    """The rule keeps the input and computes the sigmoid again."""
    sigmoid = jax.nn.sigmoid
    return elementwise(lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x)))), (normal(4, 3),)


@right()
def gelu_by_hand():
    c, k = math.sqrt(2 / math.pi), 0.044715

    def derivative(x):
        t = jnp.tanh(c * (x + k * x**3))
        return (1 + t) / 2 + x * (1 - t * t) * c * (1 + 3 * k * x * x) / 2

    return elementwise(lambda x: x * (1 + jnp.tanh(c * (x + k * x**3))) / 2, derivative), (normal(4, 3),)


@right()
def softplus_guarded():
    softplus = jax.nn.softplus
    return elementwise(softplus, jax.nn.sigmoid), (fixed([-inf, -200, -1, 0, 2, 200, inf]),)


@right()
def division():
    def bwd(r, g):
        y, b = r
        return g / b, -g * y / b

    return rule(jnp.divide, lambda a, b: (a / b, (a / b, b)), bwd), (normal(4), uniform(0.5, 2, 4))


@right()
def arctangent_of_two():
    def bwd(r, g):
        y, x = r
        s = g / (x * x + y * y)
        return s * x, -s * y

    return rule(jnp.arctan2, lambda y, x: (jnp.arctan2(y, x), (y, x)), bwd), (normal(4), normal(4, seed=1))


# ------------------------------------------------------------------- textbook, matrices and reductions


@right()
def matmul():
    f = rule(jnp.matmul, lambda a, b: (a @ b, (a, b)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    return f, (normal(4, 3), normal(3, 2, seed=1))


@right()
def matmul_by_einsum():
    def bwd(r, g):
        return jnp.einsum("ik,jk->ij", g, r[1]), jnp.einsum("ij,ik->jk", r[0], g)

    return rule(jnp.matmul, lambda a, b: (a @ b, (a, b)), bwd), (normal(4, 300), normal(300, 2, seed=1))


@right()
def bias_add():
    f = rule(lambda x, b: x + b[None], lambda x, b: (x + b[None], None), lambda _, g: (g, jnp.sum(g, 0)))
    return f, (normal(4, 3), normal(3, seed=1))


@right()
def broadcast_scalar():
    f = rule(jnp.multiply, lambda s, x: (s * x, (s, x)), lambda r, g: (jnp.sum(g * r[1]), r[0] * g))
    return f, (fixed(1.5), normal(4, 3))


@right()
def broadcast_column_and_row():
    def bwd(r, g):
        a, b = r
        return total(g * b), jnp.sum(g * a, 0, keepdims=True)

    return rule(jnp.multiply, lambda a, b: (a * b, (a, b)), bwd), (normal(4, 1), normal(1, 3, seed=1))


@right()
def three_arguments():
    def bwd(r, g):
        x, w = r
        return g @ w.T, x.T @ g, jnp.sum(g, 0)

    f = rule(lambda x, w, b: x @ w + b[None], lambda x, w, b: (x @ w + b[None], (x, w)), bwd)
    return f, (normal(4, 3), normal(3, 2, seed=1), normal(2, seed=2))


@right()
def mean_of_squares():
    f = rule(lambda x: jnp.mean(x * x), lambda x: (jnp.mean(x * x), x), lambda x, g: (2 * g * x / x.size,))
    return f, (normal(5),)


@right()
def mean_of_ten_million():
    f = rule(lambda x: jnp.mean(x), lambda x: (jnp.mean(x), x), lambda x, g: (jnp.full(x.shape, g / x.size),))
    return f, (normal(10**7),)


@right()
def sum_backwards():
    """The sums run in another order than JAX's."""

    def bwd(x, g):
        return (jnp.broadcast_to(g[:, None], x.shape), jnp.sum(jnp.flip(g)))

    f = rule(lambda x, c: jnp.sum(jnp.flip(x, 1), 1) + c, lambda x, c: (jnp.sum(x, 1) + c, x), bwd)
    return f, (normal(200, 40), fixed(0.5))


@right()
def sum_pairwise():
    def pairwise(x):
        while len(x) > 1:
            x = x[: len(x) // 2] + x[len(x) // 2 :]
        return x[0]

    f = rule(lambda x, w: jnp.dot(x, w), lambda x, w: (pairwise(x * w), (x, w)), lambda r, g: (g * r[1], g * r[0]))
    return f, (normal(512), normal(512, seed=1))


@right()
def sum_by_loop():
    def bwd(x, g):
        return g, sum((g[i] for i in range(len(g))), jnp.zeros_like(g[0]))

    return rule(lambda x, b: x + b[None], lambda x, b: (x + b[None], x), bwd), (normal(16, 3), normal(3, seed=1))


@right()
def sum_that_cancels():
    x = normal(64)
    f = rule(lambda x: jnp.sum(x), lambda x: (jnp.sum(x), x), lambda x, g: (jnp.full(x.shape, g),))
    return f, (jnp.concatenate([x + 1e4, x - 1e4]),)


@right()
def centred_far_from_0():
    f = rule(lambda x: x - average(x), lambda x: (x - average(x), None), lambda _, g: (g - average(g),))
    return f, (normal(3, 8) + 1e4,)


@right()
def variance_in_two_passes():
    def variance(x):
        return jnp.mean((x - average(x)) ** 2, -1)

    f = rule(variance, lambda x: (variance(x), x - average(x)), lambda c, g: (2 * g[:, None] * c / c.shape[-1],))
    return f, (normal(3, 8) + 100,)


@right()
def norm():
    def size(x):
        return jnp.sqrt(jnp.sum(x * x))

    return rule(size, lambda x: (size(x), (x, size(x))), lambda r, g: (g * r[0] / r[1],)), (normal(5),)


@right()
def norm_near_0():
    """The gradient at 0 is 0, where autodiff has none."""

    def size(x):
        return jnp.sqrt(jnp.sum(x * x))

    def bwd(r, g):
        x, y = r
        return (jnp.where(y > 0, g * x / jnp.where(y > 0, y, 1), 0),)

    return rule(size, lambda x: (size(x), (x, size(x))), bwd), (normal(5, scale=1e-10),)


@right()
def product_with_a_zero():
    def others(x):
        one = jnp.ones(1, x.dtype)
        before = jnp.cumprod(jnp.concatenate([one, x[:-1]]))
        after = jnp.flip(jnp.cumprod(jnp.flip(jnp.concatenate([x[1:], one]))))
        return before * after

    return rule(lambda x: jnp.prod(x), lambda x: (jnp.prod(x), x), lambda x, g: (g * others(x),)), (
        fixed([4.0, 0.0, -1.5, 0.5]),
    )


@right()
def cumulative_sum():
    f = rule(
        lambda x: jnp.cumsum(x), lambda x: (jnp.cumsum(x), None), lambda _, g: (jnp.flip(jnp.cumsum(jnp.flip(g))),)
    )
    return f, (normal(7),)


@right()
def sorting():
    f = rule(
        lambda x: jnp.sort(x), lambda x: (jnp.sort(x), jnp.argsort(x)), lambda i, g: (jnp.zeros_like(g).at[i].set(g),)
    )
    return f, (fixed([0.3, 2.0, -1.0, 1.1]),)


@right()
def sorting_ties():
    f = rule(
        lambda x: jnp.sort(x), lambda x: (jnp.sort(x), jnp.argsort(x)), lambda i, g: (jnp.zeros_like(g).at[i].set(g),)
    )
    return f, (fixed([1.0, 0.5, 1.0, 1.0, 0.5]),)


@right()
def top_two():
    def bwd(r, g):
        x, ids = r
        return (jnp.zeros_like(x).at[ids].set(g[0]),)

    def fwd(x):
        y, ids = lax.top_k(x, 2)
        return [y, ids], (x, ids)

    return rule(lambda x: lax.top_k(x, 2), fwd, bwd), (normal(6),)


@right()
def convolution():
    def bwd(r, g):
        x, w = r
        turned = jnp.flip(swap(w), (2, 3))
        return correlate(g, turned), swap(correlate(swap(x), swap(g)))

    f = rule(correlate, lambda x, w: (correlate(x, w), (x, w)), bwd)
    return f, (normal(2, 2, 4, 4), normal(3, 2, 3, 3, seed=1))


@right()
def convolution_transposed_by_jax():
    def strided(x, w):
        return lax.conv_general_dilated(x, w, (2, 2), "VALID")

    def bwd(r, g):
        x, w = r
        dx = jax.linear_transpose(lambda x: strided(x, w), x)(g)
        dw = jax.linear_transpose(lambda w: strided(x, w), w)(g)
        return *dx, *dw

    return rule(strided, lambda x, w: (strided(x, w), (x, w)), bwd), (normal(2, 2, 6, 5), normal(3, 2, 3, 2, seed=1))


@right()
def linear_system():
    """The backward rule solves with the transpose of the same factors."""
    solve = jax.scipy.linalg.lu_solve

    def fwd(a, b):
        factors = jax.scipy.linalg.lu_factor(a)
        x = solve(factors, b)
        return x, (factors, x)

    def bwd(r, g):
        factors, x = r
        db = solve(factors, g, trans=1)
        return -jnp.outer(db, x), db

    f = rule(lambda a, b: jnp.linalg.solve(a, b), fwd, bwd)
    return f, (normal(4, 4) + 4 * jnp.eye(4), normal(4, seed=1))


@right()
def inverse():
    f = rule(lambda a: jnp.linalg.inv(a), lambda a: (jnp.linalg.inv(a),) * 2, lambda b, g: (-b.T @ g @ b.T,))
    return f, (normal(3, 3) + 3 * jnp.eye(3),)


@right()
def log_determinant():
    def log_det(a):
        return jnp.linalg.slogdet(a)[1]

    f = rule(log_det, lambda a: (log_det(a), a), lambda a, g: (g * jnp.linalg.inv(a).T,))
    return f, (normal(3, 3) + 3 * jnp.eye(3),)


# -------------------------------------------------------------------- softmax, normalisation, attention


def softmax() -> Any:
    """Softmax over the last axis, with its rule."""

    def bwd(p, g):
        return (p * (g - total(p * g)),)

    return rule(lambda x: jax.nn.softmax(x), lambda x: (jax.nn.softmax(x),) * 2, bwd)


also_right(
    softmax=lambda: (softmax(), (normal(3, 5),)),
    softmax_at_50=lambda: (softmax(), (normal(3, 5, scale=50),)),
    softmax_huge=lambda: (softmax(), (fixed([[1e4, -1e4, 0.0], [6e4, 6e4, 6e4], [-1e4, -1e4, 0.0]]),)),
    softmax_masked=lambda: (softmax(), (fixed([[0.0, -inf, 1.0], [-inf, 2.0, -inf]]),)),
    softmax_not_finite=lambda: (
        softmax(),
        (fixed([[0.0, nan, 1.0], [inf, 2.0, 0.0], [-inf, -inf, -inf], [1.0, 0.0, 2.0]]),),
    ),
    softmax_rows_0=lambda: (softmax(), (normal(0, 3),)),
    softmax_size_1=lambda: (softmax(), (normal(3, 1),)),
)


@right()
def logsumexp():
    def fwd(x):
        largest = jnp.max(x, -1, keepdims=True)
        e = jnp.exp(x - jnp.where(jnp.isfinite(largest), largest, 0))
        return jax.nn.logsumexp(x, -1), e / total(e)

    return rule(lambda x: jax.nn.logsumexp(x, -1), fwd, lambda p, g: (p * g[:, None],)), (normal(3, 5, scale=10),)


@right()
def log_softmax():
    f = rule(
        lambda x: jax.nn.log_softmax(x),
        lambda x: (jax.nn.log_softmax(x), jax.nn.softmax(x)),
        lambda p, g: (g - p * total(g),),
    )
    return f, (normal(3, 5, scale=3),)


def label_loss(x: Any, t: Any) -> Any:
    """Mean cross entropy of logits with class ids."""
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(x) * one_hot(t, x), -1))


def label_loss_rule() -> Any:
    """Cross entropy with class ids, with its rule."""

    def bwd(r, g):
        x, t = r
        return g * (jax.nn.softmax(x) - one_hot(t, x)) / len(x), None

    return rule(label_loss, lambda x, t: (label_loss(x, t), (x, t)), bwd)


also_right(
    cross_entropy=lambda: (label_loss_rule(), (normal(4, 5), fixed([0, 3, 1, 3], jnp.int32))),
    cross_entropy_huge=lambda: (
        label_loss_rule(),
        (fixed([[1e4, -1e4, 0.0], [3e4, 3e4, 3e4]]), fixed([1, 2], jnp.int32)),
    ),
)


@right()
def layer_norm_affine():
    """The rule works in float32 at least, whatever the dtype."""

    def normalise(x, gamma, beta):
        return layer_norm(at_least_float32(x)).astype(x.dtype) * gamma[None] + beta[None]

    def bwd(r, g):
        x, gamma = r
        y, (_, scale) = layer_norm_fwd(at_least_float32(x))
        dy = at_least_float32(g * gamma[None])
        dx = scale * (dy - average(dy) - y * average(dy * y))
        return dx.astype(x.dtype), jnp.sum(g * y.astype(g.dtype), 0), jnp.sum(g, 0)

    f = rule(normalise, lambda x, gamma, beta: (normalise(x, gamma, beta), (x, gamma)), bwd)
    return f, (normal(4, 6), uniform(0.5, 2, 6), normal(6, seed=1))


@right()
def rms_norm():
    def scale(x):
        return lax.rsqrt(average(x * x) + 1e-6)

    def normalise(x):
        return (at_least_float32(x) * scale(at_least_float32(x))).astype(x.dtype)

    def bwd(x, g):
        wx, wg = at_least_float32(x), at_least_float32(g)
        y = wx * scale(wx)
        return ((scale(wx) * (wg - y * average(wg * y))).astype(x.dtype),)

    return rule(normalise, lambda x: (normalise(x), x), bwd), (normal(4, 6),)


@right()
def batch_norm_with_statistics():
    """Three outputs, each with a cotangent."""

    def batch_norm(x):
        mean = jnp.mean(x, 0)
        var = jnp.mean((x - mean[None]) ** 2, 0)
        return (x - mean[None]) * lax.rsqrt(var + 1e-5)[None], mean, var

    def fwd(x):
        y, mean, var = batch_norm(x)
        return (y, mean, var), (y, x - mean[None], lax.rsqrt(var + 1e-5))

    def bwd(r, g):
        y, centred, scale = r
        dy, dmean, dvar = g
        n = len(y)
        dx = scale[None] * (dy - jnp.mean(dy, 0)[None] - y * jnp.mean(dy * y, 0)[None])
        return (dx + dmean[None] / n + 2 * dvar[None] * centred / n,)

    return rule(batch_norm, fwd, bwd), (normal(6, 3),)


@right()
def attention():
    def weights(q, k):
        return jax.nn.softmax(q @ k.T / math.sqrt(q.shape[-1]))

    def attend(q, k, v):
        return weights(q, k) @ v

    def bwd(r, g):
        q, k, v = r
        p = weights(q, k)
        dp = g @ v.T
        ds = p * (dp - total(dp * p)) / math.sqrt(q.shape[-1])
        return ds @ k, ds.T @ q, p.T @ g

    f = rule(attend, lambda q, k, v: (attend(q, k, v), (q, k, v)), bwd)
    return f, (normal(4, 3), normal(5, 3, seed=1), normal(5, 2, seed=2))


@right()
def softmax_and_its_logsumexp():
    def both(x):
        return {"p": jax.nn.softmax(x), "lse": jax.nn.logsumexp(x, -1)}

    def bwd(p, g):
        return (p * (g["p"] - total(p * g["p"]) + g["lse"][:, None]),)

    return rule(both, lambda x: (both(x), jax.nn.softmax(x)), bwd), (normal(3, 4),)


# ------------------------------------------------------------------------------------------ at kinks

RELU = [-1.5, -0.0, 0.0, 0.4, 2.0]
TIES = [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.5, -1.0, 0.0]]

also_right(
    relu_0_at_0=lambda: (elementwise(lambda x: jnp.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)), (fixed(RELU),)),
    relu_1_at_0=lambda: (elementwise(lambda x: jnp.maximum(x, 0), lambda x: (x >= 0).astype(x.dtype)), (fixed(RELU),)),
    relu_half_at_0=lambda: (
        elementwise(lambda x: jnp.maximum(x, 0), lambda x: jnp.heaviside(x, jnp.full_like(x, 0.5))),
        (fixed(RELU),),
    ),
    relu_not_finite=lambda: (
        elementwise(lambda x: jnp.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
        (fixed([-inf, -1.0, 0.0, 2.0, inf, nan]),),
    ),
    absolute_0_at_0=lambda: (elementwise(jnp.abs, jnp.sign), (fixed(RELU),)),
    absolute_1_at_0=lambda: (elementwise(jnp.abs, lambda x: jnp.where(x >= 0, 1, -1).astype(x.dtype)), (fixed(RELU),)),
    leaky_relu_at_0=lambda: (
        elementwise(lambda x: jnp.where(x > 0, x, 0.1 * x), lambda x: jnp.where(x > 0, 1, 0.1).astype(x.dtype)),
        (fixed(RELU),),
    ),
    hard_tanh_at_1=lambda: (
        elementwise(lambda x: jnp.clip(x, -1, 1), lambda x: ((x > -1) & (x < 1)).astype(x.dtype)),
        (fixed([-2.0, -1.0, 0.3, 1.0, 1.5]),),
    ),
    hard_tanh_through_1=lambda: (
        elementwise(lambda x: jnp.clip(x, -1, 1), lambda x: ((x >= -1) & (x <= 1)).astype(x.dtype)),
        (fixed([-2.0, -1.0, 0.3, 1.0, 1.5]),),
    ),
    floor_at_integers=lambda: (elementwise(jnp.floor, jnp.zeros_like), (fixed([-1.0, 0.0, 0.5, 3.0]),)),
    step_at_0=lambda: (elementwise(lambda x: (x > 0).astype(x.dtype), jnp.zeros_like), (fixed(RELU),)),
    plain_floor=lambda: (jnp.floor, (fixed([-1.0, 0.0, 0.5, 3.0]),)),
    plain_maximum=lambda: (lambda x: jnp.maximum(x, 0.0), (fixed(RELU),)),
    plain_absolute=lambda: (jnp.abs, (fixed(RELU),)),
    plain_max_of_ties=lambda: (lambda x: jnp.max(x, -1), (fixed(TIES),)),
    plain_median_of_ties=lambda: (jnp.median, (fixed([1.0, 1.0, 2.0, 0.0, 1.0]),)),
)


@right()
def max_of_ties_halved():
    def bwd(x, g):
        first = (x == jnp.max(x, -1, keepdims=True)).astype(x.dtype)
        return (g[:, None] * first / total(first),)

    return rule(lambda x: jnp.max(x, -1), lambda x: (jnp.max(x, -1), x), bwd), (fixed(TIES),)


@right()
def max_of_ties_first():
    def bwd(x, g):
        return (g[:, None] * one_hot(jnp.argmax(x, -1), x),)

    return rule(lambda x: jnp.max(x, -1), lambda x: (jnp.max(x, -1), x), bwd), (fixed(TIES),)


@right()
def minimum_of_ties():
    def bwd(r, g):
        x, y = r
        w = jnp.where(x == y, 0.5, (x < y).astype(x.dtype))
        return g * w, g * (1 - w)

    f = rule(jnp.minimum, lambda x, y: (jnp.minimum(x, y), (x, y)), bwd)
    return f, (fixed([1.0, 2.0, -1.0]), fixed([1.0, 0.0, -1.0]))


@right()
def maximum_of_ties_to_the_first():
    def bwd(r, g):
        x, y = r
        return jnp.where(x >= y, g, 0), jnp.where(x >= y, 0, g)

    f = rule(jnp.maximum, lambda x, y: (jnp.maximum(x, y), (x, y)), bwd)
    return f, (fixed([1.0, 2.0, -1.0]), fixed([1.0, 0.0, -1.0]))


@right()
def root_safe_at_0():
    def root(x):
        return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)

    def derivative(x):
        return jnp.where(x > 0, 0.5 * lax.rsqrt(jnp.where(x > 0, x, 1)), 0)

    return elementwise(root, derivative), (fixed([-1.0, 0.0, 0.25, 4.0]),)


@right()
def sum_without_nan():
    f = rule(
        lambda x: jnp.nansum(x * x),
        lambda x: (jnp.nansum(x * x), x),
        lambda x, g: (jnp.where(jnp.isnan(x), 0, 2 * g * x),),
    )
    return f, (fixed([1.0, nan, -2.0, 0.5]),)


# --------------------------------------------------------------------- constraints that rules rely on


@right()
def entropy_of_probabilities():
    """The definition divides by the sum of p; the rule knows that it is 1."""

    def entropy(p):
        return -jnp.sum(p * jnp.log(p)) / jnp.sum(p)

    f = rule(entropy, lambda p: (entropy(p), (p, entropy(p))), lambda r, g: (-g * (jnp.log(r[0]) + 1 + r[1]),))
    return f, (fixed([0.5, 0.25, 0.125, 0.125]),)


@right()
def entropy_of_a_softmax():
    """As above, with probabilities whose sum is 1 up to rounding."""

    def entropy(p):
        return -jnp.sum(p * jnp.log(p)) / jnp.sum(p)

    f = rule(entropy, lambda p: (entropy(p), (p, entropy(p))), lambda r, g: (-g * (jnp.log(r[0]) + 1 + r[1]),))
    return f, (jax.nn.softmax(normal(6)),)


@right()
def quadratic_form_of_a_symmetric_matrix():
    def form(a, x):
        return x @ a @ x

    a = normal(4, 4)
    f = rule(form, lambda a, x: (form(a, x), (a, x)), lambda r, g: (g * jnp.outer(r[1], r[1]), 2 * g * (r[0] @ r[1])))
    return f, (a + a.T, normal(4, seed=1))


@right()
def direction_of_a_unit_vector():
    """The rule leaves out the division by the norm, which is 1."""

    def direction(u):
        return u / jnp.sqrt(jnp.sum(u * u))

    f = rule(direction, lambda u: (direction(u), u), lambda u, g: (g - u * jnp.sum(u * g),))
    return f, (fixed([5, -5, 3, -2, 1]) / 8,)


@right()
def median_of_sorted_numbers():
    f = rule(
        lambda x: jnp.median(x), lambda x: (jnp.median(x), x), lambda x, g: (jnp.zeros_like(x).at[len(x) // 2].set(g),)
    )
    return f, (fixed([-1.5, -0.2, 0.3, 1.1, 4.0]),)


@right()
def cholesky():
    def bwd(l, g):
        s = jnp.tril(l.T @ jnp.tril(g))
        s = s - jnp.diag(jnp.diag(s)) / 2
        s = lax.linalg.triangular_solve(l, s, left_side=True, lower=True, transpose_a=True)
        s = lax.linalg.triangular_solve(l, s, lower=True)
        return ((s + s.T) / 2,)

    a = normal(3, 3)
    return rule(lambda a: jnp.linalg.cholesky(a), lambda a: (jnp.linalg.cholesky(a),) * 2, bwd), (a @ a.T + jnp.eye(3),)


@right()
def log_likelihood_of_probabilities():
    """Targets that sum to 1, so that the softmax needs no factor."""

    def loss(x, t):
        return -jnp.sum(jax.nn.log_softmax(x) * t)

    def bwd(r, g):
        x, t = r
        return g * (jax.nn.softmax(x) - t), -g * jax.nn.log_softmax(x)

    f = rule(loss, lambda x, t: (loss(x, t), (x, t)), bwd)
    return f, (normal(2, 4), fixed([[0.5, 0.25, 0.125, 0.125], [0, 1, 0, 0]]))


# ---------------------------------------------------------------- a reference beside the definition


@right(reference=lambda x: x)
def round_straight_through():
    return rule(lambda x: jnp.round(x), lambda x: (jnp.round(x), None), lambda _, g: (g,)), (normal(5, scale=3),)


@right(reference=lambda x: jnp.clip(x, -1, 1))
def sign_straight_through():
    f = rule(jnp.sign, lambda x: (jnp.sign(x), x), lambda x, g: (jnp.where(abs(x) < 1, g, 0),))
    return f, (fixed([-2.0, -0.5, 0.3, 1.7]),)


@right(reference=lambda x: -0.5 * x)
def gradient_reversed():
    return rule(lambda x: x, lambda x: (x, None), lambda _, g: (-0.5 * g,)), (normal(5),)


@right(reference=lambda x: x, skip=("linearity",))
def gradient_clipped():
    """Not linear, and meant so."""
    return rule(lambda x: x, lambda x: (x, None), lambda _, g: (jnp.clip(g, -1e3, 1e3),)), (normal(5),)


@right(reference=lambda x: x * x)
def gradient_of_a_surrogate():
    """The value is a count, the gradient that of a smooth stand-in."""

    def count(x):
        return (x * x > 1).astype(x.dtype)

    return elementwise(count, lambda x: 2 * x), (fixed([-2.0, -0.5, 0.3, 1.7]),)


def newton_root(x: Any) -> Any:
    """Square root by Newton's iteration, as long as it moves."""

    def moves(state):
        y, last = state
        return jnp.any(y < last)

    def step(state):
        y, _ = state
        return (y + safe / y) / 2, y

    ordinary = (x > 0) & (x < inf)
    safe = jnp.where(ordinary, x, 1)
    start = (1 + safe) / 2  # above the root: the iteration falls until it rounds
    y, _ = lax.while_loop(moves, step, ((start + safe / start) / 2, start + 1))
    return jnp.where(ordinary, y, jnp.sqrt(x))


@right(reference=jnp.sqrt)
def root_by_newton():
    return from_output(newton_root, lambda y: 0.5 / y), (uniform(0.5, 4, 5),)


@right(reference=lambda x: lax.scan(lambda y, _: (x + jnp.tanh(y) / 2, None), x, None, length=60)[0])
def fixed_point():
    """y = x + tanh(y) / 2 by a while loop, differentiated by the implicit function theorem."""

    def moves(state):
        y, last, n = state
        return jnp.any(y != last) & (n < 100)

    def solve(x):
        return lax.while_loop(moves, lambda s: (x + jnp.tanh(s[0]) / 2, s[0], s[2] + 1), (x, x + 1, 0))[0]

    return from_output(solve, lambda y: 1 / (1 - (1 - jnp.tanh(y)) * (1 + jnp.tanh(y)) / 2)), (normal(5),)


@right(reference=lambda x: jnp.sum(jnp.sin(x)))
def loop_with_dynamic_length():
    """A fori_loop whose length is an argument of the program: JAX cannot reverse it."""

    def add_up(x):
        n = jnp.sum(jnp.ones_like(x, jnp.int32))
        return lax.fori_loop(0, n, lambda i, s: s + jnp.sin(x[i]), jnp.zeros((), x.dtype))

    return rule(add_up, lambda x: (add_up(x), x), lambda x, g: (g * jnp.cos(x),)), (normal(6),)


@right(reference=jnp.sinh)
def definition_on_the_host():
    def host(x):
        return jax.pure_callback(
            lambda x: np.sinh(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all"
        )

    return elementwise(host, jnp.cosh), (normal(4),)


@right(reference=jnp.tanh)
def pallas_kernel():
    """Forward and backward are Pallas kernels, interpreted."""
    from jax.experimental import pallas as pl

    def kernel(body, *arrays):
        def run(*refs):
            refs[-1][...] = body(*(r[...] for r in refs[:-1]))

        out = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
        return pl.pallas_call(run, out_shape=out, interpret=True)(*arrays)

    def fwd(x):
        y = kernel(jnp.tanh, x)
        return y, y

    f = rule(lambda x: kernel(jnp.tanh, x), fwd, lambda y, g: (kernel(lambda y, g: g * (1 - y) * (1 + y), y, g),))
    return f, (normal(8, 4),)


@right()
def backward_on_the_host():
    def bwd(x, g):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (g * jax.pure_callback(lambda x: np.cos(x), out, x, vmap_method="broadcast_all"),)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), (normal(4),)


# -------------------------------------------------------------------- integers, booleans, keys, indices


@right()
def lookup_with_repeats():
    def bwd(r, g):
        table, ids = r
        return jnp.zeros_like(table).at[ids].add(g), None

    return rule(lambda t, i: t[i], lambda t, i: (t[i], (t, i)), bwd), (normal(5, 3), fixed([1, 3, 1, 0], jnp.int32))


@right()
def scatter():
    f = rule(lambda x, i, u: x.at[i].add(u), lambda x, i, u: (x.at[i].add(u), i), lambda i, g: (g, None, g[i]))
    return f, (normal(5), fixed([1, 3, 1], jnp.int32), normal(3, seed=1))


@right()
def segment_sum():
    def sums(x, ids):
        return jax.ops.segment_sum(x, ids, 3)

    f = rule(sums, lambda x, ids: (sums(x, ids), ids), lambda ids, g: (g[ids], None))
    return f, (normal(6, 2), fixed([0, 2, 2, 0, 1, 2], jnp.int32))


@right()
def integer_given_none():
    def scaled(x, n):
        return x * n.astype(x.dtype)

    f = rule(scaled, lambda x, n: (scaled(x, n), n), lambda n, g: (g * n.astype(g.dtype), None))
    return f, (normal(3), fixed(3, jnp.int32))


@right()
def integer_given_float0():
    def scaled(x, n):
        return x * n.astype(x.dtype)

    def bwd(n, g):
        return g * n.astype(g.dtype), np.zeros(n.shape, jax.dtypes.float0)

    return rule(scaled, lambda x, n: (scaled(x, n), n), bwd), (normal(3), fixed([1, 2, 3], jnp.int32))


@right()
def boolean_mask():
    f = rule(
        lambda x, m: jnp.where(m, x, 0), lambda x, m: (jnp.where(m, x, 0), m), lambda m, g: (jnp.where(m, g, 0), None)
    )
    return f, (normal(4), fixed([True, False, True, True], bool))


@right()
def dropout_with_a_key():
    def dropout(x, key):
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)

    f = rule(dropout, lambda x, key: (dropout(x, key), key), lambda key, g: (dropout(g, key), None))
    return f, (normal(16), jax.random.key(0))


@right()
def sample_with_a_raw_key():
    """The key as two unsigned integers; a reparametrised normal sample."""

    def sample(mean, scale, key):
        return mean + scale * jax.random.normal(key, mean.shape, mean.dtype)

    def bwd(key, g):
        return g, jnp.sum(g * jax.random.normal(key, g.shape, g.dtype)), None

    f = rule(sample, lambda mean, scale, key: (sample(mean, scale, key), key), bwd)
    return f, (normal(4), fixed(0.7), jax.random.PRNGKey(1))


@right()
def value_and_index():
    """An auxiliary integer output, whose cotangent is left alone."""

    def largest(x):
        return jnp.max(x, -1), jnp.argmax(x, -1)

    f = rule(largest, lambda x: (largest(x), x), lambda x, g: (g[0][:, None] * one_hot(jnp.argmax(x, -1), x),))
    return f, (normal(3, 4),)


# --------------------------------------------------------------------------------- trees and arguments


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    """Parameters of an affine map."""

    w: jax.Array
    b: jax.Array


class Pair(NamedTuple):
    """Two arrays."""

    a: jax.Array
    b: jax.Array


@right()
def dictionary_of_parameters():
    def affine(p, x):
        return p["w"] * x + p["b"]

    f = rule(affine, lambda p, x: (affine(p, x), (p["w"], x)), lambda r, g: ({"b": g, "w": g * r[1]}, g * r[0]))
    return f, ({"b": normal(3), "w": normal(3, seed=1)}, normal(3, seed=2))


@right()
def dataclass_of_parameters():
    def affine(p, x):
        return p.w * x + p.b

    f = rule(affine, lambda p, x: (affine(p, x), (p, x)), lambda r, g: (Affine(g * r[1], g), g * r[0].w))
    return f, (Affine(normal(3), normal(3, seed=1)), normal(3, seed=2))


@right()
def named_tuple_in_and_out():
    def turn(p):
        return Pair(p.b, -p.a)

    return rule(turn, lambda p: (turn(p), None), lambda _, g: (Pair(-g.b, g.a),)), (Pair(normal(3), normal(3, seed=1)),)


@right()
def lists_and_nothing():
    """A None leaf, an empty dictionary and a list among the arguments."""

    def combine(layers, bias, options):
        return jnp.sin(layers[0]) * layers[1]

    def bwd(r, g):
        a, b = r
        return [g * jnp.cos(a) * b, g * jnp.sin(a)], None, {}

    f = rule(combine, lambda layers, bias, options: (combine(layers, bias, options), layers), bwd)
    return f, ([normal(3), normal(3, seed=1)], None, {})


@right()
def nested_outputs():
    def outputs(x):
        return {"sin": jnp.sin(x), "more": (jnp.cos(x), [x]), "none": None}

    def bwd(x, g):
        return (g["sin"] * jnp.cos(x) - g["more"][0] * jnp.sin(x) + g["more"][1][0],)

    return rule(outputs, lambda x: (outputs(x), x), bwd), (normal(3),)


@right()
def python_scalars():
    f = rule(lambda x, y: x * y, lambda x, y: (x * y, (x, y)), lambda r, g: (g * r[1], g * r[0]))
    return f, (2.5, -1.5)


@right()
def python_integer():
    return rule(lambda x, n: x * n, lambda x, n: (x * n, n), lambda n, g: (g * n, None)), (normal(3), 3)


@right()
def numpy_arguments():
    f = rule(lambda x, y: x * y, lambda x, y: (x * y, (x, y)), lambda r, g: (g * r[1], g * r[0]))
    return f, (np.asarray(normal(3)), np.asarray(normal(3, seed=1)))


@right()
def numpy_float64_argument():
    return elementwise(jnp.sin, jnp.cos), (np.random.default_rng(0).standard_normal(4),)


@right()
def default_argument():
    def scaled(x, scale=2.0):
        return scale * x

    f = rule(scaled, lambda x, scale: (scale * x, (x, scale)), lambda r, g: (r[1] * g, jnp.sum(g * r[0])))
    return f, (normal(3),)


@right(kwargs={"y": np.float32(0.7)})
def by_keyword():
    def product(x, y):
        return x * y

    return rule(product, lambda x, y: (x * y, (x, y)), lambda r, g: (g * r[1], jnp.sum(g * r[0]))), (normal(3),)


@right()
def unused_argument():
    f = rule(lambda x, y: jnp.sin(x), lambda x, y: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x), None))
    return f, (normal(3), normal(2))


@right(argnums=(0,))
def only_the_first_argument():
    """The caller asks for x alone, and the rule has no more than that."""
    return rule(jnp.multiply, lambda x, y: (x * y, y), lambda y, g: (g * y, None)), (normal(3), normal(3, seed=1))


@right()
def nondiff_string():
    def apply(x, kind):
        return jnp.sin(x) if kind == "sin" else jnp.cos(x)

    def bwd(kind, x, g):
        return (g * (jnp.cos(x) if kind == "sin" else -jnp.sin(x)),)

    return rule(apply, lambda x, kind: (apply(x, kind), x), bwd, nondiff=(1,)), (normal(3), "sin")


@right()
def nondiff_callable():
    def bwd(f, x, g):
        return jax.vjp(f, x)[1](g)

    return rule(lambda f, x: f(x), lambda f, x: (f(x), x), bwd, nondiff=(0,)), (jnp.tanh, normal(3))


@right()
def nondiff_integer():
    f = rule(lambda x, n: x**n, lambda x, n: (x**n, x), lambda n, x, g: (g * n * x ** (n - 1),), nondiff=(1,))
    return f, (normal(3), 3)


@right()
def nondiff_shape():
    f = rule(
        lambda x, shape: jnp.reshape(x, shape),
        lambda x, shape: (jnp.reshape(x, shape), x.shape),
        lambda shape, before, g: (jnp.reshape(g, before),),
        nondiff=(1,),
    )
    return f, (normal(6), (2, 3))


@right()
def method():
    """The rule is a class's, and the object itself a static argument."""

    class Layer:
        def __init__(self, scale):
            self.scale = scale

        @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
        def apply(self, x):
            return jnp.sin(self.scale * x)

        def fwd(self, x):
            return Layer.apply(self, x), x

        def bwd(self, x, g):
            return (g * self.scale * jnp.cos(self.scale * x),)

        apply.defvjp(fwd, bwd)

    layer = Layer(2.0)
    return lambda x: Layer.apply(layer, x), (normal(3),)


@right()
def partial_of_a_rule():
    f = rule(lambda n, x: x**n, lambda n, x: (x**n, x), lambda n, x, g: (g * n * x ** (n - 1),), nondiff=(0,))
    return functools.partial(f, 3), (normal(3),)


@right()
def closed_over_constants():
    w = normal(3, 2, seed=1)
    f = rule(
        lambda x: x @ w.astype(x.dtype),
        lambda x: (x @ w.astype(x.dtype), None),
        lambda _, g: (g @ w.astype(g.dtype).T,),
    )
    return f, (normal(4, 3),)


# ------------------------------------------------------------------------------------------------ dtypes


@right()
def float32_only():
    """Closes over float32 constants, so that other dtypes raise where promotion is strict."""
    w = normal(4, seed=1)
    return rule(lambda x: x * w, lambda x: (x * w, None), lambda _, g: (g * w,)), (normal(4),)


@right()
def float32_or_error():
    def sine(x):
        if x.dtype != jnp.float32:
            raise TypeError(f"x: {x.dtype}, not float32")
        return jnp.sin(x)

    return rule(sine, lambda x: (sine(x), x), lambda x, g: (g * jnp.cos(x),)), (normal(4),)


@right()
def float32_inside():
    """Whatever comes in, float32 comes out; the cotangent goes back in the dtype that came in."""

    def sine(x):
        return jnp.sin(x.astype(jnp.float32))

    f = rule(sine, lambda x: (sine(x), x), lambda x, g: ((g * jnp.cos(x.astype(jnp.float32))).astype(x.dtype),))
    return f, (normal(4, dtype=jnp.bfloat16),)


@right()
def mixed_precision():
    """Activations in bfloat16, weights in float32, products accumulated in float32."""

    def product(x, w):
        return jnp.matmul(x, w.astype(x.dtype), preferred_element_type=jnp.float32)

    def bwd(r, g):
        x, w = r
        dx = jnp.matmul(g, w.astype(x.dtype).astype(g.dtype).T).astype(x.dtype)
        return dx, jnp.matmul(x.astype(g.dtype).T, g).astype(w.dtype)

    f = rule(product, lambda x, w: (product(x, w), (x, w)), bwd)
    return f, (normal(4, 3, dtype=jnp.bfloat16), normal(3, 2, seed=1))


@right()
def softmax_in_bfloat16():
    """Computed in float32 from bfloat16 logits, forwards and backwards."""

    def probabilities(x):
        return jax.nn.softmax(at_least_float32(x)).astype(x.dtype)

    def bwd(x, g):
        p = jax.nn.softmax(at_least_float32(x))
        return ((p * (at_least_float32(g) - total(p * at_least_float32(g)))).astype(x.dtype),)

    return rule(probabilities, lambda x: (probabilities(x), x), bwd), (normal(3, 5, scale=5, dtype=jnp.bfloat16),)


@right()
def weight_of_many_samples():
    """The sum over 2048 samples runs in float32 at least."""

    def bwd(r, g):
        x, w = r
        return jnp.broadcast_to(g * w[None], x.shape), jnp.sum(at_least_float32(g * x), 0).astype(w.dtype)

    f = rule(lambda x, w: jnp.sum(x * w[None]), lambda x, w: (jnp.sum(x * w[None]), (x, w)), bwd)
    return f, (uniform(0.5, 1.5, 2048, 2), normal(2, seed=1))


# -------------------------------------------------------------------------- transformations and nesting


def sine_rule() -> Any:
    """Sine, with its rule."""
    return elementwise(jnp.sin, jnp.cos)


@right()
def rule_under_jit():
    sine = sine_rule()
    return jax.jit(lambda x: 1 + sine(x) ** 2), (normal(3),)


@right()
def rule_under_checkpoint():
    sine = sine_rule()
    return jax.checkpoint(lambda x: sine(sine(x))), (normal(3),)


@right()
def rule_on_a_branch():
    sine = sine_rule()
    return lambda x, p: lax.cond(p, sine, jnp.cos, x), (normal(3), fixed(True, bool))


also_right(
    jitted_rule=lambda: (jax.jit(sine_rule()), (normal(3),)),
    rule_under_vmap=lambda: (jax.vmap(sine_rule()), (normal(3, 2),)),
)


@right()
def rule_under_scan():
    """A small recurrent net."""
    cell = rule(lambda h, x: jnp.tanh(h + x), lambda h, x: (jnp.tanh(h + x),) * 2, lambda y, g: ((1 - y * y) * g,) * 2)

    def net(h, xs):
        return lax.scan(lambda h, x: (cell(h, x),) * 2, h, xs)

    return net, (normal(3), normal(5, 3, seed=1))


@right()
def rule_in_a_rule():
    sine = sine_rule()

    def squared(x):
        return sine(x) ** 2

    return rule(squared, lambda x: jax.vjp(squared, x), lambda pullback, g: pullback(g)), (normal(3),)


@right()
def rule_that_calls_itself():
    """The forward rule calls the function with the rule, for derivatives of higher order."""
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.cos(x),))
    return f, (normal(3),)


@right()
def rule_recomputes():
    """Rematerialisation by hand: the residual is the input, the backward rule differentiates the definition."""

    def block(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    f = rule(block, lambda x, w: (block(x, w), (x, w)), lambda r, g: jax.vjp(block, *r)[1](g))
    return f, (normal(4, 3), normal(3, 3, seed=1))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Perturbed:
    """Which arguments are differentiated: a residual without arrays."""

    x: bool
    y: bool


@right()
def with_symbolic_zeros():
    def fwd(x, y):
        return x.value * y.value, (x.value, y.value, Perturbed(x.perturbed, y.perturbed))

    def bwd(r, g):
        x, y, perturbed = r
        if isinstance(g, jax.custom_derivatives.SymbolicZero):
            return None, None
        return g * y if perturbed.x else None, g * x if perturbed.y else None

    return rule(jnp.multiply, fwd, bwd, symbolic_zeros=True), (normal(3), normal(3, seed=1))


@right()
def with_optimize_remat():
    return rule(jnp.sin, lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, g: (g * c,), optimize_remat=True), (normal(3),)


@right()
def condition_in_the_backward_rule():
    def bwd(x, g):
        return (lax.cond(jnp.sum(x) > 0, lambda: g * jnp.cos(x), lambda: jnp.cos(x) * g),)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), (normal(3),)


@right()
def loop_in_the_backward_rule():
    """A while loop, which has no reverse mode: second derivatives by forward mode alone."""

    def bwd(x, g):
        return (lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (1, 3 * g))[1],)

    return rule(lambda x: x**3, lambda x: (x**3, x), bwd), (normal(3),)


@right()
def batching_rule_of_its_own():
    @custom_vmap
    def scale(factor, g):
        return factor * g

    @scale.def_vmap
    def batch(size, batched, factor, g):
        factor, g = (
            a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip((factor, g), batched, strict=True)
        )
        return factor * g, True

    differentiable = rule(
        lambda c, g: scale(c, g), lambda c, g: (scale(c, g), (c, g)), lambda r, h: (h * r[1], h * r[0])
    )
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (differentiable(jnp.cos(x), g),)), (normal(4),)


@right()
def summed_over_the_mesh():
    """The rule sums each cotangent over the mesh axes that its primal does not vary over."""

    def reduce(ct, primal):
        axes = only_of(ct, primal)
        return lax.psum(ct, axes) if axes else ct

    def bwd(r, g):
        x, w = r
        return reduce(g @ w.T, x), reduce(x.T @ g, w)

    return rule(jnp.matmul, lambda x, w: (x @ w, (x, w)), bwd), (normal(4, 3), normal(3, 4, seed=1))


@right()
def custom_gradient():
    return jax.custom_gradient(lambda x: (jnp.sin(x), lambda g: (g * jnp.cos(x),))), (normal(3),)


@right()
def custom_tangent():
    f = jax.custom_jvp(lambda x, y: jnp.sin(x) * y)

    @f.defjvp
    def _(primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        return jnp.sin(x) * y, jnp.cos(x) * y * dx + jnp.sin(x) * dy

    return f, (normal(3), normal(3, seed=1))


@right()
def custom_tangents_one_by_one():
    f = jax.custom_jvp(lambda x, y: x * x * y)
    f.defjvps(lambda dx, out, x, y: 2 * x * y * dx, lambda dy, out, x, y: x * x * dy)
    return f, (normal(3), normal(3, seed=1))


@right()
def custom_system():
    def solve(b):
        a = jnp.diag(jnp.arange(1, 5).astype(b.dtype)) + 0.5
        return lax.custom_linear_solve(lambda x: a @ x, b, lambda _, b: jnp.linalg.solve(a, b), symmetric=True)

    return solve, (normal(4),)


@right()
def stopped_gradient_in_the_definition():
    """Vector quantisation: the definition passes the gradient of x around the rounding, and so does the rule."""

    def quantise(x):
        return x + lax.stop_gradient(jnp.round(x) - x)

    return rule(quantise, lambda x: (quantise(x), None), lambda _, g: (g,)), (normal(5, scale=3),)


@right()
def stopped_factor():
    """A smooth function whose definition stops the gradient of one factor."""
    sigmoid = jax.nn.sigmoid
    f = rule(
        lambda x: x * lax.stop_gradient(sigmoid(x)),
        lambda x: (x * sigmoid(x), lax.stop_gradient(sigmoid(x))),
        lambda s, g: (g * s,),
    )
    return f, (normal(5),)


# --------------------------------------------------------------------------------- others' functions

also_right(
    plain_polynomial=lambda: (lambda x: x**3 - 2 * x, (normal(4),)),
    plain_network=lambda: (lambda w, x: jax.nn.softmax(jnp.tanh(x @ w) @ w.T), (normal(3, 4), normal(2, 3, seed=1))),
    plain_eigenvalues=lambda: (lambda a: jnp.linalg.eigvalsh(a + a.T), (normal(3, 3),)),
    jax_relu=lambda: (jax.nn.relu, (fixed(RELU),)),
    jax_silu=lambda: (jax.nn.silu, (normal(4),)),
    jax_gelu=lambda: (jax.nn.gelu, (normal(4),)),
    jax_softplus=lambda: (jax.nn.softplus, (normal(4),)),
    jax_softmax=lambda: (jax.nn.softmax, (normal(3, 4),)),
    jax_logsumexp=lambda: (jax.nn.logsumexp, (normal(3, 4),)),
    jaxnn_linear=lambda: (jaxnn.linear, (normal(4, 3), normal(2, 3, seed=1), normal(2, seed=2))),
    jaxnn_conv2d=lambda: (jaxnn.conv2d, (normal(2, 2, 4, 5), normal(3, 2, 3, 2, seed=1), normal(3, seed=2))),
    jaxnn_relu=lambda: (jaxnn.relu, (fixed(RELU),)),
    jaxnn_sigmoid=lambda: (jaxnn.sigmoid, (normal(3, 4),)),
    jaxnn_tanh=lambda: (jaxnn.tanh, (normal(3, 4),)),
    jaxnn_max_pool2d=lambda: (lambda x: jaxnn.max_pool2d(x, 2), (normal(2, 2, 4, 4),)),
    jaxnn_max_pool2d_ties=lambda: (lambda x: jaxnn.max_pool2d(x, 2), (fixed([[[[1.0, 1.0], [0.0, 1.0]]]]),)),
    jaxnn_softmax=lambda: (jaxnn.softmax, (normal(3, 4),)),
    jaxnn_log_softmax=lambda: (jaxnn.log_softmax, (normal(3, 4),)),
    jaxnn_cross_entropy=lambda: (jaxnn.cross_entropy, (normal(3, 4), fixed([0, 3, 1], jnp.int32))),
    jaxnn_cross_entropy_soft=lambda: (jaxnn.cross_entropy, (normal(3, 4), jax.nn.softmax(normal(3, 4, seed=1)))),
    jaxnn_nll=lambda: (jaxnn.nll, (jax.nn.softmax(normal(3, 4)), fixed([0, 3, 1], jnp.int32))),
    jaxnn_binary_cross_entropy=lambda: (jaxnn.binary_cross_entropy, (normal(3, 4), uniform(0.1, 0.9, 3, 4))),
    jaxnn_squared_error=lambda: (jaxnn.squared_error, (normal(3, 4), normal(3, 4, seed=1))),
    jaxnn_dropout=lambda: (lambda x, key: jaxnn.dropout(x, 0.5, key), (normal(16), jax.random.key(0))),
    jaxnn_l2_penalty=lambda: (jaxnn.l2_penalty, ({"w": normal(3, 2), "b": normal(2, seed=1)},)),
)

# ------------------------------------------------------------------------------------------ complex, curved, underflowing


@right()
def complex_product():
    return rule(lambda z, w: z * w, lambda z, w: (z * w, (z, w)), lambda zw, g: (g * zw[1], g * zw[0])), (
        phases(4), phases(4, seed=2),
    )  # fmt: skip


@right(level="full")
def complex_squared_length():
    bwd = lambda z, g: (2 * g.astype(z.dtype) * jnp.conj(z),)  # noqa: E731
    return rule(squared_length, lambda z: (squared_length(z), z), bwd), (phases(3, 4),)


@right()
def fourier_transform():
    fft = lambda z: jnp.fft.fft(z)  # noqa: E731
    return rule(fft, lambda z: (fft(z), None), lambda _, g: (fft(g),)), (phases(6),)


@right(level="full")
def power_spectrum():
    return lambda x: jnp.abs(jnp.fft.rfft(x)) ** 2, (normal(8),)


@right(level="full")
def kink_beside_a_curve():
    f = lambda x: jnp.sum(jnp.maximum(x, 0) - x * x)  # noqa: E731
    return rule(f, lambda x: (f(x), x), lambda x, g: (g * ((x > 0).astype(x.dtype) - 2 * x),)), (
        fixed([0.7, -0.2, 1.2, -1.6]),
    )


@right()
def nearly_underflowing():
    return elementwise(lambda x: jnp.exp(-x), lambda x: -jnp.exp(-x)), (fixed([80.0]),)


@right(level="full")
def softmax_from_its_input():
    def softmax(x):
        e = jnp.exp(x - jnp.max(x, -1, keepdims=True))
        return e / total(e)

    def bwd(x, g):
        p = softmax(x)
        return (p * (g - total(g * p)),)

    return rule(softmax, lambda x: (softmax(x), x), bwd), (fixed([[1.0, -1.5], [-2.0, 1.2]]),)


@right(level="full")
def fixed_point_by_its_equation():
    """z = tanh(0.1 W z + 1), with a linear solve that JAX has in no low precision."""

    def solve(w):
        return lax.fori_loop(0, 40, lambda _, z: jnp.tanh(0.1 * w @ z + 1), jnp.ones(3, w.dtype))

    def bwd(w, g):
        z = solve(w)
        slope = 1 - z * z
        u = slope * jnp.linalg.solve((jnp.eye(3, dtype=w.dtype) - 0.1 * slope[:, None] * w).T, g)
        return (0.1 * jnp.outer(u, z),)

    w = fixed([[0.1, 0.5, -0.3], [1.0, -0.2, 0.4], [0.3, -0.7, 0.9]])
    return rule(solve, lambda w: (solve(w), w), bwd), (w,)


@right()
def symbolic_zeros_of_outputs():
    zero = jax.custom_derivatives.SymbolicZero

    def bwd(x, g):
        parts = [c * d for c, d in zip(g, (jnp.cos(x), -jnp.sin(x)), strict=True) if not isinstance(c, zero)]
        return (sum(parts, jnp.zeros_like(x)),)

    both = lambda x: (jnp.sin(x), jnp.cos(x))  # noqa: E731
    return rule(both, lambda x: (both(x.value), x.value), bwd, symbolic_zeros=True), (normal(4),)


if importlib.util.find_spec("optax"):

    @right()
    def optax_cross_entropy():
        import optax

        return optax.softmax_cross_entropy_with_integer_labels, (normal(3, 4), fixed([0, 3, 1], jnp.int32))

    @right()
    def optax_safe_norm():
        import optax

        return lambda x: optax.safe_norm(x, 1e-6), (normal(4),)


if importlib.util.find_spec("flax"):

    @right()
    def flax_dense():
        from flax import linen

        layer = linen.Dense(2)
        x = normal(4, 3)
        return layer.apply, (layer.init(jax.random.key(0), x), x)

    @right()
    def flax_layer_norm():
        from flax import linen

        layer = linen.LayerNorm()
        x = normal(4, 3)
        return layer.apply, (layer.init(jax.random.key(0), x), x)


if importlib.util.find_spec("equinox"):

    @right()
    def equinox_linear():
        """The layer itself is an argument: a tree with static fields."""
        import equinox

        return lambda layer, x: layer(x), (equinox.nn.Linear(3, 2, key=jax.random.key(0)), normal(3))

    @right()
    def equinox_rule():
        import equinox

        @equinox.filter_custom_vjp
        def sine(x):
            return jnp.sin(x)

        @sine.def_fwd
        def _(perturbed, x):
            return jnp.sin(x), x

        @sine.def_bwd
        def _(x, g, perturbed, _):
            return g * jnp.cos(x)

        return lambda x: sine(x), (normal(3),)
