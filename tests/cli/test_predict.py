"""The command `jaxnn predict`: images of every kind, and files that are not images or networks."""

import importlib
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import zipfile
import zlib

import jax
import numpy as np
import pytest

from jaxnn import cli
from jaxnn.cli import images, predict
from jaxnn.cli.terminal import CommandError
from jaxnn.data import load

Image = pytest.importorskip("PIL.Image")
sklearn = pytest.importorskip("sklearn.datasets")

MNIST = pathlib.Path(__file__).parents[3] / "shared" / "data" / "mnist"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with params.npz, steps and the digits' test images as the network saw them."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--model", "mlp", "--epochs", "10", "--quiet", "--output", str(folder)]
    assert cli.main(["train", *options, "--checkpoint-dir", str(folder / "steps")]) == 0
    return folder


def run(capsys, *arguments):
    code = cli.main(["predict", *map(str, arguments)])
    return code, *capsys.readouterr()


def digit(i):
    """A digit, from 0 to 1."""
    return sklearn.load_digits().images[i] / 16


def write(path, pixels, kind):
    """Save grey pixels in one of many ways."""
    if kind == "npy":
        np.save(path, pixels)
    elif kind == "npy-float32-rgb":
        np.save(path, np.repeat(pixels[..., None], 3, 2).astype(np.float32))
    elif kind == "npy-uint8":
        np.save(path, np.round(255 * pixels).astype(np.uint8)[..., None])
    elif kind == "16 bits":
        Image.fromarray(np.round(65535 * pixels).astype(np.uint16)).save(path, "PNG")
    else:
        image = Image.fromarray(np.round(255 * pixels).astype(np.uint8))
        if kind == "large":
            image = image.resize((240, 240), Image.Resampling.NEAREST)
        if kind == "alpha":  # opaque pixels are black, transparent ones are white
            image = Image.merge("RGBA", [Image.new("L", image.size, 0)] * 3 + [Image.eval(image, lambda v: 255 - v)])
        image = image.convert({"rgb": "RGB", "palette": "P"}.get(kind, image.mode))
        image.save(path, "JPEG" if kind == "jpeg" else "PNG", **({"quality": 100} if kind == "jpeg" else {}))


KINDS = ["png", "jpeg", "rgb", "palette", "large", "16 bits", "alpha", "npy", "npy-float32-rgb", "npy-uint8"]


