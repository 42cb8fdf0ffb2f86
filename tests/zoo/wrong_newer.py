"""The wrong rules of JAX's newer and rarer forms: HiPrims, derived rules, accumulators, solvers, linear calls.

Where a version or a setting of JAX lacks a form, its specimens are left out.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.experimental import hijax

from zoo.specimen import (
    DERIVES_RULES,
    HIJAX,
    LOGS,
    batch_elementwise,
    cube_root,
    dense,
    fixed,
    normal,
    primitive,
    remat_by,
    sine_of,
    sine_times,
    sine_times_bwd,
    sine_times_tangent,
    solve_by,
    uniform,
    wrong,
)


def two(seed: int = 0) -> Any:
    return normal(3, 2, seed=seed), normal(3, 2, seed=seed + 1)


# ------------------------------------------------------------------------------- a HiPrim's vjp


@wrong("gradient", "jax-ml/jax#13048")
def hiprim_sign():
    """The second cotangent has the wrong sign."""
    return primitive(sine_times, lambda r, g: (jnp.cos(r[0]) * g * r[1], -jnp.sin(r[0]) * g)), two()


@wrong("gradient", "graphdeco-inria/gaussian-splatting#551")
def hiprim_factor():
    """The derivative of a square without its 2."""
    return primitive(lambda x: x * x, lambda r, g: (r[0] * g,), batch=batch_elementwise), (normal(4),)


@wrong("gradient", "getkeops/keops#155")
def hiprim_swapped():
    """The two cotangents are in each other's place."""
    return primitive(sine_times, lambda r, g: sine_times_bwd(r, g)[::-1]), two()


@wrong("gradient", "tile-ai/TileOPs#54")
def hiprim_no_transpose():
    """Matmul's rule forgets both transposes, which square matrices hide."""
    return primitive(jnp.matmul, lambda r, g: (g @ r[1], r[0] @ g)), (normal(3, 3), normal(3, 3, seed=1))


@wrong("gradient", "jimfleming/differentiation#1")
def hiprim_bias_averaged():
    """A broadcast bias is given the mean over the samples instead of the sum."""
    return primitive(lambda x, b: x + b[None], lambda r, g: (g, jnp.mean(g, 0))), (normal(4, 3), normal(3))


@wrong("signature", "deeplearning4j/nd4j#2424")
def hiprim_broadcast_not_summed():
    """A broadcast bias is given a row of cotangents a sample."""
    return primitive(lambda x, b: x + b[None], lambda r, g: (g, g)), (normal(4, 3), normal(3))


@wrong("types", "jax-ml/jax#27144")
def hiprim_bfloat16_cotangent():
    """The cotangent of a float32 argument is bfloat16."""
    return primitive(jnp.sin, lambda r, g: ((jnp.cos(r[0]) * g).astype(jnp.bfloat16),)), (normal(3, 2),)


@wrong("primal", "lucidrains/flash-attention-jax#7")
def hiprim_forward_constant():
    """The forward rule forgets the constant, which has no gradient."""
    fwd = lambda self, nonzero, x: (x * x, x)  # noqa: E731
    return primitive(lambda x: x * x + 1, lambda x, g: (2 * x * g,), vjp_fwd=fwd), (normal(4),)


@wrong("linearity", HIJAX)
def hiprim_clipped():
    """The rule of an identity clips the cotangent."""
    return primitive(lambda x: 1.0 * x, lambda r, g: (jnp.clip(g, -1, 1),), batch=batch_elementwise), (normal(5),)


@wrong("gradient", "BVLC/caffe#2413")
def hiprim_stale_residual():
    """The residual is the output, where the rule needs the argument."""

    def fwd(self, nonzero, x):
        y = self(x)
        return y, y

    return primitive(lambda x: x * jnp.sin(x), lambda y, g: ((jnp.sin(y) + y * jnp.cos(y)) * g,), vjp_fwd=fwd), (
        normal(4),
    )


@wrong("second_order", "google/jaxopt#143")
def hiprim_stopped_residual():
    """The residual is behind a stop_gradient: second derivatives are 0."""
    fwd = lambda self, nonzero, x: (self(x), lax.stop_gradient(jnp.cos(x)))  # noqa: E731
    return primitive(jnp.sin, lambda cosine, g: (g * cosine,), vjp_fwd=fwd), (normal(4),)


