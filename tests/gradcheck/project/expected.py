"""Which derivative rules of this project are right, which are wrong, and why.

`EXPECTED` has a line for each rule, with a call at arguments that the tests use. A mistake shows at these arguments:
what depends on a dtype, a tie or a static argument is right in other calls. Two mistakes show in no single derivative,
but for a batch or on several devices: their level is "full".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pocketnet import (
    activations,
    attention,
    linear,
    losses,
    noise,
    norms,
    numerics,
    parallel,
    pooling,
    primitives,
    recurrent,
    solvers,
)
from pocketnet.testing import normal as X
from pocketnet.testing import positive, steps


class Expected(NamedTuple):
    """A rule's verdict, the reason, a call (the function and its arguments), and the level that shows the mistake."""

    verdict: str
    why: str
    call: Callable[[], tuple[Any, ...]]
    level: str = "rule"


def wrong(why: str, call: Callable[[], tuple[Any, ...]], level: str = "rule") -> Expected:
    """Return the line of a wrong rule."""
    return Expected("wrong", why, call, level)


def right(why: str, call: Callable[[], tuple[Any, ...]]) -> Expected:
    """Return the line of a right rule."""
    return Expected("right", why, call)


def _static(f: Any, value: Any) -> Any:
    """Return f with its last positional argument fixed: it is no array."""
    return lambda *args: f(*args, value)


LABELS, IDS = np.array([2, 0, 1, 2], "int32"), np.array([1, 4, 1], "int32")
MASK = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0]], bool)


def _parameters() -> Any:
    return {"w1": X(3, 4, seed=2), "b1": jnp.zeros(4), "w2": X(4, 2, seed=3)}


