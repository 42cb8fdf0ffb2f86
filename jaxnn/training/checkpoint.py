"""What a training leaves on disk: its parameters, and steps to continue from.

Parameters are one NumPy archive, never pickled, written whole or not at all. A step is a folder `step-0000000123`:

    state.npz    the arrays of the training's state, and all else about it as JSON
    manifest     their number, size and SHA-256, and below it the manifest's own

written beside its place, synced to the disk, and renamed: a process may be killed at any moment, and what there is
is whole. A step whose bytes are not those of its manifest, one of them or all, is not taken for a step.
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

from jaxnn.files import lock, sync_folder, write_synced, write_whole

FORMAT = 1  # of a step: another is not read
MAX_BYTES = 1 << 34  # of a step: what a manifest may claim before it is believed


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
    with np.load(path, allow_pickle=False) as archive:
        return _nested(archive), json.loads(str(archive["config"]))


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dicts of the arrays whose names are "params/…"; others are passed over."""
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


class CheckpointError(Exception):
    """A folder of steps that cannot be used: one line, with the cure."""


class Saved(NamedTuple):
    """A step that was read back, whole."""

    step: int
    arrays: dict[str, Any]
    about: dict[str, Any]
    sha256: str  # of its arrays and what is about them

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, in nested dicts as `load_params` returns them."""
        return _nested(self.arrays)

    def restored(self, like: PyTree[Array]) -> Any:
        """Return the arrays in the place of those of `like`.

        Raises:
            CheckpointError: an array has another name, shape or dtype.
        """
        places, tree = jax.tree_util.tree_flatten_with_path(like)
        names = [_name(at, leaf) for at, leaf in places]
        if extra := sorted(self.arrays.keys() ^ set(names)):
            where = "is not in the step" if extra[0] in names else "is in the step alone"
            raise CheckpointError(
                f"the training's {extra[0]} {where}: continue with the same model, optimizer and kind of key"
            )
        leaves = []
        for name, (_, leaf) in zip(names, places, strict=True):
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
    """The steps of one training, in a folder: the newest ones, and the best.

    Args:
        folder: made if it is not there.
        keep: how many of the newest steps to keep.

    Raises:
        OSError: the folder cannot be written to.
        CheckpointError: another training writes to it, or it is a step itself.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        self.folder, self.keep = Path(folder), keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._seen: dict[Path, dict[str, Any] | None] = {}  # what the manifests of steps say that are whole
        if (self.folder / "manifest").exists():
            raise CheckpointError(f"{str(folder)!r} is a step: give the folder that it is in")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.close = weakref.finalize(self, _alone_in(self.folder))
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        (new := self.folder / f"{_UNFINISHED}{secrets.token_hex(4)}").mkdir()
        new.rmdir()

    def save(self, step: int, state: PyTree[Array], about: dict[str, Any], score: list[float] | None = None) -> None:
        """Begin to write a step, and return: the arrays are copied, the training may go on.

        Args:
            step: its number.
            state: a pytree of arrays.
            about: anything JSON can hold.
            score: the higher the better, of numbers the first that differs; None for a step that is not compared.

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
        """Wait until what was begun is on the disk.

        Raises:
            OSError: it could not be written; the steps before it are as they were.
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
            data, place = buffer.getvalue(), self.folder / f"step-{step:010d}"
            told = {"bytes": len(data), "score": score, "sha256": hashlib.sha256(data).hexdigest(), "step": step}
            new = self.folder / f"{_UNFINISHED}{secrets.token_hex(4)}"
            new.mkdir()
            try:
                write_synced(new / "state.npz", data)
                write_synced(new / "manifest", _manifest(told))
                sync_folder(new)
                if place.exists():  # of no use: it would have been continued from
                    _remove(place)
                os.rename(new, place)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            sync_folder(self.folder)
            self._seen[place] = told
            self._forget_old()
        except Exception as error:  # of memory, too: `wait` raises it
            self._error = error

    def _forget_old(self) -> None:
        """Remove all steps but the newest and the best; those that are damaged do not count, and stay."""
        steps = {place: told for place in _places(self.folder) if (told := self._whole(place))}
        scored = {place: told["score"] for place, told in steps.items() if told["score"] is not None}
        best = {max(scored, key=lambda place: (scored[place], place))} if scored else set()
        for place in list(steps)[self.keep :]:
            if place not in best:
                _remove(place)

    def _whole(self, place: Path) -> dict[str, Any] | None:
        """Return what a step's manifest says, None if the step is damaged."""
        if place not in self._seen:
            self._seen[place] = None
            with contextlib.suppress(CheckpointError):
                read_step(place)
                self._seen[place] = _told(place)
        return self._seen[place]


