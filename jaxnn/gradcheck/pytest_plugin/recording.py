"""Recording of the calls of hand-written rules, with the values of their arguments, while other code runs.

A rule is called with arrays, or with tracers. Arrays are recorded as they are. Tracers pass through `mark`, a primitive
that returns its operands. It is compiled to nothing, so the program's results, and its machine code, stay the same.
Where the program runs without compilation, the mark sees values. Where a program with marks is compiled, the recorder
runs a second copy of it first, on the same arguments. In the copy each mark hands its values to the recorder.
"""

import contextlib
import dataclasses
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax._src import (
    pjit,  # the only place where a call of a compiled function can be seen
    source_info_util,  # which has the only way to keep this file out of a program's source information
)
from jax.interpreters import ad, batching, mlir

from jaxnn.gradcheck.pytest_plugin.places import Place, place_of, tracer_in
from jaxnn.gradcheck.pytest_plugin.records import Record, Rule
from jaxnn.gradcheck.pytest_plugin.values import examples, hardness, host, is_key, plain
from jaxnn.tracing import jaxprs
from jaxnn.tracing.functions import is_array
from jaxnn.tracing.kinds import HiPrim

source_info_util.register_exclusion(__file__)

# JAX's solvers are rules that take the rule from their caller. Their arguments are the constants of several functions,
# which only together are those of one.
SOLVERS = "jax._src.lax.control_flow.solves"
CANDIDATES = 3  # the hardest of the first 3 calls of a signature is kept
MARKS = 50  # at most 50 traced calls of a signature are marked while no values have arrived
MEMORY = 2**30  # bytes that all recorded arguments may have
LARGEST = 2**26  # bytes that the arguments of one call may have


@dataclasses.dataclass(eq=False)
class Call:
    """A call of a rule with tracers: everything but the values of these."""

    recorder: "Recorder"
    record: Record
    leaves: list[Any]  # None in place of the tracers
    places: list[int]  # of the tracers
    shards: list[Any] = dataclasses.field(default_factory=list)  # the values that came from the devices of a mesh

    def __repr__(self) -> str:
        return str(self.record.rule.name)


