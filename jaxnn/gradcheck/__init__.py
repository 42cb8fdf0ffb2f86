"""Is my hand-written gradient right, and is it worth having? A checker for any custom rule."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxnn.gradcheck.checker import assert_correct as assert_correct
    from jaxnn.gradcheck.checker import check as check
    from jaxnn.gradcheck.report import Report as Report
    from jaxnn.gradcheck.report import Row as Row
    from jaxnn.tracing.automatic import automatic as automatic

# What is imported when it is first used: pytest imports the plugin's options from here, and not JAX.
_MODULE_OF = {
    "assert_correct": "jaxnn.gradcheck.checker",
    "check": "jaxnn.gradcheck.checker",
    "Report": "jaxnn.gradcheck.report",
    "Row": "jaxnn.gradcheck.report",
    "automatic": "jaxnn.tracing.automatic",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import a part of the checker when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jaxnn.gradcheck' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
