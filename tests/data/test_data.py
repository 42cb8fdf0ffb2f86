"""The data sets: good files are read correctly; anything else is refused, in one line that says what to do."""

import ast
import contextlib
import gzip
import hashlib
import importlib.machinery
import importlib.util
import re
import socket
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxnn import data
from jaxnn.data import DataError, Dataset, idx, load, mnist
from jaxnn.data.dataset import Split, _hold_out

REAL_MNIST = Path(__file__).parents[3] / "shared/data/mnist"
HISTOGRAM = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # of MNIST's 60,000 training labels
MIB = 2**20

Bytes = NDArray[np.uint8]


def idx_bytes(array: Bytes) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_arrays() -> dict[str, Bytes]:
    """Return 48 training and 20 test images of 5x4 noise, with labels, in read_folder's form."""
    rng = np.random.default_rng(7)
    arrays = {}
    for split, count in (("train", 48), ("t10k", 20)):
        arrays[f"{split}-images"] = rng.integers(0, 256, (count, 5, 4), np.uint8)
        arrays[f"{split}-labels"] = (np.arange(count) % 10).astype(np.uint8)
    return arrays


def write_folder(folder: Path, arrays: dict[str, Bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for part, array in arrays.items():
        (folder / mnist.FILES[part]).write_bytes(idx_bytes(array))
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small valid folder, published under the name of mnist."""
    arrays = small_arrays()
    for part, array in arrays.items():
        monkeypatch.setitem(mnist.SHA256["mnist"], part, hashlib.sha256(idx_bytes(array)).hexdigest())
    return write_folder(tmp_path / "mnist", arrays)


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    """Expect a DataError of one line that contains each of `words`."""
    with pytest.raises(DataError, match=re.escape(words[0])) as caught:
        yield
    message = str(caught.value)
    assert message.isprintable(), message  # no line break, nor anything else that a terminal would act on
    for word in words:
        assert word in message, message


# Reading


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_read_idx_returns_what_was_written(
    tmp_path: Path, shape: tuple[int, ...], pack: Callable[[bytes], bytes]
) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / "no-suffix-says-which"
    path.write_bytes(pack(idx_bytes(array)))
    for given in (path, str(path)):
        read = idx.read_idx(given)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, array, strict=True)


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_folder_is_read_in_every_spelling(
    folder: Path, separator: str, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path.with_name(path.name.replace("-idx", f"{separator}idx") + suffix).write_bytes(pack(content))
    loaded = load("mnist", str(folder))
    arrays = small_arrays()
    assert (loaded.name, loaded.classes) == ("mnist", tuple("0123456789"))
    np.testing.assert_array_equal(loaded.test.images, arrays["t10k-images"][..., None], strict=True)
    np.testing.assert_array_equal(loaded.test.labels, arrays["t10k-labels"].astype(np.int32), strict=True)
    assert len(loaded.validation.labels) == 4  # a twelfth, as 5,000 are of 60,000
    assert_parts(arrays["train-images"], arrays["train-labels"], [loaded.train, loaded.validation])


def assert_parts(images: Bytes, labels: NDArray[np.integer], splits: list[Split]) -> None:
    """Check that each image is in exactly one of `splits`, in the published order, with its label."""
    rows = {image.tobytes(): row for row, image in enumerate(images)}
    found = []
    for split in splits:
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert split.images.shape == (*split.labels.shape, *images.shape[1:], 1)
        part = [rows[image.tobytes()] for image in split.images]
        assert part == sorted(part)
        np.testing.assert_array_equal(split.labels, labels[part])
        found += part
    assert sorted(found) == list(range(len(images)))


def test_a_folder_with_the_other_spelling_of_a_file_is_skipped(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.rename(folder / "train-images.idx3-ubyte")
    path.mkdir()
    assert len(load("mnist", folder).train.labels) == 44


@pytest.mark.parametrize("given", ["", "MNIST"])
def test_torchvisions_root_is_read(given: str, folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.parent.mkdir(parents=True)
    folder.rename(raw)
    assert len(load("mnist", tmp_path / "root" / given).test.labels) == 20
    with refused("fashion_mnist lacks all four files"):
        load("fashion_mnist", tmp_path / "root")


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert load("mnist", "~/mnist").name == "mnist"


def test_loaded_arrays_are_new_and_writable(folder: Path) -> None:
    for loaded in (load("mnist", folder), load("digits")):
        for split in (loaded.train, loaded.validation, loaded.test):
            split.images[:] = 0
            split.labels[:] = 0
    assert load("digits").train.images.any()


def test_fashion_mnist_names_its_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mnist.SHA256, "fashion_mnist", mnist.SHA256["mnist"])
    loaded = load("fashion_mnist", folder)
    assert loaded.name == "fashion_mnist"
    assert loaded.classes == (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip


# Splits


@pytest.mark.parametrize("count", [0, 1, 7, 100, 333])
def test_hold_out_is_stratified_and_exact(count: int) -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(10, 1000, p=np.arange(1, 11) / 55).astype(np.int32)
    images = np.arange(1000, dtype=np.uint16).view(np.uint8).reshape(1000, 2, 1, 1)
    rest, held = _hold_out(Split(images, labels), count)
    assert_parts(images[..., 0], labels, [rest, held])
    assert len(held.labels) == count
    share = np.bincount(labels, minlength=10) * count / 1000
    assert np.abs(np.bincount(held.labels, minlength=10) - share).max() < 1


def test_hold_out_draws_at_random_within_a_class() -> None:
    """Evenly spaced rows of sorted data would be a biased sample of, say, one writer after another."""
    images = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1)
    _, held = _hold_out(Split(images, np.zeros(200, np.int32)), 20)
    assert len(set(np.diff(held.images.ravel()))) > 3


def test_digits() -> None:
    loaded = load("digits")
    assert (loaded.name, loaded.classes) == ("digits", tuple("0123456789"))
    splits = [loaded.train, loaded.validation, loaded.test]
    assert [len(split.labels) for split in splits] == [1294, 144, 359]
    from sklearn.datasets import load_digits

    everything = load_digits()
    assert_parts(everything.images.astype(np.uint8), everything.target, splits)
    assert loaded.train.images.max() == 16
    total = np.bincount(everything.target)
    for split, fraction in ((loaded.test, 0.2), (loaded.validation, 0.08)):
        assert np.abs(np.bincount(split.labels) - fraction * total).max() < 1.5


def test_the_splits_of_digits_never_change() -> None:
    """A change of the splits, by NumPy or by us, would make all recorded accuracies incomparable."""
    np.random.seed(123)
    first, second = load("digits"), load("digits")
    digests = ("7bebabd1acd2fa61", "94197f7603ead57e", "8ae8df0848037ad3")
    for split, again, digest in zip(first[1:4], second[1:4], digests, strict=True):
        assert split.images.tobytes() == again.images.tobytes()
        assert hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()[:16] == digest


@pytest.fixture(scope="module")
def real() -> Dataset:
    if not REAL_MNIST.is_dir():
        pytest.skip(f"{REAL_MNIST} is absent")
    return load("mnist", REAL_MNIST)


def test_real_mnist(real: Dataset) -> None:
    train, validation, test = real.train, real.validation, real.test
    assert train.images.shape == (55000, 28, 28, 1)
    assert validation.images.shape == (5000, 28, 28, 1)
    assert test.images.shape == (10000, 28, 28, 1)
    held = np.bincount(validation.labels)
    assert (np.bincount(train.labels) + held).tolist() == HISTOGRAM
    assert np.abs(held - np.array(HISTOGRAM) / 12).max() < 1
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert_parts(
        idx.read_idx(REAL_MNIST / "train-images-idx3-ubyte.gz"),
        idx.read_idx(REAL_MNIST / "train-labels-idx1-ubyte.gz"),
        [train, validation],
    )


def test_the_splits_of_mnist_never_change(real: Dataset) -> None:
    again = load("mnist", str(REAL_MNIST))
    for split, other in zip(real[1:4], again[1:4], strict=True):
        assert split.images.tobytes() == other.images.tobytes()
        assert split.labels.tobytes() == other.labels.tobytes()
    assert hashlib.sha256(real.validation.images.tobytes()).hexdigest()[:16] == "2ab0bb2761c41ced"


def test_real_mnist_is_not_fashion_mnist() -> None:
    if not REAL_MNIST.is_dir():
        pytest.skip(f"{REAL_MNIST} is absent")
    with refused("train-images-idx3-ubyte.gz' is mnist's train-images, not fashion_mnist's", "set `name` to mnist"):
        load("fashion_mnist", REAL_MNIST)


# What is asked for


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("mnits", "mnist"), ("MNIST", "mnist"), ("Fashion-MNIST", "fashion_mnist"), ("digit", "digits")],
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"`name` \\('{name}'\\) must be one of .*: did you mean '{nearest}'\\?$"):
        load(name)


@pytest.mark.parametrize("name", ["", "cifar10", None, 3])
def test_unknown_name_without_a_near_one(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of 'digits', 'mnist', 'fashion_mnist'$"):
        load(name)


def test_digits_use_neither_folder_nor_download(tmp_path: Path) -> None:
    with refused("`data_dir`", repr(str(tmp_path)), "is not used by digits", "leave it out"):
        load("digits", tmp_path)
    with refused("`download=True` is not used by digits"):
        load("digits", download=True)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("scikit-learn, which is not installed", "pip install scikit-learn", "pip install '.[train]'"):
        load("digits")


@pytest.mark.parametrize(
    "whole",
    [b"no gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"1,two\n"), gzip.compress(b"1,2\n")[:-5], None],
    ids=["no gzip", "too few", "no number", "cut off", "missing"],
)
def test_damaged_digits(whole: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "datasets" / "data" / "digits.csv.gz"
    file.parent.mkdir(parents=True)
    if whole is not None:
        file.write_bytes(whole)
    spec = importlib.machinery.ModuleSpec("sklearn", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with refused("digits.csv.gz", "install scikit-learn again"):
        load("digits")


def test_digits_are_read_without_importing_scikit_learn() -> None:
    code = "import sys; from jaxnn.data import load; load('digits'); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_no_folder_given(name: str) -> None:
    with refused(f"{name} lacks all four files because no folder was given", *mnist.FILES.values(), "`data_dir`"):
        load(name)
    with refused(f"from {mnist.SOURCES[name]} into"):
        load(name)


@pytest.mark.parametrize(
    ("folder_name", "reason"),
    [("absent", "No such file or directory"), ("file", "Not a directory"), ("nul\0byte", "null byte")],
)
def test_folder_that_cannot_be_listed(tmp_path: Path, folder_name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / folder_name
    with refused(f"mnist lacks all four files because {str(path)!r} cannot be read", reason, *mnist.FILES.values()):
        load("mnist", path)


def test_empty_folder(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[31m"  # the message stays one line, and the terminal its colour
    path.mkdir()
    with refused(f"mnist lacks all four files in {str(path)!r}", mnist.SOURCES["mnist"]):
        load("mnist", path)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").unlink()
    with refused(f"mnist lacks train-labels-idx1-ubyte in {str(folder)!r}", *mnist.FILES.values()):
        load("mnist", folder)
    (folder / "t10k-images-idx3-ubyte").unlink()
    with refused("mnist lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte in"):
        load("mnist", folder)


def test_the_network_is_never_touched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    load("digits")
    load("mnist", folder)
    with refused("lacks all four files"):
        load("mnist")


@pytest.mark.parametrize("room", ["data", "training", "models.py", "files.py", "errors.py"])
def test_no_library_message_names_an_option_of_the_command(room: str) -> None:
    path = Path(data.__file__).parents[1] / room
    for source in path.glob("*.py") if path.is_dir() else [path]:
        assert not re.findall(r"--[a-z][a-z-]*", source.read_text()), source.name


def test_data_imports_only_numpy() -> None:
    imported = set()
    for source in Path(data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    others = {name for name in imported if name.split(".")[0] not in {*sys.stdlib_module_names, "numpy"}}
    lazily = {"PIL", "tensorflow_datasets"}
    assert {
        name
        for name in others
        if not name.startswith(("jaxnn.data", "jaxnn.errors", "jaxnn.files", "tensorflow_datasets."))
    } == lazily


# What a file holds


def header(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


DAMAGED = {
    "empty": (b"", "is empty: download it again"),
    "html": (b"<!DOCTYPE html><html>404</html>", "is an HTML page, not an IDX file: the download failed"),
    "blank lines, html": (b"\r\n\n\n  <html>", "is an HTML page, not an IDX file: the download failed"),
    "marked html": (b"\xef\xbb\xbf<html>", "is an HTML page, not an IDX file: the download failed"),
    "one byte": (b"\0", "is truncated within its header"),
    "three bytes": (b"\0\0\x08", "is truncated within its header"),
    "no sizes": (b"\0\0\x08\3", "is truncated within its header"),
    "two sizes of three": (header(2, 3, 4)[:12], "is truncated within its header"),
    "short of a byte": (
        header(2, 3) + bytes(5),
        "is truncated (its header says shape (2, 3), 6 bytes, and 5 follow",
    ),
    "no body": (header(2, 3), "and 0 follow it): download it again"),
    "a byte too many": (
        header(2, 3) + bytes(7),
        "is too long (its header says shape (2, 3), 6 bytes, and more",
    ),
    "zip": (
        b"PK\3\4" + bytes(9),
        "is not an IDX file of bytes (it starts with 50 4b 03 04, not with 00 00 08",
    ),
    "first byte": (b"\1\0\x08\1" + bytes(9), "is not an IDX file of bytes (it starts with 01 00 08 01"),
    "second byte": (b"\0\1\x08\1" + bytes(9), "is not an IDX file of bytes (it starts with 00 01 08 01"),
    "floats": (b"\0\0\x0d\1" + bytes(9), "is not an IDX file of bytes (it starts with 00 00 0d 01"),
    "rank 0": (b"\0\0\x08\0" + bytes(9), "is not an IDX file of bytes (it starts with 00 00 08 00"),
    "rank 4": (header(1, 1, 1, 1) + b"\0", "is not an IDX file of bytes (it starts with 00 00 08 04"),
    "rank 255": (b"\0\0\x08\xff" + bytes(1020), "is not an IDX file of bytes (it starts with 00 00 08 ff"),
    "no image": (header(0, 28, 28), "holds no data (its header says shape (0, 28, 28), 0 bytes)"),
    "no data, vast": (header(2**32 - 1, 2**32 - 1, 0), "holds no data (its header says shape (4294967295,"),
    "2**31 images": (
        header(2**31, 28, 28) + bytes(9),
        "is over the limit of 67108864 bytes (its header says shape",
    ),
    "vast": (
        header(*3 * [2**32 - 1]) + bytes(9),
        "is over the limit of 67108864 bytes (its header says shape",
    ),
    "gzipped twice": (gzip.compress(header(1) + b"\0"), "is not an IDX file of bytes (it starts with 1f 8b"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_refused(tmp_path: Path, case: str, pack: Callable[[bytes], bytes]) -> None:
    content, words = DAMAGED[case]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(pack(content))
    if case == "gzipped twice" and pack is bytes:
        assert idx.read_idx(path).tolist() == [0]  # once is as it should be
        return
    tracemalloc.start()
    try:
        with refused(repr(str(path)), words):
            idx.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_limit_is_of_the_size_and_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(header(2, 3) + bytes(6))
    monkeypatch.setattr(idx, "MAX_BYTES", 6)
    assert idx.read_idx(path).shape == (2, 3)
    monkeypatch.setattr(idx, "MAX_BYTES", 5)
    with refused("is over the limit of 5 bytes"):
        idx.read_idx(path)


WHOLE = gzip.compress(header(3, 100) + np.random.default_rng(0).bytes(300), mtime=0)
DAMAGED_GZIP = {
    "header alone": WHOLE[:2],
    "half": WHOLE[: len(WHOLE) // 2],
    "no checksum": WHOLE[:-8],
    "wrong checksum": WHOLE[:-8] + bytes(4) + WHOLE[-4:],
    "wrong length": WHOLE[:-1] + b"\1",
    "wrong method": WHOLE[:2] + b"\x09" + WHOLE[3:],
    "not deflate": WHOLE[:10] + b"\xff" * (len(WHOLE) - 10),
    "rubbish after it": WHOLE + b"rubbish",
}


@pytest.mark.parametrize("case", DAMAGED_GZIP)
def test_damaged_gzip_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(DAMAGED_GZIP[case])
    with refused(f"{str(path)!r} is damaged gzip (", "): download it again"):
        idx.read_idx(path)


@pytest.mark.parametrize("claim", [16, 2 * MIB])
def test_gzip_bomb_costs_no_memory(tmp_path: Path, claim: int) -> None:
    path = tmp_path / "bomb.gz"
    pack = zlib.compressobj(level=1, wbits=31)
    with path.open("wb") as file:
        file.write(pack.compress(header(claim)))
        for _ in range(64):
            file.write(pack.compress(bytes(MIB)))
        file.write(pack.flush())
    assert path.stat().st_size < MIB
    tracemalloc.start()
    try:
        with refused(repr(str(path)), "is too long"):
            idx.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < claim + MIB
    finally:
        tracemalloc.stop()


def test_reading_holds_two_copies_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    arrays = {**small_arrays(), "train-images": rng.integers(0, 256, (6000, 28, 28), np.uint8)}
    arrays["train-labels"] = (np.arange(6000) % 10).astype(np.uint8)
    for part, array in arrays.items():
        monkeypatch.setitem(mnist.SHA256["mnist"], part, hashlib.sha256(idx_bytes(array)).hexdigest())
    folder = write_folder(tmp_path, arrays)
    tracemalloc.start()
    try:
        load("mnist", folder)
        assert tracemalloc.get_traced_memory()[1] < 2.2 * arrays["train-images"].nbytes
    finally:
        tracemalloc.stop()


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    with refused(f"{str(tmp_path)!r} is a directory"):
        idx.read_idx(tmp_path)
    with refused("absent' cannot be read (No such file or directory)"):
        idx.read_idx(tmp_path / "absent")
    with refused("'/dev/null' is not a regular file"):
        idx.read_idx("/dev/null")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with refused(f"{str(loop)!r} cannot be read ("):
        idx.read_idx(loop)


def test_unreadable_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")  # as chmod 000 does, though not to root

    monkeypatch.setattr(Path, "open", denied)
    with refused("train-images-idx3-ubyte' cannot be read (Permission denied)", "permissions"):
        load("mnist", folder)


def test_a_directory_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()
    (folder / "t10k-labels-idx1-ubyte").mkdir()
    with refused("t10k-labels-idx1-ubyte' is a directory"):
        load("mnist", folder)


# What a folder holds


@pytest.mark.parametrize("split", ["train", "t10k"])
def test_swapped_images_and_labels(folder: Path, split: str) -> None:
    images, labels = folder / f"{split}-images-idx3-ubyte", folder / f"{split}-labels-idx1-ubyte"
    content = images.read_bytes()
    labels.rename(images)
    labels.write_bytes(content)
    with refused(f"{str(images)!r} holds labels and {str(labels)!r} holds images", "swapped"):
        load("mnist", folder)


def test_wrong_ranks(tmp_path: Path) -> None:
    arrays = small_arrays()
    labels = arrays["train-labels"]
    with refused("train-images-idx3-ubyte' does not hold images (rank 1, not 3)"):
        load("mnist", write_folder(tmp_path, {**arrays, "train-images": labels}))
    with refused("train-images-idx3-ubyte' does not hold images (rank 2, not 3)"):
        load("mnist", write_folder(tmp_path, {**arrays, "train-images": arrays["train-images"][0]}))
    with refused("t10k-labels-idx1-ubyte' does not hold labels (rank 3, not 1)"):
        load("mnist", write_folder(tmp_path, {**arrays, "t10k-labels": arrays["t10k-images"]}))


@pytest.mark.parametrize("part", ["train-images", "train-labels", "t10k-images", "t10k-labels"])
def test_counts_must_be_equal(folder: Path, part: str) -> None:
    array = small_arrays()[part]
    counts = (len(array) - 1, len(array)) if part.endswith("images") else (len(array), len(array) - 1)
    write_folder(folder, {part: array[:-1]})
    with refused(f"holds {counts[0]} images", f"{counts[1]} labels", "counts must be equal"):
        load("mnist", folder)


@pytest.mark.parametrize("split", ["train", "t10k"])
@pytest.mark.parametrize("label", [10, 255])
def test_labels_over_nine(folder: Path, split: str, label: int) -> None:
    labels = small_arrays()[f"{split}-labels"]
    labels[13] = label
    write_folder(folder, {f"{split}-labels": labels})
    with refused(f"{split}-labels-idx1-ubyte' holds the label {label} (row 13)", "labels must lie between 0 and 9"):
        load("mnist", folder)


@pytest.mark.parametrize("part", ["train-images", "train-labels", "t10k-images", "t10k-labels"])
def test_unpublished_content(folder: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = small_arrays()[part]
    array.flat[3] ^= 1
    write_folder(folder, {part: array})
    path = folder / mnist.FILES[part]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if part.endswith("labels"):
        counts = np.bincount(array, minlength=10).tolist()
        with refused(
            f"{str(path)!r} is not the published {part} of mnist (it has {counts} labels of each class, not ["
        ):
            load("mnist", folder)
        monkeypatch.setitem(mnist.LABELS["mnist"], part, counts)
    with refused(f"{str(path)!r} is not the published {part} of mnist (SHA-256 {digest} differs", "download it again"):
        load("mnist", folder)


@pytest.mark.parametrize("part", ["train-images", "train-labels", "t10k-images", "t10k-labels"])
def test_fashion_mnist_under_the_name_of_mnist(folder: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and ranges are the same; only the content differs."""
    digest = mnist.SHA256["mnist"][part]
    monkeypatch.setitem(mnist.SHA256["mnist"], part, "0" * 64)
    monkeypatch.setitem(mnist.SHA256["fashion_mnist"], part, digest)
    with refused(
        f"{str(folder / mnist.FILES[part])!r} is fashion_mnist's {part}, not mnist's: "
        "set `name` to fashion_mnist, or use another folder"
    ):
        load("mnist", folder)


def test_training_and_test_files_exchanged(folder: Path) -> None:
    arrays = small_arrays()
    write_folder(folder, {"train-images": arrays["t10k-images"], "train-labels": arrays["t10k-labels"]})
    with refused("is mnist's t10k-images, not mnist's train-images: rename it"):
        load("mnist", folder)


@pytest.mark.parametrize("part", ["train-labels", "t10k-labels"])
def test_published_labels_of_each_class(part: str) -> None:
    published = Path(__file__).parents[3] / "shared" / "data" / "mnist" / f"{mnist.FILES[part]}.gz"
    if not published.exists():
        pytest.skip("needs the published files")
    assert np.bincount(idx.read_idx(published)).tolist() == mnist.LABELS["mnist"][part]
    assert sum(mnist.LABELS["fashion_mnist"][part]) == sum(mnist.LABELS["mnist"][part])


def test_published_digests() -> None:
    digests = [digest for files in mnist.SHA256.values() for digest in files.values()]
    assert len(set(digests)) == 8
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert {name: list(files) for name, files in mnist.SHA256.items()} == {
        name: list(mnist.FILES) for name in ("mnist", "fashion_mnist")
    }


# Whatever a folder holds


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Change, insert, remove or cut off some bytes, most often in the header."""
    mutant = bytearray(content)
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(min(len(mutant), 24 if rng.random() < 0.5 else len(mutant)) or 1))
        match int(rng.integers(6)):
            case 0:
                mutant[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 1:
                del mutant[at : at + int(rng.integers(1, 9))]
            case 2:
                del mutant[len(mutant) - at :]
            case _:
                mutant[at : at + 1] = rng.bytes(1)
    return bytes(mutant)


def test_mutants_are_read_or_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digests are not checked here, so that the parser is what is tested."""
    monkeypatch.setattr(mnist, "_check_published", lambda *args: None)
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(300):
        path = folder / rng.choice(list(mnist.FILES.values()))
        content = path.read_bytes()
        pack = gzip.compress if rng.random() < 0.5 else bytes
        path.write_bytes(mutated(pack(content), rng))
        try:
            loaded = load("mnist", folder)
        except DataError as error:
            assert str(error).isprintable()
            assert path.name in str(error)
            outcomes.append("refused")
        else:
            for split in loaded[1:4]:
                assert split.images.shape[:1] == split.labels.shape
                assert split.labels.min() >= 0
                assert split.labels.max() <= 9
            outcomes.append("read")
        path.write_bytes(content)
    assert outcomes.count("read") > 10  # a mutated pixel or a date in gzip's header is read: both outcomes occur
    assert outcomes.count("refused") > 150