class Recorder:
    """What was called. `recording(recorder)` fills it.

    Attributes:
      rules: what is reached, by the place of the rule.
      test: the test that is running.
      options: of `gradcheck.check`, for the calls of this test.
    """

    def __init__(self, wanted: Callable[[Place], bool]) -> None:
        self.wanted = wanted
        self.rules: dict[str, Rule] = {}
        self.test = ""
        self.options: dict[str, Any] = {}
        self.bytes = 0
        self.replays = False
        self.marked = False  # whether any program may have marks
        self.pending = False  # whether the program that ran last has marks that wait for values
        self.lock = threading.RLock()
        self.local = threading.local()
        self.places: weakref.WeakKeyDictionary[Any, Place | None] = weakref.WeakKeyDictionary()

    @property
    def paused(self) -> bool:
        return getattr(self.local, "paused", False)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing in this thread."""
        before, self.local.paused = self.paused, True
        try:
            yield
        finally:
            self.local.paused = before

    def place(self, rule: Any) -> Place | None:
        """Return where a rule is defined, if it is one of those that are wanted."""
        key = type(rule) if isinstance(rule, HiPrim) else rule
        if key not in self.places:
            place = place_of(rule, self.wanted)
            self.places[key] = None if place is None or place.module == SOLVERS else place
        return self.places[key]

    def reached(self, rule: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Record | None]:
        """Note a call; return the arguments to call the rule with, and the record of such calls."""
        place = self.place(rule)
        if place is None:
            return args, kwargs, None
        with self.lock, self.pause(), _undisturbed():
            new = Rule(f"{place.module}.{place.name}", place.file, place.line, place.kind)
            found = self.rules.setdefault(place.key, new)
            found.tests.setdefault(self.test, None)
            leaves, tree = jax.tree.flatten((args, kwargs))
            numbers = list(map(plain, leaves))
            record = found.record(rule, tree, numbers)
            record.tests.setdefault(self.test, None)
            record.options.update(self.options)
            if variable := tracer_in(rule):
                record.left_out = f"it closes over a tracer, `{variable}`, and exists only while that is traced"
                return args, kwargs, record
            traced = [i for i, x in enumerate(leaves) if isinstance(x, jax.core.Tracer) and is_array(x)]
            if not traced:
                if not any(isinstance(x, jax.core.Tracer) for x in leaves):
                    self.keep(record, numbers)
                return args, kwargs, record
            if (record.seen >= CANDIDATES and found.differentiated) or record.marks >= MARKS:
                return args, kwargs, record
            record.marks += 1
            rest = [None if i in traced else host(x) for i, x in enumerate(numbers)]
            record.note_axes(leaves)
            self.marked = True
        call = Call(self, record, rest, traced)
        values = mark_p.bind(*(leaves[i] for i in traced), call=call, batches=())  # type: ignore[no-untyped-call]
        for i, x in zip(traced, values, strict=True):
            leaves[i] = x
        args, kwargs = jax.tree.unflatten(tree, leaves)
        return args, kwargs, record

    def forget(self, record: Record) -> None:
        """Drop what is known of a call that raised, as a test may want it to."""
        if record.seen + record.marks > 1:
            return  # other calls were like it
        rule = record.rule
        rule.records = {key: other for key, other in rule.records.items() if other is not record}
        if not rule.records:
            self.rules = {key: other for key, other in self.rules.items() if other is not rule}

    def values(self, call: Call, arrays: Any, batches: Any) -> None:
        """Take the values of the tracers of a call."""
        record = call.record
        record.batched |= bool(batches)
        if record.seen >= CANDIDATES:
            return
        with self.lock, self.pause(), _undisturbed():
            for one in examples(list(map(host, arrays)), batches):
                leaves = list(call.leaves)
                for i, x in zip(call.places, one, strict=True):
                    leaves[i] = x
                if not record.axes:
                    self.keep(record, leaves)
                    continue
                call.shards.append(leaves)  # of each device, in any order
                if len(call.shards) == record.devices:
                    self.keep(record, record.stacked(call.shards))
                    call.shards = []

    def keep(self, record: Record, leaves: list[Any]) -> None:
        """Keep the hardest of several calls with the same signature."""
        record.seen += 1
        if record.seen > CANDIDATES:
            return
        size = sum(x.nbytes for x in leaves if is_array(x) and not is_key(x))
        if size > LARGEST or self.bytes + size > MEMORY:
            record.left_out = (
                f"its arguments have {size / 2**20:.0f} MiB; the limits are 64 MiB a call and 1 GiB in all"
            )
            return
        leaves = list(map(host, leaves))
        asked = sum(map(hardness, leaves))
        if record.leaves is None or asked > record.hardness:
            self.bytes += size if record.leaves is None else 0
            record.leaves, record.hardness, record.left_out = leaves, asked, ""

    def replay(self, jaxpr: Any, args: Any) -> None:
        """Run a copy of a program in which each mark hands its values over."""
        self.pending = False
        if not self.marked or self.paused:
            return
        waiting = _waiting(jaxpr, self)
        if not waiting:
            return
        for record in waiting:
            record.runs += 1
        with self.pause(), _undisturbed():
            self.replays = True
            try:
                copy = jax.jit(lambda *args: jaxprs.run(jaxpr, *args))
                jax.block_until_ready(copy(*args))  # type: ignore[no-untyped-call]
                jax.effects_barrier()  # type: ignore[no-untyped-call]
            except Exception as error:  # the program itself will raise it, or runs where the copy does not
                for record in waiting:
                    record.left_out = f"a copy of its program could not run: {type(error).__name__}"
            finally:
                self.replays = False
        self.pending = bool(_waiting(jaxpr, self))


def _waiting(jaxpr: Any, recorder: Recorder) -> list[Record]:
    """Return the records that wait for values from a program's marks."""
    calls = [eqn.params["call"] for eqn in jaxprs.equations(jaxpr) if eqn.primitive is mark_p]
    records = {id(call.record): call.record for call in calls if call.recorder is recorder}
    return [record for record in records.values() if record.seen < CANDIDATES and record.runs < CANDIDATES]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let the recorder do what the test may forbid: warnings, and on a GPU or TPU transfers to the host."""
    with warnings.catch_warnings(), jax.transfer_guard("allow"):
        warnings.simplefilter("ignore")
        yield


# --- the mark ---

mark_p = jex.Primitive("mark")
mark_p.multiple_results = True


@mark_p.def_impl  # type: ignore[untyped-decorator]
def _run_mark(*arrays: Any, call: Call, batches: Any) -> list[Any]:
    if not call.recorder.paused:
        call.recorder.values(call, arrays, batches)
    return list(arrays)


@mark_p.def_abstract_eval  # type: ignore[untyped-decorator]
def _type_mark(*avals: Any, call: Call, batches: Any) -> list[Any]:
    return list(avals)


def _jvp_mark(primals: Any, tangents: Any, *, call: Call, batches: Any) -> Any:
    call.record.rule.differentiated = True
    return mark_p.bind(*primals, call=call, batches=batches), list(tangents)  # type: ignore[no-untyped-call]


def _batch_mark(arrays: Any, axes: Any, *, call: Call, batches: Any) -> Any:
    return mark_p.bind(*arrays, call=call, batches=(tuple(axes), *batches)), axes  # type: ignore[no-untyped-call]


def _transpose_mark(cotangents: Any, *operands: Any, call: Call, batches: Any) -> Any:
    pairs = zip(cotangents, operands, strict=True)
    return [ct if ad.is_undefined_primal(x) else None for ct, x in pairs]  # type: ignore[no-untyped-call]


def _lower_mark(ctx: Any, *operands: Any, call: Call, batches: Any) -> Any:
    if call.recorder.replays:

        def hand_over(*arrays: Any) -> list[Any]:
            keys = [is_key(x) for x in arrays]
            implementations = [jax.random.key_impl(x) if k else None for x, k in zip(arrays, keys, strict=True)]
            data = [jax.random.key_data(x) if k else x for x, k in zip(arrays, keys, strict=True)]

            def take(*data: Any) -> None:
                call.recorder.values(call, list(map(_with_key, data, implementations)), batches)

            jax.debug.callback(take, *data)
            return []

        mlir.lower_fun(hand_over, multiple_results=True)(ctx.replace(avals_out=[]), *operands)
    return operands


def _with_key(data: Any, implementation: Any) -> Any:
    return data if implementation is None else jax.random.wrap_key_data(jnp.asarray(data), impl=implementation)


ad.primitive_jvps[mark_p] = _jvp_mark
ad.primitive_transposes[mark_p] = _transpose_mark
batching.primitive_batchers[mark_p] = _batch_mark
mlir.register_lowering(mark_p, _lower_mark)


# --- where JAX is changed while a recorder is on ---


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Record the calls of rules, until the end of the context."""
    jitted = type(jax.jit(lambda: None))
    with contextlib.ExitStack() as stack:

        def change(owner: Any, name: str, of: Callable[[Any], Any]) -> None:
            before = getattr(owner, name, None)
            if before is None:
                return  # a newer JAX has another name for it: some values are not seen
            after = of(before)
            setattr(owner, name, after)
            stack.callback(setattr, owner, name, before)

        for kind in (jax.custom_vjp, jax.custom_jvp, HiPrim):
            change(kind, "__call__", functools.partial(_recorded, recorder))
        change(pjit, "_pjit_call_impl_python", functools.partial(_replayed, recorder))
        change(pjit, "_get_fastpath_data", functools.partial(_kept_slow, recorder))
        for owner, name in ((pjit, "jit_trace"), (jitted, "trace"), (pjit, "jit_lower"), (jitted, "lower")):
            change(owner, name, functools.partial(_unmarked, recorder))
        yield


