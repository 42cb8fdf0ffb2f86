"""Is my hand-written gradient right, and is it worth having? A checker for any custom rule."""

from jaxnn.gradcheck.checker import assert_correct as assert_correct
from jaxnn.gradcheck.checker import check as check
from jaxnn.gradcheck.report import Report as Report
from jaxnn.gradcheck.report import Row as Row
from jaxnn.tracing.automatic import automatic as automatic
