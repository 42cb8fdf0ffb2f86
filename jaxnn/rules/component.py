"""What a component carries beside its rule: its plain definition, its formulas, and its name in profiles."""

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import NamedTuple, ParamSpec, Protocol, TypeVar, cast

import jax

P = ParamSpec("P")
R = TypeVar("R")


class Component(Protocol[P, R]):
    """A public function with a custom rule, and beside it the plain definition it was derived from."""

    definition: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the component."""


def defined_by(definition: Callable[P, R]) -> Callable[[Callable[P, R]], Component[P, R]]:
    """Attach the plain definition to a component, as `component.definition`, and run it under its name's scope.

    The scope is what a profile, or a compiled program's metadata, shows of the operations of both passes.
    """

    def attach(function: Callable[P, R]) -> Component[P, R]:
        name = cast(FunctionType, function).__name__

        @functools.wraps(function)
        def named(*args: P.args, **kwargs: P.kwargs) -> R:
            with jax.named_scope(name):
                return function(*args, **kwargs)

        component = cast(Component[P, R], named)
        component.definition = definition
        return component

    return attach


class Formulas(NamedTuple):
    """A function as it is written on paper, in LaTeX."""

    definition: str
    gradients: dict[str, tuple[str, str]]  # argument: its cotangent, and the local derivative in words


FORMULAS: dict[tuple[str, str], Formulas] = {}  # by the function's file and name, both of which a jaxpr records


def with_formulas(definition: str, **gradients: tuple[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the formulas of a function with a custom rule, so that its equation in a jaxpr leads to them."""

    def attach(function: Callable[P, R]) -> Callable[P, R]:
        code = cast(FunctionType, inspect.unwrap(function)).__code__  # the tests' checks of annotations wrap it
        FORMULAS[code.co_filename, code.co_name] = Formulas(definition, gradients)
        return function

    return attach
