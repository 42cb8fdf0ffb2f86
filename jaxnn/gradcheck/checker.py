"""gradcheck.check and assert_correct."""

import inspect
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnn.gradcheck._hints import shape_hint
from jaxnn.gradcheck._subject import Subject, as64
from jaxnn.gradcheck._trial import Trial
from jaxnn.gradcheck.checks import FULL, RULE
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, Report, Row
from jaxnn.tracing import jaxprs, kinds
from jaxnn.tracing.contexts import float64_mode, quiet
from jaxnn.tracing.functions import BRANCHED, NOT_TRACEABLE, branched, first_line, function_name, is_array, is_inexact

LEVELS = {"rule": RULE, "full": FULL}


def check(
    f: Callable[..., Any],
    *args: Any,
    kwargs: dict[str, Any] | None = None,
    reference: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    level: str = "full",
    skip: Sequence[str] = (),
    mesh: Any = None,
    rtol: float | None = None,
    seed: int = 0,
) -> Report:
    """Check the derivative of `f` at `args`: its rule against JAX's derivative of the definition, and numerically.

    With u the cotangent that arrives from above, three numbers have to agree at every element of every argument: what
    the rule returns, `vjp(f)(u)`; what JAX derives from the definition, `vjp(automatic(f))(u)`, in float64; and the
    quotient (⟨u, f(x + hv)⟩ − ⟨u, f(x − hv)⟩) / 2h, at the step h where a sweep of steps is surest. An element may be
    off by 8 eps of the coarsest dtype among arguments and outputs, times its own response to relative perturbations of
    arguments, cotangent and residuals: never by more for being one of many.

    level="rule" checks the signature, the types, the forward rule's value (`primal`), those three numbers (`gradient`)
    and `linearity` in u. level="full" adds `integers`, `kinks`, `extremes`, `precision` in three dtypes, `staging`
    (jit, scan, cond, remat), `vmap`, `shard_map`, `second_order`, `determinism` and `closure`, and reports
    `stop_gradient`, `forward_mode`, `residuals` and `cost`. The caller's JAX configuration is as before afterwards.

    Args:
      f: a function of arrays, with `custom_vjp` or `custom_jvp` rules anywhere inside, or none. It is called often.
      *args: its arguments, pytrees of arrays; derivatives are checked at these values. Every floating-point array is
        differentiated (a Python float only where there is no array); integers, booleans and keys are passed on, and
        other leaves are static. Values that look unconstrained (of both signs) are also rounded, tied, scaled and made
        infinite, by `kinks` and `extremes`.
      kwargs: its keyword arguments; arrays among them are differentiated too.
      reference: a function with the right derivative, differentiated by JAX in place of the definition: where the
        definition has none (a kernel, a callback), or where the rule means another (straight-through, clipping).
      argnums: the positional arguments to differentiate; None for all.
      level: "full", or "rule" for the quick core.
      skip: names of checks to leave out.
      mesh: the mesh for `shard_map`, whose first axis is used; None for two of the devices there are.
      rtol: the error allowed per unit of response, in place of 8 eps.
      seed: of the cotangents and directions.

    Returns:
      A `Report`: `print` it. `report.ok` says that no row fails, `report.failures` has the rows that do.

    Raises:
      TypeError: if `f` is no function, branches in Python on an array's value, or has no floating-point argument or
        output, or if JAX cannot differentiate it and it has no rule.
      ValueError: if an option is not one of those above, or `f` raises at `args`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnn import gradcheck
      >>> @jax.custom_vjp
      ... def bend(x, w):
      ...     return jnp.sin(x) * w
      >>> bend.defvjp(lambda x, w: (bend(x, w), (x, w)), lambda r, dy: (dy * jnp.cos(r[0]) * r[1], -dy * jnp.sin(r[0])))
      >>> report = gradcheck.check(bend, jnp.array([0.5, -2.0]), jnp.array([1.5, 3.0]), level="rule")
      >>> report.ok
      False
      >>> [(row.check, row.path, row.hint) for row in report.failures]
      [('gradient', 'w', 'the sign: minus the derivative')]

    References:
      "Learning From Data: gradient descent" of the notes checks a derivative by nudging an input; Griewank and Walther,
      Evaluating Derivatives (2008), for the step that balances truncation against rounding.
    """
    started = time.perf_counter()
    _validate(f, args, kwargs, reference, argnums, level, skip, mesh, rtol, seed)
    kwargs, seed = kwargs or {}, int(seed)
    if argnums is not None:
        argnums = tuple(int(i) % len(args) for i in ([argnums] if isinstance(argnums, int | np.integer) else argnums))
    with quiet(), np.errstate(all="ignore"):
        trial = Trial(Subject(f, args, kwargs, reference, argnums), level, seed, rtol, mesh)
        rows = _run(trial, {name: run for name, run in LEVELS[level].items() if name not in skip})
    given = {"kwargs": kwargs or None, "reference": reference, "argnums": argnums, "mesh": mesh, "rtol": rtol}
    options = [
        f"{name}={value if name in ('argnums', 'rtol') else name}" for name, value in given.items() if value is not None
    ]
    options += [f"level={level!r}"] * (level != "full") + [f"skip={tuple(skip)}"] * bool(skip)
    repro = f"gradcheck.check({', '.join([function_name(f), '*args', *options, f'seed={seed}'])})"
    seconds = time.perf_counter() - started
    return Report(function_name(f), tuple(rows), repro, seed, seconds, trial.costs, trial.sweep, trial.errors)


