"""Before the checks: what f returns, whether its rule can be called and traced, and which truths there are."""

import re
from typing import Any

import jax
import numpy as np

from jaxnn.gradcheck._subject import Subject, as64
from jaxnn.gradcheck._trial import Trial
from jaxnn.gradcheck.patterns import shape_hint
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, Row
from jaxnn.tracing import kinds
from jaxnn.tracing.contexts import float64_mode
from jaxnn.tracing.errors import (
    BRANCHING_ERRORS,
    TRACING_ERRORS,
    branching_message,
    first_line,
    missing_method,
    place_of,
)
from jaxnn.tracing.functions import function_name, is_array, is_inexact


def prepare(trial: Trial) -> list[Row]:
    """Fill in the trial. The rows returned, if any, say why nothing else can be checked.

    Raises:
      TypeError: if f has no floating-point argument or output, or is not differentiable.
      ValueError: if f, or its reference, does not run on the arguments.
    """
    s = trial.subject
    if not s.diff_leaves:
        types = ", ".join(f"{x.dtype}{list(x.shape)}" if is_array(x) else type(x).__name__ for x in s.leaves)
        raise TypeError(f"`args` ({types or 'none'}) must include a floating-point array to differentiate")
    try:
        _find_outputs(s)
    except _NoSignature as error:
        unbound = "missing a required argument" in str(error)
        return [Row("signature", s.name, FAIL, str(error), UNBOUND if unbound else POSITIONAL)]
    if not s.outputs:
        raise TypeError(f"`f` ({s.name}) must return a floating-point array; it returns {', '.join(s.other_outputs)}")
    trial.dy = s.cotangents(trial.seed)
    trial.jaxpr = s.trace()
    if any(any(e.params.get("donated_invars", ())) for e in kinds.equations(trial.jaxpr)):
        raise ValueError(
            f"`f` ({s.name}) must not donate its arguments, since it is called often; leave out donate_argnums"
        )
    s.find_automatic()
    if s.reference is not None:
        _check_reference(s)
    failure = _call_forward_rule(trial) or _call_backward_rule(trial)
    if failure is not None:
        return [failure]
    _find_truths(trial)
    return []


POSITIONAL = "a custom_vjp function has only positional parameters"
UNBOUND = "JAX does not bind a rule on a method to its object: call it as Class.method(object, x)"
NO_TRANSPOSE = (
    "JAX cannot transpose what the tangent rule computes; compute it with operations that are linear in the tangents "
    "and have a transpose, such as jax.lax.custom_linear_solve"
)
FLOAT0 = "the tangent of an integer array is a float0 array, which has no arithmetic: use the tangents of floats only"


class _NoSignature(Exception):
    """A custom_vjp function that cannot be called as it was."""


def _find_outputs(s: Subject) -> None:
    """Find out what f returns. An array that f does not let JAX trace becomes a constant."""
    try:
        s.find_outputs()
    except jax.errors.UnexpectedTracerError:
        _freeze_untraceable(s)
        s.find_outputs()
    except BRANCHING_ERRORS as error:
        raise TypeError(branching_message(s.name, error)) from None
    except Exception as error:
        # The second message comes from a custom_vjp function under jax_custom_vjp3.
        if re.search("could not be resolved to position(al-only|s)|^missing a required argument", str(error)):
            raise _NoSignature(" ".join(str(error).split())) from error
        keywords = isinstance(error, TypeError) and "argument" in str(error)
        cure = "; pass keyword arguments as kwargs={...}" if keywords else ""
        raise ValueError(f"`f` ({s.name}) must run on `args`, but raises {first_line(error)}{cure}") from error


