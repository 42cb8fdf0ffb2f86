"""Neural-network layers for JAX whose derivatives are derived by hand, from lecture notes, and checked.

Layers: linear, conv2d, relu, sigmoid, tanh, max_pool2d, max_pool2d_with_indices, dropout, softmax, log_softmax.
Losses: nll, nll_loss, cross_entropy, linear_cross_entropy, binary_cross_entropy, squared_error, l1_penalty, l2_penalty.
Each is a pure function with a `jax.custom_vjp` rule, and carries its plain definition as `.definition`.
`automatic(f)` replaces the rules inside f by JAX's own derivatives; `gradcheck.check(f, *args)` compares the two.
`graph.trace(f, *args)` shows where the gradient of f comes from.
`jaxnn.models` and `jaxnn.training` hold the notes' networks and the SGD step.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxnn import data as data
    from jaxnn import exercises as exercises
    from jaxnn import gradcheck as gradcheck
    from jaxnn import graph as graph
    from jaxnn import models as models
    from jaxnn import training as training
    from jaxnn.layers import conv2d as conv2d
    from jaxnn.layers import dropout as dropout
    from jaxnn.layers import linear as linear
    from jaxnn.layers import log_softmax as log_softmax
    from jaxnn.layers import max_pool2d as max_pool2d
    from jaxnn.layers import max_pool2d_with_indices as max_pool2d_with_indices
    from jaxnn.layers import relu as relu
    from jaxnn.layers import sigmoid as sigmoid
    from jaxnn.layers import softmax as softmax
    from jaxnn.layers import tanh as tanh
    from jaxnn.losses import binary_cross_entropy as binary_cross_entropy
    from jaxnn.losses import cross_entropy as cross_entropy
    from jaxnn.losses import l1_penalty as l1_penalty
    from jaxnn.losses import l2_penalty as l2_penalty
    from jaxnn.losses import linear_cross_entropy as linear_cross_entropy
    from jaxnn.losses import nll as nll
    from jaxnn.losses import nll_loss as nll_loss
    from jaxnn.losses import squared_error as squared_error
    from jaxnn.tracing import automatic as automatic

# What is imported when it is first used. So `import jaxnn.errors`, or pytest with the plugin, does not import JAX.
_LAYERS = "conv2d dropout linear log_softmax max_pool2d max_pool2d_with_indices relu sigmoid softmax tanh"
_LOSSES = "binary_cross_entropy cross_entropy l1_penalty l2_penalty linear_cross_entropy nll nll_loss squared_error"
_MODULE_OF = {
    **dict.fromkeys(("data", "exercises", "gradcheck", "graph", "models", "training"), "jaxnn"),
    **dict.fromkeys(_LAYERS.split(), "jaxnn.layers"),
    **dict.fromkeys(_LOSSES.split(), "jaxnn.losses"),
    "automatic": "jaxnn.tracing",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import a part of the library when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jaxnn' has no attribute {name!r}")
    if _MODULE_OF[name] == "jaxnn":
        return importlib.import_module(f"jaxnn.{name}")
    found = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
