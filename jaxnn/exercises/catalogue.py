"""The exercises of the notes' components: each forward pass as the notes define it, and where it is tried."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.exercises.exercise import BASE, HALF, Arrays, Case, Exercise, Mistake, Part
from jaxnn.layers.max_pool2d import max_pool2d

TAURA = "Taura, Neural Networks Basics"
MULTI_CLASS = "Multi-class classification and backpropagation"
LAROCHELLE = "Larochelle, Neural networks"
LARGE, LARGE_PRODUCT = "for large x, whose exponential overflows", "for large x, where an exponential overflows"
ONE_HOT, TIES = "for one output at a time", "at ties"


def normal(seed: int, *shape: int, scale: float = 1.0) -> Any:
    """Return normal numbers."""
    return scale * np.random.default_rng(seed).normal(size=shape)


def case_of(name: str = BASE, dtype: str = "float32", upstream: Any = None, **inputs: Any) -> Case:
    """Return a case at these inputs."""
    return Case(
        name, {k: np.asarray(v, None if np.ndim(v) else np.float64) for k, v in inputs.items()}, dtype, upstream
    )


def also_in_float16(**inputs: Any) -> tuple[Case, Case]:
    """Return the case at these inputs, in float32 and in float16."""
    return case_of(**inputs), case_of(HALF, "float16", **inputs)


def _at(output: int, classes: int) -> Any:
    return np.eye(classes)[output]


def _is_label(values: Arrays, like: str) -> Any:
    return values["t"][:, None] == np.arange(values[like].shape[1])


SOFTMAX_X = normal(1, 3, 5)
LABELS = np.array([2, 0, 4], np.int32)
PROBABILITIES = np.exp(SOFTMAX_X) / np.exp(SOFTMAX_X).sum(-1, keepdims=True)
OF_LABEL = "for c = t, the label's class"
OF_OTHERS = "for c ≠ t, the other classes"


def by_label(like: str) -> tuple[Part, ...]:
    """Return the elements of the labels' classes, and those of the others, in gradients of the shape of `like`."""
    return (
        Part(OF_LABEL, BASE, lambda v: _is_label(v, like)),
        Part(OF_OTHERS, BASE, lambda v: ~_is_label(v, like)),
    )


LINEAR = Exercise(
    name="linear",
    title="the linear layer",
    definition="""
        y_i = Σ_j W_ij x_j + b_i, for each row x of the batch
        x: (rows, inputs), W: (outputs, inputs), b: (outputs,), y: (rows, outputs)
    """,
    source=f'{TAURA}, "Linear (a.k.a. Fully Connected Layer)"',
    forward="""
        def forward(x, W, b):
            y = x @ W.T + b
            return y
    """,
    inputs=("x", "W", "b"),
    outputs=("y",),
    gradients=("dx", "dW", "db"),
    cases=also_in_float16(x=normal(0, 3, 4), W=normal(1, 2, 4), b=normal(2, 2)),
    batched=("x",),
)

