"""Backprop by hand as an exercise: files for students, feedback that does not give the answer away, and grading."""

from jaxnn.exercises.exercise import Case as Case
from jaxnn.exercises.exercise import Exercise as Exercise
from jaxnn.exercises.exercise import ExerciseError as ExerciseError
from jaxnn.exercises.exercise import Mistake as Mistake
from jaxnn.exercises.exercise import Part as Part
from jaxnn.exercises.exercise import starter as starter
from jaxnn.exercises.feedback import Feedback as Feedback
from jaxnn.exercises.feedback import check as check
from jaxnn.exercises.finding import EXERCISES as EXERCISES
from jaxnn.exercises.finding import find as find
from jaxnn.exercises.own import from_function as from_function