def _freeze_untraceable(s: Subject) -> None:
    for leaf in [*s.diff_leaves, *s.other_leaves]:

        def of_one(x: Any, leaf: int = leaf) -> Any:
            filled = [x if i == leaf else y for i, y in enumerate(s.leaves)]
            args, kwargs = jax.tree.unflatten(s.tree, filled)
            return s.f(*args, **kwargs)

        try:
            jax.make_jaxpr(of_one)(s.leaves[leaf])
        except jax.errors.UnexpectedTracerError:
            reason = "an array in nondiff_argnums: under grad, scan or jit it is a tracer, and the rule raises"
            s.freeze(leaf, reason if is_inexact(s.leaves[leaf]) else "")


def _check_reference(s: Subject) -> None:
    """Require that the reference runs, and returns floating-point arrays of f's shapes."""
    name = function_name(s.reference)
    try:
        outputs = jax.eval_shape(lambda points, rest: s.value("automatic", points, rest), s.points, s.rest)
    except Exception as error:
        raise ValueError(f"`reference` ({name}) must run on `args`, but raises {first_line(error)}") from error
    got, want = ([list(y.shape) for y in each] for each in (outputs, s.outputs))
    if got != want:
        raise ValueError(f"`reference` ({name}) must return arrays as f does, of shapes {want}, not {got}")


def _call_forward_rule(trial: Trial) -> Row | None:
    """Require that the forward rule returns what f returns, in structure and types."""
    s = trial.subject
    structure, types, _ = s.output_types()
    try:
        by_rule, types_by_rule, _ = s.output_types(forward_rule=True)
    except TRACING_ERRORS:
        return None  # the backward rule's call decides
    except Exception as error:
        return None if _is_leak(error) else _other_output(error) or _signature_failure(trial, error)
    if by_rule != structure:
        got, want = f"{types_by_rule} in {by_rule}", f"{types} in {structure}"
    elif types_by_rule != types:
        got, want = f"{types_by_rule}", f"{types}"
    else:
        return None
    return Row("primal", "y", FAIL, f"the forward rule returns {got}, f returns {want}")


def _other_output(error: Exception) -> Row | None:
    """Return a failure if JAX says that the forward rule returns something else than f, in structure or types."""
    message = " ".join(str(error).split())
    for pattern in (
        r"got fwd output type (.+) which doesn't match primal output type (.+)",
        r"output's first element had .*?structure: (.+) while the custom_\w+-decorated .* structure: (.+?)\.",
        r"output's first element had .*? of: (.+) while the custom_\w+-decorated .* of: (.+)",
    ):
        if found := re.search(pattern, message):
            got, want = (text.strip() for text in found.groups())
            return Row("primal", "y", FAIL, f"the forward rule returns {got}, f returns {want}")
    return None


def _call_backward_rule(trial: Trial) -> Row | None:
    """Require that the backward rule runs. If it cannot be traced it is called on plain values from then on."""
    s = trial.subject
    try:
        s.run("vjp", "custom", s.points, s.rest, trial.dy)
    except Exception as error:
        if not isinstance(error, TRACING_ERRORS) and not _is_leak(error):
            return _signature_failure(trial, error)
        return _call_untraced(trial, error)
    return None


def _is_leak(error: Exception) -> bool:
    """Whether a rule uses a tracer that is not its argument (the third message comes from compiled code)."""
    return any(words in str(error) for words in ("closed-over", "unexpected tracer", "Computation compiled for"))


def _call_untraced(trial: Trial, error: Exception) -> Row | None:
    """Call a rule that cannot be traced: it may run on plain values, or close over one of the arguments."""
    s = trial.subject
    s.eager, trial.not_traced = True, first_line(error)
    try:
        s.vjp("custom", s.points, s.rest, trial.dy)
    except Exception as again:
        if not _is_leak(again):
            return _signature_failure(trial, again)
    else:
        return None
    s.eager = False
    for leaf in reversed(s.diff_leaves):
        diff, others = s.diff_leaves, s.other_leaves
        s.diff_leaves, s.other_leaves = [i for i in diff if i != leaf], [*others, leaf]
        try:
            s.run("vjp", "custom", s.points, s.rest, trial.dy)
        except Exception:
            s.diff_leaves, s.other_leaves = diff, others
        else:
            reason = (
                "the rule closes over it: jax.grad with respect to it raises, though the definition has that derivative"
            )
            s.frozen.append((s.names[leaf], reason))
            return None
    return _signature_failure(trial, error)


