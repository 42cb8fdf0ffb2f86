"""The pictures of a run: whole PNGs or none, which show the data they were given, drawn without a display."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from jaxnn.plots import confusion, curves, filters, picture

PNG = b"\x89PNG\r\n\x1a\n"
CLASSES = ("cat", "dog", "eel")
COUNTS = np.array([[90, 7, 0], [0, 48, 2], [0, 0, 31]])

Draw = Callable[[Path], None]


def run(epochs: int, loss: float = 0.9, accuracy: float = 0.8) -> list[dict[str, Any]]:
    """Return rows in which the loss falls to 0.02 of `loss` + 0.05 and the accuracy rises from `accuracy`."""
    rows = []
    for epoch in range(1, epochs + 1):
        left = 0.02 ** (epoch / epochs)
        row = {"epoch": epoch, "train_loss": 0.05 + loss * left, "validation_loss": 0.07 + loss * left}
        row |= {"train_accuracy": 1 - (1 - accuracy) * left, "validation_accuracy": 0.98 - (1 - accuracy) * left}
        rows.append(row | {"seconds": 1.5, "learning_rate": 0.1})
    return rows


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).normal(size=shape)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def lines(figure: Figure, panel: int) -> dict[str, list[float]]:
    return {str(line.get_label()): np.asarray(line.get_ydata(), float).tolist() for line in figure.axes[panel].lines}


DRAW: dict[str, Draw] = {
    "curves": lambda path: curves.curves(path, run(10), "t"),
    "confusion": lambda path: confusion.confusion(path, COUNTS, CLASSES, "t"),
    "filters": lambda path: filters.filters(path, noise(6, 5, 5), "t"),
}
EXTREMES: dict[str, Draw] = {
    "1 epoch": lambda path: curves.curves(path, run(1), "t"),
    "100 epochs": lambda path: curves.curves(path, run(100), "t"),
    "constant": lambda path: curves.curves(path, run(3, loss=0.0, accuracy=1.0), "t"),
    "no finite loss": lambda path: curves.curves(path, run(2, loss=np.nan), "t"),
    "dollars": lambda path: curves.curves(path, run(2), "a $ b $ \\x_y"),
    "1 class": lambda path: confusion.confusion(path, [[3]], ["all"], "t"),
    "2 classes": lambda path: confusion.confusion(path, [[3, 1], [0, 2]], ["no", "yes"], "t"),
    "perfect": lambda path: confusion.confusion(path, np.eye(10, dtype=int), list("0123456789"), "t"),
    "class without samples": lambda path: confusion.confusion(path, [[0, 0], [1, 2]], ["$", "$$"], "t"),
    "1 filter": lambda path: filters.filters(path, noise(1, 3, 3), "t", ["only"]),
    "128 filters": lambda path: filters.filters(path, noise(128, 28, 28), "t"),
    "1x1 filters": lambda path: filters.filters(path, noise(7, 1, 1), "t"),
    "zeros": lambda path: filters.filters(path, np.zeros((2, 3, 3)), "t"),
    "not finite": lambda path: filters.filters(path, np.full((2, 3, 3), np.nan), "t"),
}


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", DRAW | EXTREMES)
def test_every_picture_is_a_png_alone_in_its_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    (DRAW | EXTREMES)[name](path)
    assert path.read_bytes().startswith(PNG)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(("name", "start"), [("p", PNG), ("p.PNG", PNG), ("p.pdf", b"%PDF"), ("p.svg", b"<?xml")])
def test_the_suffix_names_the_format(name: str, start: bytes, tmp_path: Path) -> None:
    filters.filters(str(tmp_path / name), noise(1, 3, 3), "t")
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (DRAW["curves"], lambda path: curves.curves(path, run(10, loss=0.8), "t")),
        (DRAW["confusion"], lambda path: confusion.confusion(path, COUNTS.T, CLASSES, "t")),
        (DRAW["filters"], lambda path: filters.filters(path, -noise(6, 5, 5), "t")),
    ],
    ids=list(DRAW),
)
def test_pixels_follow_the_data_and_nothing_else(one: Draw, other: Draw, tmp_path: Path) -> None:
    pictures = []
    for number, draw in enumerate((one, one, other)):
        draw(tmp_path / f"{number}.png")
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


# Nothing global, nothing by halves


@pytest.mark.parametrize("name", DRAW)
def test_a_crash_leaves_the_earlier_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"earlier")

    def half_then_fail(_: Figure, file: io.BytesIO, **options: object) -> None:
        file.write(PNG)
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_then_fail)
    with pytest.raises(OSError, match="disk full"):
        DRAW[name](path)
    assert path.read_bytes() == b"earlier"
    assert [*tmp_path.iterdir()] == [path]


def test_the_picture_appears_by_a_rename_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"earlier")

    def crash(source: str, target: Path) -> None:
        assert Path(source).parent == path.parent and Path(source).read_bytes().startswith(PNG) and target == path
        raise OSError("power cut")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="power cut"):
        DRAW["filters"](path)
    assert path.read_bytes() == b"earlier"


@pytest.mark.parametrize("name", DRAW)
def test_the_users_settings_are_neither_obeyed_nor_changed(name: str, tmp_path: Path) -> None:
    DRAW[name](tmp_path / "plain.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white", "savefig.dpi": 30, "font.size": 20}):
        before = dict(matplotlib.rcParams)
        DRAW[name](tmp_path / "dark.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "dark.png").read_bytes()


def test_pyplot_is_not_imported(tmp_path: Path) -> None:
    program = f"""
