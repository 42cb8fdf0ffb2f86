"""Copies that tensorflow-datasets prepares: made and read without TensorFlow, and verified."""

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxnn import cli, data, files
from jaxnn.data import dataset, prepared
from jaxnn.data.mnist import read_folder

pytest.importorskip("tensorflow_datasets")
PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published files")


@contextlib.contextmanager
def downloads_from(folder):
    """Let tensorflow-datasets take the files that it downloads from a folder."""
    make = prepared._builder

    def builder(tfds, name):
        made, config = make(tfds, name), tfds.download.DownloadConfig(manual_dir=folder)
        made.download_and_prepare = functools.partialmethod(made.download_and_prepare, download_config=config)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "_builder", builder)
        patch.setattr(prepared, "_require_reachable", lambda name: None)
        yield


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A folder with a copy of MNIST that tensorflow-datasets made from the published files."""
    folder = tmp_path_factory.mktemp("copies")
    with contextlib.redirect_stdout(io.StringIO()) as printed, downloads_from(PUBLISHED):
        prepared.prepare("mnist", folder)
    assert printed.getvalue() == ""
    return folder


def no_network(monkeypatch):
    def no_socket(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)


@pytest.mark.more
@needs_mnist
def test_a_copy_is_the_published_data_in_the_published_order(copies, monkeypatch):
    no_network(monkeypatch)
    arrays = prepared.read_prepared("mnist", copies)
    for part, published in read_folder("mnist", PUBLISHED).items():
        np.testing.assert_array_equal(arrays[part], published)
    assert "tensorflow" not in sys.modules
    monkeypatch.setenv("TFDS_DATA_DIR", str(copies))
    found = data.load("mnist")
    assert [len(split.labels) for split in (found.train, found.validation, found.test)] == [55_000, 5_000, 10_000]
    prepared.prepare("mnist", copies)  # there is nothing to do


@pytest.mark.more
@needs_mnist
@pytest.mark.parametrize(
    "harm", ["flipped", *(pytest.param(h, marks=pytest.mark.more) for h in ("truncated", "no records", "no text"))]
)
def test_a_damaged_copy_is_refused_in_one_line(copies, harm, tmp_path):
    shutil.copytree(copies, tmp_path / "c")
    (version,) = (tmp_path / "c" / "mnist").iterdir()
    records = next(version.glob("*test*array_record*"))
    if harm == "truncated":
        records.write_bytes(records.read_bytes()[:-1000])
    elif harm == "flipped":
        content = bytearray(records.read_bytes())
        content[len(content) // 2] ^= 4
        records.write_bytes(content)
    elif harm == "no records":
        records.unlink()
    else:
        (version / "dataset_info.json").write_text("<html>")
    with pytest.raises(data.DataError) as error:
        data.load("mnist", tmp_path / "c")
    assert str(tmp_path / "c" / "mnist") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.more
@needs_mnist
@pytest.mark.parametrize("lie", ["count", "pipe", "unfinished"])
def test_a_copy_that_would_take_memory_or_time_is_refused(lie, copies, tmp_path):
    shutil.copytree(copies, tmp_path / "c")
    (version,) = (tmp_path / "c" / "mnist").iterdir()
    if lie == "count":
        info = json.loads((version / "dataset_info.json").read_text())
        for split in info["splits"]:
            split["shardLengths"] = ["99999999999"]
        (version / "dataset_info.json").write_text(json.dumps(info))
    elif lie == "pipe":
        records = next(version.glob("*test*array_record*"))
        records.unlink()
        os.mkfifo(records)
    else:
        version.rename(version.with_name("incomplete.ABC_3.0.1"))
    words = {
        "count": "99999999999 images, not 60000",
        "pipe": "is not a regular file",
        "unfinished": "mnist lacks all",
    }
    with pytest.raises(data.DataError, match=words[lie]):
        data.load("mnist", tmp_path / "c")


@pytest.mark.more
@needs_mnist
def test_prepare_waits_for_another_process_that_makes_the_copy(copies, tmp_path):
    unlock = files.lock(tmp_path)

    def other():
        shutil.copytree(copies / "mnist", tmp_path / "mnist")
        unlock()

    threading.Timer(1.0, other).start()
    with downloads_from(tmp_path / "none"):
        prepared.prepare("mnist", tmp_path)
    assert prepared.is_prepared("mnist", tmp_path)


def test_a_signal_ends_a_download(tmp_path, monkeypatch, capsys):
    ended = threading.Event()

    def download(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        ended.wait(20)

    monkeypatch.setattr(dataset, "prepare", download)
    options = ["--download", "--data-dir", str(tmp_path), "--output", str(tmp_path / "o")]
    assert cli.main(["train", "--dataset", "mnist", *options]) == 143
    assert capsys.readouterr().err == "jaxnn: error: stopped by SIGTERM before the training\n"
    assert not (tmp_path / "o").exists()
    ended.set()


@pytest.mark.more
@needs_mnist
def test_mnist_under_the_name_of_fashion_mnist_is_refused(copies, tmp_path):
    """Two preparations in one folder can cause this: the file names are the same for both data sets."""
    (version,) = (copies / "mnist").iterdir()
    other = tmp_path / "fashion_mnist" / version.name
    shutil.copytree(version, other)
    for path in list(other.iterdir()):
        path.rename(path.with_name(path.name.replace("mnist-", "fashion_mnist-")))
    info = json.loads((other / "dataset_info.json").read_text())
    info["name"] = "fashion_mnist"
    (other / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(data.DataError, match="is mnist's train-images, not fashion_mnist's: set `name` to mnist"):
        data.load("fashion_mnist", tmp_path)


def test_an_unreachable_source_is_reported_within_seconds(tmp_path, monkeypatch, capsys):
    def never(*_, **__):
        time.sleep(3600)

    for failing in (never, lambda *_, **__: (_ for _ in ()).throw(OSError("no route"))):
        monkeypatch.setattr(prepared, "REACH_SECONDS", 1.0)
        monkeypatch.setattr(socket, "create_connection", failing)
        start = time.monotonic()
        options = ["--download", "--data-dir", str(tmp_path), "--output", str(tmp_path / "o")]
        assert cli.main(["train", "--dataset", "fashion_mnist", *options]) == 1
        assert time.monotonic() - start < 10
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be reached: put train-images-idx3-ubyte" in line and "--data-dir" in line


def test_with_a_proxy_it_is_the_proxy_that_must_be_reachable(monkeypatch):
    asked = []

    def connect(target, timeout):
        asked.append(target)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with pytest.raises(data.DataError, match=r"because proxy\.example cannot be reached"):
        prepared._require_reachable("mnist")
    assert asked == [("proxy.example", 3128)]


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path):
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(b"<html>quota</html>")
    cannot = "mnist cannot be prepared by tensorflow-datasets"
    with downloads_from(tmp_path), pytest.raises(data.DataError, match=cannot) as error:
        prepared.prepare("mnist", tmp_path / "copies")
    assert "\n" not in str(error.value)


def test_without_tensorflow_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for call in (prepared.prepare, prepared.read_prepared):
        with pytest.raises(data.DataError, match=r"tensorflow-datasets cannot be imported .*: pip install"):
            call("mnist", tmp_path)


def test_files_come_first_and_digits_need_no_download(tmp_path, capsys):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    (tmp_path / "t10k-labels.idx1-ubyte.gz").write_text("")
    with pytest.raises(data.DataError, match="mnist lacks train-images-idx3-ubyte"):
        data.load("mnist", tmp_path)
    assert cli.main(["train", "--download", "--output", str(tmp_path / "o")]) == 1
    assert "--download is not used by digits" in capsys.readouterr().err
