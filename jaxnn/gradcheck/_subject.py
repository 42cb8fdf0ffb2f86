"""The function under check, as a function from a flat list of floating-point arrays to another such list."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.tracing import jaxprs, kinds
from jaxnn.tracing.automatic import automatic, without_hand_written_rules
from jaxnn.tracing.functions import function_name, is_array, is_inexact, is_ref
from jaxnn.tracing.placement import unplaced
from jaxnn.tracing.refs import with_new_refs

Arrays = list[Any]
Function = Callable[..., Any]


def as64(x: Any) -> np.ndarray[Any, Any]:
    """Return an array on the host, in float64 (or complex128). It may be the array itself, so do not write to it."""
    host = np.asarray(x)
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64, copy=False)


class Subject:
    """A function with example arguments, and its derivatives.

    A derivative is of one of three kinds: "custom" by the function's own rules, "definition" by JAX from the function
    without its rules, "automatic" by JAX from the reference, or from the definition where there is no reference.

    Attributes:
      points: the floating-point arrays to differentiate by.
      paths: their names, "x" or "params['w']".
      rest: the other arrays: integers, keys, masks, those that `argnums` leaves out, and what refs hold.
      frozen: arrays that bypass the rule (in nondiff_argnums, or closed over by it), each with the reason.
      outputs: the types of the floating-point outputs.
      output_paths: their names.
      other_outputs: the types of the other outputs, as text.
      eager: whether the rule cannot be traced, and is run on plain values.
    """

    def __init__(
        self, f: Function, args: tuple[Any, ...], kwargs: dict[str, Any], reference: Function | None,
        argnums: tuple[int, ...] | None,
    ) -> None:  # fmt: skip
        self.f, self.reference, self.name = f, reference, function_name(f)
        named, self.tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
        self.names = argument_names(f, [path for path, _ in named])
        self.ref_leaves = {i for i, (_, x) in enumerate(named) if is_ref(x)}
        leaves = [x[...] if is_ref(x) else x for _, x in named]
        self.leaves = _with_arrays(list(map(unplaced, leaves, self.names)))
        chosen = [argnums is None or (path[0].idx == 0 and path[1].idx in argnums) for path, _ in named]
        arrays = [i for i, x in enumerate(self.leaves) if is_array(x)]
        self.diff_leaves = [i for i in arrays if is_inexact(self.leaves[i]) and chosen[i] and i not in self.ref_leaves]
        self.other_leaves = [i for i in arrays if i not in self.diff_leaves]
        self.frozen: list[tuple[str, str]] = []
        self.eager = False
        self.functions: dict[str, Function] = {"custom": f}
        self.programs: dict[Any, Any] = {}  # what is compiled
        self.native: dict[str, Any] = {}  # of these, the gradients at the arguments' own types, by kind
        self.structure: Any = None  # of the outputs that f returned last

    @property
    def points(self) -> Arrays:
        return [self.leaves[i] for i in self.diff_leaves]

    @property
    def paths(self) -> list[str]:
        return [self.names[i] for i in self.diff_leaves]

    @property
    def rest(self) -> Arrays:
        return [self.leaves[i] for i in self.other_leaves]

    def freeze(self, leaf: int, reason: str) -> None:
        """Make an array a constant."""
        if reason:
            self.frozen.append((self.names[leaf], reason))
        self.diff_leaves = [i for i in self.diff_leaves if i != leaf]
        self.other_leaves = [i for i in self.other_leaves if i != leaf]

    def call(self, kind: str, points: Arrays, rest: Arrays) -> tuple[Arrays, Arrays]:
        """Return the floating-point outputs, and the others."""
        filled = list(self.leaves)
        for i, x in zip([*self.diff_leaves, *self.other_leaves], [*points, *self.with_refs(rest)], strict=True):
            filled[i] = x
        args, kwargs = jax.tree.unflatten(self.tree, filled)
        outputs, structure = jax.tree.flatten(self.functions[kind](*args, **kwargs))
        arrays = [y if is_array(y) else jnp.asarray(y) for y in outputs if is_array(y) or isinstance(y, float | int)]
        self.structure = structure
        return [y for y in arrays if is_inexact(y)], [y for y in arrays if not is_inexact(y)]

    def with_refs(self, rest: Arrays) -> Arrays:
        """Return `rest` with a new ref for the content of each: every evaluation begins with the same content."""
        leaves = zip(self.other_leaves, rest, strict=True)
        return [jax.new_ref(x) if i in self.ref_leaves and not is_ref(x) else x for i, x in leaves]

    def value(self, kind: str, points: Arrays, rest: Arrays) -> Arrays:
        """Return the floating-point outputs."""
        return self.call(kind, points, rest)[0]

    def others(self, kind: str, points: Arrays, rest: Arrays) -> Arrays:
        """Return the other outputs (indices, masks, keys)."""
        return _comparable(self.call(kind, points, rest)[1])

    def others_by_forward_rule(self, kind: str, points: Arrays, rest: Arrays) -> Arrays:
        """Return the other outputs as the forward rule computes them."""
        _, _, others = jax.vjp(lambda *points: self.call(kind, list(points), rest), *points, has_aux=True)
        return _comparable(others)

    def vjp(self, kind: str, points: Arrays, rest: Arrays, dy: Arrays) -> tuple[Arrays, Arrays]:
        """Return the floating-point outputs as the forward rule computes them, and the points' cotangents."""
        rest = self.with_refs(rest)  # outside of what is differentiated, as a caller has them
        y, pull = jax.vjp(lambda *points: self.value(kind, list(points), rest), *points)
        return y, list(pull([d.astype(o.dtype) for d, o in zip(dy, y, strict=True)]))

    def output_types(self, forward_rule: bool = False) -> tuple[Any, list[str], Arrays]:
        """Return the structure of what f (or its forward rule) returns, all types as text, and the inexact types."""

        def outputs(points: Arrays, rest: Arrays) -> tuple[Arrays, Arrays]:
            if not forward_rule:
                return self.call("custom", points, rest)
            inexact, _, others = jax.vjp(lambda *p: self.call("custom", list(p), rest), *points, has_aux=True)
            return list(inexact), others

        inexact, others = jax.eval_shape(outputs, self.points, self.rest)
        return self.structure, [f"{y.dtype}{list(y.shape)}" for y in [*inexact, *others]], inexact

    def find_outputs(self) -> None:
        """Find out what f returns, by tracing it."""
        structure, types, self.outputs = self.output_types()
        self.other_outputs = types[len(self.outputs) :]
        numbered = jax.tree.unflatten(structure, list(range(structure.num_leaves)))
        paths = [f"y{jax.tree_util.keystr(p)}" for p, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]
        same = len(paths) == len(self.outputs)
        self.output_paths = paths if same else [f"y[{i}]" for i in range(len(self.outputs))]

    def trace(self) -> Any:
        """Return the jaxpr of the floating-point outputs; from then on f has new refs in place of those it holds."""
        traced = jax.make_jaxpr(lambda p, r: self.value("custom", p, r))(self.points, self.rest)
        if any(map(is_ref, traced.consts)):
            self.f = self.functions["custom"] = with_new_refs(self.f, traced)
            return self.trace()
        return traced

    def find_automatic(self) -> None:
        """Provide the functions of the kinds "definition" and "automatic".

        The definition also loses JAX's own custom_jvp rule where `f` itself is one.
        """
        own = None
        if isinstance(self.f, jax.custom_jvp):
            calls = map(kinds.rule_call, kinds.equations(self.trace()))
            own = next((call.name for call in calls if call is not None and call.kind == "custom_jvp"), None)
        self.functions["definition"] = (
            automatic(self.f) if own is None else without_hand_written_rules(self.f, lambda call: call.name == own)
        )
        self.functions["automatic"] = self.reference or self.functions["definition"]

    def perturbed_vjp(self, kind: str, points: Arrays, rest: Arrays, dy: Arrays, delta: Any, phase: Any) -> Arrays:
        """Return the cotangents that the rule computes from residuals with relative errors of up to `delta`."""
        y, pull = jax.vjp(lambda *points: self.value(kind, list(points), rest), *points)
        perturbed = functools.partial(_perturbed, delta, phase)
        return list(jax.tree.map(perturbed, pull)([d.astype(o.dtype) for d, o in zip(dy, y, strict=True)]))

    def rounded_vjp(self, kind: str, points: Arrays, rest: Arrays, dy: Arrays, delta: Any, phase: Any) -> Arrays:
        """Return the same with errors of that size also in the result of each operation of the backward rule."""
        y, pull = jax.vjp(lambda *points: self.value(kind, list(points), rest), *points)
        perturbed = functools.partial(_perturbed, delta, phase)
        cotangents = [d.astype(o.dtype) for d, o in zip(dy, y, strict=True)]
        traced = jax.make_jaxpr(jax.tree.map(perturbed, pull))(cotangents)
        return jaxprs.run_each(traced, cotangents, lambda i, x: _perturbed(delta, phase + i, x))

    def run(self, method: str, kind: str, *operands: Any) -> Any:
        """Run the method of that name, compiled once for each set of types; uncompiled if the rule is not traceable."""

        def bound(*operands: Any) -> Any:  # a new function each time, because JAX remembers traces by function
            return getattr(self, method)(kind, *operands)

        if kind == "custom" and self.eager:
            return bound(*operands)
        types = jax.tree.map(lambda x: (np.shape(x), str(getattr(x, "dtype", ""))), operands)
        key = (method, kind, str(types), jax.config.jax_enable_x64)  # type: ignore[attr-defined]
        if key not in self.programs:
            self.programs[key] = jax.jit(bound).lower(*operands).compile()
            if method == "vjp" and _types(operands[0]) == _types(self.points):
                self.native.setdefault(kind, self.programs[key])
        return self.programs[key](*operands)

    def cotangents(self, seed: int, probe: int = 0, *, coarse: bool = False) -> Arrays:
        """Return random output cotangents between −2 and 2, none near 0.

        They use all digits of their dtype, which exposes a rule that rounds them to a narrower one. `coarse` ones are
        odd sixteenths, exact in every dtype.
        """
        rng = np.random.default_rng((seed, 1, probe))

        def cotangent(y: Any) -> Any:
            sixteenths = rng.integers(-16, 16, y.shape, np.int8) / np.float32(8) + np.float32(0.0625)
            digits = 0.0 if coarse else rng.uniform(-0.03, 0.03, y.shape)
            if jnp.issubdtype(y.dtype, np.complexfloating):
                digits = digits + 1j * (rng.integers(-16, 16, y.shape, np.int8) / np.float32(8) + np.float32(0.0625))
            return (sixteenths + digits).astype(y.dtype)

        return [jnp.asarray(cotangent(y)) for y in self.outputs]

    def in_float64(self, arrays: Arrays) -> Arrays:
        """Return the inexact ones of the arrays in float64; call this inside `float64_mode()`."""
        return [jnp.asarray(as64(x)) if is_array(x) and is_inexact(x) else x for x in arrays]


