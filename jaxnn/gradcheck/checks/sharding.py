"""The check over several devices: under `shard_map`, and at arguments that are sharded over an Explicit mesh axis."""

import collections
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._trial import Findings, Trial
from jaxnn.gradcheck._two_devices import SECONDS
from jaxnn.gradcheck.checks.examples import (
    MOST_SUBSETS_OF,
    Expected,
    Mask,
    all_and_each,
    attempt,
    compare,
    examples,
    label,
    one_by_one,
    stacked,
)
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, NOTE, UNSUPPORTED, Row
from jaxnn.tracing import kinds, rewriting
from jaxnn.tracing.errors import first_line
from jaxnn.tracing.placement import with_axis_type

COLLECTIVES = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)


def shard_map(t: Trial) -> Findings:
    """Over several devices the gradients are the same: under `shard_map`, and over an Explicit axis of a mesh."""
    cause = ""
    if t.two_devices is not None:
        found, cause = t.two_devices.rows("shard_map", SECONDS, " after the other checks")
        if not cause:
            yield from found
            return
    mesh = t.mesh or jax.make_mesh((min(2, jax.device_count()),), ("devices",), axis_types=(AxisType.Auto,))
    if mesh.shape[mesh.axis_names[0]] == 1:
        tried = f"; a process with two could not decide it: {cause}" if cause else ""
        cure = "start Python with JAX_NUM_CPU_DEVICES=2, or give a `mesh=`"
        yield Row("shard_map", "values", INCONCLUSIVE, f"on one device only the types are checked{tried}; {cure}")
        yield from _under_shard_map(t, mesh)
        return
    yield from _under_shard_map(t, mesh)
    yield from _over_an_explicit_axis(t, mesh)


# --- under shard_map ---


def _under_shard_map(t: Trial, mesh: Mesh) -> Findings:
    """Each device has its own example: the gradients are those of the examples, with check_vma on and off."""
    s, mesh = t.subject, with_axis_type(mesh, AxisType.Auto)
    axis, spec = mesh.axis_names[0], _spec(mesh.axis_names[0])
    count = mesh.shape[axis]
    each, dys = examples(t, count)
    stacked_dy = [jnp.stack(group) for group in zip(*dys, strict=True)]

    def sharded(mask: Mask, check_vma: bool, kind: str) -> Arrays:
        def body(points: Arrays, rest: Arrays) -> Arrays:
            local = [p[0] if m else p for p, m in zip(points, mask, strict=True)]
            return [_varying(y[None], axis, check_vma) for y in s.value(kind, local, rest)]

        specs = ([spec if m else _spec() for m in mask], _spec())
        value = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=check_vma)
        gradient = jax.jit(lambda p, r, d: jax.vjp(lambda p: value(p, r), p)[1](d)[0])
        return list(gradient(stacked(t, mask, each), s.rest, stacked_dy))

    has_callback = any(e.primitive.name in rewriting.OPAQUE_CALLS for e in kinds.equations(t.jaxpr))
    masks = all_and_each(len(s.points))
    expected = {mask: one_by_one(t, mask, each, dys) for mask in masks}
    for check_vma in (True, False):
        for mask in masks:
            name = f"{label(t, mask)} (check_vma={check_vma})"
            run = functools.partial(sharded, mask, check_vma)
            row = attempt(t, "shard_map", name, run, expected[mask])
            if row.status == FAIL and check_vma and has_callback:
                # JAX does not mark a callback's results as varying over the mesh, and sums their cotangents.
                message = f"JAX forgets the mesh axis at a callback: {row.message}; use check_vma=False"
                row = Row("shard_map", name, UNSUPPORTED, message)
            yield row


def _spec(*axes: str | None) -> Any:
    return jax.P(*axes)  # type: ignore[no-untyped-call]


def _varying(y: Any, axis: str, check_vma: bool) -> Any:
    """Mark an output that does not depend on the sharded arguments as varying, so that it can be stacked."""
    if not check_vma or axis in jax.typeof(y).manual_axis_type.varying:
        return y
    return lax.pcast(y, axis, to="varying")


# --- over an Explicit axis ---


def _over_an_explicit_axis(t: Trial, mesh: Mesh) -> Findings:
    """The gradient under jit is the same where an argument is sharded over an Explicit axis, and as cheap to gather."""
    if t.subject.eager:
        yield Row("shard_map", "Explicit", UNSUPPORTED, f"the rule cannot be traced: {t.not_traced}")
        return
    mesh = with_axis_type(mesh, AxisType.Explicit)
    count, tried = mesh.shape[mesh.axis_names[0]], 0
    for leaf, point in enumerate(t.subject.points):
        # An array without elements has nothing to shard, and JAX 0.10 cannot place one.
        axis = next((k for k, n in enumerate(point.shape) if point.size and n % count == 0), None)
        if axis is not None and tried < MOST_SUBSETS_OF:
            tried += 1
            yield from _with_one_sharded(t, mesh, leaf, axis)
    if not tried:
        message = f"no argument has an axis that {count} devices divide; give one that has"
        yield Row("shard_map", "Explicit", INCONCLUSIVE, message)