def _recorded(recorder: Recorder, call: Any) -> Any:
    @functools.wraps(call)
    def recorded(rule: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        record = None
        if not recorder.paused:
            # An error in the recording, from third-party arguments or tracers, must not reach the test.
            with contextlib.suppress(Exception):
                args, kwargs, record = recorder.reached(rule, args, kwargs)
        try:
            return call(rule, *args, **kwargs)
        except BaseException:
            if record is not None:
                recorder.forget(record)
            raise

    return recorded


def _replayed(recorder: Recorder, run: Any) -> Any:
    @functools.wraps(run)
    def replayed(*args: Any, jaxpr: Any, **params: Any) -> Any:
        recorder.replay(jaxpr, args)
        return run(*args, jaxpr=jaxpr, **params)

    return replayed


def _kept_slow(recorder: Recorder, fast: Any) -> Any:
    """Keep JAX from its compiled fast path, which bypasses Python, while the recorder waits for a program's values."""

    @functools.wraps(fast)
    def kept_slow(*args: Any, **kwargs: Any) -> Any:
        pending, recorder.pending = recorder.pending, False
        return None if pending else fast(*args, **kwargs)

    return kept_slow


def _unmarked(recorder: Recorder, trace: Any) -> Any:
    """Leave marks out of programs that are traced to be read, by make_jaxpr, trace and lower."""

    @functools.wraps(trace)
    def unmarked(*args: Any, **kwargs: Any) -> Any:
        with recorder.pause():
            return trace(*args, **kwargs)

    return unmarked
