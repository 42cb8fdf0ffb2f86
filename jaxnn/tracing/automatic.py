"""automatic(f): the same function, with JAX's own derivative in place of every hand-written one."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from jaxnn.tracing import jaxprs, rewriting
from jaxnn.tracing.errors import BRANCHING_ERRORS, branching_message
from jaxnn.tracing.functions import function_name, is_array

P = ParamSpec("P")
R = TypeVar("R")


def automatic(f: Callable[P, R]) -> Callable[P, R]:
    """Return `f` with every hand-written rule inside it replaced by JAX's derivative of its definition.

    The definition is the body of a `custom_vjp`, `custom_gradient` or `custom_jvp` function, the method `expand` of a
    `HiPrim` (`VJPHiPrimitive` before jax 0.12), the linear function of a `linear_call`, and the solver of
    `jax.lax.custom_root` or `custom_linear_solve`. Rules are replaced at any depth: under jit, scan, while_loop, cond,
    switch, vmap, remat, shard_map and pmap, and in the definitions of other rules. The rules of JAX's own functions
    stay, except its `custom_vjp` rules: they hold conventions such as relu'(0) = 0, and have a forward mode.

    The result takes the same arguments, returns the same values, and works under every transformation. Unlike a
    `custom_vjp` function it also works under `jax.jvp`, `jax.jacfwd` and `jax.hessian`. Arrays are traced; leaves of
    the arguments that are no arrays, such as Python scalars, are static.

    Args:
      f: any function of JAX arrays, from any library. Where `f` itself calls `jax.grad`, the rule is part of f's
        value and stays: write `jax.grad(automatic(g))`, not `automatic(jax.grad(g))`.

    Returns:
      A function with f's signature.

    Raises:
      TypeError: if `f` is no function. Also when the result is called, if Python code in `f` branches on an array's
        value, or if `f` calls a `HiPrim` without `expand`. Also when the result is differentiated, if `f` calls a
        primitive with rules of its own, or a definition calls an operation without a derivative (a callback, a
        kernel). The message names it.

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
      JAX's documentation: "Custom derivative rules for Python code", on rules; "Writing custom interpreters in JAX",
      on programs that transform a function's trace.
    """
    return without_hand_written_rules(f)


def without_hand_written_rules(f: Callable[P, R], also_replace: rewriting.CallFilter | None = None) -> Callable[P, R]:
    """Like `automatic(f)`, and also replaces the rules of JAX's own that `also_replace` selects."""
    if not callable(f):
        raise TypeError(f"`f` ({type(f).__name__} {f!r}) must be a function of arrays".replace("\n", " "))

    @functools.wraps(f)
    def without_rules(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, tree = jax.tree.flatten((args, kwargs))
        try:
            return _call(f, tree, leaves, [is_array(leaf) for leaf in leaves], also_replace)
        except jax.errors.UnexpectedTracerError:
            # An array in nondiff_argnums must not be traced: it is a constant, unless the caller differentiates it.
            return _call(f, tree, leaves, [isinstance(leaf, jax.core.Tracer) for leaf in leaves], also_replace)

    return without_rules


def _call(
    f: Callable[..., R], tree: Any, leaves: list[Any], traced: list[bool], also_replace: rewriting.CallFilter | None
) -> R:
    """Trace f, take the rules out of the trace, and run it."""
    arrays = [leaf for leaf, is_traced in zip(leaves, traced, strict=True) if is_traced]
    returned: list[Any] = []  # the structure of f's result, and those of its leaves that are no arrays

    def of_arrays(*values: Any) -> list[Any]:
        given = iter(values)
        filled = [next(given) if is_traced else leaf for leaf, is_traced in zip(leaves, traced, strict=True)]
        args, kwargs = jax.tree.unflatten(tree, filled)
        outputs, structure = jax.tree.flatten(f(*args, **kwargs))
        returned[:] = [structure, [None if is_array(y) else y for y in outputs]]
        return [y for y in outputs if is_array(y)]

    try:
        jaxpr = jax.make_jaxpr(of_arrays)(*arrays)
    except BRANCHING_ERRORS as error:
        raise TypeError(branching_message(function_name(f), error)) from None
    computed = iter(jaxprs.run(rewriting.without_rules(jaxpr, also_replace), *arrays))
    structure, outputs = returned
    result: R = jax.tree.unflatten(structure, [next(computed) if y is None else y for y in outputs])
    return result
