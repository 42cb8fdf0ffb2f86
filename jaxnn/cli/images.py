"""Images for `jaxnn predict`: read as grey values, and brought into the form of the images that a network has seen.

MNIST's digits were made so (LeCun et al. 1998, "Gradient-based learning applied to document recognition"): scaled into
a box of 20 x 20 pixels with the ratio of their sides kept, and placed in 28 x 28 with the centre of mass in the middle.
Those of scikit-learn fill all of their 8 rows, and are centred by their extent. A picture that has this form already is
only resized.
"""

import math
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxnn.cli.terminal import CommandError

Grey = NDArray[np.float32]  # (H, W), from 0 for black to 1 for white

MAX_PIXELS = 25_000_000  # of an image; a camera's has about half as many
MAX_FILE = 256 << 20
MAX_SIDE = 500  # a larger picture is reduced first, which averages its noise
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # Pillow's readers that start no other program
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in Pillow
CONTRAST = 4 / 255  # less between the darkest and the lightest pixel is one grey value


class Form(NamedTuple):
    """How the images of a data set were made."""

    brightest: int = 255  # the largest pixel value
    box: float = 1.0  # the longer side of a drawing, as a share of the image's
    is_drawing: bool = True  # light strokes on black, which can be told from their ground
    by_mass: bool = False  # whether the centre of mass is in the middle, and not the middle of the extent


FORMS = {
    "digits": Form(brightest=16),
    "mnist": Form(box=20 / 28, by_mass=True),
    "fashion_mnist": Form(is_drawing=False),
}

# ------------------------------------------------------------------------------------------- read


def read_image(path: str, *, invert: bool = False) -> Grey:
    """Read an image as grey values.

    Args:
        path: an image of one of `FORMATS`, or a .npy of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4):
            whole numbers from 0 to 255, or floats from 0 to 1.
        invert: exchange dark and light: the networks expect light strokes on a dark background.

    Returns:
        The pixels, shape (H, W), from 0 for black to 1 for white. Transparent pixels get the ground that lets one see
        the others: white behind dark strokes, black behind light ones.

    Raises:
        CommandError: it is not such a file, has no pixels or more than `MAX_PIXELS`, or shows nothing.
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
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise CommandError(f"{name} cannot be read as an image: it must be {formats} or .npy, so convert it") from error
    except OSError as error:
        raise CommandError(f"{name} cannot be read as an image ({error.strerror or error})") from error
    except Exception as error:
        raise CommandError(f"{name} cannot be read as an image ({type(error).__name__}: {error})") from error
    if np.ptp(grey) < CONTRAST:
        raise CommandError(
            f"{name} shows nothing: all of its pixels have one grey value, {grey.max():.2f} (0 is black, 1 is white); "
            f"give a picture with light strokes on a dark ground, or dark ones on light and --invert"
        )
    return 1 - grey if invert else grey


def _check_pixels(name: str, height: int, width: int) -> None:
    if not 1 <= height * width <= MAX_PIXELS:
        raise CommandError(f"{name} has {width} x {height} pixels; it must have from 1 to {MAX_PIXELS}")


def _npy(path: Path, name: str) -> Grey:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise CommandError(f"{name} (shape {array.shape}) must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    _check_pixels(name, *array.shape[:2])
    if array.dtype.kind not in "buif":
        raise CommandError(f"{name} (dtype {array.dtype}) must hold numbers")
    highest, low, high = 255 if array.dtype.kind in "ui" else 1, array.min(), array.max()
    if not (low >= 0 and high <= highest):  # false for NaN, too
        raise CommandError(f"{name} ({array.dtype}) must hold values from 0 to {highest}; they go from {low} to {high}")
    pixels: Grey = array.astype(np.float32) / np.float32(highest)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    luma = pixels[..., :3] @ LUMA
    return luma if pixels.shape[2] == 3 else _on_ground(luma, pixels[..., 3])


def _picture(path: Path, name: str) -> Grey:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images: the size is checked below
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(name, image.height, image.width)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits a pixel
                deep: Grey = np.clip(np.asarray(upright, np.float32) / np.float32(65535), 0, 1)
                return deep
            if not upright.has_transparency_data:
                return _shares(upright.convert("L"))
            with_alpha = upright.convert("RGBA")
            return _on_ground(_shares(with_alpha.convert("RGB").convert("L")), _shares(with_alpha.getchannel("A")))


def _shares(image: Image.Image) -> Grey:
    return np.asarray(image, np.float32) / np.float32(255)


def _on_ground(luma: Grey, alpha: Grey) -> Grey:
    """Put a ground behind a picture with transparent pixels."""
    opaque = luma[alpha > 0.5]
    ground = 1.0
    if opaque.size:
        dark, middle, light = np.percentile(opaque, (2, 50, 98))
        # Opaque pixels of one brightness are a stroke on a ground that is missing, or a ground without its stroke.
        # Others are a picture with a ground of its own.
        ground = middle if light - dark > 0.5 else float(middle < 0.5)
    return np.asarray(luma * alpha + np.float32(ground) * (1 - alpha), np.float32)


# ------------------------------------------------------------------------------------------- form


def in_form(grey: Grey, form: Form, height: int, width: int) -> Grey:
    """Return a picture as an image of a data set.

    Args:
        grey: the pixels, shape (H, W), from 0 to 1.
        form: how the data set's images were made.
        height: of its images.
        width: of its images.

    Returns:
        The image, shape (height, width), from 0 to `form.brightest`.
    """
    if (longest := max(grey.shape)) > MAX_SIDE:
        grey = _resized(grey, *(max(1, round(n * MAX_SIDE / longest)) for n in grey.shape))
    image = _resized(grey, height, width)
    if grey.shape[0] * width != grey.shape[1] * height or (form.is_drawing and not _has_form(image, form)):
        image = _made(grey, form, height, width)
    return image * np.float32(form.brightest)


def _resized(grey: Grey, height: int, width: int) -> Grey:
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR), np.float32)


def _has_form(image: Grey, form: Form) -> bool:
    """Return whether an image has the ground, the brightness, the size and the place of the data set's."""
    if image.min() > 0.1 or image.max() < 0.6:
        return False
    length, middle = _place(np.where(image > 0.1, image, 0), form)
    wanted = [_middle(n, form) for n in image.shape]
    placed = all(abs(a - b) <= 1.5 for a, b in zip(middle, wanted, strict=True))
    return placed and 0.65 * form.box <= length / max(image.shape) <= 1.05 * form.box