import sys
from jaxnn.plots.confusion import confusion
from jaxnn.plots.curves import curves
from jaxnn.plots.filters import filters
curves({str(tmp_path / "c.png")!r}, {run(2)!r}, "t")
confusion({str(tmp_path / "m.png")!r}, {COUNTS.tolist()!r}, {CLASSES!r}, "t")
filters({str(tmp_path / "f.png")!r}, [[[0.5, -1.0]]], "t")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert len([*tmp_path.iterdir()]) == 3


# Curves


def test_curves_show_every_epoch_of_both_sets() -> None:
    rows = run(4)
    figure = curves._curves_figure([{"event": "start"}, *rows, {"test_accuracy": 0.9}], "the title")
    for panel, metric, unit in ((0, "loss", 1), (1, "accuracy", 100)):
        shown = lines(figure, panel)
        assert list(shown) == ["train", "validation"]
        for name, values in shown.items():
            np.testing.assert_allclose(values, [unit * row[f"{name}_{metric}"] for row in rows])
        assert np.array_equal(figure.axes[panel].lines[0].get_xdata(), [1, 2, 3, 4])
    assert "the title" in texts(figure)


def test_curves_end_in_their_last_values() -> None:
    rows = run(3)
    rows[-1] |= {"train_loss": 0.012345, "validation_loss": 1.5, "train_accuracy": 1.0, "validation_accuracy": 0.98765}
    shown = texts(curves._curves_figure(rows, "t"))
    assert {"train 0.0123", "validation 1.5", "train 100.00%", "validation 98.77%"} <= set(shown)


def test_end_labels_keep_apart() -> None:
    assert curves._apart({"train": 10, "validation": 12}, gap=16) == {"train": 3, "validation": 19}
    assert curves._apart({"train": 12, "validation": 10}, gap=16) == {"train": 19, "validation": 3}
    assert curves._apart({"train": 50, "validation": 10}, gap=16) == {"train": 50, "validation": 10}


@pytest.mark.parametrize(("smallest", "scale"), [(0.119, "log"), (0.121, "linear"), (0.0, "linear"), (-1.0, "linear")])
def test_the_loss_is_logarithmic_beyond_a_factor_of_10(smallest: float, scale: str) -> None:
    rows = [row | {"train_loss": 1.2, "validation_loss": 1.0} for row in run(3)]
    rows[-1]["train_loss"] = smallest
    axes = curves._curves_figure(rows, "t").axes[0]
    assert axes.get_yscale() == scale
    assert axes.get_title(loc="left") == ("Loss (log scale)" if scale == "log" else "Loss")


@pytest.mark.parametrize("epochs", [1, 2, 7, 100])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    axes = curves._curves_figure(run(epochs), "t").axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == int(tick) for tick in ticks)
    assert low <= 1 and epochs <= high


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.9, 0.999, 1.0])
def test_the_axis_of_a_constant_accuracy_spans_two_points_within_0_and_100(accuracy: float) -> None:
    rows = [row | {"train_accuracy": accuracy, "validation_accuracy": accuracy} for row in run(5)]
    low, high = curves._curves_figure(rows, "t").axes[1].get_ylim()
    assert low <= 100 * accuracy <= high
    assert high - low >= 2
    assert low > -1 and high < 101


