"""Iterations whose derivative is that of the equation they solve."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def newton_root(a):
    """The square root by Newton's method, until it changes by less than its rounding."""

    def improve(pair):
        _, y = pair
        return y, 0.5 * (y + a / y)

    def differs(pair):
        return jnp.any(jnp.abs(pair[0] - pair[1]) > 1e-6 * pair[1])

    return lax.while_loop(differs, improve, improve((a, a)))[1]


newton_root.defvjp(lambda a: (newton_root(a),) * 2, lambda y, g: (g / (2 * y),))