def assert_correct(f: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raise AssertionError with the failed rows of `check(f, *args, **options)`, thirty lines at most; for test suites.

    Args:
      f: see `check`.
      *args: see `check`.
      **options: see `check`.

    Raises:
      AssertionError: if a row fails.
      TypeError, ValueError: as `check`.

    Example:
      >>> import jax.numpy as jnp, jaxnn
      >>> from jaxnn import gradcheck
      >>> gradcheck.assert_correct(jaxnn.sigmoid, jnp.array([-1.0, 0.5]), level="rule")
    """
    report = check(f, *args, **options)
    if not report.ok:
        raise AssertionError(report.failed_lines())


def _validate(
    f: Any, args: Any, kwargs: Any, reference: Any, argnums: Any, level: Any, skip: Any, mesh: Any, rtol: Any, seed: Any
) -> None:
    for name, value in (("f", f), ("reference", reference)):
        if not callable(value) and not (name == "reference" and value is None):
            raise TypeError(f"`{name}` ({value!r}) must be a function of arrays".replace("\n", " "))
    if kwargs is not None and not isinstance(kwargs, dict):
        raise TypeError(f"`kwargs` ({type(kwargs).__name__}) must be a dict of f's keyword arguments")
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs))):
        raise TypeError("`args` must be values, not what jit, grad or vmap traces: call check outside of them")
    for name, value in (("f", f), ("reference", reference)):
        _fits(name, value, args, kwargs or {})
    if not isinstance(level, str) or level not in LEVELS:
        raise ValueError(f"`level` ({level!r}) must be one of {', '.join(map(repr, LEVELS))}")
    if not isinstance(skip, list | tuple | set | frozenset) or not all(s in tuple(FULL) for s in skip):
        raise ValueError(f"`skip` ({skip!r}) must be a sequence of names of checks: {', '.join(FULL)}")
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise ValueError(f"`mesh` ({mesh!r}) must be a jax.sharding.Mesh, or None for two of the devices there are")
    if rtol is not None and not (isinstance(rtol, float | np.floating) and 0 < rtol < 1):
        raise ValueError(f"`rtol` ({rtol!r}) must be a number between 0 and 1, or None for 8 eps of the dtype")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"`seed` ({seed!r}) must be an integer of at least 0")
    if argnums is not None:
        given = argnums if isinstance(argnums, Sequence) else [argnums]
        if not all(
            isinstance(i, int | np.integer) and not isinstance(i, bool) and -len(args) <= i < len(args) for i in given
        ):
            raise ValueError(f"`argnums` ({argnums!r}) must be positions among the {len(args)} arguments given")


def _fits(name: str, f: Any, args: Any, kwargs: Any) -> None:
    """Require that the arguments are f's."""
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # None, or a callable without one
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"`{name}` ({function_name(f)}{' '.join(str(signature).split())}) must take `args` and `kwargs`, but "
            f"{error}; pass keyword arguments as kwargs={{...}}"
        ) from None


