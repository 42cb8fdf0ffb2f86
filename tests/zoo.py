"""The zoo: wrong rules and right ones, on which `jaxnn.gradcheck` is judged.

Each wrong specimen holds one mistake that a public thread describes, and names the check that must fail on it. The
right ones stretch the checker the other way: ties, infinities, cancellation, constraints, callbacks, odd trees; no
check may fail on any of them. A specimen's arrays are made when it is asked for, so importing this costs nothing.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

import jaxnn


class Specimen(NamedTuple):
    """A function with its arguments, and what is wrong with its rule, if anything is."""

    id: str
    make: Callable[[], tuple[Any, tuple[Any, ...]]]  # -> the function and its arguments
    kwargs: dict[str, Any] = {}  # noqa: RUF012 (of `check`; never changed)
    check: str = ""  # the check that must fail; none for a right rule
    source: str = ""  # where people made this mistake: "owner/repository#number", or an address
    mistake: str = ""
    alone: bool = False  # no other check can notice it


Make = Callable[[], tuple[Any, tuple[Any, ...]]]
WRONG: list[Specimen] = []
RIGHT: list[Specimen] = []


def named(make: Make) -> str:
    """Return a specimen's id: its function's name."""
    return make.__name__.strip("_").replace("_", "-")


def wrong(check: str, source: str, alone: bool = False, **kwargs: Any) -> Callable[[Make], Make]:
    """Put a wrong specimen into the zoo: its docstring is the mistake, the keyword arguments are `check`'s."""

    def put(make: Make) -> Make:
        WRONG.append(Specimen(named(make), make, kwargs, check, source, make.__doc__ or "", alone))
        return make

    return put


def right(**kwargs: Any) -> Callable[[Make], Make]:
    """Put a right specimen into the zoo; the keyword arguments are `check`'s."""

    def put(make: Make) -> Make:
        RIGHT.append(Specimen(named(make), make, kwargs))
        return make

    return put


def rule(f: Any, fwd: Any, bwd: Any, nondiff: tuple[int, ...] = (), **options: Any) -> Any:
    """Give f a custom_vjp rule.

    Many of jnp's functions have options, for each of which a rule would owe a cotangent: a lambda hides them.
    """
    g = jax.custom_vjp(f, nondiff_argnums=nondiff)
    g.defvjp(fwd, bwd, **options)
    return g


def elementwise(f: Any, derivative: Any) -> Any:
    """Give an elementwise f its derivative, as a function of the input."""
    return rule(f, lambda x: (f(x), x), lambda x, g: (g * derivative(x),))


def from_output(f: Any, derivative: Any) -> Any:
    """Give an elementwise f its derivative, as a function of the output."""

    def fwd(x: Any) -> Any:
        y = f(x)
        return y, y

    return rule(f, fwd, lambda y, g: (g * derivative(y),))


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: Any = jnp.float32) -> jax.Array:
    """Return a normal array."""
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def uniform(low: float, high: float, *shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Return a uniform array."""
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape), dtype)


def fixed(values: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Return this array."""
    return jnp.asarray(values, dtype)


def wide(x: Any) -> Any:
    """Return x in float32 at least."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def one_hot(ids: Any, x: Any) -> Any:
    """Return the class ids as rows of zeros and ones, of the dtype and with the classes of x."""
    return jax.nn.one_hot(ids, x.shape[-1], dtype=x.dtype)


def total(x: Any) -> Any:
    """Sum over the last axis and keep it."""
    return jnp.sum(x, -1, keepdims=True)


def average(x: Any) -> Any:
    """Average over the last axis and keep it."""
    return jnp.mean(x, -1, keepdims=True)


inf, nan = np.inf, np.nan

# ============================================================================================== wrong

# ------------------------------------------------------------------------------------------ signature


@wrong("signature", "jax-ml/jax#13302", alone=True, kwargs={"scale": 3.0})
def keyword_only():
    """A keyword-only argument, which custom_vjp cannot bind."""

    def scaled(x, *, scale):
        return scale * x

    return rule(scaled, lambda x, *, scale: (scale * x, scale), lambda scale, g: (scale * g,)), (normal(3),)


@wrong("signature", "jax-ml/jax#1938", alone=True)
def default_forgotten():
    """No cotangent for an argument left at its default."""

    def scaled(x, scale=2.0):
        return scale * x

    return rule(scaled, lambda x, scale: (scale * x, scale), lambda scale, g: (scale * g,)), (normal(3),)


@wrong("signature", "XPU-Forces/mojo_opset#263", alone=True)
def cotangent_too_many():
    """Three cotangents for two arguments."""
    f = rule(jnp.multiply, lambda x, y: (x * y, (x, y)), lambda r, g: (g * r[1], g * r[0], None))
    return f, (normal(3), normal(3, seed=1))


@wrong("signature", "pytorch/tutorials#216", alone=True)
def cotangent_too_few():
    """One cotangent for the two arguments of a sum."""
    return rule(jnp.add, lambda x, y: (x + y, None), lambda _, g: (g,)), (normal(3), normal(3, seed=1))


@wrong("signature", "jax-ml/jax#5571", alone=True)
def not_a_tuple():
    """The cotangent of the only argument is not in a tuple."""
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: g * jnp.cos(x)), (normal(3),)


@wrong("signature", "jax-ml/jax#8356", alone=True)
def leaves_for_a_tree():
    """The leaves of a dictionary's cotangent, without the dictionary."""

    def affine(p, x):
        return p["w"] * x + p["b"]

    f = rule(affine, lambda p, x: (affine(p, x), (p["w"], x)), lambda r, g: (g * r[1], g, g * r[0]))
    return f, ({"b": normal(3), "w": normal(3, seed=1)}, normal(3, seed=2))


@wrong("signature", "deeplearning4j/nd4j#2424", alone=True)
def broadcast_not_summed():
    """A broadcast bias is given a row of cotangents a sample."""
    f = rule(lambda x, b: x + b[None], lambda x, b: (x + b[None], None), lambda _, g: (g, g))
    return f, (normal(4, 3), normal(3))


@wrong("signature", "jax-ml/jax#12611", alone=True)
def three_from_fwd():
    """The forward rule returns its residuals one by one."""
    f = rule(jnp.multiply, lambda x, y: (x * y, x, y), lambda r, g: (g * r[1], g * r[0]))
    return f, (normal(3), normal(3, seed=1))


@wrong("signature", "jax-ml/jax#7651")
def arithmetic_on_float0():
    """The backward rule adds the cotangent of an integer output, a float0."""

    def largest(x):
        return jnp.max(x), jnp.argmax(x)

    f = rule(largest, lambda x: (largest(x), x), lambda x, g: (g[0] * one_hot(jnp.argmax(x), x) + 0 * g[1],))
    return f, (normal(5),)


@wrong("signature", "jax-ml/jax#3035")
def tangent_cubed():
    """The tangent of a custom_jvp is not linear, so JAX cannot transpose it."""
    f = jax.custom_jvp(jnp.sin)
    f.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), jnp.cos(primals[0]) * tangents[0] ** 3))
    return f, (normal(3),)


