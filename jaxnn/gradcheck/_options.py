"""The arguments of `check`: what is refused before anything runs."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxnn.accelerators.targets import target
from jaxnn.gradcheck.checks import FULL, RULE
from jaxnn.tracing.functions import function_name

LEVELS = {"rule": RULE, "full": FULL}


def validate(
    f: Any, args: Any, kwargs: Any, reference: Any, argnums: Any, level: Any, skip: Any, mesh: Any, rtol: Any,
    targets: Any, seed: Any,
) -> None:  # fmt: skip
    """Raise TypeError or ValueError for the first of check's arguments that is not as it must be."""
    for name, value in (("f", f), ("reference", reference)):
        if not callable(value) and not (name == "reference" and value is None):
            raise TypeError(f"`{name}` ({value!r}) must be a function of arrays".replace("\n", " "))
    if kwargs is not None and not isinstance(kwargs, dict):
        raise TypeError(f"`kwargs` ({type(kwargs).__name__}) must be a dict of f's keyword arguments")
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs))):
        raise TypeError("`args` must be values, not what jit, grad or vmap traces: call check outside of them")
    for name, value in (("f", f), ("reference", reference)):
        _check_signature(name, value, args, kwargs or {})
    if not isinstance(level, str) or level not in LEVELS:
        raise ValueError(f"`level` ({level!r}) must be one of {', '.join(map(repr, LEVELS))}")
    if not isinstance(skip, list | tuple | set | frozenset) or not all(s in tuple(FULL) for s in skip):
        raise ValueError(f"`skip` ({skip!r}) must be a sequence of names of checks: {', '.join(FULL)}")
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise ValueError(f"`mesh` ({mesh!r}) must be a jax.sharding.Mesh, or None for two of the devices there are")
    if rtol is not None and not (isinstance(rtol, float | np.floating) and 0 < rtol < 1):
        raise ValueError(f"`rtol` ({rtol!r}) must be a number between 0 and 1, or None for 8 eps of the dtype")
    if not isinstance(targets, list | tuple) or not all(isinstance(name, str) for name in targets):
        raise TypeError(f"`targets` ({targets!r}) must be a sequence of names, as ('tpu:v5e:2x2', 'cuda:h100')")
    for name in targets:
        target(name)  # raises for an unknown one
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"`seed` ({seed!r}) must be an integer of at least 0")
    if argnums is not None:
        chosen = argnums if isinstance(argnums, Sequence) else [argnums]
        if not all(_is_position(i, len(args)) for i in chosen):
            raise ValueError(f"`argnums` ({argnums!r}) must be positions among the {len(args)} arguments given")


def _is_position(i: Any, count: int) -> bool:
    return bool(isinstance(i, int | np.integer) and not isinstance(i, bool) and -count <= i < count)


def _check_signature(name: str, f: Any, args: Any, kwargs: Any) -> None:
    """Require that f can be called with the arguments."""
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # None, or a callable without a signature
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        if next(iter(signature.parameters), "") == "self":
            raise ValueError(
                f"`{name}` ({function_name(f)}) is a rule on a method, which JAX does not bind to its object; "
                "give a function that calls it as Class.method(object, x)"
            ) from None
        raise ValueError(
            f"`{name}` ({function_name(f)}{' '.join(str(signature).split())}) must take `args` and `kwargs`, but "
            f"{error}; pass keyword arguments as kwargs={{...}}"
        ) from None
