"""Is my hand-written gradient right, and is it worth having? A checker for any custom rule."""

from jaxnn.gradcheck.automatic import automatic as automatic
from jaxnn.gradcheck.check import assert_correct as assert_correct
from jaxnn.gradcheck.check import check as check
from jaxnn.gradcheck.report import Report as Report
from jaxnn.gradcheck.report import Row as Row
