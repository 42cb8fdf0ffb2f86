"""A trial: the function under check, its derivatives at the arguments given, and the tolerances there."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck import _numeric, tolerance
from jaxnn.gradcheck._child import Child
from jaxnn.gradcheck._subject import Arrays, Subject, as64
from jaxnn.gradcheck._traced import Traced
from jaxnn.gradcheck.report import Row
from jaxnn.gradcheck.tolerance import (
    EPS_PER_RESPONSE,
    FLOAT32_ROUNDING,
    Truth,
    differs,
    finfo,
    largest_per_response,
    largest_response,
    response,
)
from jaxnn.tracing import kinds
from jaxnn.tracing.contexts import float64_mode
from jaxnn.tracing.functions import is_inexact
from jaxnn.tracing.primitives import PrimitiveCall, primitive_calls

Findings = Iterator[Row]  # what a check yields
LARGE = 100_000  # elements, above which fewer perturbations, directions and points are tried, to save time
# Random perturbations for the first estimate of the tolerance, and the most before an element is called wrong: so many
# that hardly any response is missed by chance.
DRAWS, DRAWS_OF_LARGE = 2, 1
MOST_DRAWS, MOST_DRAWS_OF_LARGE = 8, 4


@dataclasses.dataclass
class Trial(Traced):
    """A subject with its cotangents, and what the checks have found out so far."""

    subject: Subject
    level: str
    seed: int
    rtol: float | None
    mesh: Any
    targets: tuple[str, ...] = ()
    sent: tuple[Any, ...] = ()  # f and its arguments, as a child process gets them
    two_devices: Child | None = None  # the process that checks `shard_map` where this one has one device
    dy: Arrays = dataclasses.field(default_factory=list)  # the cotangents of the outputs
    jaxpr: Any = None
    no_automatic: str = ""  # why there is no automatic derivative
    no_definition: str = ""  # why JAX cannot differentiate the definition, where there is a reference
    no_float64: str = ""  # why f does not run in float64
    not_traced: str = ""  # why the rule cannot be traced
    numeric_differs: bool = False
    wrong_types: bool = False  # whether a cotangent has a wrong shape or dtype, at the arguments given
    wrong_in_float64: bool = False  # whether the gradient is wrong even in float64, at the arguments given
    # By leaf: the elements, at the arguments given, that are right although automatic differs.
    accepted: dict[int, Any] = dataclasses.field(default_factory=dict)
    sweep: tuple[tuple[float, float], ...] = ()
    costs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)  # the rule's, relative to the largest element
    # The truth for the second cotangents, from the draws made so far.
    _second_truth: Truth | None = dataclasses.field(default=None, init=False)

    @property
    def size(self) -> int:
        return sum(x.size for x in [*self.subject.points, *self.subject.outputs])

    @property
    def dtype(self) -> Any:
        """The coarsest dtype among the arguments and outputs."""
        return max((x.dtype for x in [*self.subject.points, *self.subject.outputs]), key=lambda d: finfo(d).eps)

    def factor(self, dtype: Any) -> float:
        """The relative error allowed per unit of response in an array of this dtype."""
        return self.rtol if self.rtol is not None else EPS_PER_RESPONSE * float(finfo(dtype).eps)

    def numeric_may_overrule(self, leaf: int) -> bool:
        """Whether the numeric derivative may overrule JAX's: it ignores stop_gradient and infinite outputs."""
        return self.is_finite and leaf not in self.stopped

    @functools.cached_property
    def primitive_calls(self) -> list[PrimitiveCall]:
        """The HiPrims of the user's, with the values that reach them: in float64, where f runs there."""
        if not any(kinds.calls_hi_primitive(e) for e in kinds.equations(self.jaxpr)):
            return []
        if self.no_float64:
            return primitive_calls(self.jaxpr, [*self.subject.points, *self.subject.rest])
        with float64_mode():
            points = self.subject.in_float64(self.subject.points)
            traced = jax.make_jaxpr(lambda p, r: self.subject.value("custom", p, r))(points, self.rest64)
            return primitive_calls(traced, [*points, *self.rest64])

    @functools.cached_property
    def is_finite(self) -> bool:
        """Whether all that f returns is finite at the arguments given."""
        return all(np.isfinite(as64(y)).all() for y in self.own_values)

    @property
    def is_deterministic(self) -> bool:
        """Whether f returns the same when it is called again."""
        again = self.subject.run("value", "custom", self.subject.points, self.subject.rest)
        return all(
            np.array_equal(as64(a), as64(b), equal_nan=True) for a, b in zip(again, self.own_values, strict=True)
        )

    def is_the_same_again(self) -> bool:
        """Whether f returns the same when it is traced again: it may read, and change, what is outside of it."""
        s = self.subject
        again = jax.jit(lambda points, rest: s.value("custom", points, rest))(s.points, s.rest)
        return all(
            differs(as64(a), as64(b), self.factor(b.dtype) * np.abs(as64(b))).sum() == 0
            for a, b in zip(again, self.own_values, strict=True)
        )

    @functools.cached_property
    def own_values(self) -> Arrays:
        return list(self.subject.run("value", "custom", self.subject.points, self.subject.rest))

    # --- derivatives at any point ---

    def gradients(self, kind: str, points: Arrays, dy: Arrays) -> Arrays:
        """Return the cotangents in the points' own dtypes, on the host in float64."""
        return [as64(g) for g in self.subject.run("vjp", kind, points, self.subject.rest, dy)[1]]

    @functools.cached_property
    def rest64(self) -> Arrays:
        return self.subject.in_float64(self.subject.rest)

    def gradients64(self, kind: str, points: Arrays, dy: Arrays) -> Arrays:
        """Return the cotangents computed in float64 from float64 arrays."""
        with float64_mode():
            operands = [jnp.asarray(x) for x in points], self.rest64, [jnp.asarray(d) for d in dy]
            return [as64(g) for g in self.subject.run("vjp", kind, *operands)[1]]

    def perturbed64(
        self, points: Arrays, dy: Arrays, delta: float, phase: float = 0.0, method: str = "perturbed_vjp"
    ) -> Arrays:
        """Return the rule's cotangents in float64, with relative errors of up to `delta` in its residuals, or more."""
        with float64_mode():
            operands = [jnp.asarray(x) for x in points], self.rest64, [jnp.asarray(d) for d in dy]
            found = self.subject.run(method, "custom", *operands, jnp.float64(delta), jnp.float64(phase))
            return [as64(g) for g in found]

    def perturbed(self, points: Arrays, dy: Arrays, delta: float, phase: float) -> Arrays:
        """Return the same in the rule's own precision."""
        operands = points, self.subject.rest, dy, jnp.float32(delta), jnp.float32(phase)
        return [as64(g) for g in self.subject.run("perturbed_vjp", "custom", *operands)]

    def rule_response(self, points: Arrays, dy: Arrays, numbers: range, method: str = "perturbed_vjp") -> Arrays:
        """Return the response of the rule's cotangents to rounding of its residuals; 0 where that is unknown.

        It is the largest of the draws with these numbers: another number is another random perturbation.

        By the method "rounded_vjp" the results of its backward operations are rounded, too, if it runs in float64.
        """
        if self.rule_in_float64 is not None:
            with float64_mode():
                at = self.subject.in_float64(points), self.subject.in_float64(dy)
            exact = self.perturbed64(*at, 0.0, method=method)
            in_float64 = functools.partial(self.perturbed64, *at, method=method)
            return largest_response(*(response(exact, functools.partial(in_float64, phase=draw)) for draw in numbers))
        try:
            unperturbed = self.perturbed(points, dy, 0.0, 0.0)
        except Exception:  # it runs on plain values only
            return [np.zeros(x.shape) for x in points]
        # The rule's own rounding would hide a perturbation as small as float64's.
        scale = math.sqrt(float(finfo(self.dtype).eps)) / tolerance.COARSE

        def per_scale(draw: int, delta: float) -> Arrays:
            found = self.perturbed(points, dy, scale * delta, draw)
            return [u + (g - u) / scale for u, g in zip(unperturbed, found, strict=True)]

        return largest_response(*(response(unperturbed, functools.partial(per_scale, draw)) for draw in numbers))

    def truth_at(
        self, points: Arrays, dy: Arrays, draws: int | None = None, kind: str = "automatic", so_far: Truth | None = None
    ) -> Truth:
        """Return the automatic derivative in float64, and the response of its elements to rounding.

        The response is the largest of so many draws. Those of `so_far`, an estimate from fewer, are not made again.
        """
        draws = draws or (DRAWS_OF_LARGE if self.size > LARGE else DRAWS)
        if so_far is not None and so_far.draws >= draws:
            return so_far
        if self.no_float64:  # the arguments' own precision is all there is
            base = self.gradients(kind, points, dy)
            sizes = [np.maximum(np.abs(g), np.median(np.abs(g)) if g.size else 0.0) for g in base]
            return Truth(base, sizes, self.most_draws)  # no draw would tell more
        p, d = [as64(x) for x in points], [as64(x) for x in dy]
        if so_far is None:
            base = self.gradients64(kind, p, d)
            # Terms that cancel in dy need not cancel with other signs: what is left is the size of the terms.
            signed = [x * tolerance.random_signs(x.shape, i) for i, x in enumerate(d)]
            found = [[np.abs(g) for g in base], [np.abs(g) for g in self.gradients64(kind, p, signed)]]
        else:
            base, found = so_far.gradients, [so_far.responses]

        def perturbed(draw: int, delta: float) -> Arrays:
            at = [tolerance.with_relative_errors(x, delta, 10 * draw + i) for i, x in enumerate([*p, *d])]
            return self.gradients64(kind, at[: len(p)], at[len(p) :])

        new = range(so_far.draws if so_far else 0, draws)
        with np.errstate(all="ignore"):
            found += [response(base, functools.partial(perturbed, draw)) for draw in new]
            return Truth(base, largest_response(*found, self.rule_response(points, dy, new)), draws)

    # --- derivatives and tolerances at the arguments given ---

    @functools.cached_property
    def custom(self) -> Arrays:
        return self.gradients("custom", self.subject.points, self.dy)

    @functools.cached_property
    def automatic(self) -> Arrays:
        return self.gradients("automatic", self.subject.points, self.dy)

    @functools.cached_property
    def rule_in_float64(self) -> Arrays | None:
        """The rule's cotangents in float64; None if the rule does not run there."""
        try:
            return self.perturbed64([as64(x) for x in self.subject.points], [as64(d) for d in self.dy], 0.0)
        except Exception:  # a rule, or a kernel, for other dtypes only
            return None

    @functools.cached_property
    def truth(self) -> Truth:
        return self.truth_at(self.subject.points, self.dy)

    @functools.cached_property
    def rule_tolerance(self) -> Truth | None:
        """The rule's own responses in float64, for the tolerance where there is no automatic derivative."""
        if self.no_float64 or self.rule_in_float64 is None:
            return None
        return self.truth_at(self.subject.points, self.dy, kind="custom")

    @property
    def most_draws(self) -> int:
        return MOST_DRAWS_OF_LARGE if self.size > LARGE else MOST_DRAWS

    def improve_tolerance(self) -> bool:
        """Estimate the tolerance with one draw more, and return whether one was left.

        Do so before an element is called wrong: a few draws may miss its response. After the last one the automatic
        derivative's own rounding is allowed for, too.
        """
        if self.truth.draws >= self.most_draws:
            return False
        self.truth = self.truth_at(self.subject.points, self.dy, self.truth.draws + 1, so_far=self.truth)
        return True

    @functools.cached_property
    def second_dy(self) -> Arrays:
        """Other cotangents of the outputs, for the checks that need two."""
        return self.subject.cotangents(self.seed, 1)

    @functools.cached_property
    def second_custom(self) -> Arrays:
        return self.gradients("custom", self.subject.points, self.second_dy)

    @property
    def second_truth(self) -> Truth:
        """The truth for the second cotangents, from as many draws as that for the first."""
        so_far = self._second_truth
        self._second_truth = self.truth_at(self.subject.points, self.second_dy, self.truth.draws, so_far=so_far)
        return self._second_truth

    def allowed(self, leaf: int, second: bool = False) -> Any:
        """Return the error allowed at the arguments given, in their dtype, for the first or the second cotangents."""
        if self.no_automatic:
            return self.allowed_by_rule(leaf, second)
        dtype = self.subject.points[leaf].dtype
        # From fewer draws `automatic_error` is that of an element whose response they have missed.
        own = 4 * self.automatic_error[leaf] if self.truth.draws >= self.most_draws else 0.0
        truth = self.second_truth if second else self.truth
        allowed, unknown = truth.allowed(leaf, self.factor(dtype) + own, dtype), np.isnan(truth.gradients[leaf])
        return np.where(unknown, self.allowed_by_rule(leaf, second), allowed) if unknown.any() else allowed

    def allowed_by_rule(self, leaf: int, second: bool = False) -> Any:
        """Return the error allowed where there is no automatic derivative, from the rule's own responses."""
        dtype = self.subject.points[leaf].dtype
        factor = self.factor(dtype)
        scale = np.nan_to_num(np.abs((self.second_custom if second else self.custom)[leaf]))
        of_size = 4 * factor * np.maximum(scale, np.median(scale) if scale.size else 0.0)
        if self.rule_tolerance is None:
            return of_size
        return np.maximum(of_size, self.rule_tolerance.allowed(leaf, factor, dtype))

    def differing(self, found: Any, expected: Any, allowed: Callable[[], Any]) -> Any:
        """Return which elements of two runs of the rule differ by more than allowed.

        The tolerance is improved before any element counts as different.
        """
        wrong = differs(found, expected, allowed())
        while wrong.any() and not self.no_automatic and self.improve_tolerance():
            wrong = differs(found, expected, allowed())
        return wrong

    @functools.cached_property
    def automatic_error(self) -> list[float]:
        """The automatic derivative's own largest error in the arguments' dtype, per unit of response of all draws."""
        return [
            largest_per_response(np.abs(a - g), r)
            for a, g, r in zip(self.automatic, self.truth.gradients, self.truth.responses, strict=True)
        ]

    def is_wrong_in_float64(self, leaf: int, exact: Any) -> Any:
        """Return which elements of a cotangent that the rule computed in float64 are wrong.

        The rule may compute in float32 throughout. If it, or f, rounds to a narrower dtype inside, that is allowed too.
        """
        return differs(exact, self.truth.gradients[leaf], self.allowed_in_float64(leaf))

    def allowed_in_float64(self, leaf: int) -> Any:
        """Return the error allowed where the rule computes in float64."""
        factor = max(self.rtol or 0.0, FLOAT32_ROUNDING)
        if self.narrowest is not None:
            factor = max(factor, self.factor(self.narrowest))
        if not self.no_automatic:
            return self.truth.allowed(leaf, factor, jnp.float32)
        if self.rule_tolerance is None:
            return factor * np.abs(self.custom[leaf])
        return self.rule_tolerance.allowed(leaf, factor, jnp.float32)

    @functools.cached_property
    def narrowest(self) -> Any:
        """The coarsest dtype narrower than float32 in which the rule computes for float64 arguments; None if none."""
        if self.subject.eager:  # it cannot be traced
            return None
        with float64_mode():
            operands = self.subject.in_float64(self.subject.points), self.rest64, self.subject.in_float64(self.dy)
            traced = jax.make_jaxpr(functools.partial(self.subject.vjp, "custom"))(*operands)
            dtypes = {v.aval.dtype for e in kinds.equations(traced) for v in e.outvars if is_inexact(v.aval)}
        return max((d for d in dtypes if d.itemsize < 4), key=lambda d: finfo(d).eps, default=None)

    def note_error(self, against: str, relative: float) -> None:
        """Keep the largest relative error."""
        if math.isfinite(relative):
            self.errors[against] = max(relative, self.errors.get(against, 0.0))

    def accepted_at(self, leaf: int) -> Any:
        """Return where, at the arguments given, the rule is right and differs from JAX's derivative."""
        return self.accepted.get(leaf, np.zeros(self.subject.points[leaf].shape, bool))

    # --- values, for numeric derivatives ---

    @property
    def differentiated(self) -> str:
        """The kind of function that is differentiated numerically: the reference, where there is one."""
        return "automatic" if self.subject.reference is not None else "custom"

    def value64(self, x: Arrays) -> Arrays:
        """Return the values to differentiate numerically, computed in float64 if the function runs there."""
        if self.no_float64:
            own = [jnp.asarray(a).astype(p.dtype) for a, p in zip(x, self.subject.points, strict=True)]
            return [as64(y) for y in self.subject.run("value", self.differentiated, own, self.subject.rest)]
        with float64_mode():
            points = [jnp.asarray(a) for a in x]
            return [as64(y) for y in self.subject.run("value", self.differentiated, points, self.rest64)]

    def slope(self, points: Arrays, dy: Arrays, direction: Arrays) -> _numeric.Slope:
        """Differentiate numerically, in float64 if the function runs there."""
        x, d = [as64(p) for p in points], [as64(v) for v in dy]
        return _numeric.slope(self.value64, x, d, direction, self.rounding)

    @functools.cached_property
    def value_responses(self) -> Arrays:
        """How far each output moves per unit of relative perturbation of the arguments."""
        points = [as64(x) for x in self.subject.points]

        def value(delta: float) -> Arrays:
            at = [tolerance.with_relative_errors(x, delta, i) for i, x in enumerate(points)]
            with float64_mode():
                operands = [jnp.asarray(x) for x in at], self.rest64
                return [as64(y) for y in self.subject.run("value", "custom", *operands)]

        try:
            base = value(0.0)
        except Exception:  # a kernel for other dtypes only: in float64 it is its reference that runs
            own = self.subject.run("value", "custom", self.subject.points, self.subject.rest)
            return [np.abs(as64(y)) for y in own]
        return largest_response([np.abs(y) for y in base], response(base, value))

    @functools.cached_property
    def values_error(self) -> float:
        """The largest error of f's own values in their dtype, per unit of response."""
        with float64_mode():
            points = self.subject.in_float64(self.subject.points)
            exact = [as64(y) for y in self.subject.run("value", "custom", points, self.rest64)]
        return max(
            largest_per_response(np.abs(as64(y) - e), r)
            for y, e, r in zip(self.own_values, exact, self.value_responses, strict=True)
        )

    @functools.cached_property
    def rounding(self) -> float:
        """The relative error of the values that are differentiated numerically."""
        if self.no_float64:
            return 2 * _numeric.EPS_FLOAT32  # the points are rounded, too
        if (returned := self.coarsest_returned) is not None:
            return float(finfo(returned).eps)
        x = [as64(p) for p in self.subject.points]
        rng = np.random.default_rng((self.seed, 8))
        towards = (_numeric.random_direction(x, leaf, rng)[leaf] for leaf in range(len(x)))
        return _numeric.rounding_of(self.value64, x, list(towards))

    @property
    def coarsest_returned(self) -> Any:
        """The coarsest dtype narrower than float64 that is returned even for float64 arguments; None if none is."""
        with float64_mode():
            points = self.subject.in_float64(self.subject.points)
            types = jax.eval_shape(lambda p, r: self.subject.value(self.differentiated, p, r), points, self.rest64)
        return max((y.dtype for y in types if finfo(y.dtype).bits < 64), key=lambda d: finfo(d).eps, default=None)


def evenly_spaced(candidates: Any, count: int) -> Any:
    """Return at most `count` of the candidates, from the first to the last."""
    return candidates[np.unique(np.linspace(0, len(candidates) - 1, min(count, len(candidates))).astype(int))]