def _made(grey: Grey, form: Form, height: int, width: int) -> Grey:
    """Make an image of a picture as those of the data set were made."""
    drawing = _strokes(grey) if form.is_drawing else grey
    length, middle = _place(drawing, form)
    scale = length / max(height, width) / form.box  # pixels of the picture for one of the image
    top, left = (at - scale * _middle(n, form) for at, n in zip(middle, (height, width), strict=True))
    y, x, high, wide = math.floor(top), math.floor(left), math.ceil(scale * height), math.ceil(scale * width)
    piece = Image.fromarray(drawing).crop((x, y, x + wide + 1, y + high + 1))  # black beyond the picture
    box = (left - x, top - y, left - x + scale * width, top - y + scale * height)
    return np.asarray(piece.resize((width, height), Image.Resampling.BILINEAR, box), np.float32)


def _middle(length: int, form: Form) -> float:
    """Return where the centre of a drawing is: MNIST's centres of mass lie half a pixel after the middle."""
    return (length + form.by_mass) / 2


def _place(drawing: Grey, form: Form) -> tuple[float, tuple[float, float]]:
    """Return the longer side and the centre of a drawing; specks that hold a 200th of its ink do not count."""
    if not form.is_drawing:
        height, width = drawing.shape
        return max(height, width), (height / 2, width / 2)
    lengths, centres = [], []
    for axis in (1, 0):
        ink = drawing.sum(axis, dtype=np.float64)
        ink /= ink.sum()
        start, end = np.searchsorted(np.cumsum(ink), (0.005, 0.995))
        lengths.append(float(end + 1 - start))
        centres.append(float(ink @ (np.arange(len(ink)) + 0.5)) if form.by_mass else (start + end + 1) / 2)
    return max(lengths), (centres[0], centres[1])


def _strokes(grey: Grey) -> Grey:
    """Return the light strokes of a picture, from 0 for its ground to 1: paper is neither black nor evenly lit."""
    bright = grey > _threshold(grey)
    y, x = np.indices(grey.shape)
    planes = np.stack([np.ones(grey.size), y.ravel(), x.ravel()], 1).astype(np.float32)  # the light falls off slowly
    ground = ~bright.ravel()
    slope, *_ = np.linalg.lstsq(planes[ground], grey.ravel()[ground], rcond=None)
    lifted = grey - (planes @ slope).reshape(grey.shape)
    bright = lifted > _threshold(lifted)
    rest = lifted[~bright]
    middle = np.median(rest)
    noise = 1.4826 * np.median(np.abs(rest - middle))  # the standard deviation, if it is normal
    dark, light = min(middle + 4 * noise, lifted[bright].min()), np.percentile(lifted[bright], 90)
    return np.asarray(np.clip((lifted - dark) / max(light - dark, 1e-6), 0, 1), np.float32)


def _threshold(grey: Grey) -> float:
    """Return the value midway between the means of the pixels below it and above it (Ridler and Calvard 1978)."""
    threshold = (float(grey.min()) + float(grey.max())) / 2
    for _ in range(20):
        bright = grey > threshold
        threshold = (float(grey[bright].mean()) + float(grey[~bright].mean())) / 2
    return threshold
