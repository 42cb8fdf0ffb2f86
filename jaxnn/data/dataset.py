"""Load a data set, split into training, validation and test images.

The validation split is a part of the published training images: it picks defaults and the best epoch. The test split is
evaluated once, at the end. Both are the same for every seed, so that runs can be compared.
"""

import difflib
import importlib.util
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxnn.data.idx import DataError
from jaxnn.data.mnist import has_files, read_folder
from jaxnn.data.prepared import is_prepared, prepare, read_prepared

DATASETS = ("digits", "mnist", "fashion_mnist")

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Split(NamedTuple):
    """Images and their labels.

    Attributes:
        images: Pixels, shape (N, H, W, 1). Digits use the values 0 to 16, the others 0 to 255.
        labels: Class ids, shape (N,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]


class Dataset(NamedTuple):
    """A data set in three splits that share no image.

    Attributes:
        name: One of `DATASETS`.
        train: The images that the network learns from.
        validation: The images that choices are made by: a fixed, stratified part of the published training images.
        test: The images that are evaluated once, for the reported result.
        classes: The name of each class id.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]


def load(name: str, data_dir: str | os.PathLike[str] | None = None, *, download: bool = False) -> Dataset:
    """Load a data set and verify it. The network is used only with `download=True`.

    Args:
        name: "digits" (scikit-learn's 1,797 of 8x8), "mnist" or "fashion_mnist".
        data_dir: The folder with the four IDX files of mnist or fashion_mnist, raw or .gz; or torchvision's `root`; or
            a folder with a copy that tensorflow-datasets has prepared (default: the folder that tensorflow-datasets
            uses by itself).
        download: Let tensorflow-datasets download and prepare a copy there, if there is none.

    Returns:
        The data set. Its arrays are new and writable, and in the published order.

    Raises:
        ValueError: `name` is not one of `DATASETS`.
        DataError: The data are missing, damaged, or those of another data set than `name`.

    Example:
        >>> digits = load("digits")
        >>> [len(split.labels) for split in (digits.train, digits.validation, digits.test)]
        [1294, 144, 359]
        >>> digits.train.images.shape
        (1294, 8, 8, 1)
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name).lower(), DATASETS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`name` ({name!r}) must be one of {', '.join(map(repr, DATASETS))}{hint}")
    if name == "digits":
        if data_dir is not None or download:
            given = "`download=True`" if data_dir is None else f"`data_dir` ({os.fspath(data_dir)!r})"
            raise DataError(
                f"{given} is not used by digits, which come with scikit-learn: leave it out, or load mnist or"
                " fashion_mnist"
            )
        everything = _read_digits()
        rest, test = _hold_out(everything, round(len(everything.labels) / 5))
        train, validation = _hold_out(rest, round(len(rest.labels) / 10))
        return Dataset(name, train, validation, test, _DIGITS)
    if download:
        prepare(name, data_dir)
    if download or (not has_files(name, data_dir) and is_prepared(name, data_dir)):
        arrays = read_prepared(name, data_dir)
    else:
        arrays = read_folder(name, data_dir)
    rest = _split(arrays["train-images"], arrays["train-labels"])
    train, validation = _hold_out(rest, len(rest.labels) // 12)  # 5,000 of the 60,000
    test = _split(arrays["t10k-images"], arrays["t10k-labels"])
    return Dataset(name, train, validation, test, _DIGITS if name == "mnist" else _CLOTHES)


def _split(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
    return Split(images[..., np.newaxis], labels.astype(np.int32))


def _hold_out(split: Split, count: int) -> tuple[Split, Split]:
    """Hold out `count` images: a stratified random choice, the same each time. Return the rest and those held out.

    The images are shuffled, then sorted by class, then evenly spaced ones are chosen. So the number of each class is
    proportional to within one image, and the total is exact.
    """
    total = len(split.labels)
    order = np.random.default_rng(0).permutation(total)
    order = order[np.argsort(split.labels[order], kind="stable")]
    held = np.zeros(total, bool)
    held[order[(np.arange(count) * total + total // 2) // count]] = True
    return Split(split.images[~held], split.labels[~held]), Split(split.images[held], split.labels[held])


def _read_digits() -> Split:
    """Return the digits, which are a file of scikit-learn; importing scikit-learn would take more than a second."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.submodule_search_locations is None:
        raise DataError(
            "digits come with scikit-learn, which is not installed: pip install scikit-learn"
            " (or, in a clone, pip install '.[train]')"
        )
    file = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    try:
        rows = np.loadtxt(file, np.uint8, delimiter=",", ndmin=2)  # 64 pixels and the label
        images, labels = rows[:, :-1].reshape(1797, 8, 8), rows[:, -1]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{file} does not hold the digits ({error}): install scikit-learn again") from error
    return _split(images, labels)