@wrong("gradient", "jax-ml/jax#14833")
def hiprim_differentiated_alone():
    """The rule keeps y only where y is differentiated too, and x's cotangent needs it."""

    def fwd(self, nonzero, x, y):
        return self(x, y), (x, y if nonzero[1] else jnp.ones_like(y))

    return primitive(sine_times, sine_times_bwd, vjp_fwd=fwd), two()


@wrong("gradient", HIJAX)
def hiprim_accumulates_next():
    """The rule adds to the element after the one that was read."""

    def bwd(self, residuals, g, accumulator):
        accumulator.accum(jnp.zeros(4, g.dtype).at[2].add(g))

    fwd = lambda self, nonzero, x: (self(x), None)  # noqa: E731
    return primitive(lambda x: 3 * x[1], vjp_fwd=fwd, vjp_bwd=bwd), (normal(4),)


@wrong("gradient", "jax-ml/jax#21220")
def hiprim_under_scan():
    """A wrong rule in the body of a scan."""
    sine = primitive(jnp.sin, lambda r, g: (2 * jnp.cos(r[0]) * g,))
    return lambda x: lax.scan(lambda c, row: (c, sine(row)), 0, x)[1], (normal(3, 2),)


@wrong("gradient", "marin-community/marin#3043")
def hiprim_under_jit_and_a_condition():
    """A wrong rule on one branch of a condition under jit."""
    sine = primitive(jnp.sin, lambda r, g: (2 * jnp.cos(r[0]) * g,))
    return jax.jit(lambda x: lax.cond(x[0] > -9, sine, jnp.cos, x)), (normal(3),)


@wrong("vmap", "flagos-ai/FlagGems#59")
def hiprim_gradient_of_the_batch():
    """Under vmap the weight's cotangent is summed over the batch, though each example has its own."""

    def bwd(r, g):
        x, w = r
        shared = jnp.sum(g * x, tuple(range(x.ndim - 1)))
        return g * w, jnp.broadcast_to(shared, w.shape)

    return primitive(jnp.multiply, bwd, batch=batch_elementwise), (normal(3), normal(3, seed=1))


# ---------------------------------------------------------------------- a HiPrim's jvp and lin


@wrong("jvp", "jax-ml/jax#3213")
def hiprim_tangent_sign():
    """One term of the tangent has the wrong sign; the vjp is right."""

    def jvp(self, primals, tangents):
        (x, y), (dx, dy) = primals, map(dense, tangents)
        return self(x, y), jnp.cos(x) * dx * y - jnp.sin(x) * dy

    return primitive(sine_times, sine_times_bwd, jvp=jvp), two()


