"""What the trace of the function under check shows: its rules, stop_gradients and loops."""

import functools
from typing import Any

import jax

from jaxnn.gradcheck._subject import Subject
from jaxnn.tracing import kinds, stop_gradients
from jaxnn.tracing.backward import BackwardRule, backward_rules


class Traced:
    """A function with its trace."""

    subject: Subject
    jaxpr: Any

    @functools.cached_property
    def rules(self) -> list[kinds.RuleCall]:
        """The calls of hand-written rules in f, except those of JAX's own."""
        return list(kinds.rule_calls(self.jaxpr))

    @property
    def has_rule(self) -> bool:
        """Whether f calls a hand-written rule, or is one of JAX's own functions with a rule."""
        return bool(self.rules) or isinstance(self.subject.f, jax.custom_jvp | jax.custom_vjp)

    @property
    def named_rules(self) -> str:
        """Where the derivative comes from a function that is handed to JAX: that function's name, for a message."""
        named = {call.kind: kinds.HANDED_OVER[call.kind] for call in self.rules if call.kind in kinds.HANDED_OVER}
        return f" (by {', '.join(f'the {name} of {kind}' for kind, name in named.items())})" if named else ""

    @functools.cached_property
    def stopped(self) -> set[int]:
        """The points that f holds constant on a way to its outputs; a numeric derivative does not."""
        return {i for i in stop_gradients.stopped_inputs(self.jaxpr) if i < len(self.subject.points)}

    @functools.cached_property
    def iterates(self) -> bool:
        """Whether f iterates until some number is small enough: then it is no more accurate than that."""
        return any(kinds.iterates_until(e) for e in kinds.equations(self.jaxpr))

    @functools.cached_property
    def has_symbolic_zeros(self) -> bool:
        return any(kinds.sees_zeros(e) for e in kinds.equations(self.jaxpr))

    @functools.cached_property
    def backward_rules(self) -> list[BackwardRule]:
        return list(backward_rules(self.jaxpr))
