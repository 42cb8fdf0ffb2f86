"""The installed libraries, and which of their custom derivative rules a call reaches."""

import contextlib
import functools
import importlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import jax

from jaxnn.gradcheck.discovery import definition, named

TFP = "tensorflow_probability.substrates.jax"
LIBRARIES = {  # what is imported: the distribution it is installed from
    "jax": "jax",
    "optax": "optax",
    "flax": "flax",
    "equinox": "equinox",
    "lineax": "lineax",
    "diffrax": "diffrax",
    "optimistix": "optimistix",
    "chex": "chex",
    "distrax": "distrax",
    "rlax": "rlax",
    "haiku": "dm-haiku",
    "numpyro": "numpyro",
    "blackjax": "blackjax",
    "ott": "ott-jax",
    "penzai": "penzai",
    "flashbax": "flashbax",
    "jaxopt": "jaxopt",
    "e3nn_jax": "e3nn-jax",
    "tokamax": "tokamax",
    "jax_cce": "jax-cce",
    TFP: "tfp-nightly",
}


@contextlib.contextmanager
def recording() -> Iterator[dict[str, str]]:
    """Collect the definitions of all rules that are called, each with its kind."""
    called: dict[str, str] = {}
    kinds = (jax.custom_vjp, jax.custom_jvp)
    originals = [kind.__call__ for kind in kinds]

    def recorded(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            called[named(definition(self))] = type(self).__name__
            return original(self, *args, **kwargs)

        return call

    for kind, original in zip(kinds, originals, strict=True):
        kind.__call__ = recorded(original)
    try:
        yield called
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.__call__ = original


def resolve(path: str) -> Any:
    """Import what a dotted path names."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            return functools.reduce(getattr, parts[i:], importlib.import_module(".".join(parts[:i])))
    raise ModuleNotFoundError(path)


def short(name: str) -> str:
    """Return a name as people write it."""
    return name.replace(TFP, "tfp")


def versions() -> dict[str, str]:
    """Return the version of each library, "" where it is not installed."""
    found = {}
    for library, distribution in LIBRARIES.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(distribution)
    return {library: found.get(library, "") for library in LIBRARIES}
