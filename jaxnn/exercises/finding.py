"""The exercises by name: those of the notes, and a lecturer's own."""

import difflib
import runpy
from pathlib import Path

from jaxnn.exercises.catalogue import COMPONENTS
from jaxnn.exercises.exercise import Exercise, ExerciseError
from jaxnn.exercises.networks import NETWORKS

EXERCISES = {exercise.name: exercise for exercise in (*COMPONENTS, *NETWORKS)}


def find(name: str, folder: Path | None = None) -> Exercise:
    """Return an exercise.

    Args:
      name: one of the notes' exercises; or `file.py:name`, a lecturer's own, for which that file is run.
      folder: where a relative file is looked for first.

    Returns:
      The exercise.

    Raises:
      ExerciseError: there is none of this name.

    Example:
      >>> from jaxnn import exercises
      >>> exercises.find("softmax").gradients
      ('dx',)
    """
    file, separator, own = name.rpartition(":")
    if separator:
        return _own(name, file, own, folder)
    if name in EXERCISES:
        return EXERCISES[name]
    near = difflib.get_close_matches(name.lower(), EXERCISES, 1, 0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(EXERCISES)}"
    raise ExerciseError(f"there is no exercise {name!r}; {hint}")


def _own(name: str, file: str, own: str, folder: Path | None) -> Exercise:
    path = Path(file).expanduser()
    if folder is not None and (folder / path).is_file():
        path = folder / path
    if not path.is_file():
        raise ExerciseError(f"the exercise {name!r} needs the file {file!r}, which is not there")
    try:
        found = runpy.run_path(str(path)).get(own)
    except ExerciseError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())
        raise ExerciseError(f"{file!r} cannot be run: {type(error).__name__}: {cause}") from error
    if not isinstance(found, Exercise):
        raise ExerciseError(f"{file!r} must define {own} as an exercise, by `exercises.from_function(...)`")
    return found
