"""The function under check, as a function of a flat list of floating-point arrays that returns one."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.tracing import jaxprs, kinds
from jaxnn.tracing.automatic import replaced
from jaxnn.tracing.functions import function_name, is_array, is_inexact

Arrays = list[Any]
Function = Callable[..., Any]


def as64(x: Any) -> np.ndarray[Any, Any]:
    """Return an array on the host, in float64 (or complex128), to be read only: it may be the array itself."""
    host = np.asarray(x)
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64, copy=False)


class Subject:
    """A function with example arguments, and the three derivatives of it.

    Attributes:
      points: the floating-point arrays that derivatives are taken with respect to.
      paths: their names, "x" or "params['w']".
      rest: the other arrays: integers, keys, masks, and those not asked for.
      frozen: arrays that go past the rule (in nondiff_argnums, or closed over by it), each with the reason.
      outputs: the types of the floating-point outputs.
      output_paths: their names.
      other_outputs: the types of the others, as text.
    """

    def __init__(
        self, f: Function, args: tuple[Any, ...], kwargs: dict[str, Any], reference: Function | None,
        argnums: tuple[int, ...] | None,
    ) -> None:  # fmt: skip
        self.f, self.reference, self.name = f, reference, function_name(f)
        leaves, self.tree = jax.tree.flatten((args, kwargs))
        self.leaves = _with_arrays(leaves)
        named = jax.tree_util.tree_flatten_with_path((args, kwargs))[0]
        chosen = [argnums is None or (path[0].idx == 0 and path[1].idx in argnums) for path, _ in named]
        self.diff = [i for i, x in enumerate(self.leaves) if is_array(x) and is_inexact(x) and chosen[i]]
        self.others = [i for i, x in enumerate(self.leaves) if is_array(x) and i not in self.diff]
        self.names = _names(f, [path for path, _ in named])
        self.frozen: list[tuple[str, str]] = []  # arrays that go past the rule, and how
        self.native: dict[str, Any] = {}  # the compiled gradients at the arguments' own types
        self.programs: dict[Any, Any] = {}
        self.eager = False  # the rule cannot be traced
        self.functions: dict[str, Function] = {"custom": f}
        self.structure: Any = None  # of what was last returned

    @property
    def points(self) -> Arrays:
        return [self.leaves[i] for i in self.diff]

    @property
    def paths(self) -> list[str]:
        return [self.names[i] for i in self.diff]

    @property
    def rest(self) -> Arrays:
        return [self.leaves[i] for i in self.others]

    def freeze(self, leaf: int, reason: str) -> None:
        """Make an array a constant."""
        if reason:
            self.frozen.append((self.names[leaf], reason))
        self.diff = [i for i in self.diff if i != leaf]
        self.others = [i for i in self.others if i != leaf]

    def call(self, kind: str, points: Arrays, rest: Arrays) -> tuple[Arrays, Arrays]:
        """Return the floating-point outputs, and the others."""
        filled = list(self.leaves)
        for i, x in zip([*self.diff, *self.others], [*points, *rest], strict=True):
            filled[i] = x
        args, kwargs = jax.tree.unflatten(self.tree, filled)
        outputs, structure = jax.tree.flatten(self.functions[kind](*args, **kwargs))
        arrays = [y if is_array(y) else jnp.asarray(y) for y in outputs if is_array(y) or isinstance(y, float | int)]
        self.structure = structure
        return [y for y in arrays if is_inexact(y)], [y for y in arrays if not is_inexact(y)]

    def value(self, kind: str, points: Arrays, rest: Arrays) -> Arrays:
        """Return the floating-point outputs."""
        return self.call(kind, points, rest)[0]

    def others_of(self, kind: str, points: Arrays, rest: Arrays) -> Arrays:
        """Return the outputs that are not floating-point (indices, masks, keys) as numbers."""
        return numbers(self.call(kind, points, rest)[1])

    def others_as_ruled(self, kind: str, points: Arrays, rest: Arrays) -> Arrays:
        """Return them as the forward rule computes them."""
        _, _, others = jax.vjp(lambda *points: self.call(kind, list(points), rest), *points, has_aux=True)
        return numbers(others)

    def vjp(self, kind: str, points: Arrays, rest: Arrays, dy: Arrays) -> tuple[Arrays, Arrays]:
        """Return the floating-point outputs as the forward rule computes them, and the cotangents of the points."""
        y, pull = jax.vjp(lambda *points: self.value(kind, list(points), rest), *points)
        return y, list(pull([d.astype(o.dtype) for d, o in zip(dy, y, strict=True)]))

    def output_types(self, forward_rule: bool = False) -> tuple[Any, list[str], Arrays]:
        """Return the structure, types and floating-point types of what f, or its forward rule, returns."""

        def outputs(points: Arrays, rest: Arrays) -> tuple[Arrays, Arrays]:
            if not forward_rule:
                return self.call("custom", points, rest)
            inexact, _, others = jax.vjp(lambda *p: self.call("custom", list(p), rest), *points, has_aux=True)
            return list(inexact), others

        inexact, others = jax.eval_shape(outputs, self.points, self.rest)
        return self.structure, [f"{y.dtype}{list(y.shape)}" for y in [*inexact, *others]], inexact

    def find_outputs(self) -> None:
        """Run the function's types, to know what it returns."""
        structure, types, self.outputs = self.output_types()
        self.other_outputs = types[len(self.outputs) :]
        numbered = jax.tree.unflatten(structure, list(range(structure.num_leaves)))
        paths = [f"y{jax.tree_util.keystr(p)}" for p, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]
        same = len(paths) == len(self.outputs)
        self.output_paths = paths if same else [f"y[{i}]" for i in range(len(self.outputs))]

    def trace(self, kind: str = "custom") -> Any:
        """Return the jaxpr of the floating-point outputs."""
        return jaxprs.trace(lambda p, r: self.value(kind, p, r), self.points, self.rest)

    def find_automatic(self) -> None:
        """Provide JAX's derivative: of the reference if there is one, else of f without its rules.

        The custom_jvp rules that are not JAX's own go too, and JAX's own if `f` itself is one.
        """
        whole = isinstance(self.f, jax.custom_jvp)
        own = None
        if whole:
            top = next((e for e in jaxprs.equations(self.trace()) if kinds.is_custom_jvp(e)), None)
            own = None if top is None else kinds.rule_name(top)

        def strip(eqn: Any) -> bool:
            return not kinds.written_in_jax(eqn) or (own is not None and kinds.rule_name(eqn) == own)

        self.functions["definition"] = replaced(self.f, strip)
        self.functions["automatic"] = self.reference or self.functions["definition"]

    def moved_vjp(self, kind: str, points: Arrays, rest: Arrays, dy: Arrays, delta: Any, phase: Any) -> Arrays:
        """Return the cotangents that the rule computes from residuals which are relatively off by up to `delta`."""
        y, pull = jax.vjp(lambda *points: self.value(kind, list(points), rest), *points)

        def moved(residual: Any) -> Any:
            if not is_array(residual) or not is_inexact(residual):
                return residual
            count = jnp.arange(residual.size, dtype=delta.dtype).reshape(residual.shape)
            sign = jnp.cos(2.4 * count + 1.0 + phase)  # cheaper than random bits
            wide = jnp.promote_types(residual.dtype, delta.dtype)
            return (residual.astype(wide) * (1 + delta * sign).astype(wide)).astype(residual.dtype)

        return list(jax.tree.map(moved, pull)([d.astype(o.dtype) for d, o in zip(dy, y, strict=True)]))

    def run(self, what: str, kind: str, *operands: Any) -> Any:
        """Run `value`, `vjp` or `moved_vjp`, compiled once per types; uncompiled if the rule cannot be traced."""

        def bound(*operands: Any) -> Any:  # new each time: JAX remembers traces by function
            return getattr(self, what)(kind, *operands)

        if kind == "custom" and self.eager:
            return bound(*operands)
        types = jax.tree.map(lambda x: (np.shape(x), str(getattr(x, "dtype", ""))), operands)
        key = (what, kind, str(types), jax.config.jax_enable_x64)  # type: ignore[attr-defined]
        if key not in self.programs:
            self.programs[key] = jax.jit(bound).lower(*operands).compile()
            if what == "vjp" and inexact_structs(operands[0]) == inexact_structs(self.points):
                self.native.setdefault(kind, self.programs[key])
        return self.programs[key](*operands)

    def cotangents(self, seed: int, probe: int = 0, *, coarse: bool = False) -> Arrays:
        """Return random output cotangents between −2 and 2, none near 0.

        They have all digits of their dtype, so that a rule that rounds them to a narrower one is found out; coarse
        ones, odd sixteenths, are exact in every dtype.
        """
        rng = np.random.default_rng((seed, 1, probe))

        def cotangent(y: Any) -> Any:
            sixteenths = rng.integers(-16, 16, y.shape, np.int8) / np.float32(8) + np.float32(0.0625)
            digits = 0.0 if coarse else rng.uniform(-0.03, 0.03, y.shape)
            if jnp.issubdtype(y.dtype, np.complexfloating):
                digits = digits + 1j * (rng.integers(-16, 16, y.shape, np.int8) / np.float32(8) + np.float32(0.0625))
            return (sixteenths + digits).astype(y.dtype)

        return [jnp.asarray(cotangent(y)) for y in self.outputs]

    def widened(self, arrays: Arrays) -> Arrays:
        """Return inexact arrays in float64; call it inside `float64_mode()`."""
        return [jnp.asarray(as64(x)) if is_array(x) and is_inexact(x) else x for x in arrays]


def _with_arrays(leaves: Arrays) -> Arrays:
    """Turn NumPy arrays into JAX's; Python floats too if there is no other array to differentiate."""
    arrays = [jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) and is_array(x) else x for x in leaves]
    if any(is_array(x) and is_inexact(x) for x in arrays):
        return arrays
    return [jnp.asarray(x) if isinstance(x, float) else x for x in arrays]


def _names(f: Any, paths: list[Any]) -> list[str]:
    """Name the leaves by f's parameters."""
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


def numbers(arrays: Arrays) -> Arrays:
    """Return keys as their data, which can be compared."""
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in arrays]


def inexact_structs(arrays: Arrays) -> Arrays:
    """Return the types of arrays."""
    return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]  # type: ignore[no-untyped-call]
