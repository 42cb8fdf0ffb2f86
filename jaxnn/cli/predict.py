"""`jaxnn predict`: the classes of images, by a trained network.

The parameters come from a `params.npz` or from a step of a `--checkpoint-dir`. Nothing in the files is executed, and a
file that would take more memory than such a file needs is refused.
"""

import json
import math
import operator
import stat
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxnn.cli.terminal import CommandError
from jaxnn.errors import JaxnnError
from jaxnn.models import MODELS, Classifier
from jaxnn.training import load_params, newest_step, read_step

MAX_PIXELS = 25_000_000  # of an image; a camera's has about half as many
MAX_FILE = 256 << 20
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # Pillow's readers that start no other program
BRIGHTEST = {"digits": 16}  # the largest pixel value in the training data; 255 for other data sets


class Trained(NamedTuple):
    """A network with its parameters and its configuration."""

    classifier: Classifier
    params: dict[str, Any]
    config: dict[str, Any]


def read_trained(path: str) -> Trained:
    """Read the parameters and the configuration of a network.

    Args:
        path: a `params.npz`, the folder that holds it, a step's folder, or a folder of steps, of which the newest is
            read.

    Returns:
        The network.

    Raises:
        CommandError: it is none of these, or does not hold one of this package's networks.
    """
    where, name = Path(path).expanduser(), repr(path)
    try:
        params, config = _from_folder(where) if where.is_dir() else _from_file(where)
        mean, std = (float(config["normalisation"][part]) for part in ("mean", "std"))
        height, width, _ = (operator.index(n) for n in config["input_shape"])
        if not (math.isfinite(mean) and 0 < std < math.inf and 0 < min(height, width) <= height * width <= MAX_PIXELS):
            raise ValueError(f"its configuration has mean {mean}, std {std}, images of {width} x {height}")
        if not all(isinstance(text, str) for text in (config["dataset"], *config["classes"])):
            raise TypeError("its configuration has names that are not strings")
        model = MODELS[config["model"]]
        classifier = Classifier(model, mean, std)
        expected, found = _shapes(model, (height, width, 1), len(config["classes"])), _described(params)
    except JaxnnError:
        raise
    except OSError as error:
        raise CommandError(f"{name} cannot be read ({error.strerror or error}): give a params.npz or a step") from error
    except Exception as error:  # a file of another kind can cause any error
        reason = f"{type(error).__name__}: {error}"
        raise CommandError(f"{name} is not a params.npz or a step of `jaxnn train` ({reason})") from error
    if found != expected:
        wrong = next(iter(sorted(found.items() ^ expected.items())))[0]
        raise CommandError(f"{name} does not fit its own network {config['model']!r}, at {wrong}: train it again")
    for at, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            raise CommandError(
                f"{name} has a parameter that is not finite, at {jax.tree_util.keystr(at)}: train it again"
            )
    return Trained(classifier, params, config)


def _from_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not stat.S_ISREG(path.stat().st_mode):  # reading from a pipe would wait for ever
        raise CommandError(f"{str(path)!r} is not a regular file: give a params.npz or a step")
    with zipfile.ZipFile(path) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > MAX_FILE:
            raise CommandError(f"{str(path)!r} claims {size} bytes, more than any network of `jaxnn train` has")
    return load_params(path)


def _from_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if (folder / "manifest").exists():
        saved = read_step(folder)
    else:
        found, damaged = newest_step(folder)
        if found is None:
            if (folder / "params.npz").exists():
                return _from_file(folder / "params.npz")
            raise CommandError(
                f"{str(folder)!r} holds no params.npz and no step that can be read"
                f"{''.join(f'; {line}' for line in damaged)}"
            )
        saved = found
    return saved.params, saved.about["config"]


def _described(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(at): (tuple(leaf.shape), str(leaf.dtype)) for at, leaf in leaves}