def _run(trial: Trial, checks: dict[str, Callable[[Trial], Iterator[Row]]]) -> list[Row]:
    subject = trial.subject
    if not subject.diff:
        types = ", ".join(f"{x.dtype}{list(x.shape)}" if is_array(x) else type(x).__name__ for x in subject.leaves)
        raise TypeError(f"`args` ({types or 'none'}) must include a floating-point array to differentiate")
    try:
        _find_outputs(subject)
    except _NoSignature as error:
        return [
            Row("signature", subject.name, FAIL, str(error), "a custom_vjp function has positional parameters alone")
        ]
    if not subject.outputs:
        raise TypeError(f"`f` ({subject.name}) must return a floating-point array; it returns {subject.structure}")
    trial.dy = subject.cotangents(trial.seed)
    if found := _enter(trial):
        return found
    progress = _Progress(len(checks))
    arguments, outputs = len(subject.points), len(subject.outputs)
    rows = [Row("signature", subject.name, PASS, f"{arguments} differentiable arguments, {outputs} outputs")]
    for name, run in checks.items():
        progress.show(name)
        try:
            rows.extend(run(trial))
        except Exception as error:
            if name in RULE:
                raise  # what has run once must run: silence here would be a hollow pass
            rows.append(Row(name, subject.name, INCONCLUSIVE, f"the check could not run: {first_line(error)}"))
    progress.clear()
    return rows


class _NoSignature(Exception):
    """A custom_vjp function that cannot be called as it was."""


def _find_outputs(subject: Subject) -> None:
    """Run f's types; an array that f does not let be traced becomes a constant."""
    try:
        subject.find_outputs()
    except jax.errors.UnexpectedTracerError:
        _freeze_untraceable(subject)
        subject.find_outputs()
    except BRANCHED as error:
        raise TypeError(branched(subject.name, error)) from None
    except Exception as error:
        if "could not be resolved to positional-only" in str(error):
            raise _NoSignature(" ".join(str(error).split())) from error
        cure = (
            "; pass keyword arguments as kwargs={...}"
            if "argument" in str(error) and isinstance(error, TypeError)
            else ""
        )
        raise ValueError(f"`f` ({subject.name}) must run on `args`, but raises {first_line(error)}{cure}") from error


def _freeze_untraceable(subject: Subject) -> None:
    every = [*subject.diff, *subject.others]
    for leaf in every:

        def alone(x: Any, leaf: int = leaf) -> Any:
            filled = [x if i == leaf else y for i, y in enumerate(subject.leaves)]
            args, kwargs = jax.tree.unflatten(subject.tree, filled)
            return subject.f(*args, **kwargs)

        try:
            jax.make_jaxpr(alone)(subject.leaves[leaf])
        except jax.errors.UnexpectedTracerError:
            reason = "an array in nondiff_argnums: under grad, scan or jit it is a tracer, and the rule raises"
            subject.freeze(leaf, reason if is_inexact(subject.leaves[leaf]) else "")


def _enter(trial: Trial) -> list[Row]:
    """Find out what can be run at all. Rows that come back are failures beyond which nothing can be checked."""
    s = trial.subject
    trial.jaxpr = s.trace()
    if any(any(e.params.get("donated_invars", ())) for e in jaxprs.equations(trial.jaxpr)):
        raise ValueError(
            f"`f` ({s.name}) must not donate its arguments, since it is called often; leave out donate_argnums"
        )
    s.find_automatic()
    structure, types, _ = s.output_types()
    if s.reference is not None:
        _check_reference(s)
    try:
        ruled = s.output_types(forward_rule=True)
        if ruled[:2] != (structure, types):
            got, want = (
                f"{t} in {tree}" if ruled[0] != structure else f"{t}" for tree, t in (ruled[:2], (structure, types))
            )
            return [Row("primal", "y", FAIL, f"the forward rule returns {got}, f returns {want}")]
    except NOT_TRACEABLE:
        pass  # said below
    except Exception as error:
        if not _is_leak(error):
            return [_signature_failure(trial, error)]
    try:
        s.run("vjp", "custom", s.points, s.rest, trial.dy)
    except Exception as error:
        if not isinstance(error, NOT_TRACEABLE) and not _is_leak(error):
            return [_signature_failure(trial, error)]
        if (failure := _enter_untraced(trial, error)) is not None:
            return [failure]
    _find_oracle(trial)
    return []


