"""The exercises of the chain rule: networks with every value's gradient, a Jacobian, and steps of gradient descent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.exercises.catalogue import (
    LABELS,
    LARGE_PRODUCT,
    LAROCHELLE,
    MULTI_CLASS,
    TAURA,
    also_in_float16,
    by_label,
    case_of,
    normal,
)
from jaxnn.exercises.exercise import Exercise, Mistake
from jaxnn.layers.max_pool2d import max_pool2d

STALE = "a stale value: another value of the forward pass is in the place of the right one"
ORDER = "Begin at the loss: each gradient is made from those that come before it in this order."

_SOFTMAX = """
        def softmax(x):
            e = jnp.exp(x - x.max(-1, keepdims=True))
            return e / e.sum(-1, keepdims=True)

"""

TWO_LAYER_NETWORK = Exercise(
    name="two_layer_network",
    title="a network of two linear layers, each value's gradient by hand",
    definition="""
        z1 = W1 x + b1, h1 = ReLU(z1), z2 = W2 h1 + b2, p = softmax(z2), l = −log p_t,
        for each row x of the batch with its class t
    """,
    source=f'{TAURA}, "Computing the gradients" and "Chain Rule"',
    forward=_SOFTMAX + """
        def forward(x, t, W1, b1, W2, b2):
            z1 = x @ W1.T + b1
            h1 = jnp.where(z1 > 0, z1, 0)
            z2 = h1 @ W2.T + b2
            p = softmax(z2)
            l = -jnp.log(p[jnp.arange(len(t)), t])
            return z1, h1, z2, p, l
    """,
    inputs=("x", "t", "W1", "b1", "W2", "b2"),
    outputs=("z1", "h1", "z2", "p", "l"),
    gradients=("dp", "dz2", "dW2", "db2", "dh1", "dz1", "dW1", "db1"),
    cases=also_in_float16(
        x=normal(0, 3, 4), t=LABELS, W1=normal(1, 6, 4), b1=normal(2, 6), W2=normal(3, 5, 6), b2=normal(4, 5)
    ),
    mistakes=(
        Mistake(STALE, "dW2", lambda v, g, at: g["dz2"].T @ v["z1"]),
        Mistake(STALE, "dz1", lambda v, g, at: g["dh1"] * (v["x"].sum(-1, keepdims=True) > 0)),
        Mistake("the derivative of ReLU is not applied", "dz1", lambda v, g, at: g["dh1"]),
        Mistake("the derivative of ReLU is not applied", "dW1", lambda v, g, at: g["dh1"].T @ v["x"]),
        Mistake("the derivative of softmax is not applied", "dz2", lambda v, g, at: g["dp"]),
        Mistake("terms are missing: each input of softmax affects every output", "dz2",
                lambda v, g, at: g["dp"] * v["p"] * (1 - v["p"])),
    ),
    parts=by_label("p"),
    notes=(ORDER,),
    batched=("x", "t"),
)  # fmt: skip

DIGIT_CNN = Exercise(
    name="digit_cnn",
    title="the network for digits, each value's gradient by hand",
    definition="""
        x1 = W0 * x, x2 = ReLU(x1), x3 = maxpool(x2), x4 = W1 x3, y = softmax(x4), l = −log y_t,
        for each image x with its class t; W0 * x is the convolution of the notes, and W1 x3 takes x3 as a vector
    """,
    source=f'{TAURA}, "The digit recognition example"',
    forward=_SOFTMAX + """
        def conv2d(x, W):
            kh, kw = W.shape[2:]
            oh, ow = x.shape[2] - kh + 1, x.shape[3] - kw + 1
            y = 0
            for i in range(kh):
                for j in range(kw):
                    y = y + jnp.einsum("schw,oc->sohw", x[:, :, i : i + oh, j : j + ow], W[:, :, i, j])
            return y


        def max_pool2d(x):
            s, c, h, w = x.shape
            return x.reshape(s, c, h // 2, 2, w // 2, 2).max((3, 5))


        def forward(x, t, W0, W1):
            x1 = conv2d(x, W0)
            x2 = jnp.where(x1 > 0, x1, 0)
            x3 = max_pool2d(x2)
            x4 = x3.reshape(len(x), -1) @ W1.T
            y = softmax(x4)
            l = -jnp.log(y[jnp.arange(len(t)), t])
            return x1, x2, x3, x4, y, l
    """,
    inputs=("x", "t", "W0", "W1"),
    outputs=("x1", "x2", "x3", "x4", "y", "l"),
    gradients=("dy", "dx4", "dW1", "dx3", "dx2", "dx1", "dW0"),
    cases=also_in_float16(x=normal(5, 3, 1, 6, 8), t=LABELS, W0=normal(1, 2, 1, 3, 3), W1=normal(2, 5, 12, scale=0.4)),
    helpers={"max_pool2d": max_pool2d},
    mistakes=(
        Mistake(STALE, "dW1", lambda v, g, at: g["dx4"].T @ v["x2"][:, :, ::2, ::2].reshape(len(v["t"]), -1)),
        Mistake("the derivative of ReLU is not applied", "dx1", lambda v, g, at: g["dx2"]),
        Mistake("the derivative of softmax is not applied", "dx4", lambda v, g, at: g["dy"]),
        Mistake("terms are missing: each input of softmax affects every output", "dx4",
                lambda v, g, at: g["dy"] * v["y"] * (1 - v["y"])),
        Mistake("the gradient goes to every pixel of a patch, and not to its largest", "dx2",
                lambda v, g, at: np.repeat(np.repeat(g["dx3"], 2, 2), 2, 3)),
    ),
    parts=by_label("y"),
    notes=(ORDER, "Of equal pixels in a patch, the first counts as the largest: in its row, then in the next row."),
    batched=("x", "t"),
)  # fmt: skip

RESIDUAL_BLOCK = Exercise(
    name="residual_block",
    title="a residual connection: a value that two others are made from",
    definition="z = W1 x, h = ReLU(z), r = W2 h, y = x + r, for each row x of the batch",
    source=f'{TAURA}, "Chain Rule" (a sum over all variables that x directly affects)',
    forward="""
        def forward(x, W1, W2):
            z = x @ W1.T
            h = jnp.where(z > 0, z, 0)
            r = h @ W2.T
            y = x + r
            return z, h, r, y
    """,
    inputs=("x", "W1", "W2"),
    outputs=("z", "h", "r", "y"),
    gradients=("dr", "dh", "dW2", "dz", "dW1", "dx"),
    cases=also_in_float16(x=normal(0, 3, 4), W1=normal(1, 5, 4), W2=normal(2, 4, 5)),
    mistakes=(
        Mistake("a path from x to y is missing", "dx", lambda v, g, at: v["dy"]),
        Mistake("a path from x to y is missing", "dx", lambda v, g, at: g["dx"] - v["dy"]),
        Mistake("the derivative of ReLU is not applied", "dz", lambda v, g, at: g["dh"]),
        Mistake(STALE, "dW2", lambda v, g, at: v["dy"].T @ v["z"]),
        Mistake(STALE, "dW1", lambda v, g, at: g["dz"].T @ v["y"]),
    ),
    notes=(ORDER,),
    batched=("x",),
)


def _jacobian(dy: Any, W: Any, x: Any) -> Any:
    jacobian = jax.jacobian(lambda x: jnp.tanh(W @ x))(x)
    return jacobian, jnp.asarray(dy) @ jacobian


JACOBIAN = Exercise(
    name="jacobian",
    title="a Jacobian, and a vector times it",
    definition="""
        y = tanh(W x), for one vector x
        W: (M, N), x: (N,), y: (M,)
        J is the Jacobian ∂y/∂x, M x N: rows outputs, columns inputs
        dx is the row vector dy times J
    """,
    source=f'{MULTI_CLASS}, "Jacobian"',
    forward="""
        def forward(W, x):
            y = jnp.tanh(W @ x)
            return y
    """,
    inputs=("W", "x"),
    outputs=("y",),
    gradients=("J", "dx"),
    cases=also_in_float16(W=normal(0, 3, 4, scale=0.5), x=normal(1, 4)),
    right=_jacobian,
)


def _sgd_step(_: Any, W: Any, b: Any, x: Any, t: Any, alpha: Any, lam: Any) -> Any:
    def objective(W: Any, b: Any) -> Any:
        return jnp.sum((x @ W.T + b - t) ** 2) + lam * jnp.sum(W**2)

    dW, db = jax.grad(objective, (0, 1))(W, b)
    return W - alpha * dW, b - alpha * db


SGD_STEP = Exercise(
    name="sgd_step",
    title="one step of stochastic gradient descent on a linear layer",
    definition="""
        l = Σ (W x + b − t)², summed over the outputs and over the rows x, t of a mini-batch; Ω = Σ W²
        θ ← θ + α Δ, Δ = −∇l − λ ∇Ω, for θ = W and θ = b
        x: (rows, inputs), t: (rows, outputs), W: (outputs, inputs), b: (outputs,)
    """,
    source=f'{LAROCHELLE}, "Stochastic gradient descent"',
    forward="""
        def forward(W, b, x, t, alpha, lam):
            l = jnp.sum((x @ W.T + b - t) ** 2)
            return l
    """,
    inputs=("W", "b", "x", "t", "alpha", "lam"),
    outputs=("l",),
    gradients=("W_new", "b_new"),
    cases=also_in_float16(W=normal(0, 2, 4), b=normal(1, 2), x=normal(2, 3, 4), t=normal(3, 3, 2), alpha=0.1, lam=0.3),
    function="update",
    right=_sgd_step,
    mistakes=(
        Mistake("the step goes up the gradient", "W_new", lambda v, g, at: 2 * v["W"] - g["W_new"]),
        Mistake("the step goes up the gradient", "b_new", lambda v, g, at: 2 * v["b"] - g["b_new"]),
        Mistake("the regulariser has the wrong sign", "W_new", lambda v, g, at: at(lam=-v["lam"])["W_new"]),
        Mistake("the bias is regularised", "b_new", lambda v, g, at: g["b_new"] - 2 * v["alpha"] * v["lam"] * v["b"]),
        Mistake("the regulariser is missing", "W_new", lambda v, g, at: at(lam=np.zeros(()))["W_new"]),
        Mistake("the learning rate is missing", "W_new", lambda v, g, at: at(alpha=np.ones(()))["W_new"]),
        Mistake("the learning rate is missing", "b_new", lambda v, g, at: at(alpha=np.ones(()))["b_new"]),
        Mistake("the step itself is returned, and not the new value", "W_new", lambda v, g, at: g["W_new"] - v["W"]),
        Mistake("the step itself is returned, and not the new value", "b_new", lambda v, g, at: g["b_new"] - v["b"]),
    ),
    batched=("x", "t"),
)


def _softmax_update(_: Any, W: Any, x: Any, y: Any, alpha: Any) -> Any:
    return W - alpha * jax.grad(lambda W: -jnp.sum(y * jax.nn.log_softmax(W @ x)))(W)


SOFTMAX_UPDATE = Exercise(
    name="softmax_update",
    title="one step of gradient descent on softmax regression",
    definition="""
        p = softmax(W x), L = −Σ_j y_j log p_j, W ← W − α ∂L/∂W
        x: (inputs,), y: (classes,), the one-hot vector of the class, W: (classes, inputs)
    """,
    source=f'{MULTI_CLASS}, "Gradient Descent: Conclusion"',
    forward=_SOFTMAX + """
        def forward(W, x, y, alpha):
            p = softmax(W @ x)
            return p
    """,
    inputs=("W", "x", "y", "alpha"),
    outputs=("p",),
    gradients=("W_new",),
    cases=(
        *also_in_float16(W=normal(0, 3, 4), x=normal(1, 4), y=np.array([0.0, 1, 0]), alpha=0.1),
        case_of(LARGE_PRODUCT, W=normal(0, 3, 4), x=normal(3, 4, scale=3000.0),
                y=np.array([0.0, 1, 0]), alpha=0.1),
    ),
    function="update",
    right=_softmax_update,
    mistakes=(
        Mistake("the step goes up the gradient", "W_new", lambda v, g, at: 2 * v["W"] - g["W_new"]),
        Mistake("the learning rate is missing", "W_new", lambda v, g, at: at(alpha=np.ones(()))["W_new"]),
        Mistake("the step itself is returned, and not the new value", "W_new", lambda v, g, at: g["W_new"] - v["W"]),
    ),
)  # fmt: skip

NETWORKS = (TWO_LAYER_NETWORK, DIGIT_CNN, RESIDUAL_BLOCK, JACOBIAN, SGD_STEP, SOFTMAX_UPDATE)
