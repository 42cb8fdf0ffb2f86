"""The checks of the HiPrims in f, method by method: `jvp`, `lin`, `batch`, `transpose` and `remat`.

`gradient` judges the vjp, together with the rest of f. Here each primitive is called alone, at values that reach it
in f, in float64 where f runs there. A method that is derived from another one is checked like a written one. A
primitive without a method is no mistake: the row is UNSUPPORTED, and says which method is missing.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck.checks.examples import NEARBY, Mask, all_and_each, subsets
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Row
from jaxnn.gradcheck.tolerance import differs, finfo, index_text, worst_index
from jaxnn.tracing.contexts import float64_mode, new_remat
from jaxnn.tracing.errors import first_line, missing_method
from jaxnn.tracing.functions import is_inexact
from jaxnn.tracing.jaxprs import equations
from jaxnn.tracing.primitives import PrimitiveCall

Positions = tuple[int, ...]
OfCall = Callable[[PrimitiveCall], Iterator[Row]]
ZEROS = "; when only this argument is differentiated, the others' tangents are `hijax.Zero`"
DISAGREE = "where JAX takes the gradient from `jvp` (under scan and jax.checkpoint) it is another one"


def _each_primitive(check: OfCall) -> Callable[[Trial], Findings]:
    """Make a check of a trial from a check of one call."""

    @functools.wraps(check)
    def of_trial(t: Trial) -> Findings:
        with contextlib.nullcontext() if t.no_float64 else float64_mode():
            rows = [row for call in t.primitive_calls for row in check(call)]
        yield from rows

    return of_trial


# --- forward mode ---


@_each_primitive
def jvp(call: PrimitiveCall) -> Iterator[Row]:
    """The primitive's `jvp` agrees with its vjp, and returns the value of `expand`."""
    if call.defines("jvp"):
        yield from _pushed_forward(call, "jvp", jax.jvp)


@_each_primitive
def lin(call: PrimitiveCall) -> Iterator[Row]:
    """The primitive's `lin` and `linearized` agree with its vjp, and return the value of `expand`."""

    def linearize(f: Any, x: Any, v: Any) -> Any:
        y, linear = jax.linearize(f, *x)
        return y, linear(*v)

    if call.defines("lin", "linearized"):
        yield from _pushed_forward(call, "lin", linearize)


def _pushed_forward(call: PrimitiveCall, method: str, pushforward: Callable[..., Any]) -> Iterator[Row]:
    """Compare ⟨u, J v⟩ by the method with ⟨Jᵀ u, v⟩ by the vjp, for all arguments together and each alone."""
    for positions in _chosen(call.differentiable, all_and_each(len(call.differentiable))):
        f, definition, x = (*_functions(call, positions), [call.operands[i] for i in positions])
        v, u = _random_like(x, 1), _random_like(jax.eval_shape(definition, *x), 2)

        def run(x: Arrays, v: Arrays, u: Arrays, f: Any = f, definition: Any = definition) -> Any:
            y, dy = pushforward(f, tuple(x), tuple(v))
            return y, dy, definition(*x), jax.vjp(f, *x)[1](u)

        path = _path(call, positions)
        try:
            (y, dy, expected, pulled), eps = _run(call, run, x, v, u)
        except Exception as error:
            alone = len(positions) < len(call.differentiable)
            yield _raised(method, path, error, UNSUPPORTED if alone else FAIL, ZEROS * alone)
            continue
        yield _differs_in_value(method, path, y, expected, eps) or _adjoint(
            method, path, (u, dy), (pulled, v), eps, functools.partial(_pushed_by_definition, definition, x, v, u)
        )


def _adjoint(
    method: str, path: str, pushed: tuple[Arrays, Arrays], pulled: tuple[Arrays, Arrays], eps: float, by_definition: Any
) -> Row:
    """Compare the two inner products, of which each is given by its factors."""
    (left, left_terms), (right, right_terms) = _inner(*pushed), _inner(*pulled)
    if not math.isfinite(left_terms + right_terms):
        return Row(method, path, INCONCLUSIVE, "the derivative is not finite here; give arguments where it is")
    if abs(left - right) <= math.sqrt(eps) * (left_terms + right_terms):
        return Row(method, path, PASS, f"`{method}` and the vjp agree")
    truth, apart = by_definition(), abs(left - right)
    near = [name for name, value in ((f"`{method}`", left), ("the vjp", right)) if abs(value - truth) < 1e-3 * apart]
    agrees = f"; JAX's derivative of `expand` agrees with {near[0]}" if near else ""
    message = f"`{method}` and the vjp disagree: ⟨u, J v⟩ is {left:.6g}, ⟨Jᵀ u, v⟩ is {right:.6g}{agrees}"
    return Row(method, path, FAIL, message, DISAGREE if method == "jvp" else "jax.linearize gives another derivative")


