"""MNIST and Fashion-MNIST as tensorflow-datasets keeps them, prepared and read without TensorFlow.

tensorflow-datasets downloads the published files, checks them, and keeps the images as PNG in array records, in an
order that a hash of their numbers gives. What is read here is put back into the published order, in which it must have
the published SHA-256, as the files have: a copy that holds MNIST under Fashion-MNIST's name, which two preparations in
one folder have been seen to make, is refused.

TensorFlow is what its own preparation of these two needs to unpack gzip and to write PNG; both are done here instead.
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
_SPLITS = {"train": "train", "t10k": "test"}  # our name, and theirs
_COUNTS = {"train": 60_000, "t10k": 10_000}


def folder_of(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return where tensorflow-datasets keeps its copies: `data_dir`, or its own default."""
    return Path(os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def is_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> bool:
    """Tell whether there is a copy of a data set, whole or not."""
    return any((version / "dataset_info.json").exists() for version in _versions(name, data_dir))


def _versions(name: str, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders of a data set's copies; one that is being made has another name."""
    return [path for path in (folder_of(data_dir) / name).glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]


def read_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> dict[str, NDArray[np.uint8]]:
    """Read and verify the copy of a data set; touches no network.

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
                if not stat.S_ISREG(path.stat().st_mode):  # a pipe would make us wait for ever
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
        except Exception as error:  # of whatever package is involved
            raise DataError(
                f"{str(folder / name)!r} cannot be read as a copy of tensorflow-datasets ({_line(error)}): remove it,"
                " and prepare it again with --download"
            ) from error
    check(name, dict.fromkeys(arrays, folder / name), arrays)
    return arrays


def prepare(
    name: str, data_dir: str | os.PathLike[str] | None, manual_dir: str | os.PathLike[str] | None = None
) -> None:
    """Download a data set by tensorflow-datasets, which checks it, unless there is a copy.

    Args:
        name: "mnist" or "fashion_mnist".
        data_dir: the folder of copies, or None for tensorflow-datasets' own.
        manual_dir: a folder with the four files, .gz, to take them from.

    Raises:
        DataError: tensorflow-datasets is not installed, the source cannot be reached, or what it sends is not the data.
    """
    if is_prepared(name, data_dir):
        return
    with _tfds() as tfds, _alone_in(folder_of(data_dir)):
        if is_prepared(name, data_dir):  # by another process, meanwhile
            return
        if manual_dir is None:
            _require_reachable(name)
        try:
            builder = _builder(tfds, name)(data_dir=folder_of(data_dir), file_format="array_record")
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
        except Exception as error:
            raise DataError(
                f"{name} cannot be prepared by tensorflow-datasets ({_line(error)}); {_by_hand(name)}"
            ) from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process prepares a data set in a folder."""
    let_go: Callable[[], None] | None = None
    with contextlib.suppress(OSError):  # the builder says what is wrong with the folder
        folder.mkdir(parents=True, exist_ok=True)
        while (let_go := lock(folder)) is None:
            time.sleep(0.2)
    try:
        yield
    finally:
        if let_go is not None:
            let_go()


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
    """Import tensorflow-datasets, and keep its warnings and bars to itself."""
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
    """Find out in seconds that there is no way to the source: tensorflow-datasets would try for minutes."""
    url = urllib.parse.urlsplit(SOURCES[name])
    proxy = urllib.request.getproxies().get(url.scheme)
    target = urllib.parse.urlsplit(proxy) if proxy else url
    reached = threading.Event()

    def reach() -> None:
        import socket

        port = target.port or (443 if target.scheme == "https" else 80)
        with contextlib.suppress(OSError), socket.create_connection((target.hostname or "", port), REACH_SECONDS):
            reached.set()

    thread = threading.Thread(target=reach, daemon=True)  # as looking a name up knows no time limit
    thread.start()
    thread.join(REACH_SECONDS)
    if not reached.is_set():
        raise DataError(f"{name} cannot be downloaded, as {target.hostname} is out of reach: {_by_hand(name)}")


def _by_hand(name: str) -> str:
    return (
        f"put {', '.join(FILES.values())} (each raw or .gz) from {SOURCES[name]} into one folder and name it with"
        " --data-dir"
    )


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
