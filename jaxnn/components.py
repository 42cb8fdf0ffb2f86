"""The table of components: every function with a rule, and arguments to try it on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import layers, losses


class Case(NamedTuple):
    """A function with example arguments and options of `gradcheck.check`."""

    name: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def _normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape), jnp.float32)


def components() -> list[Case]:
    """Return every function of the library at a size where time and memory mean something."""
    images, rows = _normal(16, 8, 20, 20), _normal(256, 64)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 64, 256))
    probabilities = jax.nn.softmax(_normal(256, 64, seed=1))
    arguments: dict[Any, tuple[Any, ...]] = {
        layers.linear: (rows, _normal(32, 64), _normal(32)),
        layers.conv2d: (images, _normal(16, 8, 3, 3), _normal(16)),
        layers.relu: (rows,),
        layers.sigmoid: (rows,),
        layers.tanh: (rows,),
        layers.max_pool2d: (images,),
        layers.dropout: (rows, 0.5, jax.random.key(0)),
        layers.softmax: (rows,),
        layers.log_softmax: (rows,),
        losses.nll: (probabilities, labels),
        losses.nll_loss: (jnp.log(probabilities), labels),
        losses.cross_entropy: (rows, labels),
        losses.linear_cross_entropy: (rows, _normal(1000, 64, seed=4), labels),
        losses.binary_cross_entropy: (rows, jax.nn.sigmoid(_normal(256, 64, seed=2))),
        losses.squared_error: (rows, _normal(256, 64, seed=3)),
        losses.l1_penalty: ({"W": rows, "b": _normal(32)},),
        losses.l2_penalty: ({"W": rows, "b": _normal(32)},),
    }
    # The definition of dropout draws other bits than its rule: there the rule is compared with its own body.
    return [
        Case(f.__name__, f, args, {} if f is layers.dropout else {"reference": f.definition})
        for f, args in arguments.items()
    ]
