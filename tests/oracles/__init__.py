"""Naive float64 oracles: every component and its derivative as loops over the slides' indices.

Slow and literal on purpose, and independent of jaxnn: numpy only holds the arrays. `f_vjp` takes the
arguments of `f` and the cotangent `dy` of its result, and returns a tuple with the cotangent of every
differentiable argument (the penalties: a list, one array a leaf). Index names are the slides': s a sample,
ic and oc channels, i and j the output pixel, i' and j' (here `ki`, `kj`) the filter's pixel, n a row of a
loss, c and k classes, t the true class.
"""

from oracles.layers import *  # noqa: F403
from oracles.losses import *  # noqa: F403