def _alone_in(folder: Path) -> Callable[[], None]:
    """Return what lets another training into a folder of steps."""
    try:
        let_go = lock(folder)
    except OSError:
        return lambda: None
    if let_go is None:
        raise CheckpointError(f"{str(folder)!r} is in use by another training: let it end, or choose another folder")
    return let_go


def _places(folder: Path) -> list[Path]:
    """Return the folders of steps, the newest first."""
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdecimal()), reverse=True)


def newest_step(folder: str | os.PathLike[str]) -> tuple[Saved | None, list[str]]:
    """Read the newest step that is whole.

    Args:
        folder: the steps' folder.

    Returns:
        The step, None if there is none; and what is wrong with those after it, in a line each.
    """
    damaged = list[str]()
    for place in _places(Path(folder)):
        try:
            return read_step(place), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    return None, damaged


def read_step(place: str | os.PathLike[str]) -> Saved:
    """Read one step.

    Args:
        place: its folder.

    Returns:
        The step.

    Raises:
        CheckpointError: it is not whole.
    """
    place = Path(place)
    told = _told(place)
    if told is None:
        raise CheckpointError(f"{str(place)!r} has no valid manifest")
    try:
        data = _read(place / "state.npz", told["bytes"] + 1)
    except OSError as error:
        raise CheckpointError(f"{str(place / 'state.npz')!r} cannot be read ({error.strerror})") from error
    if len(data) != told["bytes"] or hashlib.sha256(data).hexdigest() != told["sha256"]:
        raise CheckpointError(f"{str(place / 'state.npz')!r} is damaged: its SHA-256 is not the manifest's")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            if sum(member.file_size for member in members.infolist()) > len(data):  # none is compressed
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return Saved(told["step"], arrays, json.loads(str(arrays.pop("about"))), told["sha256"])
    except Exception as error:  # written by another hand, which knew to write a manifest
        raise CheckpointError(f"{str(place / 'state.npz')!r} is no step of a training ({error})") from error


def _told(place: Path) -> dict[str, Any] | None:
    """Return what a step's manifest says, None if it is not one that was written here."""
    try:
        text = _read(place / "manifest", 4096)
        told = json.loads(text[:-65])
        known = told.keys() == _TOLD and told["format"] == FORMAT and place.name == f"step-{told['step']:010d}"
        return told if known and _manifest(told) == text and 0 <= told["bytes"] <= MAX_BYTES else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _read(path: Path, most: int) -> bytes:
    """Return a file's first bytes; a pipe would make us wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as file:
        return file.read(most)


_TOLD = {"bytes", "format", "score", "sha256", "step"}
_UNFINISHED = ".step-"  # the beginning of the names of steps that are being written, or removed


def _manifest(told: Any) -> bytes:
    text = json.dumps({"format": FORMAT, **told}, sort_keys=True, indent=1).encode()
    return text + b"\n" + hashlib.sha256(text).hexdigest().encode()


def _name(at: Any, leaf: Array) -> str:
    """Return a leaf's path, "params/W0", and of a key what makes numbers of it, too: "key:threefry2x32"."""
    name = jax.tree_util.keystr(at, simple=True, separator="/")
    return f"{name}:{jax.random.key_impl(leaf)}" if _is_key(leaf) else name


def _is_key(leaf: Array) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _remove(place: Path) -> None:
    """Remove a step: by its name first, so that no half of one is left."""
    aside = place.with_name(f"{_UNFINISHED}{place.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.rename(place, aside)
        shutil.rmtree(aside, ignore_errors=True)
