"""Hand-ins of students: 40 right ones, and 60 and more wrong ones with the feedback that each must get."""

from typing import NamedTuple

from exercises.solutions import SOLUTIONS

NUMPY = "import numpy as np"


class Right(NamedTuple):
    """A right hand-in: exercise, body of its function, what it imports."""

    exercise: str
    body: str
    imports: str = ""


class Wrong(NamedTuple):
    """A wrong hand-in: exercise, body, which gradients do not pass, the property and the mistake that it must be told.

    The property and the mistake are those of the first gradient that does not pass, and "" where none is known.
    """

    exercise: str
    body: str
    wrong: str
    property: str
    mistake: str = ""
    imports: str = ""


def replaced(name, *changes):
    """The reference solution with pieces replaced: (old, new)."""
    body = SOLUTIONS[name]
    for old, new in changes:
        assert old in body, (name, old)
        body = body.replace(old, new)
    return body


RIGHT = {
    **{f"reference {name}": Right(name, body) for name, body in SOLUTIONS.items()},
    "linear, einsum": Right("linear", """
        dx = jnp.einsum("so,oi->si", dy, W)
        dW = jnp.einsum("so,si->oi", dy, x)
        return dx, dW, jnp.einsum("so->o", dy)
    """),
    "linear, NumPy": Right("linear", "return np.dot(dy, W), np.dot(np.transpose(dy), x), np.sum(dy, 0)", NUMPY),
    "linear, loops in NumPy": Right("linear", """
        dx, dW, db = np.zeros(x.shape), np.zeros(W.shape), np.zeros(b.shape)
        for s in range(x.shape[0]):
            for i in range(W.shape[0]):
                db[i] += dy[s, i]
                for j in range(W.shape[1]):
                    dx[s, j] += dy[s, i] * W[i, j]
                    dW[i, j] += dy[s, i] * x[s, j]
        return dx, dW, db
    """, NUMPY),
    "linear, row by row": Right("linear", """
        dW = sum(jnp.outer(dy[s], x[s]) for s in range(len(x)))
        return jnp.stack([W.T @ dy[s] for s in range(len(x))]), dW, sum(dy[s] for s in range(len(x)))
    """),
    "linear, a list": Right("linear", "return [dy @ W, dy.T @ x, dy.sum(axis=0)]"),
    "linear, a dictionary": Right("linear", "return {'db': dy.sum(0), 'dx': dy @ W, 'dW': dy.T @ x}"),
    "linear, helpers": Right("linear", """
        def by_weights():
            return jnp.tensordot(dy, x, axes=(0, 0))

        return jnp.matmul(dy, W), by_weights(), jnp.ones(len(dy), dy.dtype) @ dy
    """),
    "relu, product": Right("relu", "return dy * (x > 0)"),
    "relu, sign": Right("relu", "return dy * jnp.maximum(jnp.sign(x), 0)"),
    "relu, from y": Right("relu", "return dy * (y > 0)"),
    "relu, in place in NumPy": Right("relu", """
        dx = np.array(dy)
        dx[np.asarray(x) <= 0] = 0
        return dx
    """, NUMPY),
    "relu, at": Right("relu", "return dy.at[x <= 0].set(0)"),
    "conv2d, NumPy": Right("conv2d", """
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x), W.shape[2:], axis=(2, 3))
        dW = np.einsum("sohw,schwij->ocij", dy, windows)
        dx = np.zeros(x.shape)
        for i in range(W.shape[2]):
            for j in range(W.shape[3]):
                dx[:, :, i:i + y.shape[2], j:j + y.shape[3]] += np.einsum("sohw,oc->schw", dy, W[:, :, i, j])
        return dx, dW, np.sum(dy, (0, 2, 3))
    """, NUMPY),
    "conv2d, a padded convolution with the reversed filter": Right("conv2d", """
        kh, kw = W.shape[2:]
        wide = jnp.pad(dy, ((0, 0), (0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1)))
        turned = W[:, :, ::-1, ::-1]
        h, w = x.shape[2:]
        dx = sum(jnp.einsum("sohw,oc->schw", wide[:, :, i : i + h, j : j + w], turned[:, :, i, j])
                 for i in range(kh) for j in range(kw))
        oh, ow = y.shape[2:]
        dW = jnp.stack([jnp.stack([jnp.einsum("sohw,schw->oc", dy, x[:, :, i : i + oh, j : j + ow])
                                   for j in range(kw)], -1) for i in range(kh)], -2)
        return dx, dW, dy.sum(axis=(0, 2, 3))
    """),
    "max_pool2d, loops": Right("max_pool2d", """
        dx = np.zeros(x.shape)
        for s, c, i, j in np.ndindex(*y.shape):
            patch = np.asarray(x[s, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2])
            a, b = np.unravel_index(patch.argmax(), (2, 2))
            dx[s, c, 2 * i + a, 2 * j + b] = dy[s, c, i, j]
        return dx
    """, NUMPY),
    "dropout, by cases": Right("dropout", "return jnp.where(m == 1, dy, 0) / (1 - P)"),
    "dropout, scaled mask": Right("dropout", "scaled = m / (1 - P)\nreturn dy * scaled"),
    "softmax, two cases in loops": Right("softmax", """
        dx = np.zeros(x.shape)
        for s in range(x.shape[0]):
            for j in range(x.shape[1]):
                for a in range(x.shape[1]):
                    if a == j:
                        dx[s, j] += dp[s, a] * p[s, a] * (1 - p[s, a])
                    else:
                        dx[s, j] -= dp[s, a] * p[s, a] * p[s, j]
        return dx
    """, NUMPY),
    "softmax, Jacobian": Right("softmax", """
        J = jnp.einsum("sa,aj->saj", p, jnp.eye(p.shape[1], dtype=p.dtype)) - jnp.einsum("sa,sj->saj", p, p)
        return jnp.einsum("sa,saj->sj", dp, J)
    """),
    "softmax, from x": Right("softmax", """
        e = jnp.exp(x - jnp.max(x, axis=1, keepdims=True))
        q = e / jnp.sum(e, axis=1, keepdims=True)
        return q * dp - q * jnp.sum(q * dp, axis=1, keepdims=True)
    """),
    "log_softmax, through softmax": Right("log_softmax", """
        p = jnp.exp(x - x.max(-1, keepdims=True))
        p = p / p.sum(-1, keepdims=True)
        return dy - p * jnp.sum(dy, -1, keepdims=True)
    """),
    "nll, one-hot": Right("nll", """
        e = jnp.eye(p.shape[1], dtype=p.dtype)[t]
        return -e / p * dl[:, None]
    """),
    "nll, in place in NumPy": Right("nll", """
        dp = np.zeros(p.shape, p.dtype)
        dp[np.arange(len(t)), t] = -1 / p[np.arange(len(t)), t]
        return dp * dl[:, None]
    """, NUMPY),
    "cross_entropy, one-hot": Right("cross_entropy", """
        p = jnp.exp(x - (l + x[jnp.arange(len(t)), t])[:, None])
        return (p - jnp.eye(x.shape[1], dtype=x.dtype)[t]) * dl[:, None]
    """),
    "cross_entropy, NumPy": Right("cross_entropy", """
        x = np.asarray(x)
        e = np.exp(x - x.max(axis=1, keepdims=True))
        dx = e / e.sum(axis=1, keepdims=True)
        dx[range(len(t)), t] -= 1
        return dx * np.asarray(dl).reshape(-1, 1)
    """, NUMPY),
    "linear, float32 always": Right("linear", "return dy @ W, dy.T @ x, dy.sum(0, dtype=jnp.float32)"),
    "nll, one_hot of JAX": Right("nll", "return -jax.nn.one_hot(t, p.shape[1]) / p * dl[:, None]", "import jax"),
    "relu, a list of one": Right("relu", "return [dy * (x > 0)]"),
    "softmax, vmap and jit": Right(
        "softmax", "return jax.jit(jax.vmap(lambda p, dp: p * (dp - jnp.dot(dp, p))))(p, dp)", "import jax"
    ),
    "linear, scan": Right(
        "linear",
        """
        def add(dW, row):
            return dW + jnp.outer(*row), row[0] @ W

        dW, dx = jax.lax.scan(add, jnp.zeros_like(W), (dy, x))
        return dx, dW, dy.sum(0)
    """,
        "import jax",
    ),
    "squared_error, twice": Right("squared_error", "return 2 * dl * (y - t), 2 * dl * (t - y)"),
    "l1_penalty, by cases": Right("l1_penalty", "return dΩ * jnp.where(w > 0, 1, jnp.where(w < 0, -1, 0)).astype(w.dtype)"),
    "jacobian, diagonal": Right("jacobian", "J = jnp.diag(1 - y * y) @ W\nreturn J, J.T @ dy"),
    "jacobian, loops": Right("jacobian", """
        J = np.zeros((len(y), len(x)))
        for i in range(len(y)):
            for j in range(len(x)):
                J[i, j] = (1 - y[i] ** 2) * W[i, j]
        return J, np.asarray(dy) @ J
    """, NUMPY),
    "sgd_step, with Δ": Right("sgd_step", """
        r = x @ W.T + b - t
        delta = -2 * r.T @ x - lam * 2 * W
        return W + alpha * delta, b - 2 * alpha * r.sum(0)
    """),
    "softmax_update, outer": Right("softmax_update", """
        z = W @ x
        p = softmax(z)
        return W - alpha * jnp.outer(p - y, x)
    """),
    "two_layer_network, fused": Right("two_layer_network", replaced(
        "two_layer_network",
        ("dz2 = p * (dp - (dp * p).sum(-1, keepdims=True))",
         "dz2 = dl[:, None] * (p - jnp.eye(p.shape[1], dtype=p.dtype)[t])"))),
}  # fmt: skip

