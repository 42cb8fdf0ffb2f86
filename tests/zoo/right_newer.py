"""The right rules of JAX's newer and rarer forms: no check may fail on any of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.experimental import hijax

from zoo.specimen import (
    DERIVES_RULES,
    LOGS,
    HiPrim,
    average,
    batch_elementwise,
    cube_root,
    dense,
    fixed,
    normal,
    primitive,
    remat_by,
    right,
    rule,
    sine_of,
    sine_times,
    sine_times_bwd,
    sine_times_tangent,
    solve_by,
    uniform,
)


def two() -> Any:
    return normal(3, 2), normal(3, 2, seed=1)


# -------------------------------------------------------------------------------------- HiPrims


@right()
def hiprim_all_by_hand():
    """A vjp, a jvp for symbolic zeros too, a linearization, and a batch."""

    def lin(self, nonzero, x, y):
        return self(x, y), (x, y)

    return primitive(
        sine_times, sine_times_bwd, jvp=lambda self, p, t: (self(*p), sine_times_tangent(p, t)), lin=lin,
        linearized=lambda self, r, *t: sine_times_tangent(r, t), batch=batch_elementwise,
    ), two()  # fmt: skip


@right()
def hiprim_of_the_documentation():
    """A jvp that takes all tangents for arrays."""

    def jvp(self, primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        return self(x, y), jnp.cos(x) * dx * y + jnp.sin(x) * dy

    return primitive(sine_times, sine_times_bwd, jvp=jvp), two()


@right()
def hiprim_with_a_vjp_alone():
    return primitive(sine_times, sine_times_bwd), two()


@right()
def hiprim_stable():
    """log(1 + exp(x)), whose rule stays finite for large x."""
    return primitive(lambda x: jnp.logaddexp(x, 0.0), lambda r, g: (jax.nn.sigmoid(r[0]) * g,)), (
        fixed([-30, -1, 0.5, 100]),
    )


@right()
def hiprim_matmul():
    """A matrix product, whose batch is a vmap of the definition."""

    def batch(self, axis_data, args, dims):
        return jax.vmap(jnp.matmul, dims, axis_size=axis_data.size)(*args), 0

    bwd = lambda r, g: (g @ r[1].T, r[0].T @ g)  # noqa: E731
    return primitive(jnp.matmul, bwd, batch=batch), (normal(3, 2), normal(2, 4, seed=1))


@right()
def hiprim_of_trees():
    """Parameters in a dictionary, and two outputs."""

    def affine(p, x):
        return {"y": p["w"] * x + p["b"], "size": jnp.sum(x * x)}

    def bwd(r, g):
        (p, x), g = r, jax.tree.map(dense, g, is_leaf=lambda ct: isinstance(ct, hijax.Zero))
        return {"b": g["y"], "w": g["y"] * x}, g["y"] * p["w"] + 2 * x * g["size"]

    return primitive(affine, bwd), ({"b": normal(3), "w": normal(3, seed=1)}, normal(3, seed=2))


@right()
def hiprim_with_accumulators():
    """The rule adds to the one element that was read."""

    def bwd(self, residuals, g, accumulator):
        accumulator.accum(jnp.zeros(4, g.dtype).at[1].add(3 * g))

    return primitive(lambda x: 3 * x[1], vjp_fwd=lambda self, nonzero, x: (self(x), None), vjp_bwd=bwd), (normal(4),)


@right()
def hiprim_with_an_integer():
    """A lookup: the index has no gradient."""

    def bwd(r, g):
        x, i = r
        return jnp.zeros_like(x).at[i].add(g), None

    return primitive(lambda x, i: x[i], bwd), (normal(4, 2), fixed([3, 1, 3], jnp.int32))


@right()
def hiprim_only_what_is_needed():
    """The rule keeps what the differentiated arguments need."""

    def fwd(self, nonzero, x, y):
        return self(x, y), (x, y if nonzero[0] else jnp.zeros_like(y))

    return primitive(sine_times, sine_times_bwd, vjp_fwd=fwd), two()


@right()
def hiprim_in_bfloat16():
    return sine_of(jnp.sin, jnp.cos), (normal(4, 3, dtype=jnp.bfloat16),)


@right()
def hiprim_in_float32_throughout():
    """A primitive that computes in float32, whatever its argument is."""
    sine = lambda x: jnp.sin(x.astype(jnp.float32)).astype(x.dtype)  # noqa: E731
    cosine = lambda x: jnp.cos(x.astype(jnp.float32)).astype(x.dtype)  # noqa: E731
    return sine_of(sine, cosine), (normal(4),)


@right()
def hiprim_of_complex_numbers():
    z = lax.complex(normal(3), normal(3, seed=1))
    return sine_of(lambda z: z * z, lambda z: 2 * z), (z,)


@right()
def hiprim_under_scan_and_jit():
    """Rows of a scan, reversed, under jit."""
    f = sine_of(jnp.sin, jnp.cos)
    return jax.jit(lambda x: lax.scan(lambda c, r: (c + f(r), f(c)), x[0], x, reverse=True)), (normal(3, 2),)


@right()
def hiprim_under_cond_and_remat():
    f = sine_of(jnp.sin, jnp.cos)
    return lambda x: lax.cond(x[0] > -9, jax.checkpoint(f), jnp.cos, 2 * x), (normal(3),)


@right()
def hiprim_under_vmap():
    f = sine_of(jnp.sin, jnp.cos)
    return jax.vmap(lambda x: f(x) * x[0], in_axes=1, out_axes=1), (normal(3, 2),)


@right()
def hiprim_in_another_rule():
    """A custom_vjp function whose definition and rule call a HiPrim."""
    sine, cosine = sine_of(jnp.sin, jnp.cos), sine_of(jnp.cos, lambda x: -jnp.sin(x))
    return rule(lambda x: sine(x) * x, lambda x: (sine(x) * x, x), lambda x, g: (g * (sine(x) + x * cosine(x)),)), (
        normal(4),
    )


@right()
def hiprim_normalisation():
    """Layer norm, whose batch moves the batch to the front."""

    def norm(x):
        x = x - average(x)
        return x * lax.rsqrt(average(x * x) + 1e-5)

    def bwd(r, g):
        centred = r[0] - average(r[0])
        scale = lax.rsqrt(average(centred * centred) + 1e-5)
        y = centred * scale
        return (scale * (g - average(g) - y * average(g * y)),)

    return primitive(norm, bwd, batch=batch_elementwise), (normal(3, 5),)


@right()
def hiprim_with_a_transpose():
    """A product, linear in each argument alone."""

    def transpose(self, ct, x, y):
        if hasattr(x, "accum"):
            x.accum(ct * y)
        else:
            y.accum(ct * x)

    def jvp(self, primals, tangents):
        (x, y), (dx, dy) = primals, map(dense, tangents)
        return self(x, y), self(dx, y) + self(x, dy)

    f = primitive(jnp.multiply, lambda r, g: (g * r[1], g * r[0]), transpose=transpose, jvp=jvp)
    return f, (normal(3), normal(3, seed=1))


@right()
def hiprim_transposed_by_one():
    """A matrix times a vector: its transpose is written for the vector alone."""

    def transpose(self, ct, m, x):
        assert not hasattr(m, "accum")
        x.accum(m.T @ ct)

    return primitive(jnp.matmul, lambda r, g: (jnp.outer(g, r[1]), r[0].T @ g), transpose=transpose), (
        normal(3, 2), normal(2, seed=1),
    )  # fmt: skip


@right()
def hiprim_with_a_remat_rule():
    sine = sine_of(jnp.sin, jnp.cos)
    return sine_of(jnp.sin, jnp.cos, remat=remat_by(sine, sine)), (normal(4),)


@right(reference=lambda x: 2 * x)
def hiprim_that_differs_on_purpose():
    """A rounding whose gradient is that of the number rounded, in both modes."""
    rounded = lambda x: jnp.round(2 * x)  # noqa: E731
    jvp = lambda self, x, dx: (self(*x), 2 * dx[0])  # noqa: E731
    return primitive(rounded, lambda r, g: (2 * g,), jvp=jvp, batch=batch_elementwise), (normal(4),)


class FixedPoint(HiPrim):  # type: ignore[misc, valid-type]
    """The square root by iteration until nothing changes, with the implicit derivative."""

    def __init__(self, a):
        self.in_avals, self.out_aval, self.params = (a,), a, {}
        super().__init__()

    def expand(self, a):
        step = lambda pair: (pair[1], 0.5 * (pair[1] + a / pair[1]))  # noqa: E731
        differs = lambda pair: jnp.any(jnp.abs(pair[0] - pair[1]) > 1e-9)  # noqa: E731
        return lax.while_loop(differs, step, step((a, a)))[1]

    def vjp_fwd(self, nonzero, a):
        y = self(a)
        return y, y

    def vjp_bwd_retval(self, y, g):
        return (g / (2 * y),)


@right()
def hiprim_fixed_point():
    return lambda a: FixedPoint(jax.typeof(a))(a), (uniform(0.5, 2, 3),)


if DERIVES_RULES:
    VJP, LIN = ("vjp_fwd", "vjp_bwd_retval"), ("lin", "linearized")

    def derived(**methods: Any) -> Any:
        return primitive(sine_times, batch=batch_elementwise, **methods), two()

    def sine_times_jvp(self: Any, primals: Any, tangents: Any) -> Any:
        return self(*primals), sine_times_tangent(primals, tangents)

    LINEAR: Any = {
        "lin": lambda self, nonzero, x, y: (self(x, y), (x, y)),
        "linearized": lambda self, r, *t: sine_times_tangent(r, t),
    }

    @right()
    def hiprim_vjp_from_jvp():
        return derived(jvp=sine_times_jvp, **dict(zip(VJP, hijax.vjp_from_jvp, strict=True)))

    @right()
    def hiprim_all_from_jvp():
        pairs = zip(LIN + VJP, (*hijax.linearize_from_jvp, *hijax.vjp_from_lin), strict=True)
        return derived(jvp=sine_times_jvp, **dict(pairs))

    @right()
    def hiprim_all_from_lin():
        return derived(**LINEAR, jvp=hijax.jvp_from_lin, **dict(zip(VJP, hijax.vjp_from_lin, strict=True)))


# ------------------------------------------------------------- custom_vjp in its newer forms


if LOGS:

    @right()
    def generic_batching():
        f = jax.custom_vjp(sine_times)
        f.defvjp(lambda x, y: (sine_times(x, y), (x, y)), sine_times_bwd, generic_batching=True)
        return f, two()

    @right()
    def with_logs():
        """A rule that logs the largest cotangent."""
        f = jax.custom_vjp(sine_times)
        f.defvjp_with_logs(
            lambda x, y: (sine_times(x, y), (x, y)), lambda r, g: (sine_times_bwd(r, g), {"largest": jnp.max(g)})
        )
        return f, two()

    @right()
    def with_accumulators():
        def bwd(r, g, *accumulators):
            for accumulator, ct in zip(accumulators, sine_times_bwd(r, g), strict=True):
                accumulator.accum(ct)

        f = jax.custom_vjp(sine_times)
        f.defvjp_with_accums(lambda x, y: (sine_times(x, y), (x, y)), bwd)
        return f, two()


if getattr(jax.config, "jax_custom_vjp3", False) and LOGS:

    @right()
    def defremat():
        f = jax.custom_vjp(jnp.sin)
        f.defremat(lambda x: (jnp.sin(x), ()), lambda r, x: (jnp.sin(x), jnp.cos(x)), lambda c, g: (c * g,))
        return f, (normal(4),)


# --------------------------------------------------------- custom_gradient and custom_jvp


@right()
def custom_gradient_of_a_square():
    return jax.custom_gradient(lambda x: (x**2, lambda g: (2 * g * x,))), (normal(4),)


@right()
def custom_gradient_under_vmap():
    square = jax.custom_gradient(lambda x: (jnp.sum(x**2), lambda g: (2 * g * x,)))
    return jax.vmap(square), (normal(3, 2),)


@right()
def custom_jvps_by_argument():
    f = jax.custom_jvp(sine_times)
    f.defjvps(lambda dx, out, x, y: jnp.cos(x) * dx * y, lambda dy, out, x, y: jnp.sin(x) * dy)
    return f, two()


@right()
def custom_jvp_with_symbolic_zeros():
    f = jax.custom_jvp(sine_times)

    @functools.partial(f.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        terms = [
            d * t for d, t in ((jnp.cos(x) * y, dx), (jnp.sin(x), dy)) if not isinstance(t, SymbolicZero)
        ]  # fmt: skip
        return f(x, y), sum(terms[1:], terms[0])

    return f, two()


# ------------------------------------------------------------------ solvers and linear calls


@right()
def linear_call_transposed():
    return lambda x: linear_call(lambda r, x: x / r, lambda r, t: t / r, 2.0, x), (normal(3),)


@right()
def cube_root_by_newton():
    return cube_root(lambda g, y: y / g(jnp.ones_like(y))), (uniform(1, 2, 3),)


@right()
def root_under_jit_and_scan():
    root = cube_root(lambda g, y: y / g(jnp.ones_like(y)))
    return jax.jit(lambda x: lax.scan(lambda c, row: (c, root(row)), 0, x)[1]), (uniform(1, 2, 2, 2),)


@right()
def solve_transposed():
    return solve_by(lambda m, b: jnp.linalg.solve(m.T, b)), (fixed([[3, 1], [-1, 2]]), normal(2))