def _signature_failure(trial: Trial, error: Exception) -> Row:
    s = trial.subject
    if not any(kinds.rule_call(e) for e in kinds.equations(trial.jaxpr)):
        raise TypeError(f"`f` ({s.name}) must be differentiable, but jax.vjp raises {first_line(error)}") from error
    if missing := missing_method(error):
        return Row("signature", s.name, INCONCLUSIVE, missing, decides=True)
    if not_compiled := _why_not_compiled(s):
        return Row("signature", s.name, INCONCLUSIVE, not_compiled, decides=True)
    message = " ".join(str(error).split())
    said = f": {message[:400]}" if message else ""
    rules = dict.fromkeys(f"{call.name}, {call.place}" for call in trial.rules if call.place)
    place = place_of(error) or (f" (the rule of {' or of '.join(rules)})" if rules else "")
    return Row(
        "signature", s.name, FAIL, f"the rule raises {type(error).__name__}{said}{place}",
        shape_hint(message) or _tangent_hint(trial, error),
    )  # fmt: skip


def _why_not_compiled(s: Subject) -> str:
    """Say why f itself, without its derivative, runs uncompiled only; "" if it runs compiled."""
    try:
        s.run("value", "custom", s.points, s.rest)
    except Exception as error:
        return f"f does not run under jax.jit: {first_line(error)}; call `check` where it does, as on another platform"
    return ""


def _tangent_hint(trial: Trial, error: Exception) -> str:
    """Name the mistake of a custom_jvp rule that raises; "" if none is known."""
    if not any(call.kind == "custom_jvp" for call in trial.rules):
        return ""
    if "float0" in str(error) or any(not is_inexact(x) for x in trial.subject.leaves if is_array(x)):
        return FLOAT0
    return NO_TRANSPOSE if isinstance(error, NotImplementedError | AssertionError) else ""


def _find_truths(trial: Trial) -> None:
    """Find out whether there is an automatic derivative, and whether it runs in float64."""
    s = trial.subject
    if s.reference is None and (implicit := [call.kind for call in trial.rules if call.is_implicit]):
        named = f"{implicit[0]} solves for its result and takes the derivative from {kinds.HANDED_OVER[implicit[0]]}"
        trial.no_automatic = trial.no_definition = f"{named}; judged by the numeric derivative"
    for kind, why in (("definition", "no_definition"), ("automatic", "no_automatic")):
        try:
            jax.eval_shape(lambda *operands, kind=kind: s.vjp(kind, *operands), s.points, s.rest, trial.dy)
        except Exception as error:
            setattr(trial, why, getattr(trial, why) or first_line(error).split(": ", 1)[-1])
    try:
        with float64_mode():
            points, dy = s.in_float64(s.points), s.in_float64(trial.dy)
            if trial.no_automatic:
                s.run("value", "custom", points, trial.rest64)
            else:
                s.run("vjp", "automatic", points, trial.rest64, dy)
        if any(re.search("random|threefry|rng_", e.primitive.name) for e in kinds.equations(trial.jaxpr)):
            _compare_random_values(trial)
    except Exception as error:
        trial.no_float64 = first_line(error)


def _compare_random_values(trial: Trial) -> None:
    """Mark float64 as unusable if f's value differs there, because f draws other random numbers."""
    s = trial.subject
    with float64_mode():
        exact = s.run("value", "custom", s.in_float64(s.points), trial.rest64)
    own = s.run("value", "custom", s.points, s.rest)
    close = (
        np.allclose(as64(a), as64(b), rtol=1e-2, atol=1e-2, equal_nan=True) for a, b in zip(own, exact, strict=True)
    )
    if not all(close):
        trial.no_float64 = "it draws other random numbers there"