@wrong("jvp", "jax-ml/jax#14833", alone=True)
def hiprim_tangent_of_one():
    """The tangent forgets a factor where the second argument does not vary, and is right where both do."""

    def jvp(self, primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        if isinstance(dy, hijax.Zero):
            return self(x, y), jnp.cos(x) * dx
        return self(x, y), sine_times_tangent(primals, tangents)

    return primitive(sine_times, sine_times_bwd, jvp=jvp), two()


@wrong("jvp", "lucidrains/flash-attention-jax#7")
def hiprim_tangent_with_another_value():
    """The value that `jvp` returns lacks the constant."""
    jvp = lambda self, x, dx: (x[0] * x[0], 2 * x[0] * dx[0])  # noqa: E731
    return primitive(lambda x: x * x + 1, lambda r, g: (2 * r[0] * g,), jvp=jvp), (normal(4),)


@wrong("remat", "jax-ml/jax#4566")
def hiprim_remat_by_jvp():
    """The tangent of a square lacks its 2: under jax.checkpoint the gradient is half of what it is without."""
    jvp = lambda self, x, dx: (self(*x), x[0] * dx[0])  # noqa: E731
    return primitive(lambda x: x * x, lambda r, g: (2 * r[0] * g,), jvp=jvp), (normal(4),)


@wrong("lin", HIJAX, alone=True)
def hiprim_linearized_factor():
    """`linearized` doubles the tangent."""
    lin = lambda self, nonzero, x: (self(x), jnp.cos(x))  # noqa: E731
    double = lambda self, cosine, dx: 2 * cosine * dx  # noqa: E731
    return primitive(jnp.sin, lambda r, g: (jnp.cos(r[0]) * g,), lin=lin, linearized=double), (normal(4),)


@wrong("lin", "lucidrains/flash-attention-jax#7")
def hiprim_lin_with_another_value():
    """`lin` returns the derivative where the value belongs."""
    lin = lambda self, nonzero, x: (jnp.cos(x), jnp.cos(x))  # noqa: E731
    right = lambda self, cosine, dx: cosine * dx  # noqa: E731
    return primitive(jnp.sin, lambda r, g: (jnp.cos(r[0]) * g,), lin=lin, linearized=right), (normal(4),)


@wrong("lin", "BVLC/caffe#2413")
def hiprim_lin_with_a_wrong_residual():
    """`lin` keeps the sine where `linearized` takes it for the cosine."""
    lin = lambda self, nonzero, x: (self(x), jnp.sin(x))  # noqa: E731
    right = lambda self, cosine, dx: cosine * dx  # noqa: E731
    return primitive(jnp.sin, lambda r, g: (jnp.cos(r[0]) * g,), lin=lin, linearized=right), (normal(4),)


if DERIVES_RULES:

    def squared(**methods: Any) -> Any:
        """Return the square of four numbers, by a HiPrim with these methods."""
        return primitive(lambda x: x * x, **methods), (normal(4),)

    def square_jvp(self: Any, x: Any, dx: Any) -> Any:
        """Forget the factor 2."""
        return self(*x), x[0] * dx[0]

    def square_lin(self: Any, nonzero: Any, x: Any) -> Any:
        """Keep the argument."""
        return self(x), x

    def square_linearized(self: Any, x: Any, dx: Any) -> Any:
        """Forget the factor 2."""
        return x * dx

    def pair(names: str, values: Any) -> dict[str, Any]:
        """Give a pair of derived methods its names."""
        return dict(zip(names.split(), values, strict=True))

    VJP, LIN = "vjp_fwd vjp_bwd_retval", "lin linearized"
    WRONG_LIN = {"lin": square_lin, "linearized": square_linearized}
    RIGHT_VJP: Any = {
        "vjp_fwd": lambda self, nonzero, x: (self(x), x),
        "vjp_bwd_retval": lambda self, x, g: (2 * x * g,),
    }

    @wrong("gradient", HIJAX)
    def hiprim_vjp_from_a_wrong_jvp():
        """The vjp is derived from a `jvp` that lacks its 2."""
        return squared(jvp=square_jvp, **pair(VJP, hijax.vjp_from_jvp))

    @wrong("gradient", HIJAX)
    def hiprim_vjp_from_a_wrong_lin():
        """The vjp is derived from a `linearized` that lacks its 2."""
        return squared(**WRONG_LIN, **pair(VJP, hijax.vjp_from_lin))

    @wrong("jvp", HIJAX)
    def hiprim_jvp_from_a_wrong_lin():
        """`jvp` is derived from a `linearized` that lacks its 2; the vjp is right."""
        return squared(**WRONG_LIN, jvp=hijax.jvp_from_lin, **RIGHT_VJP)

    @wrong("lin", HIJAX)
    def hiprim_lin_from_a_wrong_jvp():
        """`lin` is derived from a `jvp` that lacks its 2; the vjp is right."""
        return squared(jvp=square_jvp, **pair(LIN, hijax.linearize_from_jvp), **RIGHT_VJP)


# --------------------------------------------------- a HiPrim's batch, transpose and remat


def normalized(x: Any) -> Any:
    """Divide by the sum over the last axis."""
    return x / jnp.sum(x, -1, keepdims=True)


def normalized_bwd(r: Any, g: Any) -> Any:
    (x,) = r
    s = jnp.sum(x, -1, keepdims=True)
    return ((g - jnp.sum(g * x, -1, keepdims=True) / s) / s,)


@wrong("batch", "jax-ml/jax#39451", alone=True)
def hiprim_batch_at_the_front():
    """`batch` takes the batch's axis for the first one, wherever it is."""

    def batch(self, axis_data, args, dims):
        if dims == (None,):
            return self(*args), None
        return type(self)(jax.typeof(args[0]))(*args), 0

    return primitive(normalized, normalized_bwd, batch=batch), (uniform(0.5, 2, 3),)


@wrong("batch", "jax-ml/jax#36702")
def hiprim_batch_of_all():
    """`batch` relies on a batch axis of every argument."""

    def batch(self, axis_data, args, dims):
        front = [jnp.moveaxis(x, d or 0, 0) for x, d in zip(args, dims, strict=True)]
        return jax.vmap(jnp.matmul)(*front), 0  # the rows of a matrix that is not batched are taken for examples

    return primitive(jnp.matmul, lambda r, g: (jnp.outer(g, r[1]), r[0].T @ g), batch=batch), (
        normal(2, 2),
        normal(2, seed=1),
    )


@wrong("batch", "flagos-ai/FlagGems#59")
def hiprim_batch_summed():
    """`batch` normalises over the batch, too."""

    def batch(self, axis_data, args, dims):
        x = jnp.moveaxis(args[0], dims[0], 0)
        return x / jnp.sum(x), 0

    return primitive(normalized, normalized_bwd, batch=batch), (uniform(0.5, 2, 3),)


@wrong("batch", "jax-ml/jax#14150")
def hiprim_batch_of_the_first():
    """`batch` scales all examples by the first one's factor."""

    def batch(self, axis_data, args, dims):
        x, w = (jnp.moveaxis(a, d, 0) if d is not None else a[None] for a, d in zip(args, dims, strict=True))
        return x * w[:1], 0 if dims[0] is not None else None

    return primitive(jnp.multiply, lambda r, g: (g * r[1], g * r[0]), batch=batch), (normal(3), normal(3, seed=1))


def linear(matrix: Any, transpose: Any) -> Any:
    """Return a matrix-vector product by a HiPrim with a right vjp and this `transpose`."""
    return primitive(lambda x: matrix @ x, lambda r, g: (matrix.T @ g,), transpose=transpose)


@wrong("transpose", "jax-ml/jax#39589", alone=True)
def hiprim_transpose_factor():
    """`transpose` halves, where the primitive doubles."""

    def transpose(self, ct, accumulator):
        accumulator.accum(ct / 2)

    return primitive(lambda x: 2 * x, lambda r, g: (2 * g,), transpose=transpose), (normal(4),)


@wrong("transpose", "tile-ai/TileOPs#54")
def hiprim_transpose_by_the_matrix():
    """`transpose` multiplies by the matrix, not by its transpose."""
    matrix = normal(3, 3, seed=5)

    def transpose(self, ct, accumulator):
        accumulator.accum(matrix @ ct)

    return linear(matrix, transpose), (normal(3),)


@wrong("transpose", "jax-ml/jax#19087")
def hiprim_transpose_of_the_second():
    """Of a product, `transpose` by the second argument forgets the first."""

    def transpose(self, ct, x, y):
        if hasattr(x, "accum"):
            x.accum(ct * y)
        else:
            y.accum(ct)

    f = primitive(jnp.multiply, lambda r, g: (g * r[1], g * r[0]), transpose=transpose)
    return f, (normal(3), normal(3, seed=1))


@wrong("remat", "jax-ml/jax#38914", alone=True)
def hiprim_remat_of_another():
    """`remat` recomputes the cosine of a sine."""
    right, other = sine_of(jnp.sin, jnp.cos), sine_of(jnp.cos, lambda x: -jnp.sin(x))
    return sine_of(jnp.sin, jnp.cos, remat=remat_by(right, other)), (normal(4),)


@wrong("remat", "lucidrains/flash-attention-jax#7")
def hiprim_remat_with_another_value():
    """`remat` returns the cosine on the way forward."""
    right, other = sine_of(jnp.sin, jnp.cos), sine_of(jnp.cos, lambda x: -jnp.sin(x))
    return sine_of(jnp.sin, jnp.cos, remat=remat_by(other, right)), (normal(4),)


# ------------------------------------------------------------- custom_vjp in its newer forms


if LOGS:

    @wrong("gradient", "graphdeco-inria/gaussian-splatting#551")
    def generic_batching_factor():
        """The derivative of a square without its 2, with generic_batching."""
        f = jax.custom_vjp(lambda x: x * x)
        f.defvjp(lambda x: (x * x, x), lambda x, g: (x * g,), generic_batching=True)
        return f, (normal(4),)

    @wrong("vmap", "jax-ml/jax#14150")
    def generic_batching_of_the_first():
        """Under vmap the backward rule scales all examples by the first one's factor, with generic_batching."""

        @jax.custom_batching.custom_vmap
        def scaled(g, w):
            return g * w

        @scaled.def_vmap
        def _(size, batched, g, w):
            return (g * w[:1] if batched[1] else g * w), True

        f = jax.custom_vjp(lambda x, w: x * w)
        f.defvjp(lambda x, w: (x * w, (x, w)), lambda r, g: (scaled(g, r[1]), scaled(g, r[0])), generic_batching=True)
        return f, (normal(3), normal(3, seed=1))

    @wrong("primal", "lucidrains/flash-attention-jax#8")
    def generic_batching_forward_dtype():
        """The forward rule returns bfloat16 where the function returns float32, with generic_batching."""
        f = jax.custom_vjp(lambda x: 2 * x)
        half = lambda x: ((2 * x).astype(jnp.bfloat16), None)  # noqa: E731
        f.defvjp(half, lambda _, g: (2 * g.astype(jnp.float32),), generic_batching=True)
        return f, (normal(4),)

    @wrong("integers", "jax-ml/jax#7651")
    def generic_batching_integer_gradient():
        """An integer argument is given a float cotangent, which JAX drops, with generic_batching."""
        f = jax.custom_vjp(lambda x, n: x * n.astype(x.dtype))
        f.defvjp(
            lambda x, n: (x * n.astype(x.dtype), (x, n)),
            lambda r, g: (g * r[1].astype(g.dtype), g * r[0]),
            generic_batching=True,
        )
        return f, (normal(3), fixed([1, 2, 3], jnp.int32))

    @wrong("gradient", "jax-ml/jax#13048")
    def with_logs_sign():
        """A rule that logs has the wrong sign in its second cotangent."""
        f = jax.custom_vjp(sine_times)
        f.defvjp_with_logs(
            lambda x, y: (sine_times(x, y), (x, y)),
            lambda r, g: ((jnp.cos(r[0]) * r[1] * g, -jnp.sin(r[0]) * g), {"largest": jnp.max(g)}),
        )
        return f, two()

    @wrong("gradient", "getkeops/keops#155")
    def with_accums_swapped():
        """A rule with accumulators adds each cotangent to the other's."""

        def bwd(r, g, x_accumulator, y_accumulator):
            by_x, by_y = sine_times_bwd(r, g)
            x_accumulator.accum(by_y)
            y_accumulator.accum(by_x)

        f = jax.custom_vjp(sine_times)
        f.defvjp_with_accums(lambda x, y: (sine_times(x, y), (x, y)), bwd)
        return f, two()

    @wrong("gradient", "jax-ml/jax#8356")
    def with_accums_forgotten():
        """A rule with accumulators never adds to the second one."""

        def bwd(r, g, x_accumulator, y_accumulator):
            x_accumulator.accum(sine_times_bwd(r, g)[0])

        f = jax.custom_vjp(sine_times)
        f.defvjp_with_accums(lambda x, y: (sine_times(x, y), (x, y)), bwd)
        return f, two()


if getattr(jax.config, "jax_custom_vjp3", False) and LOGS:

    @wrong("gradient", "BVLC/caffe#2413")
    def defremat_stale():
        """The second half of the forward rule keeps the sine, where the backward rule needs the cosine."""
        f = jax.custom_vjp(jnp.sin)
        f.defremat(lambda x: (jnp.sin(x), ()), lambda r, x: (jnp.sin(x), jnp.sin(x)), lambda c, g: (c * g,))
        return f, (normal(4),)

    @wrong("remat", "jax-ml/jax#38914")
    def defremat_beside_defvjp():
        """The rules for remat double the cotangent; those without remat are right."""
        f = jax.custom_vjp(jnp.sin)
        f.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.cos(x) * g,))
        f.defremat(lambda x: (jnp.sin(x), ()), lambda r, x: (jnp.sin(x), jnp.cos(x)), lambda c, g: (2 * c * g,))
        return f, (normal(4),)


