"""gradcheck.check and assert_correct."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxnn.gradcheck._options import LEVELS, validate
from jaxnn.gradcheck._preparation import prepare
from jaxnn.gradcheck._subject import Subject
from jaxnn.gradcheck._targets import targets as compile_for
from jaxnn.gradcheck._trial import Trial
from jaxnn.gradcheck._two_devices import two_devices
from jaxnn.gradcheck.checks import RULE, Check
from jaxnn.gradcheck.checks.sharding import shard_map
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, Report, Row
from jaxnn.tracing.contexts import quiet
from jaxnn.tracing.errors import first_line
from jaxnn.tracing.functions import function_name
from jaxnn.tracing.placement import outside_of_meshes


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
    targets: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """Check the derivative of `f` at `args`: its rule against JAX's derivative of the definition, and numerically.

    Let u be the cotangent of the output. Three derivatives are compared at every element of every argument: the rule's
    `vjp(f)(u)`; JAX's derivative of the definition, `vjp(automatic(f))(u)`, in float64; and the numeric derivative
    (⟨u, f(x + hv)⟩ − ⟨u, f(x − hv)⟩) / 2h, at the step h with the smallest error of a sweep. An element may be off by
    8 eps of its argument's dtype, times its own response to relative perturbations of arguments, cotangent and
    residuals. The size of the array does not matter. An element for which neither the second nor the third number can
    be had is unproven.

    level="rule" checks the signature, the types, the forward rule's value (`primal`), those three numbers (`gradient`)
    and `linearity` in u. level="full" adds `integers`, `kinks`, `extremes`, `precision` in three dtypes, `staging`
    (jit, scan, cond, remat), `vmap`, `shard_map`, `second_order`, the methods of each `HiPrim` (`jvp`, `lin`, `batch`,
    `transpose`, `remat`), `determinism` and `closure`, and reports `stop_gradient`, `forward_mode`, `residuals` and
    `cost`. The caller's JAX configuration is left as it was.

    Where the arguments lie does not matter: they are judged as plain arrays on the default device, outside of the mesh
    in force. `f` keeps its mesh if it does not run without one. `shard_map` needs two devices: a process that has one
    starts a child process on two virtual CPU devices for it, which imports the module of `f`.

    Args:
      f: a function of arrays, with hand-written rules of any kind anywhere inside, or none. It is called often.
      *args: its arguments, pytrees of arrays; derivatives are checked at these values. Every floating-point array is
        differentiated (a Python float only where there is no array); integers, booleans and keys are passed on, and
        other leaves are static. In place of a ref (`jax.new_ref`), given or closed over, `f` gets a new one with its
        content at each call; what the refs hold afterwards is unspecified. `kinks` and `extremes` also round, tie,
        scale and replace by infinity those arguments that look unconstrained: of both signs, not of unit length, not
        symmetric.
      kwargs: its keyword arguments; arrays among them are differentiated too.
      reference: a function that JAX differentiates in place of the definition. Give one if the definition has no
        derivative (a kernel, a callback), or if the rule deliberately differs from it (straight-through, clipping).
      argnums: the positional arguments to differentiate; None for all.
      level: "full", or "rule" for the quick core.
      skip: names of checks to leave out.
      mesh: the mesh for `shard_map`, whose first axis is used; None for two of the devices there are, or for two of a
        child process.
      rtol: the error allowed per unit of response; None for 8 eps.
      targets: accelerators to compile f and both passes of its rule for, which need not be there: "tpu:v5e:2x2",
        "cuda:h100" (jaxnn/accelerators). Each has a row `targets` with the bytes moved and the temporary memory, beside
        those of JAX's derivative. It FAILs where f compiles and its gradient does not, and where the rule needs
        twice the temporaries, and float32 copies, for arguments narrower than float32.
      seed: the seed of the cotangents and directions.

    Returns:
      A `Report`. `print` it for a table. `report.verdict` is "right", "wrong" or "unproven"; `report.ok` is true for
      "right"; `report.failures` are the rows that fail, `report.undecided` those that leave it unproven.

    Raises:
      TypeError: if `f` is no function, branches in Python on an array's value, or has no floating-point argument or
        output; or if JAX cannot differentiate it and it has no rule.
      ValueError: if an option is not one of those above, if `f` raises at `args`, or if a part of an argument lies on
        the devices of another process.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnn import gradcheck
      >>> @jax.custom_vjp
      ... def bend(x, w):
      ...     return jnp.sin(x) * w
      >>> bend.defvjp(lambda x, w: (bend(x, w), (x, w)), lambda r, dy: (dy * jnp.cos(r[0]) * r[1], -dy * jnp.sin(r[0])))
      >>> report = gradcheck.check(bend, jnp.array([0.5, -2.0]), jnp.array([1.5, 3.0]), level="rule")
      >>> report.verdict
      'wrong'
      >>> [(row.check, row.path, row.hint) for row in report.failures]
      [('gradient', 'w', 'the sign: minus the derivative')]

    References:
      The notes, "Learning From Data: gradient descent", check a derivative by moving an input a little; Griewank and
      Walther, Evaluating Derivatives (2008), on the step that balances truncation against rounding.
    """
    started = time.perf_counter()
    validate(f, args, kwargs, reference, argnums, level, skip, mesh, rtol, targets, seed)
    kwargs, seed = kwargs or {}, int(seed)
    if argnums is not None:
        argnums = tuple(int(i) % len(args) for i in ([argnums] if isinstance(argnums, int | np.integer) else argnums))
    checks = {name: check for name, check in LEVELS[level].items() if name not in skip}
    if targets:
        checks[compile_for.__name__] = compile_for
    sharded = mesh is None and shard_map.__name__ in checks
    with (
        quiet(),
        np.errstate(all="ignore"),
        two_devices(sharded, f, args, kwargs, {"argnums": argnums, "seed": seed, "rtol": rtol}) as child,
        outside_of_meshes(f, args, kwargs) as change,
    ):
        subject = Subject(change(f), args, kwargs, reference and change(reference), argnums)
        sent = f, args, kwargs, reference, argnums
        trial = Trial(subject, level, seed, rtol, mesh, tuple(targets), sent, child)
        rows = _run(trial, checks)
    options = {"kwargs": kwargs or None, "reference": reference, "argnums": argnums, "mesh": mesh, "rtol": rtol}
    options["targets"] = tuple(targets) or None
    repro = _repro(f, options, level, skip, seed)
    seconds = time.perf_counter() - started
    has_rule = trial.jaxpr is None or trial.has_rule
    return Report(
        function_name(f), tuple(rows), repro, seed, seconds, has_rule, trial.costs, trial.sweep, trial.errors
    )  # fmt: skip


def assert_correct(f: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raise AssertionError unless `check(f, *args, **options)` says "right", with the rows why in at most thirty lines.

    Args:
      f: see `check`.
      *args: see `check`.
      **options: see `check`.

    Raises:
      AssertionError: if the verdict is "wrong" or "unproven"; the message names the elements and the cure.
      TypeError, ValueError: as `check`.

    Example:
      >>> import jax.numpy as jnp, jaxnn
      >>> from jaxnn import gradcheck
      >>> gradcheck.assert_correct(jaxnn.sigmoid, jnp.array([-1.0, 0.5]), level="rule")
    """
    __tracebackhide__ = True  # pytest shows the lines of the report, and not these
    report = check(f, *args, **options)
    if not report.ok:
        raise AssertionError(report.failed_lines())


