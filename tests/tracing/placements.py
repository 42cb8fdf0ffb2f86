"""The places in a function where a hand-written rule may stand, and a rule that is seen wherever it survives.

Every rule here is wrong: it returns 100 times the cotangent. Every placement computes c·xᵖ, element by element, so its
derivatives are known without JAX.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import hijax

HiPrim = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive  # its name before jax 0.12
X = np.array([1.25, -0.75], np.float32)  # sums, products and powers of these are exact in float32
T = np.array([0.5, 2.0], np.float32)
MESH = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
SHARDED = jax.P("d")


def wrong(definition, *, symbolic_zeros=False, optimize_remat=False, generic_batching=None, **options):
    """Give the definition a rule whose derivative is 100 by every argument."""
    batching = {} if generic_batching is None else {"generic_batching": generic_batching}
    f = jax.custom_vjp(definition, **options)
    static = options.get("nondiff_argnums", ())

    def forward(*args):
        args = jax.tree.map(lambda a: getattr(a, "value", a), args, is_leaf=lambda a: hasattr(a, "perturbed"))
        return f(*args), [a for i, a in enumerate(args) if i not in static]

    def backward(*args):
        *_, residuals, dy = args
        dy = 100 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(dy) if is_inexact(leaf))
        return tuple(jax.tree.map(lambda a: jnp.full_like(a, dy) if is_inexact(a) else None, residuals))

    f.defvjp(forward, backward, symbolic_zeros=symbolic_zeros, optimize_remat=optimize_remat, **batching)
    return f


def wrong_jvp(definition, *, nondiff_argnums=(), **_):
    """Give the definition a rule whose tangent is 100 times the argument's."""
    f = jax.custom_jvp(definition, nondiff_argnums=nondiff_argnums)

    @f.defjvp
    def _(*args):
        *static, primals, tangents = args
        given = list(primals)
        for i, value in zip(nondiff_argnums, static, strict=True):
            given.insert(i, value)
        t = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tangents) if is_inexact(leaf))
        y = f(*given)
        return y, jax.tree.map(lambda a: 100 * t * jnp.ones_like(a) if is_inexact(a) else zero_tangent(a), y)

    return f


def zero_tangent(a):
    return np.zeros(a.shape, jax.dtypes.float0)


class Wrong(HiPrim):
    """A primitive with this definition, whose cotangents are 100 times the output's."""

    def __init__(self, definition, args):
        self.definition, self.params = definition, {"name": definition}
        self.in_avals = jax.tree.map(jax.typeof, args)
        traced, shapes = jax.make_jaxpr(definition, return_shape=True)(*args)
        self.out_aval = jax.tree.unflatten(jax.tree.structure(shapes), traced.out_avals)
        super().__init__()

    def expand(self, *args):
        return self.definition(*args)

    def vjp_fwd(self, nonzero, *args):
        return self(*args), args

    def vjp_bwd_retval(self, args, dy):
        dy = 100 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(dy) if is_inexact(leaf))
        return jax.tree.map(lambda a: jnp.full_like(a, dy) if is_inexact(a) else zero_tangent(a), args)

    def batch(self, axis_data, args, dims):
        mapped = jax.vmap(self.definition, dims, axis_size=axis_data.size, axis_name=axis_data.name)
        return Wrong(mapped, args)(*args), jax.tree.map(lambda _: 0, self.out_aval)


def wrong_primitive(definition, *, nondiff_argnums=(), **_):
    """Give the definition a primitive of its own."""

    @functools.wraps(definition)
    def f(*args):
        dynamic = [a for i, a in enumerate(args) if i not in nondiff_argnums]

        def of_dynamic(*dynamic):
            given = iter(dynamic)
            return definition(*(a if i in nondiff_argnums else next(given) for i, a in enumerate(args)))

        return Wrong(of_dynamic, tuple(dynamic))(*dynamic)

    return f


FORMS = {"custom_jvp": wrong_jvp, "HiPrim": wrong_primitive}
if jax.__version_info__ >= (0, 12):
    FORMS["generic_batching"] = functools.partial(wrong, generic_batching=True)


def is_inexact(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def square(x):
    return x * x


def nested(rule):
    inner = rule(square)
    middle = rule(lambda x: x * inner(x))
    return rule(lambda x: inner(x) * middle(x))


def jit_twice(rule, **options):
    f = jax.jit(rule(square), **options)
    return lambda x: f(x) + f(2 * x)


def jit_in_definition(rule):
    inner = jax.jit(rule(square))
    return rule(lambda x: inner(x) + inner(2 * x))


def scan(rule):
    f = rule(square)
    return lambda x: lax.scan(lambda c, _: (f(c), None), x, length=2)[0]


def scan_rows(rule):
    f = rule(lambda x, w: x * w)
    return lambda x: lax.scan(lambda c, row: (c, f(row, row)), 0.0, x, reverse=True)[1]


def scan_cond(rule):
    f = rule(square)
    body = jax.jit(lambda c, i: (lax.cond(i == 1, f, lambda c: c, c), None))
    return jax.jit(lambda x: lax.scan(body, x, jnp.arange(3))[0])


def while_loop(rule):
    f = rule(square)
    return lambda x: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, f(s[1])), (0, x))[1]


