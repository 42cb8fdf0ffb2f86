"""The zoo: wrong rules and right ones, on which `jaxnn.gradcheck` is judged.

Each wrong specimen holds one mistake that a public thread describes, and names the check that must fail on it. The
right ones are hard for the checker: ties, infinities, cancellation, constraints, callbacks, odd trees. No check may
fail on any of them. A specimen's arrays are made when it is asked for, so that importing the zoo costs nothing.
"""

from zoo import right as right
from zoo import right_newer as right_newer
from zoo import wrong as wrong
from zoo import wrong_newer as wrong_newer
from zoo.specimen import RIGHT as RIGHT
from zoo.specimen import WRONG as WRONG
from zoo.specimen import Specimen as Specimen
