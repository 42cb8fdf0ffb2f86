"""An exercise of a lecturer's own function."""

import ast
import dataclasses
import inspect
import textwrap
import tokenize
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.exercises.exercise import (
    BASE,
    HALF,
    Arrays,
    Case,
    Exercise,
    ExerciseError,
    float64,
    is_float,
    rounded,
    starter,
)


def from_function(
    f: Callable[..., Any],
    args: Sequence[Any],
    *,
    name: str | None = None,
    title: str | None = None,
    batched: Sequence[str] = (),
    hints: int = 2,
) -> Exercise:
    """Make an exercise of any function of yours: its backward pass is to be written.

    Args:
        f: a function of arrays, written with JAX, that returns one array. Its source becomes the forward pass of the
            exercise's file, so it must use nothing but its arguments, `jax` and `jnp`.
        args: example arguments, arrays or numbers. Gradients are asked for those of a floating-point dtype.
        name: the exercise's name; None takes the function's.
        title: one line for the list; None takes the first line of the function's docstring.
        batched: the names of the arguments whose first axis is a batch: then a hand-in that is wrong only for a batch
            above 1 is told so.
        hints: the level of feedback, from 0 to 3, unless the hand-in's file says another.

    Returns:
        The exercise. Assign it to a name in a file of yours, and refer to it as `file.py:name`.

    Raises:
        ExerciseError: `f` has no source, uses a name of its file, does not return one array, or its derivative is not
            finite at `args`; or another argument is not as above.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxnn import exercises
        >>> file = pathlib.Path(tempfile.mkdtemp(), "course.py")
        >>> _ = file.write_text('''
        ... import jax.numpy as jnp
        ... from jaxnn import exercises
        ...
        ... def gate(x, w):
        ...     return jnp.tanh(x) * w
        ...
        ... exercise = exercises.from_function(gate, (jnp.ones((3, 2)), jnp.ones(2)))
        ... ''')
        >>> exercises.find(f"{file}:exercise").gradients
        ('dx', 'dw')
    """
    label = name or str(getattr(f, "__name__", "own"))
    source, function = _source_of(f, label)
    parameters = tuple(inspect.signature(f).parameters)
    inputs = _inputs(parameters, args, batched)
    if hints not in (0, 1, 2, 3):
        raise ExerciseError(f"`hints` ({hints!r}) must be 0, 1, 2 or 3")
    taken = {*parameters, *(p[1:] for p in parameters)}
    output = next(each for each in ("y", "out", "result", "value", "returned_value") if each not in taken)
    documented = _without_quotes((inspect.getdoc(f) or "").partition("\n")[0].rstrip("."))
    exercise = Exercise(
        name=label,
        title=_without_quotes(title or "").partition("\n")[0] or documented or f"the backward pass of {label}",
        definition=f"{output} = {label}({', '.join(parameters)})",
        source="The lecturer's function",
        forward=f"{source}\n\nforward = {function}\n",
        inputs=parameters,
        outputs=(output,),
        gradients=tuple(f"d{p}" for p, a in inputs.items() if is_float(a)),
        cases=(Case(BASE, inputs),),
        helpers={"forward": f},
        batched=tuple(batched),
        hints=hints,
    )
    return _tried(exercise, f)


def _source_of(f: Callable[..., Any], label: str) -> tuple[str, str]:
    """Return the source of a function, and the name that it has there."""
    try:
        source = textwrap.dedent(inspect.getsource(f))
        tree = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        raise ExerciseError(f"`f` ({label}) must be a function written in a file, whose source can be read") from None
    if not isinstance(tree, ast.FunctionDef):
        raise ExerciseError(f"`f` ({label}) must be made by `def`, and not by a lambda")
    return source, tree.name


def _inputs(parameters: tuple[str, ...], args: Sequence[Any], batched: Sequence[str]) -> Arrays:
    """Return the arguments by name, in float64 or of an integer dtype."""
    if len(parameters) != len(args):
        raise ExerciseError(f"`args` has {len(args)} values, and must have one for each of {', '.join(parameters)}")
    try:
        inputs = {p: np.asarray(a) for p, a in zip(parameters, args, strict=True)}
    except (ValueError, TypeError) as error:
        raise ExerciseError(f"`args` must be arrays of numbers: {_one_line(error)}") from None
    for p, a in inputs.items():
        if a.dtype.kind not in "biu" and not is_float(a):
            raise ExerciseError(f"`args` ({p}: dtype {a.dtype}) must be of a floating-point or an integer dtype")
        if a.size == 0:
            raise ExerciseError(f"`args` ({p}: shape {a.shape}) must have at least one element")
    if not any(map(is_float, inputs.values())):
        raise ExerciseError("`args` must have an array of a floating-point dtype, whose gradient is asked for")
    for p in batched:
        if p not in inputs or inputs[p].ndim == 0:
            raise ExerciseError(f"`batched` ({p!r}) must name arguments that are arrays, of {', '.join(parameters)}")
    return {p: a.astype(np.float64) if is_float(a) else a for p, a in inputs.items()}


def _without_quotes(text: str) -> str:
    """Return a text that may stand in a docstring."""
    return text.replace('"' * 3, "'" * 3).replace("\\", "\\\\")


def _tried(exercise: Exercise, f: Callable[..., Any]) -> Exercise:
    """Return the exercise, tried in float16, too, where everything is finite there; or say why it cannot be one."""
    base, label = exercise.cases[0], exercise.name
    try:
        truth = exercise.truth(base)
    except Exception as error:
        what = "must return one array of numbers, and JAX must be able to differentiate it at `args`"
        raise ExerciseError(f"`f` ({label}) {what}: {_one_line(error)}") from error
    if not all(np.isfinite(g).all() for g in truth.gradients):
        raise ExerciseError(f"`f` ({label}) must have finite derivatives at `args`")
    alone: dict[str, Any] = {}
    inputs = base.inputs.values()
    try:
        with float64():
            exec(starter(exercise), alone)
            same = np.allclose(alone["forward"](*map(jnp.asarray, inputs)), f(*map(jnp.asarray, inputs)))
    except Exception as error:
        what = "must use nothing but its arguments, `jax` and `jnp`: the student's file has nothing else"
        raise ExerciseError(f"`f` ({label}) {what} ({type(error).__name__}: {_one_line(error)})") from error
    if not same:
        raise ExerciseError(f"`f` ({label}) must return the same for the same arguments")
    narrow = dataclasses.replace(base, name=HALF, dtype="float16")
    values = rounded(exercise.values(narrow), narrow.dtype)
    floats = [v for v in values.values() if is_float(v)] + exercise.gradients_at(values, dtype=narrow.dtype)
    finite = all(np.isfinite(v).all() for v in floats)
    return dataclasses.replace(exercise, cases=(base, narrow)) if finite else exercise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