# ---------------------------------------------------------------------------------------------- types


def other_dtype(dtype: Any) -> Any:
    """Return a sine whose cotangent has this dtype, whatever the primal's."""
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: ((g * jnp.cos(x)).astype(dtype),)), (normal(3, 2),)


# Where scan adds the cotangent to its carry it refuses the wrong dtype itself: staging would notice that too.
@wrong("types", "jax-ml/jax#27144", alone=True, skip=("staging",))
def complex64_cotangent():
    """The cotangent of a float32 primal is complex64, its real part right."""
    return other_dtype(jnp.complex64)


@wrong("types", "jax-ml/jax#27144")
def bfloat16_cotangent():
    """The cotangent of a float32 primal is bfloat16."""
    return other_dtype(jnp.bfloat16)


@wrong("types", "jax-ml/jax#23779")
def float16_cotangent():
    """The cotangent of a float32 primal is float16."""
    return other_dtype(jnp.float16)


@wrong("types", "jax-ml/jax#23779")
def int32_cotangent():
    """The cotangent of a float32 primal is int32."""
    return other_dtype(jnp.int32)


@wrong("types", "jax-ml/jax#27144")
def float32_for_bfloat16():
    """A bfloat16 weight is given the float32 cotangent of the other argument."""

    def scaled(x, w):
        return x * w.astype(x.dtype)

    def bwd(r, g):
        x, w = r
        return g * w.astype(x.dtype), g * x

    return rule(scaled, lambda x, w: (scaled(x, w), (x, w)), bwd), (normal(4), normal(4, seed=1, dtype=jnp.bfloat16))


# --------------------------------------------------------------------------------------------- primal


@wrong("primal", "lucidrains/flash-attention-jax#7", alone=True)
def forward_constant():
    """The forward rule forgets the constant, which has no gradient."""
    return rule(lambda x: x * x + 1, lambda x: (x * x, x), lambda x, g: (2 * g * x,)), (normal(4),)


@wrong("primal", "lucidrains/flash-attention-jax#8")
def forward_dtype():
    """The forward rule returns bfloat16 where the function returns float32."""
    f = rule(lambda x: 2 * x, lambda x: ((2 * x).astype(jnp.bfloat16), x), lambda x, g: (2 * g.astype(x.dtype),))
    return f, (normal(4),)


@wrong("primal", "jax-ml/jax#12611")
def forward_shape():
    """The forward rule keeps the axis that the function drops."""

    def fwd(x):
        return total(x * x), x

    return rule(lambda x: jnp.sum(x * x, -1), fwd, lambda x, g: (2 * x * g.reshape(*x.shape[:-1], 1),)), (normal(4, 3),)


@wrong("primal", "lucidrains/flash-attention-jax#7")
def forward_tree():
    """The forward rule leaves out the second output."""

    def with_size(x):
        return jnp.tanh(x), jnp.sum(x * x)

    return rule(with_size, lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),)), (normal(4),)


@wrong("primal", "lucidrains/flash-attention-jax#7")
def forward_indices():
    """The forward rule returns the last of equals where the function returns the first: its indices alone differ."""

    def first(x):
        return jnp.max(x), jnp.argmax(x)

    def fwd(x):
        return (jnp.max(x), x.size - 1 - jnp.argmax(x[::-1])), x

    def bwd(x, g):
        return (jnp.where(jnp.arange(x.size) == jnp.argmax(x), g[0], 0.0),)

    return rule(first, fwd, bwd), (fixed([2.0, 2.0, -1.0]),)


# ------------------------------------------------------------------------------------------- gradient


@wrong("gradient", "jax-ml/jax#13048")
def sign():
    """The second argument's cotangent has the wrong sign."""
    f = rule(
        lambda x, y: jnp.sin(x) * y,
        lambda x, y: (jnp.sin(x) * y, (x, y)),
        lambda r, g: (g * jnp.cos(r[0]) * r[1], -g * jnp.sin(r[0])),
    )
    return f, (normal(3), normal(3, seed=1))


@wrong("gradient", "graphdeco-inria/gaussian-splatting#551")
def factor_2():
    """The derivative of a square without its 2."""
    return elementwise(lambda x: x * x, lambda x: x), (normal(4),)


@wrong("gradient", "tile-ai/TileOPs#54")
def no_transpose():
    """Matmul's rule forgets both transposes, which square matrices hide."""
    f = rule(jnp.matmul, lambda a, b: (a @ b, (a, b)), lambda r, g: (g @ r[1], r[0] @ g))
    return f, (normal(3, 3), normal(3, 3, seed=1))


@wrong("gradient", "jimfleming/differentiation#1")
def bias_averaged():
    """A broadcast bias is given the mean over the samples instead of the sum."""
    f = rule(lambda x, b: x + b[None], lambda x, b: (x + b[None], None), lambda _, g: (g, jnp.mean(g, 0)))
    return f, (normal(4, 3), normal(3, seed=1))


@wrong("gradient", "flagos-ai/FlagGems#59")
def bias_other_axis():
    """A broadcast bias is given the sum over the other axis of a square."""
    f = rule(lambda x, b: x + b[None], lambda x, b: (x + b[None], None), lambda _, g: (g, jnp.sum(g, 1)))
    return f, (normal(4, 4), normal(4, seed=1))


@wrong("gradient", "NVIDIA/warp#168")
def value_for_cotangent():
    """A linear layer's rule multiplies by y where ∂L/∂y belongs."""
    f = rule(jnp.matmul, lambda x, w: (x @ w, (x, w, x @ w)), lambda r, g: (r[2] @ r[1].T, r[0].T @ g))
    return f, (normal(4, 3), normal(3, 2, seed=1))


@wrong("gradient", "NervanaSystems/neon#111")
def db_for_dy():
    """A linear layer's ∂L/∂w is made of ∂L/∂b instead of ∂L/∂y."""

    def bwd(r, g):
        x, w = r
        db = jnp.sum(g, 0)
        return g @ w.T, x.T @ jnp.broadcast_to(db[None], g.shape), db

    f = rule(lambda x, w, b: x @ w + b[None], lambda x, w, b: (x @ w + b[None], (x, w)), bwd)
    return f, (normal(4, 3), normal(3, 2, seed=1), normal(2, seed=2))


