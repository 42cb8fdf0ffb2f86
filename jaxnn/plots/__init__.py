"""The pictures of a training (curves, confusion, filters; by matplotlib) and the page of a comparison (HTML).

They are drawn to files, so no backend is needed.
"""

import contextlib
import os
import sys


def _import_matplotlib() -> None:
    """Import matplotlib, with the backend that MPLBACKEND names if there is one.

    A notebook sets MPLBACKEND for the commands that it starts. In an environment without the notebook's packages such a
    name makes the import of matplotlib itself fail.
    """
    backend = os.environ.pop("MPLBACKEND", "")
    try:
        import matplotlib
    finally:
        if backend:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


if "matplotlib" not in sys.modules:
    with contextlib.suppress(ImportError):  # the page of `jaxnn compare` does without
        _import_matplotlib()
