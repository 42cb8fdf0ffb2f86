"""The checks, by name, in the order in which they run. Each is a function of a trial that yields rows."""

from collections.abc import Callable

from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck.checks.derivative import gradient
from jaxnn.gradcheck.checks.points import extremes, kinks, precision
from jaxnn.gradcheck.checks.primitives import batch, jvp, lin, remat, transpose
from jaxnn.gradcheck.checks.program import closure, cost, determinism, forward_mode, residuals, stop_gradient
from jaxnn.gradcheck.checks.sharding import shard_map
from jaxnn.gradcheck.checks.transformations import second_order, staging, vmap
from jaxnn.gradcheck.checks.values import integers, linearity, primal, types

Check = Callable[[Trial], Findings]

# The quick core, level="rule". `types` and `gradient` leave notes in the trial that later checks read.
RULE: dict[str, Check] = {f.__name__: f for f in (types, primal, gradient, linearity)}
# The last four report and never fail.
FULL: dict[str, Check] = RULE | {
    f.__name__: f
    for f in (
        integers, kinks, extremes, precision, staging, vmap, shard_map, second_order,
        jvp, lin, batch, transpose, remat, determinism, closure,
        stop_gradient, forward_mode, residuals, cost,
    )
}  # fmt: skip