@wrong("gradient", "getkeops/keops#155")
def swapped():
    """The two cotangents of atan2 are in each other's place."""

    def bwd(r, g):
        y, x = r
        s = g / (x * x + y * y)
        return -s * y, s * x

    f = rule(jnp.arctan2, lambda y, x: (jnp.arctan2(y, x), (y, x)), bwd)
    return f, (uniform(0.5, 2, 4), uniform(0.5, 2, 4, seed=1))


@wrong("gradient", "pytorch/pytorch#3303")
def none_for_the_matrix():
    """None for a matrix that has a gradient."""
    return rule(jnp.matmul, lambda a, x: (a @ x, a), lambda a, g: (None, a.T @ g)), (normal(3, 2), normal(2, seed=1))


@wrong("gradient", "jax-ml/jax#8356")
def none_for_a_leaf():
    """None for one leaf of the parameters, taken for zero."""

    def affine(p, x):
        return p["w"] * x + p["b"]

    f = rule(affine, lambda p, x: (affine(p, x), (p["w"], x)), lambda r, g: ({"b": None, "w": g * r[1]}, g * r[0]))
    return f, ({"b": normal(3), "w": normal(3, seed=1)}, normal(3, seed=2))


@wrong("gradient", "fla-org/flash-linear-attention#955")
def one_of_three():
    """Of three arguments only the weight's cotangent is wrong: of the first sample alone."""

    def bwd(r, g):
        x, w = r
        return g * w[None], g[0] * x[0], jnp.sum(g, 0)

    f = rule(lambda x, w, b: x * w[None] + b[None], lambda x, w, b: (x * w[None] + b[None], (x, w)), bwd)
    return f, (normal(4, 3), normal(3, seed=1), normal(3, seed=2))


@wrong("gradient", "jax-ml/jax#14833", alone=True)
def differentiated_alone():
    """The rule keeps y only where y is differentiated too, and x's cotangent needs it."""

    def fwd(x, y):
        return x.value * y.value, (x.value if x.perturbed else None, y.value if y.perturbed else None)

    def bwd(r, g):
        x, y = r
        return g if y is None else g * y, g if x is None else g * x

    return rule(jnp.multiply, fwd, bwd, symbolic_zeros=True), (normal(3), normal(3, seed=1))


@wrong("gradient", "Dao-AILab/flash-attention#1817")
def second_output():
    """The cotangent of the second output, a logsumexp, is ignored."""

    def softmax_and_lse(x):
        return jax.nn.softmax(x), jax.nn.logsumexp(x, -1)

    def bwd(p, g):
        return (p * (g[0] - total(p * g[0])),)

    return rule(softmax_and_lse, lambda x: (softmax_and_lse(x), jax.nn.softmax(x)), bwd), (normal(3, 4),)


@wrong("gradient", "Dao-AILab/flash-attention#889")
def auxiliary_loss():
    """A penalty returned beside the activations is taken for a constant."""

    def with_penalty(x):
        return {"y": jnp.tanh(x), "penalty": jnp.mean(x * x)}

    f = rule(with_penalty, lambda x: (with_penalty(x), jnp.tanh(x)), lambda y, g: (g["y"] * (1 - y * y),))
    return f, (normal(4),)


@wrong("gradient", "NVIDIA/TransformerEngine#2139")
def upstream_forgotten():
    """Cross entropy's rule is right only where the upstream cotangent is 1."""

    def loss(x, t):
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(x) * one_hot(t, x), -1))

    f = rule(
        loss,
        lambda x, t: (loss(x, t), (x, t)),
        lambda r, g: ((jax.nn.softmax(r[0]) - one_hot(r[1], r[0])) / len(r[0]), None),
    )
    return f, (normal(3, 4), fixed([0, 3, 1], jnp.int32))


@wrong("gradient", "paiml/aprender#2182")
def sum_divided():
    """A summed loss whose rule divides by the batch as for the mean."""

    def loss(x, t):
        return -jnp.sum(jax.nn.log_softmax(x) * one_hot(t, x))

    f = rule(
        loss,
        lambda x, t: (loss(x, t), (x, t)),
        lambda r, g: (g * (jax.nn.softmax(r[0]) - one_hot(r[1], r[0])) / len(r[0]), None),
    )
    return f, (normal(3, 4), fixed([0, 3, 1], jnp.int32))


@wrong("gradient", "hunkim/DeepLearningZeroToAll#173")
def mean_not_divided():
    """The rule of a mean forgets to divide by the number of samples."""
    return rule(lambda x: jnp.mean(x * x), lambda x: (jnp.mean(x * x), x), lambda x, g: (2 * g * x,)), (normal(5),)


@wrong("gradient", "facebookresearch/shumai#74")
def mean_over_an_axis():
    """The rule of a mean over one axis takes its cotangent for one number."""
    f = rule(
        lambda x: jnp.mean(x, 0),
        lambda x: (jnp.mean(x, 0), x),
        lambda x, g: (jnp.full(x.shape, jnp.mean(g), g.dtype) / len(x),),
    )
    return f, (normal(4, 3),)


@wrong("gradient", "pytorch/pytorch#19902")
def variance_unbiased():
    """The rule divides by n - 1, the variance by n."""
    f = rule(lambda x: jnp.var(x), lambda x: (jnp.var(x), x), lambda x, g: (2 * g * (x - jnp.mean(x)) / (x.size - 1),))
    return f, (normal(6),)


@wrong("gradient", "nntrainer/nntrainer#430")
def logsumexp_axis():
    """Logsumexp's softmax is taken over all axes instead of the last."""
    f = rule(
        lambda x: jax.nn.logsumexp(x, -1),
        lambda x: (jax.nn.logsumexp(x, -1), x),
        lambda x, g: (g[:, None] * jax.nn.softmax(x, (0, 1)),),
    )
    return f, (normal(3, 4),)


@wrong("gradient", "SKaiNET-developers/SKaiNET#863")
def attention_axis():
    """P (dp - sum(dp p)) with the sum over the queries instead of the keys."""

    def weights(s):
        return jax.nn.softmax(s / 2)

    def bwd(p, dp):
        return (p * (dp - jnp.sum(dp * p, -2, keepdims=True)) / 2,)

    return rule(weights, lambda s: (weights(s), weights(s)), bwd), (normal(2, 4, 4),)


