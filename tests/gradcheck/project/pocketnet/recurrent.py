"""Steps of recurrent networks, for use inside of scans."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def squash(x):
    """The hyperbolic tangent."""
    return jnp.tanh(x)


def _squash_fwd(x):
    h = jnp.tanh(x)
    return h, h


squash.defvjp(_squash_fwd, lambda h, g: (g * (1 - h),))


@jax.custom_vjp
def leak(state, inputs):
    """a h + (1 - a) x, of the state {"h"} and the inputs {"a", "x"}: the new state, and the output."""
    h = inputs["a"] * state["h"] + (1 - inputs["a"]) * inputs["x"]
    return {"h": h}, h


def _leak_bwd(residuals, cotangents):
    state, inputs = residuals
    by_state, by_output = cotangents
    g = by_state["h"] + by_output
    by_inputs = {"a": g * (state["h"] - inputs["x"]), "x": g * (1 - inputs["a"])}
    return {"h": g * inputs["a"]}, by_inputs


leak.defvjp(lambda state, inputs: (leak(state, inputs), (state, inputs)), _leak_bwd)


def run(params, xs):
    """Return the last state of a recurrent network, for one sequence."""

    def step(h, x):
        h = squash(x @ params["w"] + h @ params["u"])
        return h, None

    return lax.scan(step, jnp.zeros(params["u"].shape[0]), xs)[0]


def smooth(a, xs):
    """Return a sequence, smoothed."""
    return lax.scan(lambda state, x: leak(state, {"a": a, "x": x}), {"h": xs[0]}, xs)[1]
