"""The reference solutions of the exercises: the body of each function. They stand in no file that students get."""

import textwrap

from jaxnn.exercises import find, starter

_SOFTMAX_BACKWARD = "{p} * (d{p} - (d{p} * {p}).sum(-1, keepdims=True))"

SOLUTIONS = {
    "linear": """
        return dy @ W, dy.T @ x, dy.sum(0)
    """,
    "relu": """
        return jnp.where(x > 0, dy, 0)
    """,
    "conv2d": """
        kh, kw = W.shape[2:]
        oh, ow = y.shape[2:]
        dx, dW = jnp.zeros_like(x), jnp.zeros_like(W)
        for i in range(kh):
            for j in range(kw):
                seen = x[:, :, i : i + oh, j : j + ow]
                dx = dx.at[:, :, i : i + oh, j : j + ow].add(jnp.einsum("sohw,oc->schw", dy, W[:, :, i, j]))
                dW = dW.at[:, :, i, j].set(jnp.einsum("sohw,schw->oc", dy, seen))
        return dx, dW, dy.sum((0, 2, 3))
    """,
    "max_pool2d": """
        s, c, h, w = y.shape
        tiles = x.reshape(s, c, h, 2, w, 2).transpose(0, 1, 2, 4, 3, 5).reshape(s, c, h, w, 4)
        first = jnp.arange(4) == tiles.argmax(-1)[..., None]
        dx = (first * dy[..., None]).reshape(s, c, h, w, 2, 2)
        return dx.transpose(0, 1, 2, 4, 3, 5).reshape(x.shape)
    """,
    "dropout": """
        return m * dy / (1 - P)
    """,
    "softmax": """
        return p * (dp - (dp * p).sum(-1, keepdims=True))
    """,
    "log_softmax": """
        return dy - jnp.exp(y) * dy.sum(-1, keepdims=True)
    """,
    "nll": """
        rows = jnp.arange(len(t))
        return jnp.zeros_like(p).at[rows, t].set(-dl / p[rows, t])
    """,
    "cross_entropy": """
        e = jnp.exp(x - x.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
        return dl[:, None] * p.at[jnp.arange(len(t)), t].add(-1)
    """,
    "squared_error": """
        dy = 2 * (y - t) * dl
        return dy, -dy
    """,
    "l1_penalty": """
        return jnp.sign(w) * dΩ
    """,
    "l2_penalty": """
        return 2 * w * dΩ
    """,
    "linear_cross_entropy": """
        a = x @ W.T
        e = jnp.exp(a - a.max(-1, keepdims=True))
        da = dl[:, None] * (e / e.sum(-1, keepdims=True)).at[jnp.arange(len(t)), t].add(-1)
        return da @ W, da.T @ x
    """,
    "two_layer_network": """
        rows = jnp.arange(len(t))
        dp = jnp.zeros_like(p).at[rows, t].set(-dl / p[rows, t])
        dz2 = p * (dp - (dp * p).sum(-1, keepdims=True))
        dW2, db2, dh1 = dz2.T @ h1, dz2.sum(0), dz2 @ W2
        dz1 = jnp.where(z1 > 0, dh1, 0)
        dW1, db1 = dz1.T @ x, dz1.sum(0)
        return dict(dp=dp, dz2=dz2, dW2=dW2, db2=db2, dh1=dh1, dz1=dz1, dW1=dW1, db1=db1)
    """,
    "digit_cnn": """
        rows = jnp.arange(len(t))
        dy = jnp.zeros_like(y).at[rows, t].set(-dl / y[rows, t])
        dx4 = y * (dy - (dy * y).sum(-1, keepdims=True))
        dW1 = dx4.T @ x3.reshape(len(t), -1)
        dx3 = (dx4 @ W1).reshape(x3.shape)
        s, c, h, w = x3.shape
        tiles = x2.reshape(s, c, h, 2, w, 2).transpose(0, 1, 2, 4, 3, 5).reshape(s, c, h, w, 4)
        first = (jnp.arange(4) == tiles.argmax(-1)[..., None]) * dx3[..., None]
        dx2 = first.reshape(s, c, h, w, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(x2.shape)
        dx1 = jnp.where(x1 > 0, dx2, 0)
        oh, ow = x1.shape[2:]
        dW0 = jnp.zeros_like(W0)
        for i in range(W0.shape[2]):
            for j in range(W0.shape[3]):
                dW0 = dW0.at[:, :, i, j].set(jnp.einsum("sohw,schw->oc", dx1, x[:, :, i : i + oh, j : j + ow]))
        return dict(dy=dy, dx4=dx4, dW1=dW1, dx3=dx3, dx2=dx2, dx1=dx1, dW0=dW0)
    """,
    "residual_block": """
        dr = dy
        dh, dW2 = dr @ W2, dr.T @ h
        dz = jnp.where(z > 0, dh, 0)
        dW1, dx = dz.T @ x, dy + dz @ W1
        return dict(dr=dr, dh=dh, dW2=dW2, dz=dz, dW1=dW1, dx=dx)
    """,
    "jacobian": """
        J = (1 - y**2)[:, None] * W
        return J, dy @ J
    """,
    "sgd_step": """
        r = 2 * (x @ W.T + b - t)
        return W - alpha * (r.T @ x + 2 * lam * W), b - alpha * r.sum(0)
    """,
    "softmax_update": """
        z = W @ x
        e = jnp.exp(z - z.max())
        p = e / e.sum()
        return W + alpha * (y - p)[:, None] * x
    """,
}


def hand_in(name, body, imports=""):
    """The file of a student who wrote this body, and imports these too."""
    exercise = find(name)
    head, _, rest = starter(exercise).partition(f"\n\ndef {exercise.function}(")
    signature, _, tail = rest.partition("\n")
    end = tail[tail.index("\n\n\nEXERCISE") :]
    function = f"def {exercise.function}({signature}\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}"
    return head + f"\n{imports}\n\n{function}{end}"