@pytest.mark.one_in(10)
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_kind_is_read_like_the_training_images(trained, kind, tmp_path, capsys):
    network = predict.read_trained(str(trained / "params.npz"))
    expected = predict.predict(network, [digit(3).astype(np.float32)])[0]
    path = tmp_path / ("image.npy" if "npy" in kind else "image.xyz")
    write(path, digit(3), kind)
    code, out, err = run(capsys, trained / "params.npz", path, "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    assert found["image"] == str(path) and found["class"] == "3"
    assert list(found["probabilities"]) == list("0123456789")
    np.testing.assert_allclose(list(found["probabilities"].values()), expected, atol=0.03)


def test_the_digits_are_read_as_in_training(trained):
    """An image is not scaled, rotated or inverted: the predictions are those of the network in training."""
    network = predict.read_trained(str(trained / "params.npz"))
    images, labels = sklearn.load_digits().images, sklearn.load_digits().target
    probabilities = predict.predict(network, list((images / 16).astype(np.float32)))
    direct = network.classifier.logits(network.params, images[..., None].astype(np.uint8))
    np.testing.assert_array_equal(probabilities.argmax(1), np.asarray(direct).argmax(1))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() > 0.95


def test_ink_on_paper_is_inverted(trained, tmp_path, capsys):
    write(tmp_path / "a.png", 1 - digit(7), "png")
    code, out, _ = run(capsys, trained / "params.npz", tmp_path / "a.png", "--invert")
    assert code == 0 and out.split()[1] == "7" and "7 " in out and out.count("%") == 10


@pytest.mark.parametrize("ink, invert", [(1.0, False), (0.9, False), (0.0, True), (0.1, True)])
def test_a_stroke_on_transparent_ground_is_seen(ink, invert, tmp_path):
    """Drawing programs leave the ground out: it is black behind a light stroke, and white behind a dark one."""
    alpha = np.kron(digit(0), np.ones((20, 20)))
    (tmp_path / "a.png").write_bytes(rgba(ink, alpha))
    grey = images.read_image(str(tmp_path / "a.png"), invert=invert)
    np.testing.assert_allclose(grey, alpha * (ink if not invert else 1 - ink), atol=0.01)


def test_a_picture_with_transparent_corners_keeps_its_own_ground(tmp_path):
    page = np.where(np.kron(digit(0), np.ones((20, 20))) > 0.5, 0.1, 0.8)
    alpha = np.ones_like(page)
    alpha[:9, :9] = 0
    (tmp_path / "a.png").write_bytes(rgba(page, alpha))
    np.testing.assert_allclose(images.read_image(str(tmp_path / "a.png"))[:9, :9], 0.8, atol=0.01)


def drawn(size=4):
    """A 7 with thick lines, 18 size pixels high and 12 wide."""
    height, width = 18 * size, 12 * size
    seven = Image.new("L", (width, height))
    pen = importlib.import_module("PIL.ImageDraw").Draw(seven)
    pen.line([(0, size), (width - size, size), (width // 3, height)], 255, 2 * size, joint="curve")
    return np.asarray(seven, np.float32) / 255


@pytest.mark.parametrize("form", ["mnist", "digits"])
def test_a_drawing_becomes_an_image_like_those_of_the_data_set(form):
    """However it was cut out: with margins, at any size, on uneven grey paper, it gives the same image."""
    made, side = images.FORMS[form], {"mnist": 28, "digits": 8}[form]
    expected = images.in_form(drawn(), made, side, side)
    rows, columns = (np.flatnonzero(expected.max(axis) > 0.3 * made.brightest) for axis in (1, 0))
    assert abs(rows[-1] + 1 - rows[0] - made.box * side) <= 1, "the longer side fills the box"
    assert abs((columns[-1] + 1 - columns[0]) / (rows[-1] + 1 - rows[0]) - 12 / 18) < 0.15, "the ratio is kept"
    if made.by_mass:
        at = [(expected.sum(axis) @ np.arange(side)) / expected.sum() for axis in (1, 0)]
        np.testing.assert_allclose(at, 14, atol=0.2)
    margins = np.pad(drawn(), ((150, 20), (30, 400)))
    light = np.linspace(0.6, 0.9, margins.shape[1])
    paper = light * (1 - 0.8 * margins) + np.random.default_rng(0).normal(0, 0.02, margins.shape)
    for other in (margins, drawn(9), 0.2 * drawn(), 1 - np.clip(paper, 0, 1).astype(np.float32)):
        image = images.in_form(np.float32(other), made, side, side)
        assert np.abs(image - expected).mean() < 0.04 * made.brightest


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_images_of_a_data_set_stay_as_they_are(name):
    form = images.FORMS[name]
    if name == "digits":
        pixels = sklearn.load_digits().images.astype(np.float32)
    else:
        pixels = real_mnist().test.images[..., 0].astype(np.float32)
    for image in pixels[:2000]:
        grey = image / np.float32(form.brightest)
        np.testing.assert_allclose(images.in_form(grey, form, *image.shape), image, rtol=1e-6)


def real_mnist():
    if not MNIST.is_dir():
        pytest.skip("MNIST's files are not here")
    return load("mnist", MNIST)


@pytest.mark.more
def test_tight_crops_of_mnist_are_read(tmp_path):
    data = real_mnist()
    options = ["--dataset", "mnist", "--data-dir", str(MNIST), "--model", "cnn", "--epochs", "1", "--quiet"]
    assert cli.main(["train", *options, "--output", str(tmp_path)]) == 0
    network, crops = predict.read_trained(str(tmp_path)), []
    for image in data.test.images[:200, ..., 0]:
        rows, columns = (np.flatnonzero(image.max(axis) > 40) for axis in (1, 0))
        crops.append(np.float32(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]) / 255)
    right = predict.predict(network, crops).argmax(1) == data.test.labels[:200]
    assert right.sum() >= 190


def test_a_photograph_is_rotated_as_its_exif_says(trained, tmp_path, capsys):
    image = Image.fromarray(np.round(255 * digit(3)).astype(np.uint8)).resize((240, 240))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to view
    image.rotate(90).save(tmp_path / "a.jpg", quality=100, exif=exif)
    code, out, _ = run(capsys, trained / "params.npz", tmp_path / "a.jpg")
    assert code == 0 and out.split()[1] == "3"


def test_class_names_cannot_control_the_terminal(trained):
    network = predict.read_trained(str(trained / "params.npz"))
    network.config["classes"][0] = "\x1b[31m0\n"
    answer = np.eye(10)[:1]
    assert "'\\x1b[31m0\\n'" in predict.table(["a"], network, answer)


def test_a_network_output_that_is_not_finite_is_refused(trained):
    network = predict.read_trained(str(trained / "params.npz"))
    huge = network._replace(params=jax.tree.map(lambda w: w * np.float32(1e37), network.params))
    with pytest.raises(CommandError, match="the network's output is not finite"):
        predict.predict(huge, [digit(0).astype(np.float32)])


@pytest.mark.parametrize("place", [".", "steps", "steps/step-0000000410"])
def test_a_step_is_as_good_as_params(trained, place, tmp_path, capsys):
    write(tmp_path / "a.png", digit(5), "png")
    answers = [run(capsys, trained / name, tmp_path / "a.png") for name in ("params.npz", place)]
    assert answers[0] == answers[1] and answers[0][0] == 0


def png(width, height):
    """Return a PNG of any size that has a header but no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IEND", b"")
    )


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def rgba(grey, alpha):
    """Return a PNG of grey pixels with transparency."""
    buffer = io.BytesIO()
    channels = [np.uint8(np.round(255 * np.broadcast_to(c, np.shape(alpha)))) for c in (grey, grey, grey, alpha)]
    Image.fromarray(np.dstack(channels)).save(buffer, "PNG")
    return buffer.getvalue()


def tiff():
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


BAD_IMAGES = {
    "huge": (png(50_000, 50_000), "Image size (2500000000 pixels) exceeds limit"),
    "large": (png(10_000, 10_000), "has 10000 x 10000 pixels; it must have from 1 to 25000000"),
    "no pixels, png": (png(0, 0), "cannot be read as an image"),
    "no pixels, npy": (saved(np.zeros((0, 5))), "has 5 x 0 pixels"),
    "truncated": (png(8, 8), "'"),
    "text": (b"not an image\n" * 9, "cannot be read as an image: it must be PNG, JPEG, GIF, BMP, WEBP or .npy"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(100), "must be PNG, JPEG, GIF, BMP, WEBP or .npy"),
    "html": (b"<!DOCTYPE html><html></html>", "cannot be read as an image"),
    "empty": (b"", "cannot be read as an image"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "cannot be read as an image"),
    "tiff": (tiff(), "cannot be read as an image"),
    "pickle": (saved(np.array([Payload()], object), allow_pickle=True), "cannot be read as an image (ValueError"),
    "truncated npy": (saved(np.zeros((99, 99)))[:500], "cannot be read as an image ("),
    "lying npy": (saved(np.zeros((8, 8))).replace(b"(8, 8), }", b"(9999999, 9999999), }")[:200], "'"),
    "four axes": (saved(np.zeros((1, 2, 3, 4))), "(shape (1, 2, 3, 4)) must have shape (H, W)"),
    "too bright": (saved(np.full((8, 8), 16.0)), "(float64) must hold values from 0 to 1; they go from 16.0 to 16.0"),
    "nan": (saved(np.full((8, 8), np.nan)), "they go from nan to nan"),
    "negative": (saved(np.full((8, 8), -1)), "(int64) must hold values from 0 to 255"),
    "complex": (saved(np.zeros((8, 8), complex)), "(dtype complex128) must hold numbers"),
    "one grey value": (
        saved(np.full((8, 8), 128, np.uint8)),
        "shows nothing: all of its pixels have one grey value, 0.50",
    ),
    "nothing opaque": (rgba(np.random.default_rng(0).random((8, 8)), np.zeros((8, 8))), "one grey value, 1.00"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_file_that_is_not_an_image_is_one_line(trained, kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, words = BAD_IMAGES[kind]
    (tmp_path / "bad\nname.png").write_bytes(content)
    write(tmp_path / "good.png", digit(1), "png")
    code, out, err = run(capsys, trained / "params.npz", tmp_path / "good.png", tmp_path / "bad\nname.png")
    assert (code, out) == (1, "") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("what", ["missing", "folder", "pipe"])
def test_a_path_that_is_not_a_file_is_one_line(trained, what, tmp_path, capsys):
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    write(tmp_path / "good.png", digit(1), "png")
    for arguments in ((trained / "params.npz", path), (path, tmp_path / "good.png")):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, "") and err.count("\n") == 1 and what in err


CHANGES = {  # of the configuration
    "another model": {"model": "cnn"},
    "two axes": {"input_shape": [8, 8]},
    "no height": {"input_shape": [-8, -8, 1]},
    "many pixels": {"input_shape": [10**9, 10**9, 1]},
    "three channels": {"input_shape": [4, 4, 4]},
    "a list for a name": {"dataset": [1]},
    "numbers for classes": {"classes": list(range(10))},
    "no deviation": {"normalisation": {"mean": 0, "std": 0}},
    "infinite mean": {"normalisation": {"mean": 1e999, "std": 1}},
}


def bad_params(path, kind, good):
    if kind == "text":
        path.write_text("no archive")
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:-100])
    elif kind == "flipped":
        content = bytearray(good.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "pickle":
        np.savez(path, config=np.array([Payload()], object))
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("config.npy", bytes(300 << 20))
    elif kind == "other arrays":
        np.savez(path, a=np.zeros(3))
    else:
        with np.load(good) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if kind in CHANGES:
            config = json.loads(str(arrays["config"])) | CHANGES[kind]
            arrays["config"] = np.array(json.dumps(config))
        elif kind == "nan":
            arrays["params/linear1/w"][0] = np.nan
        else:
            arrays["params/linear1/w"] = arrays["params/linear1/w"][1:]
        np.savez(path, **arrays)


@pytest.mark.parametrize(
    "kind", ["text", "truncated", "flipped", "pickle", "bomb", "other arrays", "shape", "nan", *CHANGES]
)
def test_a_file_that_is_not_a_network_is_one_line(trained, kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad_params(tmp_path / "bad.npz", kind, trained / "params.npz")
    write(tmp_path / "good.png", digit(1), "png")
    code, out, err = run(capsys, tmp_path / "bad.npz", tmp_path / "good.png")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "bad.npz" in err
    assert not (tmp_path / "executed").exists()


def test_an_exported_network_runs_without_the_package(trained, tmp_path):
    """Export it as in the README, and run it in a process that cannot import jaxnn."""
    pytest.importorskip("flatbuffers")
    network = predict.read_trained(str(trained / "params.npz"))
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), 8, 8, 1), np.uint8)
    exported = jax.export.export(
        jax.jit(lambda x: network.classifier.logits(network.params, x)), platforms=("cpu", "cuda", "tpu")
    )(images)
    (tmp_path / "network").write_bytes(exported.serialize())
    digits = sklearn.load_digits().images[:7, ..., None].astype(np.uint8)
    np.save(tmp_path / "digits.npy", digits)
    code = """
import sys
sys.modules["jaxnn"] = None
import jax, numpy as np
network = jax.export.deserialize(bytearray(open("network", "rb").read()))
assert network.platforms == ("cpu", "cuda", "tpu")
np.save("logits.npy", network.call(np.load("digits.npy")))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    expected = network.classifier.logits(network.params, digits)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-4)