def _with_one_sharded(t: Trial, mesh: Mesh, leaf: int, axis: int) -> Findings:
    """Shard one argument along one of its axes, and compare outside of the mesh."""
    name = f"{t.subject.paths[leaf]} (Explicit)"
    with jax.set_mesh(mesh):
        found, programs, errors = _gradient_there(t, mesh, leaf, axis)
    if found:
        yield compare(t, "shard_map", name, found, Expected(t.custom))
        yield from _more_collectives(name, programs)
        return
    if "definition" in errors:
        message = f"neither f nor its definition runs on an Explicit mesh: {errors['definition']}"
    else:
        cure = "in bwd, give products `out_sharding=jax.typeof(x).sharding`, or `jax.sharding.reshard(dx, ...)` to it"
        message = f"the rule does not run on an Explicit mesh, its definition does: {errors['custom']}; {cure}"
    yield Row("shard_map", name, UNSUPPORTED, message)


def _gradient_there(t: Trial, mesh: Mesh, leaf: int, axis: int) -> tuple[Arrays, dict[str, Any], dict[str, str]]:
    """Return the rule's gradient with one argument sharded, the programs by kind, and why a kind does not compile.

    If the rule does not run so, all arrays with the argument's first axis are sharded, too.
    """
    errors: dict[str, str] = {}
    for operands in _placements(t, mesh, leaf, axis):
        programs = {}
        for kind in ("custom", "definition"):
            try:
                programs[kind] = _compiled(t, kind, operands)
            except Exception as error:
                errors[kind] = first_line(error)
        if "custom" in programs:
            return [as64(g) for g in programs["custom"](*operands)], programs, errors
    return [], {}, errors


def _placements(t: Trial, mesh: Mesh, leaf: int, axis: int) -> Iterator[tuple[Arrays, Arrays, Arrays]]:
    """Yield the points, the other arrays and the cotangents, placed: one point sharded, then its companions too."""
    s, name = t.subject, mesh.axis_names[0]
    length = s.points[leaf].shape[axis]

    def placed(x: Any, where: int | None) -> Any:
        spec = _spec() if where is None else _spec(*(None,) * where, name)
        return jax.device_put(x, NamedSharding(mesh, spec))

    def with_its_axis(x: Any) -> int | None:
        return 0 if axis == 0 and x.ndim and x.shape[0] == length else None  # a batch's labels and masks, for example

    rest, dy = ([placed(x, None) for x in group] for group in (s.rest, t.dy))
    yield [placed(p, axis if i == leaf else None) for i, p in enumerate(s.points)], rest, dy
    points, others = ([with_its_axis(x) for x in group] for group in (s.points, s.rest))
    if [*points, *others].count(0) > 1:
        yield list(map(placed, s.points, points)), list(map(placed, s.rest, others)), dy


def _compiled(t: Trial, kind: str, operands: tuple[Arrays, Arrays, Arrays]) -> Any:
    """Compile the gradient of a kind at placed operands."""
    s = t.subject

    def gradient(points: Arrays, rest: Arrays, dy: Arrays) -> Arrays:
        y, pull = jax.vjp(lambda p: s.value(kind, p, rest), points)
        return list(pull([_like(d.astype(o.dtype), o) for d, o in zip(dy, y, strict=True)])[0])

    return jax.jit(gradient).lower(*operands).compile()


def _like(d: Any, y: Any) -> Any:
    return jax.sharding.reshard(d, jax.typeof(y).sharding)  # type: ignore[no-untyped-call]


def _more_collectives(name: str, programs: dict[str, Any]) -> Findings:
    """Say where the rule communicates more than JAX's derivative of the definition, if that runs there."""
    if "definition" not in programs:
        return
    ours, theirs = (_collectives(programs[kind]) for kind in ("custom", "definition"))
    if ours.total() > theirs.total():
        counts = f"{_listed(ours)}; JAX's derivative of the definition has {_listed(theirs)}"
        yield Row("shard_map", name, NOTE, f"the rule's gradient has {counts}")


def _collectives(program: Any) -> collections.Counter[str]:
    return collections.Counter(COLLECTIVES.findall(program.as_text()))


def _listed(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "no collective"
