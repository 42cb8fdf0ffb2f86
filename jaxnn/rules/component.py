"""What a component carries beside its rule: its plain definition, its formulas, and its name in profiles."""

from collections.abc import Callable
from types import FunctionType
from typing import NamedTuple, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class Component(Protocol[P, R]):
    """A public function with a custom rule, and beside it the plain definition it was derived from."""

    definition: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the component."""


def defined_by(definition: Callable[P, R]) -> Callable[[Callable[P, R]], Component[P, R]]:
    """Attach the plain definition to a component, as `component.definition`."""

    def attach(function: Callable[P, R]) -> Component[P, R]:
        component = cast(Component[P, R], function)
        component.definition = definition
        return component

    return attach


class Formulas(NamedTuple):
    """A function as it is written on paper, in LaTeX."""

    definition: str
    gradients: dict[
        str, tuple[str, str]
    ]  # of each argument: its cotangent, and in words what the local derivative says


FORMULAS: dict[tuple[str, str], Formulas] = {}  # by the file and the name of the function, which a jaxpr tells


def with_formulas(definition: str, **gradients: tuple[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Attach its formulas to a function with a custom rule, where whoever meets it in a jaxpr finds them."""

    def attach(function: Callable[P, R]) -> Callable[P, R]:
        code = cast(FunctionType, function).__code__
        FORMULAS[code.co_filename, code.co_name] = Formulas(definition, gradients)
        return function

    return attach
