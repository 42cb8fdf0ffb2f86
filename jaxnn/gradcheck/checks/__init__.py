"""The checks, by name and in order: each a function of a trial that yields rows."""

from collections.abc import Callable

from jaxnn.gradcheck._trial import Rows, Trial
from jaxnn.gradcheck.checks.points import extremes, kinks, precision
from jaxnn.gradcheck.checks.program import closure, cost, determinism, forward_mode, residuals, stop_gradient
from jaxnn.gradcheck.checks.transformations import second_order, shard_map, staging, vmap
from jaxnn.gradcheck.checks.values import gradient, integers, linearity, primal, types

# Those up to `linearity` are the quick core, level="rule"; the last four report and never fail.
RULE: dict[str, Callable[[Trial], Rows]] = {f.__name__: f for f in (types, primal, gradient, linearity)}
FULL: dict[str, Callable[[Trial], Rows]] = RULE | {
    f.__name__: f
    for f in (
        integers, kinks, extremes, precision, staging, vmap, shard_map, second_order, determinism, closure,
        stop_gradient, forward_mode, residuals, cost,
    )
}  # fmt: skip