def layer_norm(x: Any) -> Any:
    """Normalise over the last axis."""
    x = x - average(x)
    return x * lax.rsqrt(average(x * x) + 1e-5)


def layer_norm_fwd(x: Any) -> Any:
    """Normalise, and keep the result and the scale."""
    x = x - average(x)
    r = lax.rsqrt(average(x * x) + 1e-5)
    return x * r, (x * r, r)


@wrong("gradient", "BVLC/caffe#1891")
def norm_mean_forgotten():
    """Layer norm's rule forgets the path through the mean."""
    return rule(layer_norm, layer_norm_fwd, lambda r, g: (r[1] * (g - r[0] * average(g * r[0])),)), (normal(3, 5),)


@wrong("gradient", "tenstorrent/tt-metal#53204")
def norm_mean_twice():
    """Layer norm's rule subtracts the cotangent's mean twice."""
    f = rule(layer_norm, layer_norm_fwd, lambda r, g: (r[1] * (g - 2 * average(g) - r[0] * average(g * r[0])),))
    return f, (normal(3, 5),)


@wrong("gradient", "flagos-ai/FlagGems#59")
def norm_one_row():
    """Layer norm's rule sums over the rows too: right for a batch of one."""
    f = rule(layer_norm, layer_norm_fwd, lambda r, g: (r[1] * (g - jnp.mean(g) - r[0] * jnp.mean(g * r[0])),))
    return f, (normal(3, 5),)


@wrong("gradient", "torch/nn#768")
def stale_statistics():
    """A batch norm's rule scales by the running deviation instead of the batch's."""

    def batch_norm(x, running):
        centred = x - jnp.mean(x, 0, keepdims=True)
        return centred * lax.rsqrt(jnp.mean(centred * centred, 0, keepdims=True) + 1e-5)

    def bwd(r, g):
        y, running = r
        centred = g - jnp.mean(g, 0, keepdims=True) - y * jnp.mean(g * y, 0, keepdims=True)
        return centred * lax.rsqrt(running[None] + 1e-5), None

    f = rule(batch_norm, lambda x, running: (batch_norm(x, running), (batch_norm(x, running), running)), bwd)
    return f, (normal(6, 3), jnp.ones(3))


@wrong("gradient", "BVLC/caffe#2413")
def overwritten():
    """The rule reads its input after the output has overwritten it."""

    def square_plus(x):
        return x * x + x

    return rule(square_plus, lambda x: (square_plus(x), square_plus(x)), lambda x, g: (g * (2 * x + 1),)), (normal(4),)


@wrong("gradient", "pytorch/pytorch#31938")
def negative_slope():
    """A leaky relu with a negative slope reads the sign off its output: wrong for x < 0."""
    f = from_output(lambda x: jnp.where(x > 0, x, -2 * x), lambda y: jnp.where(y > 0, 1.0, -2.0).astype(y.dtype))
    return f, (fixed([-1.5, 0.7, -0.2, 2.0]),)


@wrong("gradient", "tenstorrent/tt-metal#1262")
def gelu_of_the_other():
    """The derivative of gelu's tanh approximation for the exact gelu: wrong by 1e-3."""
    exact, other = (functools.partial(jax.nn.gelu, approximate=a) for a in (False, True))
    f = rule(exact, lambda x: (exact(x), x), lambda x, g: jax.vjp(other, x)[1](g))
    return f, (fixed([-3.0, -2.0, -0.7, 0.4, 1.9, 2.8]),)


@wrong("gradient", "pytorch/pytorch#188467")
def last_of_a_million():
    """The cotangent of the last element of a million is dropped."""

    def bwd(x, g):
        return ((g * jnp.cos(x)).at[-1].set(0),)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), (normal(10**6),)


@wrong("gradient", "NVIDIA/TensorRT-LLM#7892")
def mask_off_by_one():
    """The rule's causal mask excludes the diagonal, the function's does not."""

    def causal(x, strict):
        i = jnp.arange(x.shape[-1])
        return (i[:, None] > i[None] if strict else i[:, None] >= i[None]).astype(x.dtype)

    def masked(x):
        return x * causal(x, False)

    return rule(masked, lambda x: (masked(x), None), lambda _, g: (g * causal(g, True),)), (normal(4, 4),)


@wrong("gradient", "ggml-org/llama.cpp#4203")
def mask_fills_infinity():
    """The rule fills the masked places of the cotangent with -inf too, not with 0."""
    mask = np.tri(4, dtype=bool)
    f = rule(
        lambda x: jnp.where(mask, x, -1e9),
        lambda x: (jnp.where(mask, x, -1e9), None),
        lambda _, g: (jnp.where(mask, g, -inf),),
    )
    return f, (normal(4, 4),)


@wrong("gradient", "pytorch/pytorch#1631")
def gather_repeated():
    """A row looked up twice is given the cotangent of one lookup, not the sum."""

    def lookup(table, ids):
        return table[ids]

    def bwd(r, g):
        table, ids = r
        return jnp.zeros_like(table).at[ids].set(g), None

    return rule(lookup, lambda t, i: (t[i], (t, i)), bwd), (normal(5, 3), fixed([1, 3, 1, 0], jnp.int32))


@wrong("gradient", "PaddlePaddle/Paddle#22843")
def sort_permutation():
    """Sort's rule applies the permutation again instead of its inverse."""
    f = rule(lambda x: jnp.sort(x), lambda x: (jnp.sort(x), jnp.argsort(x)), lambda i, g: (g[i],))
    return f, (fixed([0.3, 2.0, -1.0, 1.1]),)


@wrong("gradient", "triton-lang/triton#2840")
def cumsum_forwards():
    """Cumsum's rule sums the cotangents forwards instead of backwards."""
    return rule(lambda x: jnp.cumsum(x), lambda x: (jnp.cumsum(x), None), lambda _, g: (jnp.cumsum(g),)), (normal(5),)


@wrong("gradient", "apache/mxnet#17864")
def product_with_zero():
    """The rule of a product divides it by each factor: NaN where one is 0."""
    f = rule(lambda x: jnp.prod(x), lambda x: (jnp.prod(x), (x, jnp.prod(x))), lambda r, g: (g * r[1] / r[0],))
    return f, (fixed([4.0, 0.0, -1.5]),)


@wrong("gradient", "openai/guided-diffusion#167")
def another_mask():
    """Dropout's backward pass draws its mask from the next key."""

    def dropout(x, key):
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)

    f = rule(
        dropout, lambda x, key: (dropout(x, key), jax.random.split(key)[1]), lambda key, g: (dropout(g, key), None)
    )
    return f, (normal(16), jax.random.key(0))


