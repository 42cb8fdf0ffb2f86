"""Rules that no truth proves at the arguments given, each with what the report says to give it, and what that shows.

Most are functions on the host, of which JAX has no derivative, at a point where they have no numeric one either.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Unproven(NamedTuple):
    """A rule for the function `f`, on the host or not, at the argument x; `cured` are other options or arguments."""

    f: Any
    derivative: Any
    x: list[float]
    cured: dict[str, Any]  # "x": another argument, or "reference": a function
    verdict: str = "right"  # when it is cured


def on_host(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Call a function of NumPy arrays, which JAX cannot differentiate."""

    def call(x: Any) -> Any:
        return jax.pure_callback(
            lambda x: np.asarray(f(np.asarray(x)), x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype), x,
            vmap_method="expand_dims",
        )  # fmt: skip

    return call


def in_float16(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Round the values to float16."""
    return on_host(lambda x: f(x).astype(np.float16))


def _offset(x: Any) -> Any:
    return (1e6 + np.sin(x)).astype(np.float32)


def _rounded(x: Any) -> Any:
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def _sine_and(offset: float) -> Callable[[Any], Any]:
    return lambda x: jnp.sin(x) + offset


def _step(x: Any) -> Any:
    return (jnp.sign(jax.lax.stop_gradient(x)) + 1) / 2 + x - jax.lax.stop_gradient(x)


UNPROVEN = {
    "step-wrong": Unproven(
        on_host(lambda x: np.heaviside(x, 0.5)), lambda x: 2.0, [0.0], {"reference": _step}, "wrong"
    ),
    "offset-wrong": Unproven(on_host(_offset), jnp.sin, [1e-3], {"reference": _sine_and(1e6)}, "wrong"),
    "cube-root-wrong": Unproven(on_host(np.cbrt), lambda x: jnp.abs(x) ** (-2 / 3), [0.0], {"x": [0.4]}, "wrong"),
    "not-finite": Unproven(on_host(np.log), lambda x: 1 / x, [-1.0, -2.0], {"x": [1.0, 2.0]}),
    "not-finite-wrong": Unproven(on_host(np.log), lambda x: 2 / x, [-1.0, -2.0], {"x": [1.0, 2.0]}, "wrong"),
    "infinite": Unproven(lambda x: 2 * x, lambda x: 2.0, [np.inf], {"x": [3.0]}),
    "rounded": Unproven(on_host(np.round), lambda x: 1.0, [0.5, 1.5], {"reference": _rounded}),
    "rounded-wrong": Unproven(on_host(np.round), lambda x: 3.0, [0.5, 1.5], {"reference": _rounded}, "wrong"),
    "step": Unproven(on_host(lambda x: np.heaviside(x, 0.5)), lambda x: 1.0, [0.0], {"reference": _step}),
    "cliff": Unproven(on_host(np.tan), lambda x: 1 + jnp.tan(x) ** 2, [np.pi / 2], {"x": [0.4]}),
    "cube-root": Unproven(on_host(np.cbrt), lambda x: jnp.abs(x) ** (-2 / 3) / 3, [0.0], {"x": [0.4, -0.3]}),
    "ripples-on-host": Unproven(
        on_host(lambda x: np.sin(1 / x)), lambda x: -jnp.cos(1 / x) / x**2, [1e-7], {"x": [0.7]}
    ),
    "offset": Unproven(on_host(_offset), jnp.cos, [1e-3], {"reference": _sine_and(1e6)}),
    "float16": Unproven(in_float16(lambda x: 1000 + np.sin(x)), jnp.cos, [1e-3], {"reference": _sine_and(1000.0)}),
    "float16-wrong": Unproven(
        in_float16(lambda x: 1000 + np.sin(x)), jnp.sin, [1e-3], {"reference": _sine_and(1000.0)}, "wrong"
    ),
}
