"""The command `jaxnn`, with `jaxnn train`, `jaxnn compare` and `jaxnn predict`."""

from jaxnn.cli.command import main as main
