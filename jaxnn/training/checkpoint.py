"""Parameters on disk, and checkpoints: steps from which a training can resume.

Parameters are one NumPy archive, without pickle, that is replaced atomically. A step is a folder `step-0000000123` with

    state.npz    the arrays of the training's state, and everything else about it as JSON
    manifest     the step's number, the size and SHA-256 of state.npz, and below them the manifest's own SHA-256

The folder is written under a temporary name, synced to the disk, and renamed. So every step on the disk is complete,
even if the process is killed at any moment. A step that does not match its manifest in every byte is refused.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
import threading
import weakref
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxnn.errors import JaxnnError
from jaxnn.files import lock, sync_folder, write_synced, write_whole

FORMAT = 1  # the version of the format; other versions are refused
MAX_BYTES = 1 << 34  # the largest size of a step that a manifest may state


def save_params(path: Path, params: PyTree[Array], config: dict[str, Any]) -> None:
    """Save nested dicts of arrays, and the configuration that is needed to use them.

    Args:
        path: the .npz file.
        params: nested dicts of arrays; "W0" is saved as "params/W0", {"linear": {"w": …}} as "params/linear/w".
        config: anything JSON can hold, saved as "config".

    Raises:
        TypeError: `params` is not nested dicts of arrays, or an array's dtype is not one of NumPy's.
    """
    buffer, arrays = io.BytesIO(), {}
    for at, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [getattr(k, "key", None) for k in at]
        if not keys or not all(isinstance(k, str) and "/" not in k for k in keys):
            raise TypeError(
                f"`params{jax.tree_util.keystr(at)}` must be in nested dicts whose keys are strings without '/'"
            )
        array = np.asarray(leaf)
        if array.dtype.kind not in "fiub":  # NumPy's archive would keep the bytes of bfloat16 without the dtype
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
    with np.load(path, allow_pickle=False) as archive:
        return _nested(archive), json.loads(str(archive["config"]))


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays whose names begin with "params/" as nested dicts; others are ignored."""
    params: dict[str, Any] = {}
    for name in arrays:
        root, _, rest = name.partition("/")
        if root == "params":
            *parents, last = rest.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = arrays[name]
    return params


class CheckpointError(JaxnnError):
    """A step, or a folder of steps, that cannot be used."""


class Saved(NamedTuple):
    """A step that was read and verified."""

    step: int
    arrays: dict[str, Any]
    about: dict[str, Any]
    sha256: str  # of state.npz

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, in nested dicts as `load_params` returns them."""
        return _nested(self.arrays)

    def restored(self, like: PyTree[Array]) -> Any:
        """Return a copy of `like` with the arrays of the step.

        Raises:
            CheckpointError: an array has another name, shape or dtype.
        """
        paths_and_leaves, tree = jax.tree_util.tree_flatten_with_path(like)
        names = [_name(at, leaf) for at, leaf in paths_and_leaves]
        if extra := sorted(self.arrays.keys() ^ set(names)):
            where = "is not in the step" if extra[0] in names else "is only in the step"
            raise CheckpointError(
                f"the training's {extra[0]} {where}: continue with the same model, optimizer and kind of key"
            )
        leaves = []
        for name, (_, leaf) in zip(names, paths_and_leaves, strict=True):
            data, expected = self.arrays[name], jax.random.key_data(leaf) if _is_key(leaf) else leaf
            if (data.shape, data.dtype) != (expected.shape, expected.dtype):
                raise CheckpointError(
                    f"{name} (shape {data.shape}, {data.dtype}) of the step must have shape {expected.shape} and "
                    f"dtype {expected.dtype}: continue with the same model and optimizer"
                )
            value = jax.numpy.asarray(data)
            leaves.append(jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else value)
        return jax.tree.unflatten(tree, leaves)


class Checkpoints:
    """Saves the steps of one training in a folder, and keeps the newest ones and the best.

    Args:
        folder: the folder; it is created if needed.
        keep: the number of newest steps to keep.

    Raises:
        OSError: the folder cannot be written to.
        CheckpointError: another training is using the folder, or the folder is itself a step.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        self.folder, self.keep = Path(folder), keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._seen: dict[Path, dict[str, Any] | None] = {}  # the manifests of verified steps; None for a damaged step
        if (self.folder / "manifest").exists():
            raise CheckpointError(f"{str(folder)!r} is a step: give the folder that contains it")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.close = weakref.finalize(self, _lock(self.folder))
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        (new := self.folder / f"{_UNFINISHED}{secrets.token_hex(4)}").mkdir()
        new.rmdir()

    def save(self, step: int, state: PyTree[Array], about: dict[str, Any], score: list[float] | None = None) -> None:
        """Start to write a step in a thread. The arrays are copied first, so the training may continue at once.

        Args:
            step: its number.
            state: a pytree of arrays.
            about: anything JSON can hold.
            score: the best step has the highest score, compared as lists; None leaves the step out.

        Raises:
            OSError: an earlier step could not be written.
        """
        self.wait()
        arrays = {}
        for at, leaf in jax.tree_util.tree_leaves_with_path(state):
            arrays[_name(at, leaf)] = np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        text = json.dumps(about, allow_nan=False)
        self._thread = threading.Thread(target=self._write, args=(step, arrays, text, score))
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last step is on the disk.

        Raises:
            OSError: it could not be written; the earlier steps are unchanged.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, step: int, arrays: dict[str, Any], about: str, score: list[float] | None) -> None:
        try:
            buffer = io.BytesIO()
            np.savez(buffer, **{**arrays, "about": np.array(about)})
            data, step_folder = buffer.getvalue(), self.folder / f"step-{step:010d}"
            manifest = {"bytes": len(data), "score": score, "sha256": hashlib.sha256(data).hexdigest(), "step": step}
            new = self.folder / f"{_UNFINISHED}{secrets.token_hex(4)}"
            new.mkdir()
            try:
                write_synced(new / "state.npz", data)
                write_synced(new / "manifest", _manifest_bytes(manifest))
                sync_folder(new)
                if step_folder.exists():  # an older step with the same number, saved before the training was resumed
                    _remove(step_folder)
                os.rename(new, step_folder)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            sync_folder(self.folder)
            self._seen[step_folder] = manifest
            self._remove_old()
        except Exception as error:  # also MemoryError; `wait` raises it
            self._error = error

    def _remove_old(self) -> None:
        """Remove all steps except the newest and the best. Damaged steps do not count, and are kept."""
        manifests = {path: found for path in _step_folders(self.folder) if (found := self._verified(path))}
        scores = {path: found["score"] for path, found in manifests.items() if found["score"] is not None}
        best = {max(scores, key=lambda path: (scores[path], path))} if scores else set()
        for path in list(manifests)[self.keep :]:
            if path not in best:
                _remove(path)

    def _verified(self, step_folder: Path) -> dict[str, Any] | None:
        """Return a step's manifest, None if the step is damaged."""
        if step_folder not in self._seen:
            self._seen[step_folder] = None
            with contextlib.suppress(CheckpointError):
                read_step(step_folder)
                self._seen[step_folder] = _read_manifest(step_folder)
        return self._seen[step_folder]


