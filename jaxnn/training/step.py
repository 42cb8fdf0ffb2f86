"""One step of stochastic gradient descent: loss → gradient → update.

    Δ = −∇_θ L(θ; D'),   θ ← θ + α Δ       on a mini-batch D' (Larochelle, "stochastic gradient descent (SGD)";
                                            Taura, Neural Networks Basics, "Stochastic gradient descent")

with optax in the place of θ + α Δ. A step is a pure function: it may be jitted, scanned, and run on the shards of a
batch under `shard_map` or `pmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int, PyTree

Loss = Callable[[PyTree[Array], Any, Array], tuple[Array, dict[str, Array]]]


class TrainState(NamedTuple):
    """What a step takes and returns: parameters, the optimizer's state, steps done, and the key of the whole run."""

    params: PyTree[Array]
    opt_state: Any
    step: Int[Array, ""]
    key: Array


Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]


def init_state(params: PyTree[Array], optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Return the state before the first step.

    Args:
        params: the parameters θ, a pytree of arrays.
        optimizer: an optax gradient transformation.
        key: the PRNG key that all steps' randomness derives from.
    """
    # A jitted step donates its state: copies keep the caller's own arrays alive.
    params, key = jax.tree.map(jnp.copy, (params, key))
    with jax.numpy_dtype_promotion("standard"):  # optax's adam mixes dtypes
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)


def make_step(loss: Loss, optimizer: optax.GradientTransformation, *, axis_name: str | None = None) -> Step:
    """Return the SGD step `step(state, batch) -> (state, metrics)`.

    It is a pure function; `jax.jit(step, donate_argnums=0)` updates the state in place.

    Args:
        loss: `loss(params, batch, key) -> (scalar, metrics)`, metrics a dict of arrays. The key differs from step to
            step, and from device to device.
        optimizer: an optax gradient transformation.
        axis_name: under `shard_map` or `pmap`, the mesh axis over which the batch is split: the loss, the metrics and
            the gradient are averaged over it (shards of equal size), so that all devices take the same step.

    Returns:
        The step. Its metrics are the loss's, and "loss".

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxnn
        >>> def loss(params, batch, key):
        ...     x, y = batch
        ...     return jaxnn.squared_error(jaxnn.linear(x, params), y), {}
        >>> x = jnp.arange(4.0).reshape(4, 1)
        >>> optimizer = optax.sgd(0.1)
        >>> state = init_state(jnp.zeros((1, 1)), optimizer, jax.random.key(0))
        >>> step = jax.jit(make_step(loss, optimizer), donate_argnums=0)
        >>> for _ in range(20):
        ...     state, metrics = step(state, (x, 3 * x))
        >>> print(f"{float(state.params[0, 0]):.3f}")
        3.000
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        params = state.params
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
            # Each device differentiates its own copy of the parameters. Without this the transpose of the implicit
            # copy sums the gradient over the devices, and the mean below would count it once a device.
            params = jax.tree.map(lambda p: _own_copy(p, axis_name), params)
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        metrics = {**metrics, "loss": value}
        if axis_name is not None:
            gradient, metrics = lax.pmean((gradient, metrics), axis_name)  # type: ignore[no-untyped-call]
        with jax.numpy_dtype_promotion("standard"):  # optax's adam mixes dtypes
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1, state.key), metrics

    return step


def _own_copy(p: Array, axis_name: str) -> Array:
    if axis_name in jax.typeof(p).manual_axis_type.varying:
        return p
    own: Array = lax.pcast(p, axis_name, to="varying")
    return own