def while_condition(rule):
    f = rule(lambda x: jnp.sum(x * x))
    return lambda x: lax.while_loop(lambda s: (s[0] < 1) & (f(s[1]) > 0), lambda s: (s[0] + 1, s[1] ** 2), (0, x))[1]


def cond(rule):
    f = rule(square)
    return lambda x: lax.cond(x[0] > 0, f, lambda x: f(-x), x)


def switch(rule):
    f = rule(square)
    return lambda x: lax.switch(jnp.sum(x > 0), [lambda x: f(2 * x) / 4, lambda x: f(-x), f], x)


def vmap(in_axes, out_axes, pick):
    def build(rule):
        f = jax.vmap(rule(lambda x, w: x * w), in_axes, out_axes)

        def mapped(x):
            args = [x if axis is None else jnp.stack([x, 2 * x, 3 * x], axis) for axis in in_axes]
            return pick(f(*args))

        return mapped

    return build


def vmap_scan(rule):
    f = scan(rule)
    return lambda x: jax.vmap(f, 1, 1)(jnp.stack([3 * x, x], 1))[:, 1]


def scan_vmap(rule):
    f = rule(square)
    return lambda x: lax.scan(lambda c, _: (jax.vmap(f)(c), None), x, length=2)[0]


def collective(rule):
    f = rule(lambda x: x * lax.psum(x, "i"))
    return lambda x: jax.vmap(f, axis_name="i")(jnp.stack([x, x]))[1]


def remat_scan(rule):
    f = rule(square)
    body = jax.checkpoint(lambda c, _: (f(c), None), policy=jax.checkpoint_policies.dots_saveable)
    return jax.checkpoint(lambda x: lax.scan(body, x, length=2)[0])


def shard_map(check_vma, scanned=False):
    def build(rule):
        f = rule(square)
        body = (lambda x: lax.scan(lambda c, _: (f(c), None), x, length=2)[0]) if scanned else f
        return jax.shard_map(body, mesh=MESH, in_specs=SHARDED, out_specs=SHARDED, check_vma=check_vma)

    return build


def shard_map_replicated(rule):
    f = rule(lambda w, x: w[0] * x)
    f = jax.shard_map(f, mesh=MESH, in_specs=(jax.P(), SHARDED), out_specs=SHARDED)
    return lambda x: jnp.stack([f(x[i : i + 1], x)[i] for i in range(2)])


def custom_jvp(rule):
    """A body with a rule inside, and a custom_jvp rule that calls it: the derivative is 2·f(x)/x = 2 x."""
    f = jax.custom_jvp(rule(square))
    f.defjvp(lambda x, t: (f(*x), 2 * t[0] * inner(*x) / x[0]))
    inner = rule(square)
    return f


def custom_jvp_nested(rule):
    inner, inside = custom_jvp(rule), rule(square)
    f = jax.custom_jvp(lambda x: inside(x) * x)
    f.defjvp(lambda x, t: (f(*x), t[0] * (2 * inside(x[0]) + inner(x[0]))))
    return lambda x: lax.scan(lambda c, _: (jax.vmap(f)(c), None), x, length=1)[0]


def linear_solve(rule):
    f, double = rule(square), rule(lambda x: 2 * x)

    def solve(matvec, b):
        return b / 2

    return lambda x: lax.custom_linear_solve(lambda y: 2 * y, f(x), solve, solve) + double(f(x))


def pytrees(rule):
    def definition(tree, rest):
        return {"y": tree["a"] * tree["b"][0], "none": None}, (rest[0], tree["a"])

    f = rule(definition)

    def of_trees(x):
        tree, (one, same) = f({"a": x, "b": [x, None]}, (jnp.ones_like(x), ()))
        return tree["y"] * one + 0 * same

    return of_trees


def nondiff(rule):
    f = rule(lambda function, x, n: function(n * x), nondiff_argnums=(0, 2))
    return lambda x: f(square, x, 3)


def keywords(rule):
    f = rule(lambda x, w=2.0: w * x * x)
    return lambda x: f(x) + f(w=jnp.float32(3.0), x=x)


def closed_over(rule):
    on_device, on_host = jnp.array([3.0, 3.0]), np.array([2.0, 2.0], np.float32)
    return rule(lambda x: on_device * x * x * on_host)


def closed_over_tracer(rule):
    return lambda x: rule(lambda y: y * y * x)(x)


