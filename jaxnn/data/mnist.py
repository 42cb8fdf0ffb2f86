"""Read a folder of MNIST's or Fashion-MNIST's four IDX files, and verify that they are the published ones.

The two data sets share file names, shapes and labels. A network trains well on either of them, so an exchange of the
two would not be noticed. Only the content differs, so each file must have its published SHA-256. The other checks come
before that one, because they name the cause.
"""

import hashlib
import os
import struct
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxnn.data.idx import DataError, read_idx

FILES = {  # the usual name of each file
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "t10k-images": "t10k-images-idx3-ubyte",
    "t10k-labels": "t10k-labels-idx1-ubyte",
}
SOURCES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
SHA256 = {  # of the uncompressed files, so that the compression does not matter
    "mnist": {
        "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion_mnist": {
        "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # the folder below `root`; the files are in its raw/
LABELS = {  # the number of labels of each class
    "mnist": {
        "train-labels": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "t10k-labels": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    },
    "fashion_mnist": {"train-labels": [6000] * 10, "t10k-labels": [1000] * 10},
}


def read_folder(name: str, data_dir: str | os.PathLike[str] | None) -> dict[str, NDArray[np.uint8]]:
    """Read and verify the four files of a data set.

    Args:
        name: "mnist" or "fashion_mnist".
        data_dir: The folder that holds them, or torchvision's `root`, which holds them in MNIST/raw or
            FashionMNIST/raw.

    Returns:
        The arrays by the keys of `FILES`: images (N, H, W) and labels (N,).

    Raises:
        DataError: A file is missing, damaged, inconsistent with its partner, or another data set's.
    """
    paths = _find(name, data_dir)
    arrays = {part: read_idx(path) for part, path in paths.items()}
    check(name, paths, arrays)
    return arrays


def check(name: str, paths: dict[str, Path], arrays: dict[str, NDArray[np.uint8]]) -> None:
    """Refuse arrays that are not the published ones. The error names the path and, if it is known, the cause."""
    for split in ("train", "t10k"):
        images, labels = f"{split}-images", f"{split}-labels"
        _check_pair(paths[images], arrays[images], paths[labels], arrays[labels])
    for part, array in arrays.items():
        _check_published(name, part, paths[part], array)


def has_files(name: str, data_dir: str | os.PathLike[str] | None) -> bool:
    """Return whether a folder, or torchvision's below it, has any of the four files."""
    return data_dir is not None and any(map(_has_files, _folders(name, data_dir)))


def _has_files(folder: Path) -> bool:
    stems = {file.replace("-idx", ".idx") for file in FILES.values()}
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return False
    return not stems.isdisjoint(name.removesuffix(".gz").replace("-idx", ".idx") for name in names)


def _folders(name: str, data_dir: str | os.PathLike[str]) -> list[Path]:
    """Return the folders that may hold the files: the given one, and torchvision's below it."""
    folder = Path(os.path.expanduser(data_dir))  # a shell does not expand a ~ in the middle of an argument
    return [folder, folder / TORCHVISION[name] / "raw", folder / "raw"]


def _find(name: str, data_dir: str | os.PathLike[str] | None) -> dict[str, Path]:
    """Return the path of each file, in either spelling; a raw file is preferred to a gzipped one."""
    if data_dir is None:
        raise _missing(name, FILES.values(), "because no folder was given")
    folders = _folders(name, data_dir)
    folder = next(filter(_has_files, folders), folders[0])
    try:
        present = set(os.listdir(folder))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise _missing(name, FILES.values(), f"because {str(folder)!r} cannot be read ({reason})") from error
    paths = {}
    for part, file in FILES.items():
        spellings = [file, file.replace("-idx", ".idx"), f"{file}.gz", f"{file.replace('-idx', '.idx')}.gz"]
        found = [folder / spelling for spelling in spellings if spelling in present]
        if found:
            # Kaggle's copy has a folder in one spelling beside the file in the other.
            paths[part] = min(found, key=os.path.isdir)
    if absent := [file for part, file in FILES.items() if part not in paths]:
        raise _missing(name, absent, f"in {str(folder)!r}")
    return paths


def _missing(name: str, files: Collection[str], where: str) -> DataError:
    """Return the error that says which files are missing, and how to get them."""
    which = "all four files" if len(files) == len(FILES) else ", ".join(files)
    return DataError(
        f"{name} lacks {which} {where}: put {', '.join(FILES.values())} (each raw or .gz)"
        f" from {SOURCES[name]} into one folder and pass it as `data_dir`, or pass `download=True`"
    )


def _check_pair(images_path: Path, images: NDArray[np.uint8], labels_path: Path, labels: NDArray[np.uint8]) -> None:
    """Refuse images and labels that cannot belong to each other."""
    if (images.ndim, labels.ndim) == (1, 3):
        raise DataError(
            f"{str(images_path)!r} holds labels and {str(labels_path)!r} holds images: they are swapped, rename them"
        )
    for path, array, rank, kind in ((images_path, images, 3, "images"), (labels_path, labels, 1, "labels")):
        if array.ndim != rank:
            raise DataError(f"{str(path)!r} does not hold {kind} (rank {array.ndim}, not {rank}): download it again")
    if len(images) != len(labels):
        raise DataError(
            f"{str(images_path)!r} holds {len(images)} images and {str(labels_path)!r} {len(labels)} labels:"
            " the counts must be equal, download both again"
        )
    if labels.max() > 9:
        row = int(labels.argmax())
        raise DataError(
            f"{str(labels_path)!r} holds the label {labels[row]} (row {row}):"
            " labels must lie between 0 and 9, download it again"
        )


def _check_published(name: str, part: str, path: Path, array: NDArray[np.uint8]) -> None:
    """Refuse a file whose content is not the published one. The error says what it is, if that is known."""
    digest = _sha256(array)
    if digest == SHA256[name][part]:
        return
    for other, digests in SHA256.items():
        for other_part, published in digests.items():
            if digest == published:
                cure = "rename it" if other == name else f"set `name` to {other}, or use another folder"
                expected = f"{name}'s" if other_part == part else f"{name}'s {part}"
                raise DataError(f"{str(path)!r} is {other}'s {other_part}, not {expected}: {cure}")
    why = f"SHA-256 {digest} differs from {SHA256[name][part]}"
    if part in LABELS[name] and (counts := np.bincount(array, minlength=10).tolist()) != LABELS[name][part]:
        why = f"it has {counts} labels of each class, not {LABELS[name][part]}"
    raise DataError(f"{str(path)!r} is not the published {part} of {name} ({why}): download it again")


def _sha256(array: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of the raw IDX file that holds `array`; its header follows from the shape."""
    digest = hashlib.sha256(struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape))
    digest.update(array.data)
    return digest.hexdigest()