# --------------------------------------------------------- custom_gradient and custom_jvp


@wrong("gradient", "jax-ml/jax#29485")
def custom_gradient_factor():
    """The example of custom_gradient's documentation: the gradient of x² is given as x."""
    return jax.custom_gradient(lambda x: (x**2, lambda g: (g * x,))), (normal(4),)


@wrong("gradient", "jax-ml/jax#29485")
def custom_gradient_under_scan():
    """The same, on each row of a scan."""
    square = jax.custom_gradient(lambda x: (x**2, lambda g: (g * x,)))
    return lambda x: lax.scan(lambda c, row: (c, square(row)), 0, x)[1], (normal(3, 2),)


@wrong("gradient", "jax-ml/jax#3213")
def custom_jvps_sign():
    """Of two tangent rules, the second has the wrong sign."""
    f = jax.custom_jvp(sine_times)
    f.defjvps(lambda dx, out, x, y: jnp.cos(x) * dx * y, lambda dy, out, x, y: -jnp.sin(x) * dy)
    return f, two()


@wrong("gradient", "jax-ml/jax#3389")
def custom_jvps_of_the_other():
    """The second tangent rule holds the derivative by the first argument."""
    f = jax.custom_jvp(lambda x, y: x**2 * y)
    f.defjvps(None, lambda dy, out, x, y: 2 * x * y * dy)
    return f, (uniform(1, 2, 3), uniform(1, 2, 3, seed=1))