def correlate(x: Any, w: Any) -> Any:
    """Slide a filter over an image, NCHW and OIHW, with one pixel of padding."""
    return lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)))


def swap(w: Any) -> Any:
    """Exchange the first two axes: images and channels, filters and channels."""
    return jnp.swapaxes(w, 0, 1)


@wrong("gradient", "nntrainer/nntrainer#705")
def filter_not_turned():
    """A convolution's input is given its cotangent without the filter turned by 180 degrees."""

    def bwd(r, g):
        x, w = r
        return correlate(g, swap(w)), swap(correlate(swap(x), swap(g)))

    f = rule(correlate, lambda x, w: (correlate(x, w), (x, w)), bwd)
    return f, (normal(2, 2, 4, 4), normal(3, 2, 3, 3, seed=1))


@wrong("gradient", "KonduitAI/deeplearning4j#90")
def padding_off_by_one():
    """A causal convolution's input cotangent is one place off."""

    def causal(x, w):
        return jnp.convolve(x, w)[: len(x)]

    def bwd(r, g):
        x, w = r
        dx = jnp.correlate(jnp.pad(g, (1, len(w) - 2)), w, "valid")
        return dx, jnp.correlate(jnp.pad(g, (0, len(w) - 1)), x, "valid")

    return rule(causal, lambda x, w: (causal(x, w), (x, w)), bwd), (normal(6), normal(3, seed=1))


def doubled_cosine() -> Any:
    """A sine with twice its derivative."""
    return elementwise(jnp.sin, lambda x: 2 * jnp.cos(x))


@wrong("gradient", "jax-ml/jax#21220")
def under_jit():
    """A wrong rule inside a jitted function."""
    sine = doubled_cosine()
    return jax.jit(lambda x: 1 + sine(x) ** 2), (normal(3),)


@wrong("gradient", "jax-ml/jax#21220")
def under_scan():
    """A wrong rule in the body of a scan."""
    sine = doubled_cosine()
    return lambda x: lax.scan(lambda c, _: (sine(c), None), x, None, length=3)[0], (normal(3),)


@wrong("gradient", "jax-ml/jax#21220")
def under_another_rule():
    """A wrong rule inside the definition, and inside the rule, of a right one."""
    sine = doubled_cosine()

    def squared(x):
        return sine(x) ** 2

    return rule(squared, lambda x: jax.vjp(squared, x), lambda pullback, g: pullback(g)), (normal(3),)


@wrong("gradient", "marin-community/marin#3043")
def under_a_condition():
    """A wrong rule on one branch of a condition."""
    sine = doubled_cosine()
    return lambda x, p: lax.cond(p, jnp.sin, sine, x), (normal(3), fixed(False, bool))


@wrong("gradient", "jax-ml/jax#3213")
def tangent_sign():
    """A custom_jvp whose tangent has the wrong sign in one argument."""

    def jvp(primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        return jnp.sin(x) * y, jnp.cos(x) * dx * y - jnp.sin(x) * dy

    f = jax.custom_jvp(lambda x, y: jnp.sin(x) * y)
    f.defjvp(jvp)
    return f, (normal(3), normal(3, seed=1))


# ------------------------------------------------------------------------------------------ linearity


@wrong("linearity", "https://docs.jax.dev/en/latest/jep/4008-custom-vjp-update.html")
def clip_at_1():
    """The rule of an identity clips the cotangent to [-1, 1]."""
    return rule(lambda x: x, lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),)), (normal(8),)


@wrong("linearity", "https://docs.jax.dev/en/latest/jep/4008-custom-vjp-update.html", alone=True)
def clip_at_100():
    """The rule clips the cotangent to [-100, 100]."""
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (jnp.clip(g, -100, 100) * jnp.cos(x),)), (normal(8),)


@wrong("linearity", "itayhubara/BinaryNet.pytorch#25")
def sign_of_cotangent():
    """The rule passes the sign of the cotangent on."""
    return rule(lambda x: 3 * x, lambda x: (3 * x, None), lambda _, g: (3 * jnp.sign(g),)), (normal(8),)


@wrong("linearity", "waychin-weiqin/ITSA#3")
def cotangent_squared():
    """The rule squares the cotangent."""
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * g * jnp.cos(x),)), (normal(8),)


@wrong("linearity", "pytorch/pytorch#4355")
def cotangent_forgotten():
    """The rule returns the derivative without the cotangent: not 0 for 0."""
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (jnp.cos(x),)), (normal(8),)


# ------------------------------------------------------------------------------------------- integers


@wrong("integers", "jax-ml/jax#7651", alone=True)
def integer_gradient():
    """An integer argument is given a float cotangent, which JAX drops."""

    def scaled(x, n):
        return x * n.astype(x.dtype)

    f = rule(scaled, lambda x, n: (scaled(x, n), (x, n)), lambda r, g: (g * r[1].astype(g.dtype), jnp.sum(g * r[0])))
    return f, (normal(3), fixed(3, jnp.int32))


@wrong("integers", "jax-ml/jax#23779", alone=True)
def mask_gradient():
    """A mask of booleans is given the cotangent of a mask of floats."""
    f = rule(
        lambda x, mask: jnp.where(mask, x, 0),
        lambda x, mask: (jnp.where(mask, x, 0), (x, mask)),
        lambda r, g: (jnp.where(r[1], g, 0), g * r[0]),
    )
    return f, (normal(4), fixed([True, False, True, True], bool))


# ---------------------------------------------------------------------------------------------- kinks


@wrong("kinks", "trusthlt/nlp-with-deep-learning-lectures#4", alone=True)
def relu_2_at_0():
    """Relu's derivative at 0 is 2: any value from 0 to 1 would do."""
    f = elementwise(lambda x: jnp.maximum(x, 0), lambda x: (x > 0).astype(x.dtype) + 2 * (x == 0).astype(x.dtype))
    return f, (fixed([-1.2, 0.6, 2.4, -0.3]),)


@wrong("kinks", "pytorch/pytorch#147801")
def hardswish_of_closed_pieces():
    """Hard swish, its pieces closed at both ends and added: 2.5 at 3, and -0.5 at -3, where it is a convention."""
    hardswish = lambda x: x * jnp.clip(x + 3, 0, 6) / 6  # noqa: E731
    inner = lambda x: jnp.where(jnp.abs(x) <= 3, x / 3 + 0.5, 0)  # noqa: E731
    x = fixed([*np.linspace(-3.3, -2.7, 20), 2.8, 3.3])
    return elementwise(hardswish, lambda x: inner(x) + jnp.where(x >= 3, unit(x), 0)), (x,)


