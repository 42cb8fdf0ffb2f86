"""Graphs written by hand, as the JSON from which a page draws."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np


# ------------------------------------------------------------------------------------------ graphs by hand
def number(v):
    return (
        float(f"{v:.9g}") if np.isfinite(v) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(float(v))]
    )


def tensor(x):
    x = np.asarray(x)
    found = {"shape": list(x.shape), "dtype": str(x.dtype), "truncated": x.size > 20_000}
    if x.size <= 20_000:
        return found | {"data": [number(v) for v in x.ravel()]}
    summary = {"min": x.min(), "max": x.max(), "mean": x.mean(), "norm": np.linalg.norm(x), "zeros": (x == 0).sum()}
    return found | {"data": None, "summary": {key: number(v) for key, v in summary.items()}}


def graph(*rows, output="ℓ", **extra):
    """Build the JSON of a graph from (name, value) and (name, operation, function, *sources) rows."""
    values, upstream, nodes = {}, {}, []
    for name, *row in rows:
        values[name] = jnp.asarray(row[0], jnp.float32) if len(row) == 1 else row[1](*(values[s] for s in row[2:]))
    upstream[output] = jnp.ones_like(values[output])
    for name, *row in reversed(rows):
        made = {"name": name, "operation": "input", "kind": "input", "inputs": [], "gradients": None, "source": ""}
        y, dy = values[name], upstream.get(name)
        if len(row) == 1:
            if dy is not None:
                difference = [None if k % 2 else number(v) for k, v in enumerate(np.ravel(dy) + 1e-4)]
                made["gradients"] = {"rule": tensor(dy), "autodiff": tensor(dy * 1.001), "step": 1e-6, "argument": name}
                made["gradients"]["difference"] = tensor(dy) | {"data": difference if dy.size <= 20_000 else None}
        else:
            operation, f, *sources = row
            made |= {"operation": operation, "kind": "operation", "source": "here.py:1"}
            pull = jax.vjp(f, *(values[s] for s in sources))[1]
            pulled = pull(dy) if dy is not None else [None] * len(sources)
            for k, (source, d) in enumerate(zip(sources, pulled, strict=True)):
                local = None
                if d is not None:
                    upstream[source] = upstream[source] + d if source in upstream else d
                if d is not None and y.size * d.size <= 4096:
                    basis = np.eye(y.size, dtype=np.float32).reshape(-1, *y.shape)
                    local = tensor(np.stack([np.ravel(pull(jnp.asarray(row))[k]) for row in basis]))
                edge = {"argument": "xwb"[k], "node": source, "meaning": "", "local": local, "formula": r"dx = dy"}
                made["inputs"].append(edge | {"mathml": "", "downstream": None if d is None else tensor(d)})
        made |= {"dtype": "float32", "shape": list(y.shape), "formula": "", "mathml": "", "value": tensor(y)}
        nodes.append(made | {"upstream": None if dy is None else tensor(dy)})
    return {"function": "loss", "output": output, "caption": "a test", "nodes": nodes[::-1]} | extra


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def conv(x, w, stride=1, padding=0, layout="NCHW", groups=1):
    names = (layout, "OIHW" if layout == "NCHW" else "HWIO", layout)
    return jax.lax.conv_general_dilated(
        x, w, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=names, feature_group_count=groups
    )


def pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


@functools.cache
def digits():
    """The notes' network on an image with a dark frame; filter 5 is all negative: a dead ReLU."""
    image = np.pad(np.abs(noise(6, 6)), 1)[None, None]
    filters = noise(8, 1, 3, 3, seed=1)
    filters[5] = -np.abs(filters[5])
    return graph(
        ("x", image),
        ("W0", filters),
        ("x1", "conv2d", conv, "x", "W0"),
        ("x2", "relu", jax.nn.relu, "x1"),
        ("x3", "max_pool2d", pool, "x2"),
        ("x4", "reshape", lambda a: a.reshape(1, -1), "x3"),
        ("W1", 0.2 * noise(10, 72, seed=2)),
        ("x5", "linear", lambda x, w: x @ w.T, "x4", "W1"),
        ("y", "softmax", lambda x: jax.nn.softmax(x, -1), "x5"),
        ("ℓ", "nll", lambda y: -jnp.log(y[0, 3]), "y"),
    )


