"""The errors that JAX raises where a function cannot be traced, and how to repeat them in one line."""

import pathlib
import re
import traceback

import jax

# Python code looked at the value of an array, which a tracer does not have.
BRANCHING_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
_LIBRARY = re.compile(r"[/\\]site-packages[/\\]|[/\\]jaxnn[/\\](gradcheck|tracing|graph)[/\\]|[/\\]lib[/\\]python3")
TRACING_ERRORS = (*BRANCHING_ERRORS, jax.errors.UnexpectedTracerError)


def branching_message(name: str, error: Exception) -> str:
    """Say that Python code in the function `name` looks at the value of an array."""
    reason = str(error).splitlines()[0].rstrip(".")
    return (
        f"`f` ({name}) must not branch in Python on the value of an array ({reason}); "
        "use jax.lax.cond or jnp.where, or pass the value as a Python scalar"
    )


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def place_of(error: BaseException) -> str:
    """Return the file and line of the user's code that raised an error: " (student.py:14, in bwd)"; "" if none did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _LIBRARY.search(f.filename) and not f.filename.startswith("<")]
    return f" ({pathlib.Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name})" if own else ""


def is_missing_in_jax(error: BaseException) -> bool:
    """Whether JAX says that it does not implement an operation for a dtype, which is no mistake of a rule."""
    words = str(error)
    if isinstance(error, NotImplementedError):
        return "dtype" in words
    return words.startswith("UNIMPLEMENTED") or "does not accept dtype" in words