RELU = Exercise(
    name="relu",
    title="ReLU",
    definition="y = max(x, 0), for each element",
    source=f'{TAURA}, "ReLU"',
    forward="""
        def forward(x):
            y = jnp.where(x > 0, x, 0)
            return y
    """,
    inputs=("x",),
    outputs=("y",),
    gradients=("dx",),
    cases=(
        *also_in_float16(x=normal(0, 3, 4)),
        case_of("where x is 0", x=[[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]),
    ),
    notes=("Where x is 0, the derivative is 0.",),
    batched=("x",),
)


def _last_window(v: Arrays, _: Arrays, __: Any) -> Any:
    """Return dx with the share of the last window alone at each pixel."""
    dx, (oh, ow) = np.zeros(v["x"].shape), v["y"].shape[2:]
    for i, j in np.ndindex(v["W"].shape[2:]):
        dx[:, :, i : i + oh, j : j + ow] = np.einsum("sohw,oc->schw", v["dy"], v["W"][:, :, i, j])
    return dx


CONV2D = Exercise(
    name="conv2d",
    title="convolution with several channels",
    definition="""
        y_s,oc,i,j = Σ_ic,i',j' W_oc,ic,i',j' x_s,ic,i+i',j+j' + b_oc
        x: (samples, IC, H, W), W: (OC, IC, KH, KW), b: (OC,), y: (samples, OC, H − KH + 1, W − KW + 1)
    """,
    source=f'{TAURA}, "Convolution (multiple channels version)"',
    forward="""
        def forward(x, W, b):
            kh, kw = W.shape[2:]
            oh, ow = x.shape[2] - kh + 1, x.shape[3] - kw + 1
            y = b[:, None, None]
            for i in range(kh):
                for j in range(kw):
                    y = y + jnp.einsum("schw,oc->sohw", x[:, :, i : i + oh, j : j + ow], W[:, :, i, j])
            return y
    """,
    inputs=("x", "W", "b"),
    outputs=("y",),
    gradients=("dx", "dW", "db"),
    cases=also_in_float16(x=normal(0, 4, 3, 4, 5), W=normal(1, 5, 3, 2, 2), b=normal(2, 5)),
    mistakes=(
        Mistake(
            "the filter is reversed: a convolution in the place of a cross-correlation, or the other way",
            "dx", lambda v, g, at: at(W=v["W"][..., ::-1, ::-1])["dx"],
        ),
        Mistake("the shares of overlapping windows must be added up", "dx", _last_window),
    ),
    batched=("x",),
)  # fmt: skip

MAX_POOL2D = Exercise(
    name="max_pool2d",
    title="max-pool of 2x2 patches",
    definition="""
        y_s,c,i,j = max over i', j' in {0, 1} of x_s,c,2i+i',2j+j'
        x: (samples, channels, H, W) with even H and W, y: (samples, channels, H/2, W/2)
    """,
    source=f'{TAURA}, "Component functions"',
    forward="""
        def forward(x):
            s, c, h, w = x.shape
            y = x.reshape(s, c, h // 2, 2, w // 2, 2).max((3, 5))
            return y
    """,
    inputs=("x",),
    outputs=("y",),
    gradients=("dx",),
    cases=(
        *also_in_float16(x=normal(0, 2, 2, 4, 6)),
        case_of(TIES, x=np.array([[[[1.0, 1, 0, 2], [1, 0, 2, 2], [0, 0, 3, 0], [0, 0, 0, 3]]]])),
    ),
    notes=("Of equal pixels in a patch, the first counts as the largest: in its row, then in the next row.",),
    helpers={"forward": max_pool2d},
    batched=("x",),
)

DROPOUT = Exercise(
    name="dropout",
    title="dropout, given its mask",
    definition="""
        y = m x / (1 − P), for each element; m is 1 for values that are kept, else 0; P is the rate
    """,
    source=f'{TAURA}, "Component functions"',
    forward="""
        def forward(x, m, P):
            y = m * x / (1 - P)
            return y
    """,
    inputs=("x", "m", "P"),
    outputs=("y",),
    gradients=("dx",),
    cases=also_in_float16(x=normal(0, 3, 4), m=np.array([[1.0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]]), P=0.4),
    mistakes=(Mistake("the mask is not applied", "dx", lambda v, g, at: at(m=np.ones_like(v["m"]))["dx"]),),
    notes=("The mask and the rate have no gradient.",),
    batched=("x", "m"),
)

SOFTMAX = Exercise(
    name="softmax",
    title="softmax, with its two cases",
    definition="""
        p_a = exp(x_a) / Σ_k exp(x_k), for each row x of the batch
        x, p: (rows, classes)
        ∂p_a/∂x_j has two cases, j = a and j ≠ a
    """,
    source=f'{TAURA}, "softmax"; {MULTI_CLASS}, "The Softmax Function"',
    forward="""
        def forward(x):
            e = jnp.exp(x - x.max(-1, keepdims=True))
            p = e / e.sum(-1, keepdims=True)
            return p
    """,
    inputs=("x",),
    outputs=("p",),
    gradients=("dx",),
    cases=(
        *also_in_float16(x=SOFTMAX_X),
        case_of(ONE_HOT, upstream=_at(1, 5), x=SOFTMAX_X),
        case_of(LARGE, x=normal(2, 3, 5, scale=300.0)),
    ),
    parts=(
        Part("for j = a", ONE_HOT, lambda v: v["dp"] == 1),
        Part("for j ≠ a", ONE_HOT, lambda v: v["dp"] == 0),
    ),
    mistakes=(
        Mistake(
            "terms are missing: each input affects every output", "dx", lambda v, g, at: v["dp"] * v["p"] * (1 - v["p"])
        ),
        Mistake("a sum over the outputs is missing", "dx", lambda v, g, at: v["dp"] * v["p"]),
        Mistake(
            "the sum over the outputs runs over the wrong axis",
            "dx", lambda v, g, at: v["p"] * (v["dp"] - (v["dp"] * v["p"]).sum(0, keepdims=True)),
        ),
    ),
    batched=("x",),
)  # fmt: skip

LOG_SOFTMAX = Exercise(
    name="log_softmax",
    title="the logarithm of softmax",
    definition="""
        y_a = x_a − log Σ_k exp(x_k), for each row x of the batch
        x, y: (rows, classes)
    """,
    source=f'{TAURA}, "softmax" (the slide after it has its logarithm)',
    forward="""
        def forward(x):
            z = x - x.max(-1, keepdims=True)
            y = z - jnp.log(jnp.exp(z).sum(-1, keepdims=True))
            return y
    """,
    inputs=("x",),
    outputs=("y",),
    gradients=("dx",),
    cases=(
        *also_in_float16(x=SOFTMAX_X),
        case_of(ONE_HOT, upstream=_at(1, 5), x=SOFTMAX_X),
        case_of(LARGE, x=normal(2, 3, 5, scale=300.0)),
    ),
    parts=(
        Part("for j = a", ONE_HOT, lambda v: v["dy"] == 1),
        Part("for j ≠ a", ONE_HOT, lambda v: v["dy"] == 0),
    ),
    mistakes=(
        Mistake("a sum over the outputs is missing", "dx", lambda v, g, at: v["dy"] - np.exp(v["y"])),
        Mistake("a sum over the outputs is missing", "dx", lambda v, g, at: v["dy"] - np.exp(v["y"]) * v["dy"]),
    ),
    batched=("x",),
)

NLL = Exercise(
    name="nll",
    title="the negative log-likelihood of probabilities",
    definition="""
        l = −log p_t, for each row p of the batch with its class t
        p: (rows, classes), t: (rows,) of integers, l: (rows,)
    """,
    source=f'{TAURA}, "Component functions"; {MULTI_CLASS}, "Derivative for Cross Entropy Loss Layer"',
    forward="""
        def forward(p, t):
            l = -jnp.log(p[jnp.arange(len(t)), t])
            return l
    """,
    inputs=("p", "t"),
    outputs=("l",),
    gradients=("dp",),
    cases=also_in_float16(p=PROBABILITIES, t=LABELS),
    parts=by_label("p"),
    batched=("p", "t"),
)

CROSS_ENTROPY = Exercise(
    name="cross_entropy",
    title="softmax and negative log-likelihood in one",
    definition="""
        l = −x_t + log Σ_k exp(x_k), for each row x of logits with its class t
        x: (rows, classes), t: (rows,) of integers, l: (rows,)
    """,
    source=f'{TAURA}, "NLL softmax (Back propagation)"; {LAROCHELLE}, "Gradient computation"',
    forward="""
        def forward(x, t):
            m = x.max(-1)
            l = m + jnp.log(jnp.exp(x - m[:, None]).sum(-1)) - x[jnp.arange(len(t)), t]
            return l
    """,
    inputs=("x", "t"),
    outputs=("l",),
    gradients=("dx",),
    cases=(*also_in_float16(x=SOFTMAX_X, t=LABELS), case_of(LARGE, x=normal(2, 3, 5, scale=300.0), t=LABELS)),
    parts=by_label("x"),
    batched=("x", "t"),
)

SQUARED_ERROR = Exercise(
    name="squared_error",
    title="the squared error, summed",
    definition="""
        l = Σ (y − t)², over all elements
        y, t: the same shape, l: a number
    """,
    source=f'{TAURA}, "A simple example (linear regression)"',
    forward="""
        def forward(y, t):
            l = jnp.sum((y - t) ** 2)
            return l
    """,
    inputs=("y", "t"),
    outputs=("l",),
    gradients=("dy", "dt"),
    cases=also_in_float16(y=normal(0, 3, 4), t=normal(1, 3, 4)),
    batched=("y", "t"),
)

L1_PENALTY = Exercise(
    name="l1_penalty",
    title="the L1 penalty of weights",
    definition="Ω = Σ |w|, over all elements",
    source=f'{LAROCHELLE}, "Regularization"',
    forward="""
        def forward(w):
            Ω = jnp.sum(jnp.abs(w))
            return Ω
    """,
    inputs=("w",),
    outputs=("Ω",),
    gradients=("dw",),
    cases=(*also_in_float16(w=normal(0, 3, 4)), case_of("where w is 0", w=[[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]])),
    notes=("Where w is 0, the derivative is 0.",),
    helpers={"forward": lambda w: jnp.sum(w * jnp.sign(w))},  # JAX's derivative of |w| is 1 at 0
)

L2_PENALTY = Exercise(
    name="l2_penalty",
    title="the L2 penalty of weights",
    definition="Ω = Σ w², over all elements",
    source=f'{LAROCHELLE}, "Regularization"',
    forward="""
        def forward(w):
            Ω = jnp.sum(w**2)
            return Ω
    """,
    inputs=("w",),
    outputs=("Ω",),
    gradients=("dw",),
    cases=also_in_float16(w=normal(0, 3, 4)),
)

LINEAR_CROSS_ENTROPY = Exercise(
    name="linear_cross_entropy",
    title="the last layer: linear, softmax and negative log-likelihood in one",
    definition="""
        a = W x, l = −a_t + log Σ_c exp(a_c), for each row x of the batch with its class t
        x: (rows, inputs), W: (classes, inputs), t: (rows,) of integers, l: (rows,)
    """,
    source=f'{TAURA}, "NLL softmax (Back propagation)"; {MULTI_CLASS}, "The Chain Rule in Our Network"',
    forward="""
        def forward(x, W, t):
            a = x @ W.T
            m = a.max(-1)
            l = m + jnp.log(jnp.exp(a - m[:, None]).sum(-1)) - a[jnp.arange(len(t)), t]
            return l
    """,
    inputs=("x", "W", "t"),
    outputs=("l",),
    gradients=("dx", "dW"),
    cases=(
        *also_in_float16(x=normal(0, 3, 4), W=normal(1, 5, 4), t=LABELS),
        case_of(LARGE_PRODUCT, x=normal(0, 3, 4, scale=3000.0), W=normal(1, 5, 4), t=LABELS),
    ),
    batched=("x", "t"),
)

COMPONENTS = (LINEAR, RELU, CONV2D, MAX_POOL2D, DROPOUT, SOFTMAX, LOG_SOFTMAX, NLL, CROSS_ENTROPY, SQUARED_ERROR,
              L1_PENALTY, L2_PENALTY, LINEAR_CROSS_ENTROPY)  # fmt: skip
