"""The wrong rules: each holds one mistake that a public thread describes."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

from zoo.specimen import (
    at_least_float32,
    average,
    correlate,
    elementwise,
    fixed,
    from_output,
    inf,
    layer_norm,
    layer_norm_fwd,
    normal,
    one_hot,
    only_of,
    phases,
    rule,
    squared_length,
    swap,
    total,
    uniform,
    unit,
    wrong,
)

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
        return jnp.arctan2(at_least_float32(y), at_least_float32(x)).astype(x.dtype)

    f = rule(arctan2, lambda y, x: (arctan2(y, x), (y, x)), bwd)
    return f, (uniform(300, 500, 4), uniform(300, 500, 4, seed=1))


@wrong("precision", "marin-community/marin#8217")
def rounded_logsumexp():
    """Softmax is recovered from a logsumexp rounded to the dtype of the logits."""

    def lse(x):
        return jax.nn.logsumexp(at_least_float32(x), -1).astype(x.dtype)

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