EVERY = "its values are wrong"
SOME = "its values are wrong at some elements"
BATCH = "wrong only for a batch above 1"
UNLINEAR = "not linear in {}"
NO_UPSTREAM = "it does not depend on {}"
FORGOTTEN = "{} is forgotten"
FACTOR = "a constant factor"
SIGN = "the sign"
MEAN = "a mean over the batch in the place of a sum, or a sum in the place of a mean"
TRANSPOSE = "a transpose: the axes are in another order"
MISSING_SUM = "a sum is missing, over an axis that is broadcast or over the batch"
STALE = "a stale value: another value of the forward pass is in the place of the right one"
NO_RELU = "the derivative of ReLU is not applied"

WRONG = {
    "linear, unwritten": Wrong("linear", "dx = ...\ndW = ...\ndb = ...\nreturn dx, dW, db", "dx dW db", "not written yet"),
    "linear, sign of dx": Wrong("linear", "return -dy @ W, dy.T @ x, dy.sum(0)", "dx", EVERY, SIGN),
    "linear, dW transposed": Wrong("linear", "return dy @ W, x.T @ dy, dy.sum(0)", "dW", "shape (4, 2), and must be (2, 4)", TRANSPOSE),
    "linear, db not summed": Wrong("linear", "return dy @ W, dy.T @ x, dy", "db", "shape (3, 2), and must be (2,)", MISSING_SUM),
    "linear, db with its axis": Wrong("linear", "return dy @ W, dy.T @ x, dy.sum(0, keepdims=True)", "db", "shape (1, 2), and must be (2,)", "an axis of length 1 too many: from keepdims, or a list around it"),
    "linear, db over the wrong axis": Wrong("linear", "return dy @ W, dy.T @ x, dy.sum(1)", "db", "shape (3,), and must be (2,)"),
    "linear, mean over the batch": Wrong("linear", "return dy @ W, dy.T @ x / len(x), dy.sum(0)", "dW", BATCH, MEAN),
    "linear, db a mean": Wrong("linear", "return dy @ W, dy.T @ x, dy.mean(0)", "db", BATCH, MEAN),
    "linear, only the last row": Wrong("linear", "for s in range(len(x)):\n    dW = jnp.outer(dy[s], x[s])\nreturn dy @ W, dW, dy.sum(0)", "dW", BATCH, "only the last row of the batch counts: a sum over the rows is missing"),
    "linear, order": Wrong("linear", "return dy.T @ x, dy @ W, dy.sum(0)", "dx dW", "shape (2, 4), and must be (3, 4)", "dW is in its place: the order of what is returned"),
    "linear, factor": Wrong("linear", "return dy @ W, 2 * dy.T @ x, dy.sum(0)", "dW", EVERY, FACTOR),
    "linear, upstream forgotten": Wrong("linear", "return jnp.ones_like(dy) @ W, dy.T @ x, dy.sum(0)", "dx", NO_UPSTREAM, FORGOTTEN),
    "linear, integers": Wrong("linear", "return dy @ W, dy.T @ x, jnp.round(dy.sum(0)).astype(int)", "db", "dtype int32, and must be float32"),
    "linear, float16": Wrong("linear", "return dy @ W, dy.T @ x, dy.sum(0).astype(jnp.float16)", "db", "dtype float16, and must be float32"),
    "linear, zeros": Wrong("linear", "return dy @ W, jnp.zeros_like(W), dy.sum(0)", "dW", EVERY, "zero everywhere"),
    "relu, no mask": Wrong("relu", "return dy", "dx", "wrong only where x < 0", "this is {} itself: nothing is done with it"),
    "relu, at 0": Wrong("relu", "return jnp.where(x >= 0, dy, 0)", "dx", "wrong only where x is 0"),
    "relu, half at 0": Wrong("relu", "return jnp.where(x > 0, dy, jnp.where(x == 0, dy / 2, 0))", "dx", "wrong only where x is 0"),
    "relu, mask of dy": Wrong("relu", "return jnp.where(dy > 0, dy, 0)", "dx", UNLINEAR),
    "relu, the value": Wrong("relu", "return y", "dx", NO_UPSTREAM, "this is y, a value of the forward pass, and no gradient"),
    "relu, derivative alone": Wrong("relu", "return (x > 0).astype(x.dtype)", "dx", NO_UPSTREAM, FORGOTTEN),
    "relu, wrong side": Wrong("relu", "return jnp.where(x < 0, dy, 0)", "dx", EVERY),
    "relu, absolute": Wrong("relu", "return jnp.abs(dy) * (x > 0)", "dx", UNLINEAR),
    "conv2d, filter reversed": Wrong("conv2d", replaced("conv2d", ("W[:, :, i, j]))\n                dW", "W[:, :, kh - 1 - i, kw - 1 - j]))\n                dW")), "dx", EVERY, "the filter is reversed: a convolution in the place of a cross-correlation, or the other way"),
    "conv2d, dW reversed": Wrong("conv2d", replaced("conv2d", ("return dx, dW", "return dx, dW[:, :, ::-1, ::-1]")), "dW", EVERY, "the derivative reversed along its last two axes"),
    "conv2d, dW over one image": Wrong("conv2d", replaced("conv2d", ('jnp.einsum("sohw,schw->oc", dy, seen)', 'jnp.einsum("ohw,chw->oc", dy[-1], seen[-1])')), "dW", BATCH, "only the last row of the batch counts: a sum over the rows is missing"),
    "conv2d, db over the images alone": Wrong("conv2d", replaced("conv2d", ("dy.sum((0, 2, 3))", "dy.sum(0)")), "db", "shape (5, 3, 4), and must be (5,)", MISSING_SUM),
    "conv2d, dx set and not added": Wrong("conv2d", replaced("conv2d", (".add(", ".set(")), "dx", SOME, "the shares of overlapping windows must be added up"),
    "conv2d, dW transposed": Wrong("conv2d", replaced("conv2d", ("return dx, dW", "return dx, dW.transpose(1, 0, 2, 3)")), "dW", "shape (3, 5, 2, 2), and must be (5, 3, 2, 2)", TRANSPOSE),
    "max_pool2d, all of the ties": Wrong("max_pool2d", "big = jnp.repeat(jnp.repeat(y, 2, 2), 2, 3)\nreturn jnp.where(x == big, jnp.repeat(jnp.repeat(dy, 2, 2), 2, 3), 0)", "dx", "wrong only at ties"),
    "max_pool2d, ties shared": Wrong("max_pool2d", "big = jnp.repeat(jnp.repeat(y, 2, 2), 2, 3)\nmask = (x == big).astype(x.dtype)\ns, c, h, w = y.shape\nn = mask.reshape(s, c, h, 2, w, 2).sum((3, 5))\nreturn mask * jnp.repeat(jnp.repeat(dy / n, 2, 2), 2, 3)", "dx", "wrong only at ties"),
    "max_pool2d, the last of the ties": Wrong("max_pool2d", replaced("max_pool2d", ("tiles.argmax(-1)", "(3 - tiles[..., ::-1].argmax(-1))")), "dx", "wrong only at ties"),
    "max_pool2d, to all pixels": Wrong("max_pool2d", "return jnp.repeat(jnp.repeat(dy, 2, 2), 2, 3)", "dx", SOME),
    "max_pool2d, a mean": Wrong("max_pool2d", "return jnp.repeat(jnp.repeat(dy, 2, 2), 2, 3) / 4", "dx", EVERY),
    "dropout, no scale": Wrong("dropout", "return m * dy", "dx", SOME, FACTOR),
    "dropout, no mask": Wrong("dropout", "return dy / (1 - P)", "dx", SOME, "the mask is not applied"),
    "dropout, scaled by P": Wrong("dropout", "return m * dy / P", "dx", SOME, FACTOR),
    "dropout, of x": Wrong("dropout", "return m * x / (1 - P)", "dx", NO_UPSTREAM, "this is y, a value of the forward pass, and no gradient"),
    "softmax, one case": Wrong("softmax", "return dp * p * (1 - p)", "dx", "wrong only for j ≠ a", "terms are missing: each input affects every output"),
    "softmax, j ≠ a with the wrong sign": Wrong("softmax", "d = dp * p * (1 - p)\nreturn d + p * ((dp * p).sum(-1, keepdims=True) - dp * p)", "dx", "wrong only for j ≠ a"),
    "softmax, j = a without 1 − p": Wrong("softmax", "return p * (dp - (dp * p).sum(-1, keepdims=True)) + dp * p * p", "dx", "wrong only for j = a"),
    "softmax, no sum": Wrong("softmax", "return dp * p", "dx", EVERY, "a sum over the outputs is missing"),
    "softmax, sum over the rows": Wrong("softmax", "return p * (dp - (dp * p).sum(0, keepdims=True))", "dx", EVERY, "the sum over the outputs runs over the wrong axis"),
    "softmax, sum over everything": Wrong("softmax", "return p * (dp - (dp * p).sum())", "dx", BATCH),
    "softmax, sign": Wrong("softmax", "return p * ((dp * p).sum(-1, keepdims=True) - dp)", "dx", EVERY, SIGN),
    "softmax, mean for the sum": Wrong("softmax", "return p * (dp - (dp * p).mean(-1, keepdims=True))", "dx", EVERY),
    "softmax, overflow": Wrong("softmax", "e = jnp.exp(x)\nq = e / e.sum(-1, keepdims=True)\nreturn q * (dp - (dp * q).sum(-1, keepdims=True))", "dx", "not finite for large x, whose exponential overflows: an overflow, or a division by zero"),
    "softmax, only in float16": Wrong("softmax", "q = (p * 1e5 / jnp.asarray(1e5, p.dtype)).astype(p.dtype)\nreturn q * (dp - (dp * q).sum(-1, keepdims=True))", "dx", "not finite in float16: an overflow, or a division by zero"),
    "log_softmax, no sum": Wrong("log_softmax", "return dy - jnp.exp(y)", "dx", UNLINEAR, "a sum over the outputs is missing"),
    "log_softmax, own term alone": Wrong("log_softmax", "return dy - jnp.exp(y) * dy", "dx", "wrong only for j ≠ a", "a sum over the outputs is missing"),
    "log_softmax, as softmax": Wrong("log_softmax", "p = jnp.exp(y)\nreturn p * (dy - (dy * p).sum(-1, keepdims=True))", "dx", EVERY),
    "nll, sign": Wrong("nll", "r = jnp.arange(len(t))\nreturn jnp.zeros_like(p).at[r, t].set(dl / p[r, t])", "dp", "wrong only for c = t, the label's class", SIGN),
    "nll, of the logarithm": Wrong("nll", "r = jnp.arange(len(t))\nreturn jnp.zeros_like(p).at[r, t].set(-dl)", "dp", "wrong only for c = t, the label's class"),
    "nll, every class": Wrong("nll", "return -dl[:, None] / p", "dp", "wrong only for c ≠ t, the other classes"),
    "nll, upstream forgotten": Wrong("nll", "r = jnp.arange(len(t))\nreturn jnp.zeros_like(p).at[r, t].set(-1 / p[r, t])", "dp", NO_UPSTREAM, FORGOTTEN),
    "cross_entropy, no label": Wrong("cross_entropy", replaced("cross_entropy", (".at[jnp.arange(len(t)), t].add(-1)", "")), "dx", "wrong only for c = t, the label's class"),
    "cross_entropy, label added": Wrong("cross_entropy", replaced("cross_entropy", (".add(-1)", ".add(1)")), "dx", "wrong only for c = t, the label's class"),
    "cross_entropy, mean over the rows": Wrong("cross_entropy", replaced("cross_entropy", ("return dl", "return 1 / len(t) * dl")), "dx", BATCH, MEAN),
    "cross_entropy, upstream forgotten": Wrong("cross_entropy", replaced("cross_entropy", ("dl[:, None] * ", "")), "dx", NO_UPSTREAM, FORGOTTEN),
    "cross_entropy, overflow": Wrong("cross_entropy", replaced("cross_entropy", ("x - x.max(-1, keepdims=True)", "x")), "dx", "not finite for large x, whose exponential overflows: an overflow, or a division by zero"),
    "cross_entropy, the label alone": Wrong("cross_entropy", "return -dl[:, None] * jnp.eye(x.shape[1], dtype=x.dtype)[t]", "dx", EVERY),
    "squared_error, no 2": Wrong("squared_error", "return (y - t) * dl, -2 * (y - t) * dl", "dy", EVERY, FACTOR),
    "squared_error, swapped": Wrong("squared_error", "return -2 * (y - t) * dl, 2 * (y - t) * dl", "dy dt", EVERY, SIGN),
    "squared_error, a mean": Wrong("squared_error", "return 2 * (y - t) * dl / y.size, -2 * (y - t) * dl", "dy", EVERY, FACTOR),
    "l1_penalty, not at 0": Wrong("l1_penalty", "return jnp.where(w >= 0, 1.0, -1.0).astype(w.dtype) * dΩ", "dw", "wrong only where w is 0"),
    "l1_penalty, w itself": Wrong("l1_penalty", "return w * dΩ", "dw", EVERY),
    "l1_penalty, 0 / 0": Wrong("l1_penalty", "return w / jnp.abs(w) * dΩ", "dw", "not finite where w is 0: an overflow, or a division by zero"),
    "l2_penalty, half": Wrong("l2_penalty", "return w * dΩ", "dw", EVERY, FACTOR),
    "l2_penalty, a number": Wrong("l2_penalty", "return jnp.sum(2 * w) * dΩ", "dw", "shape (), and must be (3, 4)", "a sum too many, over an axis that must stay"),
    "linear_cross_entropy, dW transposed": Wrong("linear_cross_entropy", replaced("linear_cross_entropy", ("da.T @ x", "x.T @ da")), "dW", "shape (4, 5), and must be (5, 4)", TRANSPOSE),
    "linear_cross_entropy, no label in dW": Wrong("linear_cross_entropy", replaced("linear_cross_entropy", ("return da @ W, da.T @ x", "return da @ W, (dl[:, None] * e / e.sum(-1, keepdims=True)).T @ x")), "dW", SOME),
    "two_layer_network, ReLU": Wrong("two_layer_network", replaced("two_layer_network", ("jnp.where(z1 > 0, dh1, 0)", "dh1")), "dz1 dW1 db1", "wrong only where z1 < 0", NO_RELU),
    "two_layer_network, stale h1": Wrong("two_layer_network", replaced("two_layer_network", ("dz2.T @ h1", "dz2.T @ z1")), "dW2", SOME, STALE),
    "two_layer_network, mean": Wrong("two_layer_network", replaced("two_layer_network", ("dW1, db1 = dz1.T @ x,", "dW1, db1 = dz1.T @ x / len(x),")), "dW1", BATCH, MEAN),
    "two_layer_network, softmax": Wrong("two_layer_network", replaced("two_layer_network", ("p * (dp - (dp * p).sum(-1, keepdims=True))", "dp * p * (1 - p)")), "dz2 dW2 db2 dh1 dz1 dW1 db1", "wrong only for c ≠ t, the other classes", "terms are missing: each input of softmax affects every output"),
    "digit_cnn, ReLU": Wrong("digit_cnn", replaced("digit_cnn", ("jnp.where(x1 > 0, dx2, 0)", "dx2")), "dx1 dW0", SOME, NO_RELU),
    "two_layer_network, every class": Wrong("two_layer_network", replaced("two_layer_network", ("jnp.zeros_like(p).at[rows, t].set(-dl / p[rows, t])", "-dl[:, None] / p")), "dp dz2 dW2 db2 dh1 dz1 dW1 db1", "wrong only for c ≠ t, the other classes"),
    "digit_cnn, all pixels": Wrong("digit_cnn", replaced("digit_cnn", ("dx1 = jnp", "dx2 = jnp.repeat(jnp.repeat(dx3, 2, 2), 2, 3)\n        dx1 = jnp")), "dx2 dx1 dW0", SOME, "the gradient goes to every pixel of a patch, and not to its largest"),
    "residual_block, no skip": Wrong("residual_block", replaced("residual_block", ("dy + dz @ W1", "dz @ W1")), "dx", EVERY, "a path from x to y is missing"),
    "residual_block, the skip alone": Wrong("residual_block", replaced("residual_block", ("dy + dz @ W1", "dy")), "dx", EVERY, "a path from x to y is missing"),
    "residual_block, stale h": Wrong("residual_block", replaced("residual_block", ("dr.T @ h", "dr.T @ z")), "dW2", EVERY, STALE),
    "jacobian, transposed": Wrong("jacobian", "J = W.T * (1 - y**2)\nreturn J, J @ dy", "J", "shape (4, 3), and must be (3, 4)", TRANSPOSE),
    "jacobian, without tanh": Wrong("jacobian", "return W, dy @ W", "J dx", EVERY),
    "sgd_step, uphill": Wrong("sgd_step", replaced("sgd_step", ("return W - alpha", "return W + alpha")), "W_new", EVERY, "the step goes up the gradient"),
    "sgd_step, no regulariser": Wrong("sgd_step", replaced("sgd_step", (" + 2 * lam * W", "")), "W_new", EVERY, "the regulariser is missing"),
    "sgd_step, a mean over the batch": Wrong("sgd_step", replaced("sgd_step", ("b - alpha * r.sum(0)", "b - alpha * r.mean(0)")), "b_new", BATCH, MEAN),
    "sgd_step, nothing": Wrong("sgd_step", "return W, b", "W_new b_new", EVERY, "nothing is updated"),
    "sgd_step, no rate": Wrong("sgd_step", replaced("sgd_step", ("b - alpha * r", "b - r")), "b_new", EVERY, "the learning rate is missing"),
    "sgd_step, the regulariser's sign": Wrong("sgd_step", replaced("sgd_step", ("+ 2 * lam * W", "- 2 * lam * W")), "W_new", EVERY, "the regulariser has the wrong sign"),
    "sgd_step, a regularised bias": Wrong("sgd_step", replaced("sgd_step", ("b - alpha * r.sum(0)", "b - alpha * (r.sum(0) + 2 * lam * b)")), "b_new", EVERY, "the bias is regularised"),
    "softmax_update, overflow": Wrong("softmax_update", replaced("softmax_update", ("z - z.max()", "z")), "W_new", "not finite for large x, where an exponential overflows: an overflow, or a division by zero"),
    "softmax_update, the step": Wrong("softmax_update", replaced("softmax_update", ("W + alpha", "alpha")), "W_new", EVERY, "the step itself is returned, and not the new value"),
    "softmax_update, uphill": Wrong("softmax_update", replaced("softmax_update", ("W + alpha", "W - alpha")), "W_new", EVERY, "the step goes up the gradient"),
}  # fmt: skip