@wrong("kinks", "Theano/Theano#4568")
def maximum_both():
    """At a tie both arguments of maximum are given the whole cotangent."""

    def bwd(r, g):
        x, y = r
        return jnp.where(x >= y, g, 0), jnp.where(y >= x, g, 0)

    return rule(jnp.maximum, lambda x, y: (jnp.maximum(x, y), (x, y)), bwd), (normal(4), normal(4, seed=1))


@wrong("kinks", "microsoft/onnxruntime#7217")
def max_all():
    """All largest elements of a row are given the whole cotangent."""

    def bwd(x, g):
        return (jnp.where(x == jnp.max(x, -1, keepdims=True), g[:, None], 0),)

    return rule(lambda x: jnp.max(x, -1), lambda x: (jnp.max(x, -1), x), bwd), (normal(3, 4),)


@wrong("kinks", "pytorch/pytorch#94204")
def clip_both():
    """An element that equals its bound and the bound are both given the whole cotangent."""

    def bwd(r, g):
        x, low = r
        return jnp.where(x >= low, g, 0), jnp.sum(jnp.where(x <= low, g, 0))

    def bounded(x, low):
        return jnp.maximum(x, low)

    return rule(bounded, lambda x, low: (bounded(x, low), (x, low)), bwd), (normal(6), fixed(-0.25))


@wrong("kinks", "autodiff/autodiff#130")
def abs_by_division():
    """The derivative of |x| is x / |x|: NaN at 0."""
    return elementwise(jnp.abs, lambda x: x / jnp.abs(x)), (fixed([-1.2, 0.6, 2.4]),)


@wrong("kinks", "kaldi-asr/kaldi#3890")
def mask_from_the_output():
    """Dropout's rule reads the mask off y / x, and takes a 0 for kept."""
    mask = np.array([True, False, True, False, True])

    def bwd(r, g):
        x, y = r
        return (jnp.where(x == 0, g, g * y / jnp.where(x == 0, 1, x)),)

    f = rule(
        lambda x: jnp.where(mask, 2 * x, 0), lambda x: (jnp.where(mask, 2 * x, 0), (x, jnp.where(mask, 2 * x, 0))), bwd
    )
    return f, (normal(5),)


# ------------------------------------------------------------------------------------------- extremes


@wrong("extremes", "pytorch/pytorch#49724", alone=True)
def softplus_at_infinity():
    """Softplus's rule is exp(x - y): NaN at infinity, where it is 1."""
    softplus = jax.nn.softplus
    f = rule(softplus, lambda x: (softplus(x), (x, softplus(x))), lambda r, g: (g * jnp.exp(r[0] - r[1]),))
    return f, (normal(5),)


@wrong("extremes", "tenstorrent/tt-metal#56397")
def softplus_overflow():
    """Softplus's rule is exp(x) / (1 + exp(x)): NaN from x = 89."""
    return elementwise(jax.nn.softplus, lambda x: jnp.exp(x) / (1 + jnp.exp(x))), (normal(5),)


@wrong("extremes", "jeshraghian/snntorch#427")
def sigmoid_overflow():
    """Sigmoid's rule is exp(-x) / (1 + exp(-x))²: NaN below x = -45."""
    return elementwise(jax.nn.sigmoid, lambda x: jnp.exp(-x) / (1 + jnp.exp(-x)) ** 2), (normal(5),)


@wrong("extremes", "tinygrad/tinygrad#1113")
def softmax_overflow():
    """Softmax's rule recomputes it without subtracting the maximum: NaN from x = 89."""

    def bwd(x, g):
        p = jnp.exp(x) / total(jnp.exp(x))
        return (p * (g - total(p * g)),)

    return rule(lambda x: jax.nn.softmax(x), lambda x: (jax.nn.softmax(x), x), bwd), (normal(3, 4),)


@wrong("extremes", "karpathy/micrograd#29")
def tanh_overflow():
    """Tanh's rule recomputes it as (exp(2x) - 1) / (exp(2x) + 1): NaN from x = 45."""

    def derivative(x):
        t = (jnp.exp(2 * x) - 1) / (jnp.exp(2 * x) + 1)
        return 1 - t * t

    return elementwise(jnp.tanh, derivative), (normal(5),)


# ------------------------------------------------------------------------------------------ precision


@wrong("gradient", "a mutant of scripts/mutate.py")
def cotangent_rounded():
    """The cotangent is rounded to bfloat16 on its way through a float32 rule, as mixed precision does by mistake."""
    return rule(jnp.tanh, lambda x: (jnp.tanh(x), x), lambda x, g: (_rounded(g) * (1 - jnp.tanh(x) ** 2),)), (
        normal(5),
    )


def _rounded(g: Any) -> Any:
    return g.astype(jnp.bfloat16).astype(g.dtype)


@wrong("precision", "marin-community/marin#3043", alone=True)
def bfloat16_branch():
    """A rule with a branch of its own for bfloat16, which forgets the 2."""
    return elementwise(lambda x: x * x, lambda x: x if x.dtype == jnp.bfloat16 else 2 * x), (normal(5),)


@wrong("precision", "pytorch/pytorch#193130")
def float16_branch():
    """Atan2's rule squares in x's dtype: in float16 that overflows and underflows."""

    def bwd(r, g):
        y, x = r
        s = g / (x * x + y * y)
        return s * x, -s * y

    def arctan2(y, x):
        return jnp.arctan2(wide(y), wide(x)).astype(x.dtype)

    f = rule(arctan2, lambda y, x: (arctan2(y, x), (y, x)), bwd)
    return f, (uniform(300, 500, 4), uniform(300, 500, 4, seed=1))


@wrong("precision", "marin-community/marin#8217")
def rounded_logsumexp():
    """Softmax is recovered from a logsumexp rounded to the dtype of the logits."""

    def lse(x):
        return jax.nn.logsumexp(wide(x), -1).astype(x.dtype)

    f = rule(lse, lambda x: (lse(x), (x, lse(x))), lambda r, g: (g[:, None] * jnp.exp(r[0] - r[1][:, None]),))
    return f, (normal(3, 64) + 20,)


@wrong("precision", "linkedin/Liger-Kernel#950")
def narrow_accumulator():
    """A weight's cotangent is summed over 2048 samples in their own dtype: in bfloat16 it stops at 256."""

    def bwd(r, g):
        x, w = r
        dw = lax.scan(lambda s, row: (s + g * row, None), jnp.zeros_like(w), x)[0]
        return jnp.broadcast_to(g * w[None], x.shape), dw

    f = rule(lambda x, w: jnp.sum(x * w[None]), lambda x, w: (jnp.sum(x * w[None]), (x, w)), bwd)
    return f, (uniform(0.5, 1.5, 2048, 2), normal(2, seed=1))


