"""An exercise: a forward pass that is given, a backward pass to be written, and the gradients that are right.

What is right is never written down. It is JAX's derivative, in float64, of the forward pass that the student is given.
To have the gradient of an intermediate value, a zero is added to it where it is assigned.
"""

import ast
import contextlib
import dataclasses
import functools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.errors import JaxnnError
from jaxnn.gradcheck.tolerance import Truth, finfo, largest_response, random_signs, response
from jaxnn.tracing.contexts import float64_mode, quiet

Arrays = dict[str, Any]  # values by name
BASE, HALF = "base", "in float16"  # the name of the first case, at ordinary arguments; and of one in float16
DRAWS = 3  # random perturbations by which the tolerance is estimated


class ExerciseError(JaxnnError):
    """What is wrong with an exercise or a hand-in, in one line."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Arguments at which a hand-in is tried.

    Attributes:
      name: what is said of a hand-in that is wrong only here, such as "at ties".
      inputs: the inputs by name, in float64 or of an integer dtype.
      dtype: that of the floating-point arguments.
      upstream: the upstream gradient; None draws one.
    """

    name: str
    inputs: Arrays
    dtype: str = "float32"
    upstream: Any = None


@dataclasses.dataclass(frozen=True)
class Part:
    """Some elements of a gradient, in which alone a hand-in may be wrong.

    Attributes:
      name: such as "for j ≠ a".
      case: the name of the case to look at.
      mask: given that case's values by name, the elements.
    """

    name: str
    case: str
    mask: Callable[[Arrays], Any]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A typical wrong gradient: its name, whose gradient it is, and its value.

    The value is made from all values, all right gradients, and a function that gives the gradients at changed values.
    """

    name: str
    of: str
    value: Callable[[Arrays, Arrays, Callable[..., Arrays]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Exercise:
    """A function to be written: a backward pass, or an update.

    Attributes:
      name: the exercise's name, which is its file's.
      title: one line for the list.
      definition: the lines of the definition, as the notes have it.
      source: where the notes have it.
      forward: the source of the forward pass, which defines `forward(*inputs)` and returns `outputs`.
      inputs: the names of the inputs.
      outputs: the names of what the forward pass returns; the last is what the upstream gradient belongs to.
      gradients: the names of what is to be returned, in its order.
      cases: the arguments at which it is tried; the first is named `BASE`.
      notes: further rules of the game.
      parts: elements of a gradient in which alone it may be wrong.
      mistakes: typical wrong gradients.
      function: the name of the function to be written.
      right: what is right, where that is no gradient of the forward pass: a JAX function of the upstream gradient (None
        for an update) and the inputs.
      helpers: JAX functions to use in place of the forward source's own, for their derivative at ties.
      batched: the inputs whose first axis is the batch.
      hints: the level of feedback, unless the hand-in's file says another.
    """

    name: str
    title: str
    definition: str
    source: str
    forward: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    gradients: tuple[str, ...]
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    function: str = "backward"
    right: Callable[..., Any] | None = None
    helpers: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    batched: tuple[str, ...] = ()
    hints: int = 2

    @property
    def upstream(self) -> str:
        """The name of the upstream gradient; "" for an update, which has none."""
        return f"d{self.outputs[-1]}" if self.function == "backward" else ""

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of the arguments of the function to be written."""
        return (self.upstream, *self.inputs, *self.outputs) if self.upstream else self.inputs

    @property
    def stages(self) -> bool:
        """Whether it is a network, with a gradient for every intermediate value."""
        return len(self.outputs) > 1

    @functools.cached_property
    def _program(self) -> Any:
        tree = _Tapped(self.outputs[:-1]).visit(ast.parse(source_of(self)))
        return compile(ast.fix_missing_locations(tree), f"<exercise {self.name}>", "exec")

    def _network(self, inputs: Arrays, tap: Callable[[str, Any], Any]) -> Arrays:
        """Return all outputs by name; an intermediate value becomes what `tap` returns for its name and the value."""
        names: dict[str, Any] = {}
        exec(self._program, names)
        names |= {**self.helpers, "_tap": tap}
        returned = names["forward"](*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, returned if self.stages else (returned,), strict=True))

    def values(self, case: Case) -> Arrays:
        """Return, in float64, all that the function to be written is given at a case, by name."""
        if not self.upstream:
            return dict(case.inputs)
        with float64():
            inputs = {name: jnp.asarray(case.inputs[name]) for name in self.inputs}
            outputs = self._network(inputs, lambda _, value: value)
            y = outputs[self.outputs[-1]]
            drawn = np.random.default_rng(len(case.name)).normal(size=y.shape) if y.ndim else 1.7
            upstream = np.broadcast_to(drawn if case.upstream is None else case.upstream, y.shape)
            found = {self.upstream: upstream, **inputs, **outputs}
            return {name: np.asarray(value) for name, value in found.items()}

    def truth(self, case: Case) -> Truth:
        """Return the right gradients in float64, in the order of `gradients`, and how they respond to rounding."""
        values = rounded(self.values(case), case.dtype)
        base = self.gradients_at(values)

        def moved(draw: int, delta: float) -> list[Any]:
            moved_values = {
                name: value * (1 + delta * random_signs(value.shape, 10 * draw + i)) if is_float(value) else value
                for i, (name, value) in enumerate(values.items())
            }
            return self.gradients_at(moved_values, functools.partial(_rounding, 1000 + draw, delta))

        responses = [response(base, functools.partial(moved, draw)) for draw in range(DRAWS)]
        # JAX's own error, on average over the elements: of terms that cancel, rounding leaves more than they respond.
        own = self.gradients_at(values, dtype=case.dtype)
        eps = float(finfo(case.dtype).eps)
        errors = [
            np.full(g.shape, np.abs(g - o.astype(np.float64)).mean() / eps) for g, o in zip(base, own, strict=True)
        ]
        return Truth(base, largest_response(*responses, [np.abs(g) for g in base], errors))

    def gradients_at(
        self, values: Arrays, rounding: Callable[[Any], Any] = lambda value: value, dtype: str = "float64"
    ) -> list[Any]:
        """Return what is right at these values, computed in a dtype, with each value and its gradient rounded."""
        with float64():
            values = {name: jnp.asarray(v, dtype if is_float(v) else v.dtype) for name, v in values.items()}
            inputs = {name: values[name] for name in self.inputs}
            if self.right is not None:
                found = self.right(values.get(self.upstream), *inputs.values())
                return [np.asarray(g) for g in (found if isinstance(found, tuple) else (found,))]
            floating = {name: value for name, value in inputs.items() if is_float(value)}
            taps = {name: jnp.zeros_like(values[name]) for name in self.outputs[:-1]}

            def last(floating: Arrays, taps: Arrays) -> Any:
                network = self._network(inputs | floating, lambda name, value: rounding(value + taps[name]))
                return network[self.outputs[-1]]

            by_input, by_tap = jax.vjp(last, floating, taps)[1](values[self.upstream])
            found = {f"d{name}": g for name, g in (by_input | by_tap).items()}
            return [np.asarray(found[name]) for name in self.gradients]


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Compute in float64, whatever the caller's configuration of JAX is."""
    with float64_mode(), quiet(), jax.numpy_rank_promotion("allow"):
        yield


