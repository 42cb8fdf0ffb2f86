"""Rules that are wrong in a known way, for the tests of the checker."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def dense(x, w):
    """A layer whose rule has the wrong sign for w."""
    return jnp.tanh(x @ w)


def dense_fwd(x, w):
    y = jnp.tanh(x @ w)
    return y, (x, w, y)


def dense_bwd(residuals, dy):
    x, w, y = residuals
    dz = dy * (1 - y * y)
    return dz @ w.T, -(x.T @ dz)


dense.defvjp(dense_fwd, dense_bwd)
X, W = jax.random.normal(jax.random.key(0), (5, 4)), jax.random.normal(jax.random.key(1), (4, 4))


def scaled(wrong, *, where=None):
    """x² whose derivative is `wrong` times too large, everywhere or at one index."""

    @jax.custom_vjp
    def square(x):
        return x * x

    def bwd(x, dy):
        dx = 2 * x * dy
        return (wrong * dx if where is None else dx.at[where].mul(wrong),)

    square.defvjp(lambda x: (x * x, x), bwd)
    return square


def with_rule(f, fwd, bwd):
    f = jax.custom_vjp(f)
    f.defvjp(fwd, bwd)
    return f


def statuses(report, check):
    return {row.status for row in report.rows if row.check == check}
