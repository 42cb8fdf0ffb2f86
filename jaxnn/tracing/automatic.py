"""automatic(f): the same function, with JAX's own derivative in the place of every hand-written one."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from jaxnn.tracing import jaxprs, rewriting
from jaxnn.tracing.functions import BRANCHED, branched, is_array

P = ParamSpec("P")
R = TypeVar("R")


def automatic(f: Callable[P, R]) -> Callable[P, R]:
    """Return `f` with every `custom_vjp` rule inside it replaced by JAX's derivative of its definition.

    The definition is the body of the `custom_vjp` function. Rules are replaced however deep they are: under jit,
    scan, while_loop, cond, switch, vmap, remat, shard_map and pmap, in another rule's definition, in `custom_jvp`
    functions. `custom_jvp` rules stay: they hold conventions such as relu'(0) = 0, and have a forward mode.

    The result takes the same arguments, returns the same values, and works under every transformation: unlike a
    `custom_vjp` function also under `jax.jvp`, `jax.jacfwd` and `jax.hessian`. Arrays are traced; Python scalars and
    other leaves of the arguments that are no arrays are static.

    Args:
      f: any function of JAX arrays, of whatever library. A rule that a `jax.grad` *inside* `f` has already used is
        part of f's value and stays: write `jax.grad(automatic(g))` for `automatic(jax.grad(g))`.

    Returns:
      A function with f's signature.

    Raises:
      TypeError: when `f` is no function; when called, if Python code in `f` branches on an array's value, or calls a
        function with a rule inside `jax.lax.custom_root`, whose own rule has used it; when differentiated, if a
        definition calls what JAX has no derivative of (a callback, a kernel), which is named.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnn
      >>> @jax.custom_vjp
      ... def square(x):
      ...     return x * x
      >>> square.defvjp(lambda x: (square(x), x), lambda x, dy: (3 * x * dy,))  # wrong: the derivative is 2 x
      >>> jax.grad(square)(5.0), jax.grad(jaxnn.automatic(square))(5.0)
      (Array(15., dtype=float32, weak_type=True), Array(10., dtype=float32, weak_type=True))
      >>> float(jax.hessian(jaxnn.automatic(square))(5.0))
      2.0

    References:
      JAX's documentation, "Custom derivative rules for Python code", of rules; "Writing custom interpreters in JAX", of
      programs that transform a function's trace.
    """
    return replaced(f)


def replaced(f: Callable[P, R], strip: rewriting.Strip | None = None) -> Callable[P, R]:
    """Return `automatic(f)`, without the custom_jvp rules that `strip` names as well."""
    if not callable(f):
        raise TypeError(f"`f` ({type(f).__name__} {f!r}) must be a function of arrays".replace("\n", " "))

    @functools.wraps(f)
    def without_rules(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, tree = jax.tree.flatten((args, kwargs))
        try:
            return _evaluate(f, tree, leaves, [is_array(leaf) for leaf in leaves], strip)
        except jax.errors.UnexpectedTracerError:
            # An array that must not be traced (in nondiff_argnums) is a constant, if nobody differentiates it.
            return _evaluate(f, tree, leaves, [isinstance(leaf, jax.core.Tracer) for leaf in leaves], strip)

    return without_rules


def _evaluate(
    f: Callable[..., R], tree: Any, leaves: list[Any], traced: list[bool], strip: rewriting.Strip | None
) -> R:
    arrays = [leaf for leaf, is_traced in zip(leaves, traced, strict=True) if is_traced]
    returned: list[Any] = []

    def of_arrays(*values: Any) -> list[Any]:
        given = iter(values)
        filled = [next(given) if is_traced else leaf for leaf, is_traced in zip(leaves, traced, strict=True)]
        args, kwargs = jax.tree.unflatten(tree, filled)
        outputs, structure = jax.tree.flatten(f(*args, **kwargs))
        returned[:] = [structure, [None if is_array(y) else y for y in outputs]]
        return [y for y in outputs if is_array(y)]

    try:
        jaxpr = jaxprs.trace(of_arrays, *arrays)
    except BRANCHED as error:
        name = getattr(f, "__name__", type(f).__name__)
        raise TypeError(branched(name, error)) from None
    computed = iter(jaxprs.evaluate(rewriting.without_rules(jaxpr, strip), *arrays))
    structure, outputs = returned
    result: R = jax.tree.unflatten(structure, [next(computed) if y is None else y for y in outputs])
    return result