def _rounding(draw: int, delta: float, value: Any) -> Any:
    """Change a value, and the gradient that comes back to it, by a small share, up or down."""
    same = jax.lax.stop_gradient(value)
    of_value, of_gradient = (1 + delta * random_signs(value.shape, 10 * draw + i) for i in (0, 1))
    return same * of_value + (value - same) * of_gradient


class _Tapped(ast.NodeTransformer):
    """Calls `_tap("h", value)` for each value that is assigned to a name h of those given, in `forward`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self.generic_visit(node) if node.name == "forward" else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id in self.names:
            node.value = ast.Call(ast.Name("_tap", ast.Load()), [ast.Constant(node.targets[0].id), node.value], [])
        return node


def is_float(value: Any) -> bool:
    """Whether a value has a floating-point dtype."""
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def rounded(values: Arrays, dtype: str) -> Arrays:
    """Return float64 values as a case's dtype has them."""
    with np.errstate(over="ignore"):  # of a case that is not kept
        return {
            name: np.asarray(np.asarray(value, jnp.dtype(dtype)), np.float64) if is_float(value) else np.asarray(value)
            for name, value in values.items()
        }


def source_of(exercise: Exercise) -> str:
    """Return the forward pass with its import, as it stands in the exercise's file."""
    text = textwrap.dedent(exercise.forward).strip()
    return ("import jax\n" if "jax." in text else "") + f"import jax.numpy as jnp\n\n\n{text}"


def starter(exercise: Exercise) -> str:
    """Return the file that a student begins with."""
    definition = textwrap.indent(textwrap.dedent(exercise.definition).strip(), "    ")
    rules = "\n".join(f"{i:2}. {rule}" for i, rule in enumerate(_rules(exercise), 1))
    lines = [f"    {name} = ...  # write this" for name in exercise.gradients]
    returned = ", ".join(f"{name}={name}" for name in exercise.gradients)
    lines.append(f"    return dict({returned})" if len(exercise.gradients) > 3 else
                 f"    return {', '.join(exercise.gradients)}")  # fmt: skip
    body = "\n".join(lines)
    return f'''"""Exercise `{exercise.name}`: {exercise.title}.

{textwrap.fill(exercise.source, 110)}:

{definition}

Rules of the game:
{rules}
"""

{source_of(exercise)}


def {exercise.function}({", ".join(exercise.takes)}):
{body}


EXERCISE = "{exercise.name}"
HINTS = {exercise.hints}  # 0 passed or not; 1 what property fails; 2 the typical mistake; 3 the worst element
'''


def _rules(exercise: Exercise) -> list[str]:
    names = ", ".join(exercise.gradients)
    last = exercise.outputs[-1]
    task = (
        f"Write `backward`. It gets `{exercise.upstream}`, the upstream gradient ∂L/∂{last} of a loss L, and\n"
        f"    the values of the forward pass. It returns {names}: dv is ∂L/∂v."
        if exercise.upstream
        else f"Write `{exercise.function}`. It returns {names}."
    )
    return [
        task,
        "A gradient has the shape of what it is the gradient of, and a floating-point dtype that is as wide."
        if exercise.upstream
        else "A new value has the shape of the old one, and a floating-point dtype that is as wide.",
        "Use jax.numpy or NumPy. Loops are allowed: it need not be fast.",
        "Do not differentiate automatically or numerically, and do not import jaxnn: derive it by hand.",
        "The forward pass is given. What you change in it is not judged.",
        *exercise.notes,
        f"Check it with `jaxnn exercise check {exercise.name.rpartition(':')[2]}.py`, as often as you like.",
    ]