def _perturbed(delta: Any, phase: Any, x: Any) -> Any:
    """Return an array with relative errors of up to `delta`."""
    if not is_array(x) or not is_inexact(x):
        return x
    count = jnp.arange(x.size, dtype=delta.dtype).reshape(x.shape)
    error = jnp.cos(2.4 * count + 1.0 + phase)  # as irregular as needed, and cheaper than random bits
    dtype = jnp.promote_types(x.dtype, delta.dtype)
    return (x.astype(dtype) * (1 + delta * error).astype(dtype)).astype(x.dtype)


def _with_arrays(leaves: Arrays) -> Arrays:
    """Turn NumPy arrays into JAX's; Python floats too if there is no floating-point array."""
    arrays = [jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) and is_array(x) else x for x in leaves]
    if any(is_array(x) and is_inexact(x) for x in arrays):
        return arrays
    return [jnp.asarray(x) if isinstance(x, float) else x for x in arrays]


def argument_names(f: Any, paths: list[Any]) -> list[str]:
    """Name the leaves of the arguments by f's parameters."""
    try:
        parameters = [
            p.name for p in inspect.signature(f).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
    except (TypeError, ValueError):
        parameters = []
    names = []
    for path in paths:
        if path[0].idx == 0:
            i = path[1].idx
            head = parameters[i] if i < len(parameters) else f"args[{i}]"
        else:
            head = str(path[1].key)
        names.append(head + jax.tree_util.keystr(path[2:]))
    return names


def _comparable(arrays: Arrays) -> Arrays:
    """Return the arrays with keys as their bits, which can be compared."""
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in arrays]


def _types(arrays: Arrays) -> Arrays:
    return [jaxprs.shape_and_dtype(x) for x in arrays]
