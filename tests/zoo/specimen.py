"""What a specimen is, how wrong.py and right.py put theirs into the tables, and what many specimens are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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