@wrong("precision", "tenstorrent/tt-metal#38643")
def cancelling_tail():
    """Gelu's rule adds 1 to an erf near -1: hardly a digit is right below -5."""

    def gelu(x):
        return x * lax.erfc(-x * math.sqrt(0.5)) / 2

    def derivative(x):
        return (1 + lax.erf(x * math.sqrt(0.5))) / 2 + x * jnp.exp(-x * x / 2) * math.sqrt(0.5 / math.pi)

    return elementwise(gelu, derivative), (fixed([-5.2, -4.9, -5.6, -5.4]),)


# -------------------------------------------------------------------------------------------- staging


# Inside shard_map the compiler refuses a callback without results: nothing of the rule's doing.
@wrong("staging", "jax-ml/jax#11579", alone=True, skip=("shard_map",))
def log_under_remat():
    """The forward rule logs by an unordered callback, which remat refuses."""

    def fwd(x):
        io_callback(lambda: None, None)
        return jnp.sin(x), x

    return rule(jnp.sin, fwd, lambda x, g: (g * jnp.cos(x),)), (normal(4),)


@wrong("staging", "jax-ml/jax#3086")
def residual_in_a_global():
    """The residual is kept in a Python variable: a tracer that leaks from jit and scan."""
    kept = {}

    def fwd(x):
        kept["x"] = x
        return jnp.sin(x), None

    return rule(jnp.sin, fwd, lambda _, g: (g * jnp.cos(kept["x"]),)), (normal(4),)


@wrong("staging", "jax-ml/jax#11646")
def branch_on_values():
    """The backward rule asks Python for the sign of a sum."""

    def bwd(x, g):
        if jnp.sum(x) > 0:
            return (g * jnp.cos(x),)
        return (jnp.cos(x) * g,)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), (normal(4),)


@wrong("staging", "PythonOT/POT#625")
def numpy_in_the_rule():
    """The backward rule calls NumPy on its residual."""
    f = rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.asarray(np.cos(np.asarray(x))),))
    return f, (normal(4),)


@wrong("staging", "Farama-Foundation/Jumpy#29")
def traced_otherwise():
    """Concrete arrays take one path and traced ones another, with the wrong sign."""

    def bwd(x, g):
        if isinstance(x, jax.core.Tracer):
            return (-g * jnp.cos(x),)
        return (g * jnp.cos(x),)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), (normal(4),)


# ----------------------------------------------------------------------------------------------- vmap


@wrong("vmap", "jax-ml/jax#14150", alone=True)
def batching_rule():
    """A batching rule inside the backward pass scales all samples by the first one's factor."""

    @custom_vmap
    def scale(factor, g):
        return factor * g

    @scale.def_vmap
    def batch(size, batched, factor, g):
        if batched[0]:
            factor = jnp.broadcast_to(factor[:1], factor.shape)
        factor, g = (
            a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip((factor, g), batched, strict=True)
        )
        return factor * g, True

    # Its own rule, since custom_vmap has no reverse mode: the second derivatives are right.
    differentiable = rule(
        lambda c, g: scale(c, g), lambda c, g: (scale(c, g), (c, g)), lambda r, h: (h * r[1], h * r[0])
    )
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (differentiable(jnp.cos(x), g),)), (normal(4),)


@wrong("vmap", "flagos-ai/FlagGems#59")
def sum_over_the_batch():
    """A host function sums over all axes, so over the batch's too, and not over the last."""

    def host(x):
        return np.full(x.shape[:-1], np.sum(x), x.dtype)

    def bwd(x, g):
        s = jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape[:-1], x.dtype), x, vmap_method="broadcast_all")
        return (2 * g * s * jnp.ones_like(x),)

    return rule(lambda x: jnp.sum(x) ** 2, lambda x: (jnp.sum(x) ** 2, x), bwd), (normal(4),)


# ------------------------------------------------------------------------------------------ shard_map


def dense(reduce: Any) -> Any:
    """A matrix product whose weight's cotangent goes through `reduce(dw, w)`."""
    return rule(jnp.matmul, lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, reduce(r[0].T @ g, r[1])))


def only_of(ct: Any, primal: Any) -> tuple[str, ...]:
    """Name the mesh axes over which a cotangent varies and its primal does not."""
    return tuple(jax.typeof(ct).manual_axis_type.varying - jax.typeof(primal).manual_axis_type.varying)


@wrong("shard_map", "jax-ml/jax#19174", alone=True)
def summed_twice():
    """The rule sums over the mesh, and without check_vma shard_map sums again."""

    def reduce(dw, w):
        axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
        return lax.psum(dw, axes) if axes else dw

    return dense(reduce), (normal(4, 3), normal(3, 2, seed=1))


@wrong("shard_map", "jax-ml/jax#3970", alone=True)
def mean_over_the_mesh():
    """The rule averages over the mesh where the chain rule sums: wrong only with check_vma."""

    def reduce(dw, w):
        axes = only_of(dw, w)
        return lax.pmean(dw, axes) if axes else dw

    return dense(reduce), (normal(4, 3), normal(3, 2, seed=1))


# --------------------------------------------------------------------------------------- second_order


@wrong("second_order", "google/jaxopt#143", alone=True)
def stopped_residual():
    """The residual is behind a stop_gradient: second derivatives are 0."""
    return rule(jnp.sin, lambda x: (jnp.sin(x), lax.stop_gradient(jnp.cos(x))), lambda c, g: (g * c,)), (normal(4),)


@wrong("second_order", "jax-ml/jax#21220", alone=True)
def nested_rule():
    """The backward rule's own rule gives its residual no cotangent."""

    def times(x, g):
        return 3 * x * x * g

    backward = rule(times, lambda x, g: (times(x, g), x), lambda x, h: (None, 3 * x * x * h))
    return rule(lambda x: x**3, lambda x: (x**3, x), lambda x, g: (backward(x, g),)), (normal(4),)


# ---------------------------------------------------------------------------------------- determinism


@wrong("determinism", "pytorch/pytorch#56202", alone=True)
def noise_of_an_ulp():
    """The last bit of the cotangent changes from run to run."""
    rng = np.random.default_rng(0)

    def bwd(x, g):
        up = rng.integers(0, 2, g.shape).astype(bool)
        return (g * jnp.cos(x) * jnp.where(up, 1 + jnp.finfo(g.dtype).eps, 1).astype(g.dtype),)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), (normal(64),)