def scalars():
    return graph(
        ("w", -1.5),
        ("x", 2.0),
        ("x1", "mul", lambda a, b: a * b, "w", "x"),
        ("b", 0.5),
        ("y", "add", lambda a, b: a + b, "x1", "b"),
        ("ℓ", "mul", lambda a, b: a * b, "y", "y"),
    )


def residual(blocks=9):
    rows, h = [("x", noise(2, 6))], "x"
    for k in range(blocks):
        rows += [(f"params.block{k}.w", 0.4 * noise(6, 6, seed=k))]
        rows += [
            (f"a{k}", "linear", lambda x, w: x @ w.T, h, f"params.block{k}.w"),
            (f"r{k}", "relu", jax.nn.relu, f"a{k}"),
        ]
        rows += [(f"h{k}", "add", lambda a, b: a + b, h, f"r{k}")]
        h = f"h{k}"
    return graph(*rows, ("s", "square", jnp.square, h), ("ℓ", "reduce_sum", jnp.sum, "s"))


def large():
    """Tensors cut to their summary, a gradient of NaN, and an unused input."""
    return graph(
        ("x", noise(2, 300)),
        ("W", 0.1 * noise(200, 300)),
        ("unused", noise(3)),
        ("x1", "linear", lambda x, w: x @ w.T, "x", "W"),
        ("z", np.zeros((2, 200))),
        ("x2", "mul", lambda a, b: a * b, "x1", "z"),
        ("x3", "sqrt", jnp.sqrt, "x2"),
        ("ℓ", "reduce_sum", jnp.sum, "x3"),
    )


GRAPHS = {"digits": digits, "scalars": scalars, "residual": residual, "large": large}


def named(data, name):
    return next(node for node in data["nodes"] if node["name"] == name)


def at(data, element):
    """Split "W0[3,0,1,2]" into its node and its flat index."""
    name, index = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", element).groups()
    node = named(data, name)
    return node, int(np.ravel_multi_index([int(i) for i in index.split(",")], node["shape"])) if index else 0


OPERATIONS = {
    "linear": lambda: [("x", noise(70, 4)), ("w", noise(5, 4)), ("b", noise(5)), ("h", "linear", lambda x, w, b: x @ w.T + b[None], "x", "w", "b")],
    "matrix times vector": lambda: [("x", noise(80, 70)), ("w", noise(70)), ("h", "dot_general", jnp.matmul, "x", "w")],
    "matrix product": lambda: [("x", noise(9, 8)), ("w", noise(8, 10)), ("h", "dot_general", jnp.matmul, "x", "w")],
    "product with a transposed matrix": lambda: [("x", noise(9, 8)), ("w", noise(10, 8)), ("h", "dot_general", lambda x, w: x @ w.T, "x", "w")],
    "batched product": lambda: [("x", noise(3, 5, 6)), ("w", noise(3, 6, 7)), ("h", "dot_general", jnp.matmul, "x", "w")],
    "convolution": lambda: [("x", noise(2, 3, 7, 6)), ("w", noise(4, 3, 3, 2)), ("h", "conv2d", conv, "x", "w")],
    "strided convolution": lambda: [("x", noise(2, 2, 9, 9)), ("w", noise(4, 2, 3, 3)), ("h", "conv2d", lambda x, w: conv(x, w, 2, 1), "x", "w")],
    "grouped convolution": lambda: [("x", noise(2, 4, 6, 6)), ("w", noise(6, 2, 3, 3)), ("h", "conv2d", lambda x, w: conv(x, w, 1, 1, groups=2), "x", "w")],
    "channels last": lambda: [("x", noise(2, 7, 6, 3)), ("w", noise(3, 3, 3, 5)), ("h", "conv2d", lambda x, w: conv(x, w, 1, 1, "NHWC"), "x", "w")],
    "max-pool": lambda: [("x", noise(2, 3, 7, 9)), ("h", "max_pool2d", pool, "x")],
    "reshape": lambda: [("x", noise(9, 8)), ("h", "reshape", lambda x: x.reshape(4, 18), "x")],
    "transpose": lambda: [("x", noise(3, 4, 6)), ("h", "transpose", lambda x: x.transpose(2, 0, 1), "x")],
    "tanh": lambda: [("x", noise(80)), ("h", "tanh", jnp.tanh, "x")],
    "relu": lambda: [("x", noise(80)), ("h", "relu", jax.nn.relu, "x")],
    "product": lambda: [("x", noise(80)), ("w", noise(80, seed=1)), ("h", "mul", jnp.multiply, "x", "w")],
    "quotient": lambda: [("x", noise(80)), ("w", noise(80, seed=1)), ("h", "div", jnp.divide, "x", "w")],
    "difference": lambda: [("x", noise(80)), ("w", noise(80, seed=1)), ("h", "sub", jnp.subtract, "x", "w")],
    "power": lambda: [("x", noise(80)), ("h", "integer_pow", lambda x: x**3, "x")],
    "an unknown operation": lambda: [("x", noise(80)), ("h", "cumsum", jnp.cumsum, "x")],
    "a rule with another meaning": lambda: [("x", noise(9, 8)), ("w", noise(8, 10)), ("h", "linear", lambda x, w: 3 * (x @ w), "x", "w")],
}  # fmt: skip


