"""`jaxnn predict`: the classes of images, by a trained network.

The parameters come from a `params.npz` or from a step of a `--checkpoint-dir`. Nothing in the files is executed, and a
file that would take more memory than such a file needs is refused.
"""

import json
import math
import operator
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxnn.cli.images import FORMS, MAX_FILE, MAX_PIXELS, Form, Grey, in_form
from jaxnn.cli.terminal import CommandError
from jaxnn.errors import JaxnnError
from jaxnn.models import MODELS, Classifier
from jaxnn.training import load_params, newest_step, read_step


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


def predict(trained: Trained, images: Iterable[Grey]) -> NDArray[np.float64]:
    """Return the probabilities of the classes, shape (N, classes), for grey images of any size.

    Raises:
        CommandError: the network's answer is not finite.
    """
    import jax.numpy as jnp

    from jaxnn.layers import softmax

    height, width, _ = trained.config["input_shape"]
    form = FORMS.get(trained.config["dataset"], Form())
    batch = jnp.asarray(np.stack([in_form(image, form, height, width) for image in images])[..., None], jnp.float32)
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
