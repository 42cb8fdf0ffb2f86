"""Parameters on disk: one NumPy archive, never pickled, written whole or not at all."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxnn._files import write_whole


def save_params(path: Path, params: PyTree[Array], config: dict[str, Any]) -> None:
    """Save a tree of dicts of arrays, and what is needed to use it again.

    Args:
        path: the .npz file.
        params: nested dicts of arrays; "W0" is saved as "params/W0", {"linear": {"w": …}} as "params/linear/w".
        config: anything JSON can hold, saved as "config".

    Raises:
        TypeError: `params` holds something else than nested dicts of arrays that NumPy knows.
    """
    buffer, arrays = io.BytesIO(), {}
    for at, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [getattr(k, "key", None) for k in at]
        if not keys or not all(isinstance(k, str) and "/" not in k for k in keys):
            raise TypeError(f"`params{jax.tree_util.keystr(at)}` must be in nested dicts with names without '/'")
        array = np.asarray(leaf)
        if array.dtype.kind not in "fiub":  # NumPy's archive would keep a bfloat16's bytes and forget what they are
            raise TypeError(f"`params{jax.tree_util.keystr(at)}` (dtype {array.dtype}) must be saved as float32")
        arrays["/".join(["params", *map(str, keys)])] = array
    np.savez(buffer, config=np.array(json.dumps(config, allow_nan=False)), **arrays)  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())


def load_params(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the configuration that `save_params` saved.

    Args:
        path: the .npz file.

    Returns:
        The nested dicts of NumPy arrays, and the configuration.
    """
    params: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            if name != "config":
                *parents, last = name.split("/")[1:]
                node = params
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[last] = archive[name]
        return params, json.loads(str(archive["config"]))
