"""What a specimen is, how wrong.py and right.py put theirs into the tables, and what many specimens are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import hijax


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


def at_least_float32(x: Any) -> Any:
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


def unit(x: Any) -> Any:
    """Return ones of the shape and dtype of x."""
    return jnp.ones_like(x)


inf, nan = np.inf, np.nan


def layer_norm(x: Any) -> Any:
    """Normalise over the last axis."""
    x = x - average(x)
    return x * lax.rsqrt(average(x * x) + 1e-5)


def layer_norm_fwd(x: Any) -> Any:
    """Normalise, and keep the result and the scale."""
    x = x - average(x)
    r = lax.rsqrt(average(x * x) + 1e-5)
    return x * r, (x * r, r)


def correlate(x: Any, w: Any) -> Any:
    """Slide a filter over an image, NCHW and OIHW, with one pixel of padding."""
    return lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)))


def swap(w: Any) -> Any:
    """Exchange the first two axes: images and channels, filters and channels."""
    return jnp.swapaxes(w, 0, 1)


def only_of(ct: Any, primal: Any) -> tuple[str, ...]:
    """Name the mesh axes over which a cotangent varies and its primal does not."""
    return tuple(jax.typeof(ct).manual_axis_type.varying - jax.typeof(primal).manual_axis_type.varying)


def phases(*shape: int, seed: int = 0) -> jax.Array:
    """Return a complex array."""
    return lax.complex(normal(*shape, seed=seed), normal(*shape, seed=seed + 1))


def squared_length(z: Any) -> Any:
    """Return |z|²."""
    return jnp.real(z * jnp.conj(z))


HiPrim = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive  # its name before jax 0.12


def batch_elementwise(self: Any, axis_data: Any, args: Any, dims: Any) -> Any:
    """Batch an elementwise primitive: the batch is one more axis at the front of every argument."""
    full = [
        jnp.broadcast_to(x, (axis_data.size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(args, dims, strict=True)
    ]
    return type(self)(*map(jax.typeof, full))(*full), 0


def primitive(expand: Any, bwd: Any = None, **methods: Any) -> Any:
    """Return a function that calls a HiPrim with these methods, written as functions of self.

    Unless `methods` says otherwise, its residuals are its arguments.
    """

    def init(self: Any, *avals: Any) -> None:
        self.in_avals, self.params = avals, {}
        traced, shapes = jax.make_jaxpr(expand, return_shape=True)(*avals)
        self.out_aval = jax.tree.unflatten(jax.tree.structure(shapes), traced.out_avals)
        HiPrim.__init__(self)

    written = {"__init__": init, "expand": lambda self, *args: expand(*args)}
    if bwd is not None:
        written |= {"vjp_fwd": lambda self, nonzero, *args: (self(*args), args)}
        written |= {"vjp_bwd_retval": lambda self, residuals, g: bwd(residuals, g)}
    of_class = type("Primitive", (HiPrim,), written | methods)
    return lambda *args: of_class(*jax.tree.map(jax.typeof, args))(*args)


def dense(tangent: Any) -> Any:
    """Return a tangent as an array: JAX gives a HiPrim's rule no arrays for the arguments that do not vary."""
    return jnp.zeros(tangent.aval.shape, tangent.aval.dtype) if isinstance(tangent, hijax.Zero) else tangent


HIJAX = "https://docs.jax.dev/en/latest/301/custom-derivatives.html"
DERIVES_RULES = hasattr(hijax, "vjp_from_jvp")  # since jax 0.12
LOGS = hasattr(jax.custom_vjp, "defvjp_with_logs")  # since jax 0.12


def remat_by(forward: Any, again: Any) -> Any:
    """Return a method `remat` that calls one function on the way forward, and another to compute it again."""

    def remat(self: Any, trace: Any, *args: Any) -> Any:
        if not DERIVES_RULES:
            return forward(*args), again
        return forward(*args), (), lambda saved, *args: again(*args)

    return remat


def sine_of(f: Any, derivative: Any, **methods: Any) -> Any:
    """Return an elementwise function by a HiPrim with vjp and jvp."""
    jvp = lambda self, x, dx: (self(*x), derivative(x[0]) * dx[0])  # noqa: E731
    return primitive(f, lambda r, g: (derivative(r[0]) * g,), jvp=jvp, batch=batch_elementwise, **methods)


def sine_times(x: Any, y: Any) -> Any:
    """Return sin(x) y."""
    return jnp.sin(x) * y


def sine_times_bwd(r: Any, g: Any) -> Any:
    """Return its cotangents."""
    x, y = r
    return jnp.cos(x) * g * y, jnp.sin(x) * g


def sine_times_tangent(primals: Any, tangents: Any) -> Any:
    """Return its tangent."""
    (x, y), (dx, dy) = primals, map(dense, tangents)
    return jnp.cos(x) * dx * y + jnp.sin(x) * dy


def cube_root(tangent_solve: Any) -> Any:
    """Return the cube root by `custom_root`, with 20 steps of Newton's method."""

    def newton(f: Any, x: Any) -> Any:
        step = lambda x: x - f(x) / jax.jvp(f, (x,), (jnp.ones_like(x),))[1]  # noqa: E731
        return lax.fori_loop(0, 20, lambda _, x: step(x), x)

    return lambda a: lax.custom_root(lambda x: x**3 - a, jnp.ones_like(a), newton, tangent_solve)


def solve_by(transpose_solve: Any, symmetric: bool = False) -> Any:
    """Return the solution of a linear system by `custom_linear_solve`; `transpose_solve` takes the matrix."""

    def solve(matrix: Any, b: Any) -> Any:
        transposed = None if transpose_solve is None else lambda _, b: transpose_solve(matrix, b)
        by_lu = lambda _, b: jnp.linalg.solve(matrix, b)  # noqa: E731
        return lax.custom_linear_solve(lambda x: matrix @ x, b, by_lu, transposed, symmetric=symmetric)

    return solve