# Hand-ins that cannot be judged, and what the line about each must hold.
REFUSED = {
    "jax.grad": (Right("relu", "import jax\nreturn jax.grad(lambda x: (forward(x) * dy).sum())(x)"), "differentiates automatically"),
    "jax.vjp": (Right("softmax", "return jax.vjp(forward, x)[1](dp)[0]", "import jax"), "differentiates automatically"),
    "an alias": (Right("softmax", "return g(forward, x)[1](dp)[0]", "from jax import vjp as g"), "differentiates automatically"),
    "getattr": (Right("softmax", "return getattr(jax, 'v' + 'jp')(forward, x)[1](dp)[0]", "import jax"), "differentiates automatically"),
    "jax.jvp": (Right("relu", "return dy * jax.jvp(forward, (x,), (jnp.ones_like(x),))[1]", "import jax"), "differentiates automatically"),
    "linear_transpose": (Right("dropout", "return jax.linear_transpose(lambda x: m * x / (1 - P), x)(dy)[0]", "import jax"), "differentiates automatically"),
    "jacrev": (Right("jacobian", "J = jax.jacrev(lambda x: forward(W, x))(x)\nreturn J, dy @ J", "import jax"), "differentiates automatically"),
    "jacfwd": (Right("jacobian", "J = jax.jacfwd(lambda x: forward(W, x))(x)\nreturn J, dy @ J", "import jax"), "differentiates automatically"),
    "linearize": (Right("relu", "return dy * jax.linearize(forward, x)[1](jnp.ones_like(x))", "import jax"), "differentiates automatically"),
    "inside try": (Right("relu", "try:\n    return jax.grad(lambda x: (forward(x) * dy).sum())(x)\nexcept Exception:\n    return dy * (x > 0)", "import jax"), "differentiates automatically"),
    "our rule": (Right("softmax", "import jaxnn\nreturn jaxnn.softmax(x)"), "imports jaxnn"),
    "our rule by name": (Right("softmax", "import importlib\nreturn importlib.import_module('jax' + 'nn').softmax(x)"), "imports jaxnn"),
    "torch": (Right("softmax", "import torch\nreturn torch.tensor(0)"), "imports torch"),
    "another process": (Right("relu", "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])\nreturn dy * (x > 0)"), "starts another process"),
    "an error": (Right("relu", "return dy * undefined"), "raises NameError: name 'undefined' is not defined"),
    "None": (Right("relu", "dx = dy * (x > 0)"), "returns None"),
    "one too few": (Right("linear", "return dy @ W, dy.T @ x"), "returns 2 values, and must return 3"),
    "a missing name": (Right("residual_block", "return dict(dr=dy)"), "lacks dh, dW2, dz, dW1, dx"),
    "a blank that is used": (Right("linear", "dx = ...\ndW = dx.T @ x\nreturn dx, dW, dy.sum(0)"), "uses a value that is still a blank"),
    "text": (Right("relu", "return 'dy'"), "is no array of numbers"),
    "not installed": (Right("relu", "import no_such_package\nreturn dy"), "imports 'no_such_package', which is not installed"),
    "exit": (Right("relu", "import sys\nsys.exit(0)"), "SystemExit"),
    "a crash": (Right("relu", "import os\nos.kill(os.getpid(), 11)"), "was ended by SIGSEGV"),
    "a hard exit": (Right("relu", "import os\nos._exit(3)"), "ended without an answer"),
}  # fmt: skip