@pytest.mark.parametrize("value", [None, np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_leaves_a_gap(value: float | None) -> None:
    rows = run(4)
    rows[1]["train_loss"] = rows[-1]["validation_loss"] = value
    figure = curves._curves_figure(rows, "t")
    shown = lines(figure, 0)
    assert np.isnan(shown["train"]).tolist() == [False, True, False, False]
    assert np.isnan(shown["validation"]).tolist() == [False, False, False, True]
    assert "validation nan" in texts(figure)


def test_curves_refuse_rows_without_epochs_or_values(tmp_path: Path) -> None:
    for rows in ([], [{"event": "start"}]):
        message = f"`rows` ({len(rows)} rows) must hold at least one with an 'epoch'"
        with pytest.raises(ValueError, match=re.escape(message)):
            curves.curves(tmp_path / "c.png", rows, "t")
    rows = run(2)
    del rows[1]["validation_loss"]
    with pytest.raises(ValueError, match=r"`rows` \(row 1 .*train_loss.*\) must all have 'validation_loss'"):
        curves.curves(tmp_path / "c.png", rows, "t")
    assert not [*tmp_path.iterdir()]


# Confusion


def printed(figure: Figure) -> dict[tuple[int, int], str]:
    """Return the text in each cell, by (row, column)."""
    cells = [text for text in figure.axes[0].texts if text.get_transform() == figure.axes[0].transData]
    return {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in cells}


def test_confusion_prints_the_counts_and_leaves_zeros_blank() -> None:
    figure = confusion._confusion_figure(COUNTS, CLASSES, "t")
    assert printed(figure) == {(0, 0): "90", (0, 1): "7", (1, 1): "48", (1, 2): "2", (2, 2): "31"}


def test_confusion_colours_mistakes_by_their_share_of_the_row_and_not_the_diagonal() -> None:
    image = confusion._confusion_figure(COUNTS, CLASSES, "t").axes[0].images[0]
    shares = image.get_array()
    assert isinstance(shares, np.ma.MaskedArray)
    assert np.array_equal(np.ma.getmaskarray(shares), np.eye(3, dtype=bool))
    np.testing.assert_allclose(
        np.asarray(shares.filled(0), float), [[0.0, 700 / 97, 0.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]
    )
    assert image.get_clim() == pytest.approx((0, 700 / 97))


def test_confusion_names_classes_accuracy_and_recalls() -> None:
    figure = confusion._confusion_figure(COUNTS, CLASSES, "the title")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(CLASSES)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "True class")
    shown = texts(figure)
    assert "the title: accuracy 94.94% (169 of 178)" in shown
    start = shown.index("Recall")
    assert shown[start : start + 4] == ["Recall", "92.8%", "96.0%", "100.0%"]


def test_confusion_slants_long_names_only() -> None:
    for names, angle in ((CLASSES, 0), (("T-shirt/top", "Trouser", "Ankle boot"), 45)):
        axes = confusion._confusion_figure(COUNTS, names, "t").axes[0]
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {angle}


def test_a_class_without_samples_has_no_recall_and_perfection_no_colour_bar() -> None:
    figure = confusion._confusion_figure(np.diag([0, 2, 3]), CLASSES, "t")
    assert "–" in texts(figure)
    assert len(figure.axes) == 1
    assert len(confusion._confusion_figure(COUNTS, CLASSES, "t").axes) == 2


def test_narrow_integers_do_not_overflow() -> None:
    checked = confusion._checked_counts(np.array([[200, 100], [3, 250]], np.uint8))
    shown = texts(confusion._confusion_figure(checked, ["a", "b"], "t"))
    assert {"66.7%", "98.8%", "t: accuracy 81.37% (450 of 553)"} <= set(shown)


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [(1.0, 1, "100.0%"), (0.9996, 1, ">99.9%"), (0.99996, 2, ">99.99%"), (0.9994, 1, "99.9%"), (0.0, 1, "0.0%")],
)
def test_only_perfection_is_100_percent(share: float, digits: int, text: str) -> None:
    assert picture.percent(share, digits) == text


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.ones((3, 4), int), "`counts` (shape (3, 4)) must be square"),
        (np.ones(3, int), "`counts` (shape (3,)) must be square"),
        (np.ones((3, 3)), "`counts` (dtype float64) must hold integers"),
        (-np.eye(3, dtype=int), "`counts` (smallest -1) must be at least 0"),
        (np.zeros((3, 3), int), "`counts` (shape (3, 3), sum 0) must count at least one sample"),
        (np.zeros((0, 0), int), "`counts` (shape (0, 0), sum 0) must count at least one sample"),
        (np.eye(2, dtype=int), "`classes` (3 names) must name each of the 2 rows of `counts`"),
    ],
)
def test_confusion_refuses(counts: np.ndarray[Any, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        confusion.confusion(tmp_path / "c.png", counts, CLASSES, "t")
    assert not [*tmp_path.iterdir()]


# Filters


def test_filters_share_one_scale_symmetric_about_0() -> None:
    weights = noise(6, 5, 5)
    axes = filters._filters_figure(weights, "the title", None).axes[0]
    largest = np.abs(weights).max()
    assert len(axes.images) == 6
    for image, weight in zip(axes.images, weights, strict=True):
        np.testing.assert_array_equal(image.get_array(), weight)
        assert image.get_clim() == (-largest, largest)
    assert "the title" in texts(filters._filters_figure(weights, "the title", None))


@pytest.mark.parametrize(("outlier", "extend"), [(50.0, "max"), (-50.0, "min")])
def test_one_large_weight_does_not_bleach_the_others(outlier: float, extend: str) -> None:
    weights = np.where(noise(8, 8, 8) > 0, 1.0, -1.0)
    assert filters._diverging(weights)[2] == "neither"
    weights[3, 2, 1] = outlier
    norm, _, ends = filters._diverging(weights)
    assert (norm.vmin, norm.vmax, ends) == (-1, 1, extend)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_weights_without_a_scale_get_one(value: float) -> None:
    norm, _, ends = filters._diverging(np.full((2, 3, 3), value))
    assert (norm.vmin, norm.vmax, ends) == (-1, 1, "neither")


def test_a_weight_that_is_not_finite_is_masked() -> None:
    weights = noise(2, 3, 3)
    weights[0, 1, 2], weights[1, 0, 0] = np.nan, np.inf
    images = filters._filters_figure(weights, "t", None).axes[0].images
    masks = [np.ma.getmaskarray(np.ma.asarray(image.get_array())) for image in images]
    assert [np.argwhere(mask).tolist() for mask in masks] == [[[1, 2]], [[0, 0]]]
    assert np.isfinite(images[0].get_clim()).all()


@pytest.mark.parametrize("count", range(1, 129))
def test_the_grid_holds_all_filters_with_few_gaps(count: int) -> None:
    columns = filters._columns(count)
    rows = -(-count // columns)
    assert rows <= columns <= 4 * rows + 1
    assert rows * columns - count <= 4


def test_labels_stand_under_their_images() -> None:
    axes = filters._filters_figure(noise(3, 4, 4), "t", CLASSES).axes[0]
    labels = [text for text in axes.texts if text.get_text() in CLASSES]
    assert [text.get_text() for text in labels] == list(CLASSES)
    for label, image in zip(labels, axes.images, strict=True):
        left, right, bottom, _ = image.get_extent()
        x, y = label.get_position()
        assert x == pytest.approx((left + right) / 2)
        assert y > bottom  # the axis points down


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_weights_of_any_real_dtype(dtype: str, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    filters.filters(tmp_path / "f.png", np.ones((2, 3, 3)).astype(kind), "t")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((5, 5)), "`weights` (shape (5, 5)) must be (count, height, width), each at least 1"),
        (np.ones((3, 0, 5)), "`weights` (shape (3, 0, 5)) must be (count, height, width), each at least 1"),
        (np.ones((3, 5, 5), complex), "`weights` (dtype complex128) must hold real numbers"),
        (np.ones((2, 5, 5)), "`labels` (3 labels) must have one for each of the 2 `weights`"),
    ],
)
def test_filters_refuse(weights: np.ndarray[Any, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        filters.filters(tmp_path / "f.png", weights, "t", CLASSES)
    assert not [*tmp_path.iterdir()]