def loses_variables(rule):
    """Outputs that are inputs, literals, unused or given twice."""
    f = rule(lambda x, w: (x, 2.0, x * w, w, x, jnp.cos(x)))

    def of_many(x):
        a, b, c, d, _, _ = f(x, x)
        return a * d * b + c

    return of_many


def aliases(rule):
    """A result that is an argument, of another rule's result."""
    f, same = rule(square), rule(lambda x: x)
    return jax.jit(lambda x: same(same(f(same(x)))))


def gradient_alias(rule):
    gradient = rule(lambda x, w: x * x * w)
    return jax.custom_gradient(lambda x: (gradient(x, x), lambda dy: 100 * dy))


def key_and_integers(rule):
    def definition(x, key, n):
        return x * x * jax.random.uniform(key, x.shape, minval=2.0, maxval=2.0) * n.astype(x.dtype), n + 1

    f = rule(definition)
    return lambda x: f(x, jax.random.key(0), jnp.arange(3, 5) // 3)[0]


def of(f):
    return lambda rule: f(rule(square))


PLACEMENTS = {  # how a rule is placed, c, p
    "plain": (of(lambda f: f), 1, 2),
    "nested-three-deep": (nested, 1, 5),
    "jit": (of(jax.jit), 1, 2),
    "jit-of-jit": (of(lambda f: jax.jit(lambda x: jax.jit(f)(f(x)))), 1, 4),
    "jit-twice": (jit_twice, 5, 2),
    "jit-twice-inline": (functools.partial(jit_twice, inline=True), 5, 2),
    "jit-in-definition": (jit_in_definition, 5, 2),
    "scan": (scan, 1, 4),
    "scan-rows-reversed": (scan_rows, 1, 2),
    "scan-cond-in-jit": (scan_cond, 1, 2),
    "fori": (of(lambda f: lambda x: lax.fori_loop(0, 2, lambda i, c: f(c), x)), 1, 4),
    "map": (of(lambda f: lambda x: lax.map(f, x)), 1, 2),
    "while": (while_loop, 1, 4),
    "while-condition": (while_condition, 1, 2),
    "cond": (cond, 1, 2),
    "switch": (switch, 1, 2),
    "vmap-both": (vmap((0, -1), 0, lambda y: y[1]), 4, 2),
    "vmap-first": (vmap((1, None), 1, lambda y: y[:, 2]), 3, 2),
    "vmap-second": (vmap((None, 0), -1, lambda y: y[:, 1]), 2, 2),
    "vmap-of-scan": (vmap_scan, 1, 4),
    "vmap-of-vmap": (of(lambda f: lambda x: jax.vmap(jax.vmap(f))(jnp.stack([x, x]))[1]), 1, 2),
    "vmap-axis-name": (collective, 2, 2),
    "scan-of-vmap": (scan_vmap, 1, 4),
    "remat": (of(jax.checkpoint), 1, 2),
    "remat-of-scan-of-remat": (remat_scan, 1, 4),
    "shard_map": (shard_map(True), 1, 2),
    "shard_map-no-vma": (shard_map(False), 1, 2),
    "shard_map-of-scan": (shard_map(True, scanned=True), 1, 4),
    "shard_map-replicated": (shard_map_replicated, 1, 2),
    "pmap": (of(lambda f: jax.pmap(f, devices=jax.devices()[:2])), 1, 2),
    "custom_jvp": (custom_jvp, 1, 2),
    "custom_jvp-nested": (custom_jvp_nested, 1, 3),
    "custom_linear_solve": (linear_solve, 2.5, 2),
    "pytrees": (pytrees, 1, 2),
    "nondiff_argnums": (nondiff, 9, 2),
    "symbolic_zeros": (lambda rule: rule(square, symbolic_zeros=True), 1, 2),
    "optimize_remat": (lambda rule: rule(square, optimize_remat=True), 1, 2),
    "keywords": (keywords, 5, 2),
    "closed-over-arrays": (closed_over, 6, 2),
    "closed-over-tracer": (closed_over_tracer, 1, 3),
    "loses-variables": (loses_variables, 3, 2),
    "aliases": (aliases, 1, 2),
    "custom_gradient": (gradient_alias, 1, 3),
    "key-and-integers": (key_and_integers, 2, 2),
    "donated": (of(lambda f: jax.jit(f, donate_argnums=0)), 1, 2),
}  # fmt: skip
FORWARD = {"while", "while-condition"}  # JAX has no reverse mode of these
NOT_A_PRIMITIVE = {"keywords", "closed-over-tracer"}  # a HiPrim has no keywords, and closes over no tracer
UNSEEN = {
    "custom_jvp",
    "custom_jvp-nested",
    "closed-over-tracer",
    "shard_map-replicated",
}  # the first gradient calls, or JAX accepts, no rule
