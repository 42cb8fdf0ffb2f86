"""A trial: the function under check, its three derivatives at the arguments given, and the tolerances there."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck import _numeric, _tolerance
from jaxnn.gradcheck._subject import Arrays, Subject, as64
from jaxnn.gradcheck._tolerance import C, Truth, finfo
from jaxnn.gradcheck.report import Row
from jaxnn.tracing import jaxprs, kinds
from jaxnn.tracing.contexts import float64_mode

Rows = Iterator[Row]
LARGE = 100_000  # elements, above which fewer probes are taken


@dataclasses.dataclass
class Trial:
    """A subject with its cotangents, its derivatives at the arguments given, and the tolerances there."""

    subject: Subject
    level: str
    seed: int
    rtol: float | None
    mesh: Any
    dy: Arrays = dataclasses.field(default_factory=list)  # the cotangents of the outputs
    jaxpr: Any = None
    no_automatic: str = ""  # why there is no automatic derivative
    no_definition: str = ""  # the same of the definition, where there is a reference
    no_oracle: str = ""  # why f does not run in float64
    not_traced: str = ""  # why the rule cannot be traced
    lenient: bool = False  # what costs more: responses that took more draws, the automatic derivative's own rounding
    numeric_differs: bool = False
    wrong_types: bool = False  # of cotangents, at the arguments given
    wrong_anyway: bool = False  # at the arguments given, in float64 too
    excused: dict[int, Any] = dataclasses.field(default_factory=dict)  # where custom is right and not automatic's
    last_direction: Arrays = dataclasses.field(default_factory=list)
    sweep: tuple[tuple[float, float], ...] = ()
    costs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)  # the rule's, relative to the largest element

    @property
    def size(self) -> int:
        return sum(x.size for x in [*self.subject.points, *self.subject.outputs])

    @property
    def draws(self) -> int:
        return 1 if self.size > LARGE else 2

    @property
    def dtype(self) -> Any:
        """The coarsest dtype among the arguments and outputs."""
        return max((x.dtype for x in [*self.subject.points, *self.subject.outputs]), key=lambda d: finfo(d).eps)

    @property
    def factor(self) -> float:
        """The relative error allowed, per unit of response."""
        return self.rtol if self.rtol is not None else C * float(finfo(self.dtype).eps)

    # What the trace tells.

    @functools.cached_property
    def stops_gradients(self) -> bool:
        return any(e.primitive.name == "stop_gradient" for e in jaxprs.equations(self.jaxpr))

    @functools.cached_property
    def has_symbolic_zeros(self) -> bool:
        return any(e.params.get("symbolic_zeros") for e in jaxprs.equations(self.jaxpr))

    @functools.cached_property
    def backward_rules(self) -> list[kinds.BackwardRule]:
        return list(kinds.backward_rules(self.jaxpr))

    def is_free(self, x: Any) -> bool:
        """Whether an argument looks unconstrained: it may be scaled, and is of both signs."""
        return self.may_scale(x) and (np.iscomplexobj(x) or bool((x > 0).any() and (x < 0).any()))

    def may_scale(self, x: Any) -> bool:
        """Whether an argument is not normalized (unit vectors, probabilities, log-probabilities) or symmetric."""
        if not np.isfinite(x).any():
            return False
        logs = np.exp(np.minimum(np.real(x), 1))
        sums = (np.square(np.abs(x)).sum(-1), x.sum(-1), logs.sum(-1)) if x.ndim else ()
        if any(np.allclose(total, 1, atol=1e-3) for total in sums):
            return False
        return not (x.ndim == 2 and x.shape[0] > 1 and x.shape[0] == x.shape[1] and np.array_equal(x, x.T))

    # The derivatives.

    def gradients(self, kind: str, points: Arrays, dy: Arrays) -> Arrays:
        """Return the cotangents in the points' own dtypes, on the host in float64."""
        return [as64(g) for g in self.subject.run("vjp", kind, points, self.subject.rest, dy)[1]]

    @functools.cached_property
    def rest64(self) -> Arrays:
        return self.subject.widened(self.subject.rest)

    def gradients64(self, kind: str, points: Arrays, dy: Arrays) -> Arrays:
        """Return the cotangents computed in float64 from arrays of float64."""
        with float64_mode():
            operands = [jnp.asarray(x) for x in points], self.rest64, [jnp.asarray(d) for d in dy]
            return [as64(g) for g in self.subject.run("vjp", kind, *operands)[1]]

    def moved64(self, points: Arrays, dy: Arrays, delta: float, phase: float = 0.0) -> Arrays:
        """Return the rule's cotangents in float64, its residuals off by up to `delta`."""
        with float64_mode():
            operands = [jnp.asarray(x) for x in points], self.rest64, [jnp.asarray(d) for d in dy]
            moved = self.subject.run("moved_vjp", "custom", *operands, jnp.float64(delta), jnp.float64(phase))
            return [as64(g) for g in moved]

    def moved(self, points: Arrays, dy: Arrays, delta: float, phase: float) -> Arrays:
        """Return them in the rule's own precision."""
        operands = points, self.subject.rest, dy, jnp.float32(delta), jnp.float32(phase)
        return [as64(g) for g in self.subject.run("moved_vjp", "custom", *operands)]

    def rule_response(self, points: Arrays, dy: Arrays, draw: int) -> Arrays:
        """Return how far rounding of what the rule has saved moves its cotangents; 0 where that cannot be told."""
        if self.wide_custom is not None:
            p, d = [as64(x) for x in points], [as64(x) for x in dy]
            return _tolerance.response(self.moved64(p, d, 0.0), lambda delta: self.moved64(p, d, delta, draw))
        try:
            still = self.moved(points, dy, 0.0, draw)
        except Exception:  # it runs on plain values only
            return [np.zeros(x.shape) for x in points]
        # Its rounding would hide a perturbation as small as float64's.
        scale = math.sqrt(float(finfo(self.dtype).eps)) / _tolerance.COARSE

        def per_scale(delta: float) -> Arrays:
            moved = self.moved(points, dy, scale * delta, draw)
            return [s + (g - s) / scale for s, g in zip(still, moved, strict=True)]

        return _tolerance.response(still, per_scale)

    def truth(self, points: Arrays, dy: Arrays, draws: int | None = None, kind: str = "automatic") -> Truth:
        """Return the automatic derivative in float64, and the response of its elements to rounding."""
        p, d = [as64(x) for x in points], [as64(x) for x in dy]
        if self.no_oracle:  # the arguments' own precision is all there is
            base = self.gradients(kind, points, dy)
            return Truth(base, [np.maximum(np.abs(g), np.median(np.abs(g)) if g.size else 0.0) for g in base])
        base = self.gradients64(kind, p, d)

        def moved(draw: int, delta: float) -> Arrays:
            factors = [1 + delta * _tolerance.signs(x.shape, 10 * draw + i) for i, x in enumerate([*p, *d])]
            at = [x * factor for x, factor in zip([*p, *d], factors, strict=True)]
            return self.gradients64(kind, at[: len(p)], at[len(p) :])

        signed = [x * _tolerance.signs(x.shape, i) for i, x in enumerate(d)]
        found = [[np.abs(g) for g in base], [np.abs(g) for g in self.gradients64(kind, p, signed)]]
        with np.errstate(all="ignore"):
            for draw in range(draws or self.draws):
                found.append(_tolerance.response(base, functools.partial(moved, draw)))
                found.append(self.rule_response(points, dy, draw))
            return Truth(base, _tolerance.largest(*found))

    # At the arguments given.

    @functools.cached_property
    def custom(self) -> Arrays:
        return self.gradients("custom", self.subject.points, self.dy)

    @functools.cached_property
    def wide_custom(self) -> Arrays | None:
        """The rule in float64, if it can be run there."""
        try:
            return self.moved64([as64(x) for x in self.subject.points], [as64(d) for d in self.dy], 0.0)
        except Exception:  # a rule, or a kernel, for other dtypes only
            return None

    @functools.cached_property
    def base(self) -> Truth:
        return self.truth(self.subject.points, self.dy)

    @functools.cached_property
    def by_itself(self) -> Truth | None:
        """The rule in float64 with its own responses, for where there is no automatic derivative to have them of."""
        if self.no_oracle or self.wide_custom is None:
            return None
        return self.truth(self.subject.points, self.dy, kind="custom")

    def look_closer(self) -> None:
        """Before an element is called wrong: it may only have had luckless draws, or be as far off in autodiff."""
        self.lenient = True
        self.base = self.truth(self.subject.points, self.dy, 2 if self.size > LARGE else 8)

    def allowed(self, leaf: int) -> Any:
        """Return the error allowed at the arguments given, in their dtype."""
        if self.no_automatic:
            scale = np.abs(self.custom[leaf])
            level = 4 * self.factor * np.maximum(scale, np.median(scale) if scale.size else 0.0)
            return (
                level
                if self.by_itself is None
                else np.maximum(level, self.by_itself.allowed(leaf, self.factor, self.dtype))
            )
        own = 4 * self.own_error[leaf] if self.lenient else 0.0
        return self.base.allowed(leaf, self.factor + own, self.dtype)

    @functools.cached_property
    def own_error(self) -> list[float]:
        """The automatic derivative's own largest error in the arguments' dtype, per unit of response."""
        return [
            _worst_in_responses(np.abs(a - t), r)
            for a, t, r in zip(self.native_automatic, self.base.gradients, self.base.responses, strict=True)
        ]

    @functools.cached_property
    def native_automatic(self) -> Arrays:
        return self.gradients("automatic", self.subject.points, self.dy)

    def note_error(self, against: str, relative: float) -> None:
        """Keep the largest relative error."""
        if math.isfinite(relative):
            self.errors[against] = max(relative, self.errors.get(against, 0.0))

    def by_convention(self, leaf: int) -> Any:
        """Return where, at the arguments given, the rule follows another convention than JAX's derivative."""
        return self.excused.get(leaf, np.zeros(self.subject.points[leaf].shape, bool))

    # The function itself, for numeric derivatives.

    @property
    def differentiated(self) -> str:
        """What is differentiated numerically: the reference, where there is one."""
        return "automatic" if self.subject.reference is not None else "custom"

    def slope(self, points: Arrays, dy: Arrays, direction: Arrays) -> _numeric.Slope:
        """Differentiate numerically, in float64 where the function allows it."""
        kind = self.differentiated
        eps, first, stride, count = (2.0**-52, -4, 3, 7) if not self.no_oracle else (2.0**-22, -1, 1, 10)

        def value(x: Arrays) -> Arrays:
            if self.no_oracle:
                own = [jnp.asarray(a).astype(p.dtype) for a, p in zip(x, self.subject.points, strict=True)]
                return [as64(y) for y in self.subject.run("value", kind, own, self.subject.rest)]
            with float64_mode():
                return [as64(y) for y in self.subject.run("value", kind, [jnp.asarray(a) for a in x], self.rest64)]

        steps = [2.0 ** (first - stride * k) for k in range(count)]
        if not self.no_oracle and self.wide_outputs_are_narrow:
            eps, steps = 2.0**-23, [2.0 ** (-1 - k) for k in range(10)]
        return _numeric.slope(value, [as64(x) for x in points], [as64(d) for d in dy], direction, steps, eps)

    @functools.cached_property
    def value_responses(self) -> Arrays:
        """How far each output moves per unit of relative perturbation of the arguments."""
        points = [as64(x) for x in self.subject.points]

        def value(delta: float) -> Arrays:
            moved = [x * (1 + delta * _tolerance.signs(x.shape, i)) for i, x in enumerate(points)]
            with float64_mode():
                operands = [jnp.asarray(x) for x in moved], self.rest64
                return [as64(y) for y in self.subject.run("value", "custom", *operands)]

        try:
            base = value(0.0)
        except Exception:  # a kernel for other dtypes only, its reference is what runs in float64
            return [
                np.abs(as64(y)) for y in self.subject.run("value", "custom", self.subject.points, self.subject.rest)
            ]
        return _tolerance.largest([np.abs(y) for y in base], _tolerance.response(base, value))

    @functools.cached_property
    def wide_outputs_are_narrow(self) -> bool:
        """Whether what is differentiated computes in float32 even when it is given float64."""
        with float64_mode():
            points = self.subject.widened(self.subject.points)
            structs = jax.eval_shape(lambda p, r: self.subject.value(self.differentiated, p, r), points, self.rest64)
        return any(y.dtype.itemsize < 8 for y in structs)


def _worst_in_responses(error: Any, responses: Any) -> float:
    with np.errstate(all="ignore"):
        ratio = np.where(responses > 0, error / responses, 0.0)
    return float(np.nanmax(np.where(np.isfinite(ratio), ratio, 0.0), initial=0.0))


def few(candidates: Any, count: int) -> Any:
    """Return so many of them, from first to last."""
    return candidates[np.unique(np.linspace(0, len(candidates) - 1, min(count, len(candidates))).astype(int))]


def beyond(custom: Any, truth: Any, allowed: Any) -> Any:
    """Return which elements are off by more than allowed."""
    with np.errstate(all="ignore"):
        close = np.abs(custom - truth) <= allowed
    return ~(close | (custom == truth) | (np.isnan(custom) & np.isnan(truth)))