def _repro(f: Any, options: dict[str, Any], level: str, skip: Sequence[str], seed: int) -> str:
    """Return the call that gives the report again, with the names of those options that have no short text."""
    chosen = [
        f"{name}={value if name in ('argnums', 'rtol', 'targets') else name}"
        for name, value in options.items()
        if value is not None
    ]
    chosen += [f"level={level!r}"] * (level != "full") + [f"skip={tuple(skip)}"] * bool(skip)
    return f"gradcheck.check({', '.join([function_name(f), '*args', *chosen, f'seed={seed}'])})"


def _run(trial: Trial, checks: dict[str, Check]) -> list[Row]:
    """Run the checks one after another, unless f cannot be run as they need it."""
    subject = trial.subject
    if failures := prepare(trial):
        return failures
    progress = _Progress(len(checks))
    arguments, outputs = len(subject.points), len(subject.outputs)
    rows = [Row("signature", subject.name, PASS, f"{arguments} differentiable arguments, {outputs} outputs")]
    waits = shard_map.__name__ if trial.two_devices is not None else ""  # for another process, so it comes last
    for name, check in sorted(checks.items(), key=lambda item: item[0] == waits):
        progress.show(name)
        try:
            rows.extend(check(trial))
        except Exception as error:
            if name in RULE:
                raise  # `prepare` has run the rule: without this check "right" would mean nothing
            rows.append(
                Row(name, subject.name, INCONCLUSIVE, f"the check could not run: {first_line(error)}", decides=True)
            )
    progress.clear()
    rows = _without_proof_if_f_changes(trial, rows)
    order = ["signature", *checks]
    return sorted(rows, key=lambda row: order.index(row.check) if row.check in order else 0)


def _without_proof_if_f_changes(trial: Trial, rows: list[Row]) -> list[Row]:
    """Take the failures back if f itself returns other values when it is traced again."""
    if all(row.status != FAIL for row in rows) or trial.subject.eager or trial.is_the_same_again():
        return rows
    why = (
        "f returns other values when it is traced again, so nothing is proven: "
        "give it what it changes, or its randomness, as an argument"
    )
    return [
        dataclasses.replace(row, status=INCONCLUSIVE, message=f"{row.message}; {why}", hint="", decides=True)
        if row.status == FAIL else row
        for row in rows
    ]  # fmt: skip


class _Progress:
    """The name of the check that is running, shown on a terminal from the third second on."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.started = count, 0, time.perf_counter()

    def show(self, name: str) -> None:
        self.done += 1
        if sys.stderr.isatty() and time.perf_counter() - self.started > 2:
            print(f"\r\x1b[Kgradcheck {self.done}/{self.count} {name}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
