"""A run of pytest in a project, as its owner starts it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(project, *options, code=None, env=None):
    """Run the project's tests; return what is printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    path = os.pathsep.join([str(ROOT), str(project)])
    found = subprocess.run(
        command, cwd=project, env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"} | (env or {}), text=True,
        capture_output=True,
    )  # fmt: skip
    output = found.stdout + found.stderr
    assert code is None or found.returncode == code, output
    return output
