"""MNIST and Fashion-MNIST as tensorflow-datasets keeps them, prepared and read without TensorFlow.

tensorflow-datasets downloads the published files, checks them, and stores the images as PNG in array records, ordered
by a hash of their numbers. Here they are restored to the published order, and must have the published SHA-256. So a
copy that holds MNIST under Fashion-MNIST's name is refused: two preparations at once in one folder can produce such a
copy.

tensorflow-datasets' own preparation needs TensorFlow to unpack gzip and to write PNG. Both are done here instead.
"""

import contextlib
import io
import logging
import os
import re
import stat
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxnn.data.idx import DataError, read_idx
from jaxnn.data.mnist import FILES, SOURCES, check
from jaxnn.files import lock

REACH_SECONDS = 5.0
_SPLITS = {"train": "train", "t10k": "test"}  # our name: their name
_COUNTS = {"train": 60_000, "t10k": 10_000}


def folder_of(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder of tensorflow-datasets' copies: `data_dir`, or its own default."""
    return Path(os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def is_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> bool:
    """Return whether there is a copy of a data set, complete or not."""
    return any((version / "dataset_info.json").exists() for version in _versions(name, data_dir))


def _versions(name: str, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders of a data set's copies; an unfinished one has another kind of name."""
    return [path for path in (folder_of(data_dir) / name).glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]


def read_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> dict[str, NDArray[np.uint8]]:
    """Read and verify the copy of a data set, without the network.

    Args:
        name: "mnist" or "fashion_mnist".
        data_dir: the folder of copies, or None for tensorflow-datasets' own.

    Returns:
        The arrays, as `read_folder` returns them.

    Raises:
        DataError: tensorflow-datasets is not installed, or the copy is damaged or another data set's.
    """
    folder, arrays = folder_of(data_dir), dict[str, NDArray[np.uint8]]()
    with _tfds() as tfds:
        from tensorflow_datasets.core import hashing

        try:
            for path in [path for version in _versions(name, data_dir) for path in version.iterdir()]:
                if not stat.S_ISREG(path.stat().st_mode):  # reading from a pipe would wait for ever
                    raise ValueError(f"{path.name} is not a regular file")
            for ours, theirs in _SPLITS.items():
                source = tfds.data_source(name, split=theirs, data_dir=folder, download=False)
                if len(source) != _COUNTS[ours]:
                    raise ValueError(f"{theirs} has {len(source)} images, not {_COUNTS[ours]}")
                records = source.__getitems__(range(len(source)))
                hasher = hashing.Hasher(theirs)
                published = np.argsort(np.array(sorted(range(len(records)), key=hasher.hash_key)))
                arrays[f"{ours}-images"] = np.stack([record["image"][..., 0] for record in records])[published]
                arrays[f"{ours}-labels"] = np.array([record["label"] for record in records], np.uint8)[published]
        except Exception as error:  # any package that is involved may raise
            raise DataError(
                f"{str(folder / name)!r} cannot be read as a copy of tensorflow-datasets ({_line(error)}): remove it,"
                " and prepare it again with `download=True`"
            ) from error
    check(name, dict.fromkeys(arrays, folder / name), arrays)
    return arrays


def prepare(name: str, data_dir: str | os.PathLike[str] | None) -> None:
    """Let tensorflow-datasets download and check a data set, unless there is a copy.

    Args:
        name: "mnist" or "fashion_mnist".
        data_dir: the folder of copies, or None for tensorflow-datasets' own.

    Raises:
        DataError: tensorflow-datasets is not installed, the source cannot be reached, or it sends other files.
    """
    if is_prepared(name, data_dir):
        return
    with _tfds() as tfds, _alone_in(folder_of(data_dir)):
        if is_prepared(name, data_dir):  # another process was faster
            return
        _require_reachable(name)
        try:
            builder = _builder(tfds, name)(data_dir=folder_of(data_dir), file_format="array_record")
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
        except Exception as error:
            raise DataError(
                f"{name} cannot be prepared by tensorflow-datasets ({_line(error)}); {_by_hand(name)}"
            ) from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that one process at a time prepares a data set in it."""
    unlock: Callable[[], None] | None = None
    with contextlib.suppress(OSError):  # if the folder is unusable, the builder says why
        folder.mkdir(parents=True, exist_ok=True)
        while (unlock := lock(folder)) is None:
            time.sleep(0.2)
    try:
        yield
    finally:
        if unlock is not None:
            unlock()


def _builder(tfds: Any, name: str) -> Any:
    """Return the data set's own builder, without the parts that need TensorFlow."""
    from PIL import Image
    from tensorflow_datasets.image_classification import mnist

    def split_generators(self: Any, manager: Any) -> dict[str, Any]:
        paths = manager.download({part: f"{self.URL}{file}.gz" for part, file in FILES.items()})
        return {theirs: examples(paths[f"{ours}-images"], paths[f"{ours}-labels"]) for ours, theirs in _SPLITS.items()}

    def examples(images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (image, label) in enumerate(zip(read_idx(images), read_idx(labels), strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            png.seek(0)
            yield number, {"image": png, "label": int(label)}

    base = mnist.MNIST if name == "mnist" else mnist.FashionMNIST
    with tfds.core.registered.skip_registration():
        return type(base.__name__, (base,), {"_split_generators": split_generators, "__module__": base.__module__})


@contextlib.contextmanager
def _tfds() -> Iterator[Any]:
    """Import tensorflow-datasets and silence its warnings and progress bars."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"tensorflow-datasets cannot be imported ({_line(error)}): pip install tensorflow-datasets"
            " importlib_resources pillow (or, in a clone, pip install '.[datasets]')"
        ) from error
    if not (sys.stderr and sys.stderr.isatty()):
        tfds.disable_progress_bar()
    yield tfds


def _require_reachable(name: str) -> None:
    """Fail within seconds if the source cannot be reached; tensorflow-datasets would try for minutes."""
    url = urllib.parse.urlsplit(SOURCES[name])
    proxy = urllib.request.getproxies().get(url.scheme)
    target = urllib.parse.urlsplit(proxy) if proxy else url
    reached = threading.Event()

    def reach() -> None:
        import socket

        port = target.port or (443 if target.scheme == "https" else 80)
        with contextlib.suppress(OSError), socket.create_connection((target.hostname or "", port), REACH_SECONDS):
            reached.set()

    thread = threading.Thread(target=reach, daemon=True)  # a name lookup has no time limit
    thread.start()
    thread.join(REACH_SECONDS)
    if not reached.is_set():
        raise DataError(f"{name} cannot be downloaded because {target.hostname} cannot be reached: {_by_hand(name)}")


def _by_hand(name: str) -> str:
    return (
        f"put {', '.join(FILES.values())} (each raw or .gz) from {SOURCES[name]} into one folder and pass it as"
        " `data_dir`"
    )


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