def _shapes(model: Any, shape: tuple[int, ...], classes: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return _described(jax.eval_shape(lambda: model.init(jax.random.key(0), shape, classes)))


def read_image(path: str, *, invert: bool = False) -> NDArray[np.float32]:
    """Read an image as grey values.

    Args:
        path: an image of one of `FORMATS`, or a .npy of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4):
            whole numbers from 0 to 255, or floats from 0 to 1.
        invert: exchange dark and light: the networks expect light strokes on a dark background.

    Returns:
        The pixels, shape (H, W), from 0 for black to 1 for white; transparent pixels are white.

    Raises:
        CommandError: it is not such a file, or it has no pixels or more than `MAX_PIXELS`.
    """
    file, name = Path(path).expanduser(), repr(path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CommandError(f"{name} is not a regular file: give an image")
        if status.st_size > MAX_FILE:
            raise CommandError(f"{name} has {status.st_size} bytes; an image must have at most {MAX_FILE}")
        with file.open("rb") as opened:
            is_npy = opened.read(6) == b"\x93NUMPY"
        grey = _npy(file, name) if is_npy else _picture(file, name)
    except CommandError:
        raise
    except OSError as error:
        raise CommandError(f"{name} cannot be read as an image ({error.strerror or error})") from error
    except Exception as error:
        raise CommandError(f"{name} cannot be read as an image ({type(error).__name__}: {error})") from error
    return 1 - grey if invert else grey


def _check_pixels(name: str, height: int, width: int) -> None:
    if not 1 <= height * width <= MAX_PIXELS:
        raise CommandError(f"{name} has {width} x {height} pixels; it must have from 1 to {MAX_PIXELS}")


def _npy(path: Path, name: str) -> NDArray[np.float32]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise CommandError(f"{name} (shape {array.shape}) must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    _check_pixels(name, *array.shape[:2])
    if array.dtype.kind not in "buif":
        raise CommandError(f"{name} (dtype {array.dtype}) must hold numbers")
    highest, low, high = 255 if array.dtype.kind in "ui" else 1, array.min(), array.max()
    if not (low >= 0 and high <= highest):  # false for NaN, too
        raise CommandError(f"{name} ({array.dtype}) must hold values from 0 to {highest}; they go from {low} to {high}")
    pixels: NDArray[np.float32] = array.astype(np.float32) / np.float32(highest)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else np.float32(1)
    luma = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in Pillow
    return np.asarray(luma * alpha + (1 - alpha), np.float32)


def _picture(path: Path, name: str) -> NDArray[np.float32]:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images: the size is checked below
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(name, image.height, image.width)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a pixel
                deep: NDArray[np.float32] = np.clip(np.asarray(upright, np.float32) / np.float32(65535), 0, 1)
                return deep
            over_white = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
            return np.asarray(over_white.convert("L"), np.float32) / np.float32(255)


def predict(trained: Trained, images: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the probabilities of the classes, shape (N, classes), for grey images of any size.

    Raises:
        CommandError: the network's answer is not finite.
    """
    import jax.numpy as jnp
    from PIL import Image

    from jaxnn.layers import softmax

    height, width, _ = trained.config["input_shape"]
    brightest = BRIGHTEST.get(trained.config["dataset"], 255)
    resized = [
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)) for image in images
    ]
    batch = jnp.asarray(np.stack(resized)[..., None] * brightest, jnp.float32)
    probabilities = np.asarray(softmax(trained.classifier.logits(trained.params, batch)), np.float64)
    if not np.isfinite(probabilities).all():
        raise CommandError("the network's output is not finite, so its parameters are useless: train it again")
    return probabilities


def table(paths: list[str], trained: Trained, probabilities: NDArray[np.float64]) -> str:
    """Return one line per image: its class, and the probability of every class."""
    classes = [name if name.isprintable() else repr(name) for name in trained.config["classes"]]
    width = max(map(len, paths))
    lines = []
    for path, p in zip(paths, probabilities, strict=True):
        every = "  ".join(f"{name} {x:.1%}" for name, x in zip(classes, p, strict=True))
        lines.append(f"{path:{width}}  {classes[int(p.argmax())]}  ({every})")
    return "\n".join(lines)


def to_json(paths: list[str], trained: Trained, probabilities: NDArray[np.float64]) -> str:
    """Return the classes and probabilities as JSON."""
    classes = trained.config["classes"]
    entries = [
        {
            "image": path,
            "class": classes[int(p.argmax())],
            "probabilities": {name: float(x) for name, x in zip(classes, p, strict=True)},
        }
        for path, p in zip(paths, probabilities, strict=True)
    ]
    return json.dumps(entries, indent=1, allow_nan=False)