def _pushed_by_definition(definition: Any, x: Arrays, v: Arrays, u: Arrays) -> float:
    """Return ⟨u, J v⟩ by JAX's derivative of `expand`; NaN if there is none."""
    try:
        return _inner(u, jax.jvp(definition, tuple(x), tuple(v))[1])[0]
    except Exception:  # a kernel, say
        return math.nan


def _inner(a: Arrays, b: Arrays) -> tuple[float, float]:
    """Return the inner product by JAX's convention, and the sum of its terms' sizes."""
    terms = [as64(x) * as64(y) for x, y in zip(a, b, strict=True)]
    return sum(float(np.real(p).sum()) for p in terms), sum(float(np.abs(p).sum()) for p in terms)


# --- batching ---


@_each_primitive
def batch(call: PrimitiveCall) -> Iterator[Row]:
    """Under vmap the primitive returns what `expand` returns for each example, whichever arguments are batched.

    JAX also calls `batch` where none is, as in `jax.vmap(lambda s: s * jax.grad(f)(x))(scales)`.
    """
    near = [(x * NEARBY).astype(x.dtype) if is_inexact(x) else x for x in call.operands]
    every = tuple(range(len(call.operands)))
    for positions, last in [*((p, False) for p in _chosen(every, subsets(len(every)))), ((), False), (every, True)]:
        axes = [(call.operands[i].ndim if last else 0) if i in positions else None for i in every]
        stacked = [x if a is None else jnp.stack([x, n], a) for x, n, a in zip(call.operands, near, axes, strict=True)]

        def run(stacked: Arrays, axes: Any = axes) -> Any:
            return jax.vmap(lambda leaves: call.value(*leaves), in_axes=(axes,), axis_size=2)(stacked)

        def one_by_one(positions: Positions = positions) -> Arrays:
            others = [n if i in positions else x for i, x, n in zip(every, call.operands, near, strict=True)]
            return [jnp.stack(pair) for pair in zip(*map(_expand(call), (call.operands, others)), strict=True)]

        path = _path(call, positions) + (", last axis" if last else "" if positions else " (none batched)")
        try:
            found, eps = _run(call, run, stacked)
        except Exception as error:
            yield _raised("batch", path, error, FAIL)
            return
        different = _differs_in_value("batch", path, found, one_by_one(), eps)
        yield different or Row("batch", path, PASS, "under vmap it returns what `expand` returns")


def _expand(call: PrimitiveCall) -> Callable[[Arrays], Arrays]:
    compiled = jax.jit(call.definition)
    return lambda operands: list(compiled(*operands))


# --- transposition ---


@_each_primitive
def transpose(call: PrimitiveCall) -> Iterator[Row]:
    """The primitive's `transpose` is JAX's transpose of `expand`, for the arguments in which `expand` is linear."""
    if not call.defines("transpose"):
        return
    u = _random_like([y for y in jax.eval_shape(call.definition, *call.operands) if is_inexact(y)], 2)
    rows = []
    for positions in _chosen(call.differentiable, all_and_each(len(call.differentiable))):
        f, definition, x = (*_functions(call, positions), [call.operands[i] for i in positions])
        try:
            expected = jax.jit(lambda u, d=definition, x=x: jax.linear_transpose(d, *x)(u))(u)
        except Exception:  # not linear in these
            continue
        path = _path(call, positions)
        try:
            found, eps = _run(call, lambda u, f=f, x=x: jax.linear_transpose(f, *x)(u), u)
        except Exception as error:
            rows.append(_raised("transpose", path, error, FAIL))
            continue
        different = _differs_in_value("transpose", path, found, expected, eps, "JAX's transpose of `expand`")
        rows.append(different or Row("transpose", path, PASS, "it is JAX's transpose of `expand`"))
    if not rows:
        message = "JAX finds `expand` linear in none of its arguments, so there is no transpose to compare with"
        rows = [Row("transpose", call.name, UNSUPPORTED, message)]
    # A transpose may be written for some arguments only: the others are those for which it raises.
    works = any(row.status == PASS for row in rows)
    for row in rows:
        raised = works and row.status == FAIL and row.message.startswith("raises")
        yield Row(row.check, row.path, UNSUPPORTED, row.message) if raised else row


# --- remat ---