def _lock(folder: Path) -> Callable[[], None]:
    """Lock a folder of steps; return the function that unlocks it."""
    try:
        unlock = lock(folder)
    except OSError:  # this file system has no locks
        return lambda: None
    if unlock is None:
        raise CheckpointError(
            f"{str(folder)!r} is used by another training: wait for its end, or choose another folder"
        )
    return unlock


def _step_folders(folder: Path) -> list[Path]:
    """Return the folders of steps, the newest first."""
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdecimal()), reverse=True)


def newest_step(folder: str | os.PathLike[str]) -> tuple[Saved | None, list[str]]:
    """Read the newest step that is not damaged.

    Args:
        folder: the steps' folder.

    Returns:
        The step, None if there is none; and one line for each newer step that is damaged.
    """
    damaged = list[str]()
    for step_folder in _step_folders(Path(folder)):
        try:
            return read_step(step_folder), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    return None, damaged


def read_step(step_folder: str | os.PathLike[str]) -> Saved:
    """Read one step.

    Args:
        step_folder: its folder.

    Returns:
        The step.

    Raises:
        CheckpointError: it is damaged.
    """
    step_folder = Path(step_folder)
    manifest = _read_manifest(step_folder)
    if manifest is None:
        raise CheckpointError(f"{str(step_folder)!r} has no valid manifest")
    try:
        data = _read(step_folder / "state.npz", manifest["bytes"] + 1)
    except OSError as error:
        raise CheckpointError(f"{str(step_folder / 'state.npz')!r} cannot be read ({error.strerror})") from error
    if len(data) != manifest["bytes"] or hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise CheckpointError(f"{str(step_folder / 'state.npz')!r} is damaged: its SHA-256 differs from the manifest's")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            if sum(member.file_size for member in members.infolist()) > len(data):  # a step is never compressed
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return Saved(manifest["step"], arrays, json.loads(str(arrays.pop("about"))), manifest["sha256"])
    except Exception as error:  # a file from elsewhere, with a valid manifest
        raise CheckpointError(f"{str(step_folder / 'state.npz')!r} is not a step of a training ({error})") from error


def _read_manifest(step_folder: Path) -> dict[str, Any] | None:
    """Return a step's manifest, None if it is not exactly as `_manifest_bytes` writes it."""
    try:
        text = _read(step_folder / "manifest", _MANIFEST_LIMIT)
        manifest: dict[str, Any] = json.loads(text[:-_DIGEST_BYTES])
        if manifest.keys() != _KEYS or manifest["format"] != FORMAT or not 0 <= manifest["bytes"] <= MAX_BYTES:
            return None
        matches = _manifest_bytes(manifest) == text and step_folder.name == f"step-{manifest['step']:010d}"
        return manifest if matches else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _read(path: Path, count: int) -> bytes:
    """Return the first bytes of a regular file; reading from a pipe would wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as file:
        return file.read(count)


_KEYS = {"bytes", "format", "score", "sha256", "step"}
_MANIFEST_LIMIT = 4096  # the most that is read of a manifest, which takes a few hundred
_DIGEST_BYTES = 65  # at a manifest's end: a newline, and a SHA-256 in hexadecimal
_UNFINISHED = ".step-"  # prefix of the folders of steps that are being written or removed


def _manifest_bytes(manifest: Any) -> bytes:
    """Return the text of a manifest: JSON, and below it the SHA-256 of this JSON."""
    text = json.dumps({"format": FORMAT, **manifest}, sort_keys=True, indent=1).encode()
    return text + b"\n" + hashlib.sha256(text).hexdigest().encode()


def _name(at: Any, leaf: Array) -> str:
    """Return a leaf's path, such as "params/W0"; plus the PRNG implementation, for keys: "key:threefry2x32"."""
    name = jax.tree_util.keystr(at, simple=True, separator="/")
    return f"{name}:{jax.random.key_impl(leaf)}" if _is_key(leaf) else name


def _is_key(leaf: Array) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _remove(step_folder: Path) -> None:
    """Remove a step. It is renamed first, so that a half-removed step is never read."""
    aside = step_folder.with_name(f"{_UNFINISHED}{step_folder.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.rename(step_folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