EXPECTED = {
    # wrong
    "pocketnet.activations.gelu": wrong(
        "the inner derivative is 1 + Kx² instead of 1 + 3Kx²; reached in jit(scan(vmap))",
        lambda: (activations.gelu, 1.5 * X(6)),
    ),
    "pocketnet.activations.swish": wrong(
        "the cotangent of beta has the wrong sign; the rule is made by another package's wrapper",
        lambda: (activations.swish, X(6, 3), jnp.float32(1.0)),
    ),
    "pocketnet.activations.make_leaky_relu.leaky_relu": wrong(
        "0 for negative numbers instead of the slope; made in a factory",
        lambda: (activations.make_leaky_relu(0.2), X(5)),
    ),
    "pocketnet.linear.dense": wrong(
        "the weight must not be transposed; square weights hide it", lambda: (linear.dense, X(5, 4), X(4, 4, seed=2))
    ),
    "pocketnet.linear.Affine.apply": wrong(
        "the shift's cotangent is the first row's instead of the sum; a method of a dataclass",
        lambda: (linear.Affine.apply, linear.Affine(jnp.ones(3), jnp.zeros(3)), X(5, 3)),
    ),
    "pocketnet.linear.block": wrong(
        "None for one leaf of the parameters, which JAX takes for 0", lambda: (linear.block, _parameters(), X(6, 3))
    ),
    "pocketnet.norms.layer_norm": wrong(
        "the cotangent's mean is forgotten; differentiated under jax.checkpoint only",
        lambda: (norms.layer_norm, X(4, 6) @ X(6, 6, seed=2)),
    ),
    "pocketnet.norms.rms_norm": wrong(
        "the weight is forgotten in the mean, in float32 only", lambda: (norms.rms_norm, X(4, 8), X(8, seed=1))
    ),
    "pocketnet.attention.attention_weights": wrong(
        "the residual is rounded to bfloat16; reached under jit only", lambda: (attention.attention_weights, X(5, 5))
    ),
    "pocketnet.losses.cross_entropy": wrong(
        "label smoothing is forgotten, in bfloat16 only; reached in jit(grad) only",
        lambda: (_static(losses.cross_entropy, 0.1), X(4, 3, dtype="bfloat16"), LABELS),
    ),
    "pocketnet.losses.squared_error": wrong(
        'divided by the size for the static argument "sum", too',
        lambda: (_static(losses.squared_error, "sum"), X(4, 2), X(4, 2, seed=1)),
    ),
    "pocketnet.numerics.logaddexp": wrong(
        "a custom_jvp whose second tangent has the first one's factor; reached in lax.cond only",
        lambda: (numerics.logaddexp, X(4), X(4, seed=1)),
    ),
    "pocketnet.numerics.reciprocal": wrong(
        "a custom_gradient without the square; reached in a while_loop only, and never differentiated",
        lambda: (numerics.reciprocal, jnp.ones(1) + 1),
    ),
    "pocketnet.numerics.gain": wrong(
        "for a batch, the backward pass uses the first example's factor",
        lambda: (numerics.gain, X(4), positive(4)),
        level="full",
    ),
    "pocketnet.pooling.global_max": wrong(
        "all of several equal maxima get the whole cotangent", lambda: (pooling.global_max, steps(4, 9))
    ),
    "pocketnet.recurrent.squash": wrong(
        "1 - h instead of 1 - h²; reached in jit(grad(vmap(scan))) only", lambda: (recurrent.squash, X(3))
    ),
    "pocketnet.noise.dropout": wrong(
        "the backward pass draws its mask from another key",
        lambda: (_static(noise.dropout, 0.25), jax.random.key(3), jnp.ones((400, 2))),
    ),
    "pocketnet.primitives.Softplus": wrong(
        "a HiPrim whose residual is the output where the rule needs the input", lambda: (primitives.softplus, X(4))
    ),
    "pocketnet.primitives.Blend": wrong(
        "a HiPrim whose second cotangent lacks a term", lambda: (primitives.blend, X(4), positive(4))
    ),
    "pocketnet.parallel.dense": wrong(
        "the mean over the devices where the chain rule sums; reached in shard_map only",
        lambda: (parallel.dense, X(6, 3), X(3, 2, seed=2)),
        level="full",
    ),
    # right
    "pocketnet.activations.relu": right("0 at 0", lambda: (activations.relu, steps(4, 5))),
    "pocketnet.activations.softplus": right("in float16", lambda: (activations.softplus, 4 * X(3, 4, dtype="float16"))),
    "pocketnet.activations.make_power.power": right(
        "made in a factory", lambda: (activations.make_power(3), positive(4))
    ),
    "pocketnet.linear.linear": right(
        "three arguments", lambda: (linear.linear, X(5, 4), X(3, 4, seed=1), X(3, seed=2))
    ),
    "pocketnet.linear.lookup": right("an integer argument, a row twice", lambda: (linear.lookup, X(5, 3), IDS)),
    "pocketnet.norms.unit_length": right(
        "an array of size 0; by another package", lambda: (norms.unit_length, X(0, 4))
    ),
    "pocketnet.attention.sharp_softmax": right(
        "saturated", lambda: (attention.sharp_softmax, jnp.array([[10000.0, -10000.0, 0.0], [50.0, 50.0, -50.0]]))
    ),
    "pocketnet.attention.masked_softmax": right(
        "a boolean keyword argument", lambda: (lambda s, mask: attention.masked_softmax(s, mask=mask), X(3, 4), MASK)
    ),
    "pocketnet.losses.logsumexp": right("a custom_jvp, under vmap", lambda: (losses.logsumexp, X(2, 5))),
    "pocketnet.losses.log_cosh": right("a custom_gradient", lambda: (losses.log_cosh, X(6))),
    "pocketnet.numerics.safe_norm": right("0 at 0, by a guarded where", lambda: (numerics.safe_norm, jnp.zeros(3))),
    "pocketnet.numerics.safe_log": right(
        "0 where there is no logarithm", lambda: (numerics.safe_log, jnp.array([-1.0, 0.0, 0.5, 2.0]))
    ),
    "pocketnet.numerics.round_through": right(
        "a straight-through estimator, defined by stop_gradient", lambda: (numerics.round_through, 3 * X(5))
    ),
    "pocketnet.numerics._cumulative": right(
        "behind a partial, never differentiated", lambda: (numerics.cumulative_rows, X(4, 2))
    ),
    "pocketnet.pooling.max_pool": right(
        "the first of equal maxima gets the cotangent", lambda: (_static(pooling.max_pool, 4), steps(3, 8, seed=1))
    ),
    "pocketnet.recurrent.leak": right(
        "trees, two outputs, in jit(vmap(scan))",
        lambda: (recurrent.leak, {"h": X(2)}, {"a": jnp.full(2, 0.5), "x": X(2, seed=1)}),
    ),
    "pocketnet.noise.drop_rows": right(
        "the mask is drawn again from the same key",
        lambda: (_static(noise.drop_rows, 0.25), jax.random.key(3), X(40, 2)),
    ),
    "pocketnet.solvers.newton_root": right(
        "an iteration with an implicit derivative", lambda: (solvers.newton_root, positive(4))
    ),
    "pocketnet.primitives.Square": right("a HiPrim with a jvp, a batch and a vjp", lambda: (primitives.square, X(4))),
    "pocketnet.parallel.scale": right("summed over the devices", lambda: (parallel.scale, X(6, 2), jnp.ones(2))),
}