def added_up(rows, names):
    """Add the nodes `names` up to ℓ, two at a time."""
    total, rows = names[0], list(rows)
    for k, name in enumerate(names[1:], 1):
        rows.append((f"t_{k}" if k < len(names) - 1 else "ℓ", "add", jnp.add, total, name))
        total = f"t_{k}"
    return graph(*rows)


def line(*rows):
    return graph(*rows, ("ℓ", "reduce_sum", jnp.sum, rows[-1][0]))


ZEROS = {
    "relu": (lambda: line(("x", [-1.0, 2.0]), ("h", "relu", jax.nn.relu, "x")), "x[0]", "h", "x[0] = −1 is not above 0"),
    "upstream": (lambda: line(("x", [1.0, 2.0]), ("h", "tanh", jnp.tanh, "x"), ("c", [0.0, 1.0]), ("m", "mul", jnp.multiply, "h", "c")), "x[0]", "m", "h[0] is multiplied with c[0] = 0."),
    "far upstream": (lambda: line(("x", [3.0, 2.0]), ("h", "relu", jax.nn.relu, "x"), ("i", "neg", jnp.negative, "h"), ("j", "relu", jax.nn.relu, "i")), "x[0]", "j", "i[0] = −3 is not above 0"),
    "cancel": (lambda: line(("x", [1.0, 2.0]), ("n", "neg", jnp.negative, "x"), ("h", "add", jnp.add, "x", "n")), "x[1]", "x", "adds up to exactly 0"),
    "selected away": (lambda: line(("x", [1.0, 2.0, 5.0]), ("h", "max", jnp.max, "x")), "x[1]", "h", "no element of h changes"),
    "large relu": (lambda: line(("x", noise(10, 10)), ("h", "relu", jax.nn.relu, "x")), "x[0,1]", "h", "is not above 0"),
    "dead filter": (digits, "W0[5,0,1,1]", "x2", "is not above 0"),
    "not the largest": (digits, None, "x3", "is not the largest of its window"),
    "zero input": (lambda: line(("x", np.tile([[0.0, 1.0]], (40, 1))), ("w", noise(3, 2)), ("h", "linear", lambda x, w: x @ w.T, "x", "w")), "w[1,0]", "h", "multiplied with is 0"),
    "unknown operation": (lambda: line(("x", noise(80)), ("h", "take", lambda x: x[:70], "x")), "x[75]", "h", "not zero everywhere"),
}  # fmt: skip