@_each_primitive
def remat(call: PrimitiveCall) -> Iterator[Row]:
    """Under jax.checkpoint the gradient and the value are the same as without."""
    f, definition = _functions(call, tuple(call.differentiable))
    x = [call.operands[i] for i in call.differentiable]
    u = _random_like(jax.eval_shape(definition, *x), 2)
    hints = {"jax.checkpoint": f"`jvp` and the vjp disagree: {DISAGREE}"}
    if call.has_remat:
        hints["jax.checkpoint with jax_remat3"] = "the rule for remat (`remat`, `defremat`) computes something else"
    for name, hint in hints.items():

        def run(x: Arrays, u: Arrays) -> Any:
            (y, pull), (plain_y, plain) = jax.vjp(jax.checkpoint(f), *x), jax.vjp(f, *x)
            return y, pull(u), plain_y, plain(u)

        path = f"{call.name} ({name})"
        try:
            with new_remat() if name.endswith("jax_remat3") else contextlib.nullcontext():
                (y, found, plain_y, expected), eps = _run(call, run, x, u)
        except Exception as error:
            yield _raised("remat", path, error, FAIL)
            continue
        different = _differs_in_value("remat", path, y, plain_y, eps, "without remat")
        different = different or _differs_in_value("remat", path, found, expected, eps, "without remat", hint)
        yield different or Row("remat", path, PASS, "the same gradient")


# --- shared ---


def _functions(call: PrimitiveCall, positions: Positions) -> tuple[Callable[..., Arrays], Callable[..., Arrays]]:
    """Return the primitive and its definition as functions of these arguments, with the floating-point outputs."""

    def of(method: Callable[..., Arrays]) -> Callable[..., Arrays]:
        def f(*x: Any) -> Arrays:
            filled = list(call.operands)
            for i, value in zip(positions, x, strict=True):
                filled[i] = value
            return [y for y in method(*filled) if is_inexact(y)]

        return f

    return of(call.value), of(call.definition)


def _run(call: PrimitiveCall, f: Callable[..., Any], *operands: Any) -> tuple[Any, float]:
    """Run a function compiled, and return also the largest eps of the dtypes in which it and `expand` compute."""
    traced = jax.jit(f).trace(*operands)
    programs = [traced.jaxpr, jax.make_jaxpr(call.definition)(*call.operands)]
    results = [v.aval for program in programs for e in equations(program) for v in e.outvars]
    eps = [float(finfo(a.dtype).eps) for a in [*results, *call.operands] if is_inexact(a)]
    return traced.lower().compile()(*operands), max(eps)


def _differs_in_value(
    check: str, path: str, found: Arrays, expected: Arrays, eps: float, whose: str = "`expand`", hint: str = ""
) -> Row | None:
    """Return a failure if an output is another one, up to rounding relative to its largest element."""
    for ours, want in zip(found, expected, strict=True):
        if ours.shape != want.shape or ours.dtype != want.dtype:
            types = [f"{y.dtype}{list(y.shape)}" for y in (ours, want)]
            return Row(check, path, FAIL, f"it returns {types[0]}, {whose} {types[1]}", hint)
        if not is_inexact(ours):
            continue
        a, b = as64(ours), as64(want)
        scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
        wrong = differs(a, b, np.full(b.shape, math.sqrt(eps) * scale))
        if wrong.any():
            i = worst_index(a, b, wrong)
            return Row(check, path, FAIL, f"it returns {a[i]:.6g} at {index_text(i)}, {whose} {b[i]:.6g}", hint)
    return None


def _raised(check: str, path: str, error: Exception, status: str, why: str = "") -> Row:
    """Return what an error means: a method that is missing is no mistake."""
    if missing := missing_method(error):
        return Row(check, path, UNSUPPORTED, missing)
    return Row(check, path, status, f"raises {first_line(error)}{why}")


def _path(call: PrimitiveCall, positions: Sequence[int]) -> str:
    if len(positions) in (len(call.operands), len(call.differentiable)):
        return call.name
    return call.name + "".join(call.paths[i] for i in positions)


def _chosen(positions: Sequence[int], masks: list[Mask]) -> list[Positions]:
    """Return the positions that each mask chooses."""
    return [tuple(p for p, chosen in zip(positions, mask, strict=True) if chosen) for mask in masks]


def _random_like(arrays: Any, seed: int) -> Arrays:
    """Return random arrays of these types, with numbers between −2 and 2 of which none is near 0."""
    rng = np.random.default_rng(seed)

    def array(x: Any) -> Any:
        values = rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 2.0, x.shape)
        if jnp.issubdtype(x.dtype, np.complexfloating):
            values = values + 1j * rng.uniform(0.5, 2.0, x.shape)
        return jnp.asarray(values).astype(x.dtype)

    return [array(x) for x in arrays]