def _check_reference(s: Subject) -> None:
    """Require outputs of f's shapes of a reference."""
    try:
        outputs = jax.eval_shape(lambda points, rest: s.value("automatic", points, rest), s.points, s.rest)
    except Exception as error:
        raise ValueError(
            f"`reference` ({function_name(s.reference)}) must run on `args`, but raises {first_line(error)}"
        ) from error
    got, want = ([list(y.shape) for y in each] for each in (outputs, s.outputs))
    if got != want:
        raise ValueError(
            f"`reference` ({function_name(s.reference)}) must return arrays as f does, of shapes {want}, not {got}"
        )


def _is_leak(error: Exception) -> bool:
    """Whether a rule has held on to a tracer that is not its argument (the last is how a compiled program says so)."""
    return any(words in str(error) for words in ("closed-over", "unexpected tracer", "Computation compiled for"))


def _enter_untraced(trial: Trial, error: Exception) -> Row | None:
    """The rule does not survive tracing: it may run on plain values, or close over an argument."""
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
    for leaf in reversed(s.diff):
        diff, others = s.diff, s.others
        s.diff, s.others = [i for i in diff if i != leaf], [*others, leaf]
        try:
            s.run("vjp", "custom", s.points, s.rest, trial.dy)
        except Exception:
            s.diff, s.others = diff, others
        else:
            s.frozen.append((s.names[leaf], "a rule closes over it: differentiating it raises, and the definition can"))
            return None
    return _signature_failure(trial, error)


def _signature_failure(trial: Trial, error: Exception) -> Row:
    s = trial.subject
    if not any(kinds.is_custom_vjp(e) or kinds.is_custom_jvp(e) for e in jaxprs.equations(trial.jaxpr)):
        raise TypeError(f"`f` ({s.name}) must be differentiable, but jax.vjp raises {first_line(error)}") from error
    message = " ".join(str(error).split())
    return Row(
        "signature", s.name, FAIL, f"the rule raises {type(error).__name__}: {message[:400]}", shape_hint(message)
    )


def _find_oracle(trial: Trial) -> None:
    """See whether there is an automatic derivative, and whether it runs in float64."""
    s = trial.subject
    for kind, why in (("definition", "no_definition"), ("automatic", "no_automatic")):
        try:
            jax.eval_shape(lambda *operands, kind=kind: s.vjp(kind, *operands), s.points, s.rest, trial.dy)
        except Exception as error:
            setattr(trial, why, first_line(error).split(": ", 1)[-1])
    try:
        with float64_mode():
            points, dy = s.widened(s.points), s.widened(trial.dy)
            if trial.no_automatic:
                s.run("value", "custom", points, trial.rest64)
            else:
                s.run("vjp", "automatic", points, trial.rest64, dy)
        if any(re.search("random|threefry|rng_", e.primitive.name) for e in jaxprs.equations(trial.jaxpr)):
            _compare_values(trial)
    except Exception as error:
        trial.no_oracle = first_line(error)


def _compare_values(trial: Trial) -> None:
    """A function that draws random numbers may draw others in float64."""
    s = trial.subject
    with float64_mode():
        exact = s.run("value", "custom", s.widened(s.points), trial.rest64)
    own = s.run("value", "custom", s.points, s.rest)
    if not all(
        np.allclose(as64(a), as64(b), rtol=1e-2, atol=1e-2, equal_nan=True) for a, b in zip(own, exact, strict=True)
    ):
        trial.no_oracle = "it draws other random numbers there"


class _Progress:
    """The name of the check that runs, on a terminal, after two seconds."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.started = count, 0, time.perf_counter()

    def show(self, name: str) -> None:
        self.done += 1
        if sys.stderr.isatty() and time.perf_counter() - self.started > 2:
            print(f"\r\x1b[Kgradcheck {self.done}/{self.count} {name}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