@wrong("determinism", "jcmgray/autoray#27")
def mask_by_numpy():
    """The rule adds noise of NumPy's generator, which no key controls."""
    rng = np.random.default_rng(0)
    f = rule(
        jnp.sin,
        lambda x: (jnp.sin(x), x),
        lambda x, g: (g * jnp.cos(x) * rng.uniform(0.9, 1.1, g.shape).astype(g.dtype),),
    )
    return f, (normal(16),)


# -------------------------------------------------------------------------------------------- closure


@wrong("closure", "jax-ml/jax#20889", alone=True)
def array_as_nondiff():
    """An array in nondiff_argnums: no gradient, and no tracer, may reach it."""
    f = rule(jnp.multiply, lambda x, w: (x * w, None), lambda w, r, g: (g * w,), nondiff=(1,))
    return f, (normal(4), fixed(1.5))


@wrong("closure", "jax-ml/jax#5440")
def closed_over_tracer():
    """A rule made on the spot closes over an argument of the function around it."""

    def scaled(x, w):
        return rule(lambda x: x * w, lambda x: (x * w, None), lambda _, g: (g * w,))(x)

    return scaled, (normal(4), normal(4, seed=1))


# ------------------------------------------------------------------------------------------ complex, behind kinks, flat


def phases(*shape: int, seed: int = 0) -> jax.Array:
    """Return a complex array."""
    return lax.complex(normal(*shape, seed=seed), normal(*shape, seed=seed + 1))


def squared_length(z: Any) -> Any:
    """Return |z|²."""
    return jnp.real(z * jnp.conj(z))


@wrong("gradient", "HIPS/autograd#27")
def complex_real_part_alone():
    """The gradient of |z|² is 2 conj(z): its imaginary part is forgotten."""
    return rule(squared_length, lambda z: (squared_length(z), z), lambda z, g: (2 * (g * z.real).astype(z.dtype),)), (
        phases(4),
    )


@wrong("gradient", "jax-ml/jax#979")
def complex_not_conjugated():
    """2 z, as PyTorch has it, where JAX wants 2 conj(z)."""
    return rule(squared_length, lambda z: (squared_length(z), z), lambda z, g: (2 * g.astype(z.dtype) * z,)), (
        phases(4),
    )


@wrong("gradient", "jax-ml/jax#4891")
def complex_cotangent_conjugated():
    """The cotangent of a product is conjugated, as an inner product would have it."""
    product = lambda z, w: z * w  # noqa: E731
    bwd = lambda zw, g: (jnp.conj(g) * zw[1], jnp.conj(g) * zw[0])  # noqa: E731
    return rule(product, lambda z, w: (z * w, (z, w)), bwd), (phases(4), phases(4, seed=2))


@wrong("gradient", "jax-ml/jax#2050")
def complex_cotangent_cast():
    """The cotangent is cast to a real number on its way: right wherever the loss is the real part."""
    return rule(lambda z: z * z, lambda z: (z * z, z), lambda z, g: (2 * z * g.real.astype(z.dtype),)), (phases(5),)


@wrong("extremes", "tenstorrent/tt-metal#6589")
def relu6_without_its_upper_bound():
    """relu6 is flat above 6, where no argument lies, and the rule thinks of 0 alone."""
    relu6 = lambda x: jnp.clip(x, 0, 6)  # noqa: E731
    return elementwise(relu6, lambda x: jnp.where(x > 0, 1.0, 0.0).astype(x.dtype)), (fixed([0.2, -0.1, 0.5, -0.8]),)


@wrong("gradient", "pytorch/pytorch#114234")
def hidden_behind_kinks():
    """A quarter too much, of an argument that comes out of a ReLU: most of its elements are at the kink."""
    twice = lambda x: 2 * jnp.maximum(x, 0)  # noqa: E731
    x = jnp.maximum(normal(300), 0)
    return elementwise(twice, lambda x: jnp.where(x > 0, 2.5, 0.0).astype(x.dtype)), (x,)


@wrong("gradient", "jax-ml/jax#15088")
def symbolic_zero_of_an_output():
    """A backward rule that goes another way when one output has no cotangent, and forgets a factor there."""
    zero = jax.custom_derivatives.SymbolicZero

    def bwd(x, g):
        sine, cosine = g
        if isinstance(cosine, zero):
            return (sine,)
        return (sine * jnp.cos(x) - cosine * jnp.sin(x),)

    both = lambda x: (jnp.sin(x), jnp.cos(x))  # noqa: E731
    return rule(both, lambda x: (both(x.value), x.value), bwd, symbolic_zeros=True), (normal(4),)


# ============================================================================================== right


def also_right(**makes: Make) -> None:
    """Put right specimens into the zoo that need no code of their own."""
    RIGHT.extend(Specimen(id.replace("_", "-"), make) for id, make in makes.items())


# ------------------------------------------------------------------------------- textbook, elementwise


def unit(x: Any) -> Any:
    """Return ones of the shape and dtype of x."""
    return jnp.ones_like(x)


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
        return layer_norm(wide(x)).astype(x.dtype) * gamma[None] + beta[None]

    def bwd(r, g):
        x, gamma = r
        y, (_, scale) = layer_norm_fwd(wide(x))
        dy = wide(g * gamma[None])
        dx = scale * (dy - average(dy) - y * average(dy * y))
        return dx.astype(x.dtype), jnp.sum(g * y.astype(g.dtype), 0), jnp.sum(g, 0)

    f = rule(normalise, lambda x, gamma, beta: (normalise(x, gamma, beta), (x, gamma)), bwd)
    return f, (normal(4, 6), uniform(0.5, 2, 6), normal(6, seed=1))


@right()
def rms_norm():
    def scale(x):
        return lax.rsqrt(average(x * x) + 1e-6)

    def normalise(x):
        return (wide(x) * scale(wide(x))).astype(x.dtype)

    def bwd(x, g):
        wx, wg = wide(x), wide(g)
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
        return jax.nn.softmax(wide(x)).astype(x.dtype)

    def bwd(x, g):
        p = jax.nn.softmax(wide(x))
        return ((p * (wide(g) - total(p * wide(g)))).astype(x.dtype),)

    return rule(probabilities, lambda x: (probabilities(x), x), bwd), (normal(3, 5, scale=5, dtype=jnp.bfloat16),)


@right()
def weight_of_many_samples():
    """The sum over 2048 samples runs in float32 at least."""

    def bwd(r, g):
        x, w = r
        return jnp.broadcast_to(g * w[None], x.shape), jnp.sum(wide(g * x), 0).astype(w.dtype)

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
