"""One step of stochastic gradient descent: loss → gradient → update.

    Δ = −∇_θ L(θ; D'),   θ ← θ + α Δ       on a mini-batch D' (Larochelle, "stochastic gradient descent (SGD)";
                                            Taura, Neural Networks Basics, "Stochastic gradient descent")

where optax computes the update α Δ. A step is a pure function: it may be jitted, scanned, and run on the shards of a
batch under `shard_map` or `pmap`.

A batch may be split over devices and micro-batches. With L_i the mean loss of part i and c_i its number of rows:

    L = Σ_i c_i L_i / Σ_i c_i,   ∇L = Σ_i c_i ∇L_i / Σ_i c_i          (derived here)

which is the mean over all rows, even if a part has fewer rows than the others, or none.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree

from jaxnn.rules import arguments
from jaxnn.rules.cotangents import accumulation_dtype

if TYPE_CHECKING:  # it is slow to import, and only a step that is taken needs it
    import optax

Loss = Callable[[PyTree[Array], Any, Array], tuple[Array, dict[str, Array]]]


class TrainState(NamedTuple):
    """What a step takes and returns: parameters, the optimizer's state, the number of steps done, and the run's key."""

    params: PyTree[Array]
    opt_state: Any
    step: Int[Array, ""]
    key: Array


def init_state(params: PyTree[Array], optimizer: "optax.GradientTransformation", key: Array) -> TrainState:
    """Return the state before the first step.

    Args:
        params: the parameters θ, a pytree of arrays.
        optimizer: an optax gradient transformation.
        key: the PRNG key from which the keys of all steps are derived.
    """
    # A jitted step donates its state; the copies keep the caller's arrays valid.
    params, key = jax.tree.map(jnp.copy, (params, key))
    with jax.numpy_dtype_promotion("standard"):  # optax's adam mixes dtypes
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)


@dataclasses.dataclass(frozen=True)
class Step:
    """The pure function `step(state, batch) -> (state, metrics)`; made by `make_step`."""

    loss: Loss
    optimizer: "optax.GradientTransformation"
    axis_name: str | None
    accumulate: int

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        """Take the step."""
        import optax

        gradient, metrics = self.gradient(state, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax's adam mixes dtypes
            updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1, state.key), metrics

    def gradient(self, state: TrainState, batch: Any) -> tuple[PyTree[Array], dict[str, Array]]:
        """Return the gradient of the mean loss over the whole batch, and the metrics."""
        key = jax.random.fold_in(state.key, state.step)
        if self.axis_name is None and self.accumulate == 1:
            (value, metrics), gradient = jax.value_and_grad(self.loss, has_aux=True)(state.params, batch, key)
            return gradient, {**metrics, "loss": value}
        params = state.params
        if self.axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(self.axis_name))
            # Each device differentiates its own copy of the parameters. Otherwise the transpose of the implicit copy
            # would sum the gradient over the devices, and the sum below would count it once per device.
            params = self._own(params)
        sums = self._own(self._sums(params, batch, key))
        if self.axis_name is not None:  # one dtype makes it one collective; counts are exact up to 2²⁴
            fused = jax.tree.map(lambda a: a.astype(sums.value.dtype) if a.dtype.kind in "iub" else a, sums)
            fused = lax.psum(fused, self.axis_name)  # type: ignore[no-untyped-call]
            sums = jax.tree.map(lambda a, like: a.astype(like.dtype), fused, sums)
        gradient = jax.tree.map(
            lambda g, p: jnp.where(sums.rows > 0, g / sums.rows.astype(g.dtype), jnp.zeros_like(g)).astype(p.dtype),
            sums.gradient,
            state.params,
        )
        return gradient, {**sums.metrics, "loss": sums.value / sums.rows}

    def _sums(self, params: PyTree[Array], batch: Any, key: Array) -> "_Sums":
        """Return the sums over this device's micro-batches."""
        if self.accumulate == 1:
            return _part(self.loss, params, batch, key)
        parts = jax.tree.map(self._micro_batches, batch)

        def add(sums: _Sums, part: Any) -> tuple[_Sums, None]:
            index, batch = part
            more = self._own(_part(self.loss, params, batch, jax.random.fold_in(key, index)))
            return jax.tree.map(jnp.add, sums, more), None

        first = jax.tree.map(lambda a: a[0], parts)
        shapes = jax.eval_shape(lambda: _part(self.loss, params, first, key))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        sums: _Sums = lax.scan(add, self._own(zeros), (jnp.arange(self.accumulate), parts))[0]
        return sums

    def _micro_batches(self, a: Array) -> Array:
        """Return the rows of an array, split into micro-batches along a new first axis."""
        if a.shape[0] % self.accumulate:
            raise ValueError(
                f"`batch` ({a.shape[0]} rows on a device) must be a multiple of `accumulate` ({self.accumulate}) rows; "
                f"pad it with rows that the loss ignores"
            )
        return a.reshape(self.accumulate, -1, *a.shape[1:])

    def _own(self, tree: Any) -> Any:
        """Return a copy whose values may differ between devices, for the type system of `shard_map`."""
        axis = self.axis_name

        def own(a: Array) -> Array:
            if axis is None or axis in jax.typeof(a).manual_axis_type.varying:
                return a
            copy: Array = lax.pcast(a, axis, to="varying")
            return copy

        return jax.tree.map(own, tree)


class _Sums(NamedTuple):
    """Sums over the rows of a part of the batch."""

    gradient: PyTree[Array]
    value: Array
    rows: Array
    metrics: dict[str, Array]


def _part(loss: Loss, params: PyTree[Array], batch: Any, key: Array) -> _Sums:
    """Return c_i ∇L_i, c_i L_i and c_i of a part. A part without rows has zeros, although its mean is NaN."""
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
    metrics = jax.tree.map(jnp.asarray, metrics)
    gradient, value = jax.tree.map(lambda a: a.astype(accumulation_dtype(a.dtype)), (gradient, value))
    count = jnp.asarray(metrics.get("count", 1), value.dtype)
    gradient, value = jax.tree.map(
        lambda a: jnp.where(count > 0, a * count.astype(a.dtype), jnp.zeros_like(a)), (gradient, value)
    )
    return _Sums(gradient, value, count, metrics)


def make_step(
    loss: Loss, optimizer: "optax.GradientTransformation", *, axis_name: str | None = None, accumulate: int = 1
) -> Step:
    """Return the SGD step `step(state, batch) -> (state, metrics)`.

    It is a pure function; `jax.jit(step, donate_argnums=0)` updates the state in place.

    Args:
        loss: `loss(params, batch, key) -> (scalar, metrics)`: the mean over a batch, and a dict of arrays that are sums
            over its rows. One of them, "count", may give the number of rows in the mean; without it all parts of a
            batch have the same weight. The key differs between steps, devices, and micro-batches.
        optimizer: an optax gradient transformation.
        axis_name: under `shard_map` or `pmap`, the mesh axis over which the batch is sharded. Gradient, loss and
            metrics are summed over it, in one collective, so all devices take the same step: that of the whole batch.
        accumulate: the number of micro-batches of each device. They run one after the other, to save memory.

    Returns:
        The step. Its metrics are those of the loss function, and "loss".

    Raises:
        TypeError: `axis_name` is not a string.
        ValueError: `accumulate` is below 1. The step raises it if `accumulate` does not divide the batch.

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
    if not isinstance(axis_name, str | None):
        raise TypeError(f"`axis_name` ({axis_name!r}) must be the name of a mesh axis, or None")
    return Step(loss, optimizer, axis_name, arguments.integer("accumulate", accumulate, 1))