@wrong("gradient", "jax-ml/jax#14833")
def custom_jvp_symbolic_zeros():
    """A product whose tangents are added as they are, or one of them where the other is a symbolic zero."""
    f = jax.custom_jvp(jnp.multiply)

    @functools.partial(f.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        dx, dy = tangents
        dx, dy = dx if not isinstance(dx, SymbolicZero) else 0.0, dy if not isinstance(dy, SymbolicZero) else 0.0
        return f(*primals), dx + dy

    return f, two()


@wrong("gradient", "jax-ml/jax#5202")
def custom_jvp_of_zeros():
    """A product that is 0 where y is 0, even for an infinite x: its tangent by y is multiplied by y, too."""
    select = lambda x, y: jnp.where(y == 0, 0.0, x * y)  # noqa: E731
    f = jax.custom_jvp(select)
    f.defjvp(lambda p, t: (f(*p), select(t[0], p[1]) + select(t[1], p[1]) * p[0]))
    return f, (normal(3), uniform(0.5, 2, 3))


# ------------------------------------------------------------------ solvers and linear calls


@wrong("gradient", "jax-ml/jax#5781")
def linear_call_not_transposed():
    """A division whose transpose multiplies."""

    def halved(x):
        return linear_call(lambda r, x: x / r, lambda r, t: t * r, 2.0, x)

    return halved, (normal(3),)


@wrong("gradient", "tile-ai/TileOPs#54")
def linear_call_by_the_matrix():
    """A product with a matrix whose transpose multiplies by the same matrix."""
    matrix = normal(3, 3, seed=5)
    return lambda x: linear_call(lambda m, x: m @ x, lambda m, t: m @ t, matrix, x), (normal(3),)


@wrong("gradient", "jax-ml/jax#5781")
def linear_call_under_scan():
    """A division whose transpose multiplies, on each row of a scan."""
    halved = lambda x: linear_call(lambda r, x: x / r, lambda r, t: t * r, 2.0, x)  # noqa: E731
    return lambda x: lax.scan(lambda c, row: (c, halved(row)), 0, x)[1], (normal(3, 2),)


@wrong("gradient", "jax-ml/jax#5552")
def root_with_a_wrong_tangent():
    """`tangent_solve` multiplies by the derivative, where it must divide."""
    return cube_root(lambda g, y: g(y)), (uniform(1, 2, 3),)


@wrong("gradient", "jax-ml/jax#5552")
def root_with_half_a_tangent():
    """`tangent_solve` returns half of the solution, under jit."""
    return jax.jit(cube_root(lambda g, y: y / g(jnp.ones_like(y)) / 2)), (uniform(1, 2, 3),)


@wrong("gradient", "jax-ml/jax#23403")
def solve_not_symmetric():
    """A matrix that is not symmetric is said to be."""
    return solve_by(None, symmetric=True), (fixed([[3, 1], [-1, 2]]), normal(2))


@wrong("gradient", "jax-ml/jax#29449")
def solve_not_transposed():
    """The transposed system is solved with the matrix itself."""
    return solve_by(lambda m, b: jnp.linalg.solve(m, b)), (fixed([[3, 1], [-1, 2]]), normal(2))


@wrong("gradient", "jax-ml/jax#29449")
def solve_factor_under_cond():
    """The transposed system's solution is doubled, on one branch of a condition."""
    solve = solve_by(lambda m, b: 2 * jnp.linalg.solve(m.T, b))
    return lambda m, b: lax.cond(b[0] > -9, solve, lambda m, b: b, m, b), (fixed([[3, 1], [-1, 2]]), normal(2))
