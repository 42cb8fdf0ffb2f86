"""The gallery in experiments/README.md is what its script makes of the committed results."""

import argparse
import importlib
import io

import gallery
import matplotlib
import matplotlib.image
import numpy as np
import pytest
import run_all
import sections
from _experiment import STYLE, digest, run_of
from PIL import Image


def test_every_experiment_is_in_the_gallery():
    assert gallery.names() == list(run_all.EXPERIMENTS)
    scripts = {path.stem for path in (sections.ROOT / "experiments").glob("[!_]*.py")}
    assert scripts == {*run_all.EXPERIMENTS, "run_all", "ecosystem", "ecosystem_suites"}


def test_the_readme_says_what_was_measured():
    text = gallery.README.read_text(encoding="utf-8")
    assert sections.rewritten(text, "gallery", gallery.gallery()) == text, "run scripts/gallery.py"
    assert sections.rewritten(text.replace("holds if", "holds when"), "gallery", gallery.gallery()) == text


def test_the_command_is_what_was_typed():
    """A switch has no value, what is not given is left out, and no folder of the machine is shown."""
    options = argparse.Namespace(epochs=3, data_dir="mnist", output="pictures", validate=True, quick=False, model=None)
    said = run_of(options)["options"]
    assert said == {"epochs": 3, "validate": True}
    assert gallery.command("speedrun", said) == "python experiments/speedrun.py --epochs 3 --validate"


@pytest.mark.more
@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", gallery.names())
def test_figures_come_from_the_results(name):
    results = gallery.results_of(name)
    assert all(claim["holds"] for claim in results["claims"])
    with matplotlib.rc_context(STYLE):
        drawn = importlib.import_module(name).draw(results)
    assert sorted(drawn) == gallery.figures_of(name)
    for figure, canvas in drawn.items():
        with Image.open(gallery.GALLERY / f"{figure}.png") as image:
            assert image.text["Source"] == digest(results), "run scripts/gallery.py"
            if image.text["Software"].startswith(f"Matplotlib version{matplotlib.__version__},"):
                committed = np.asarray(image.convert("RGB"))
                with matplotlib.rc_context(STYLE):
                    canvas.savefig(buffer := io.BytesIO())
                assert np.array_equal(committed, np.asarray(Image.open(buffer).convert("RGB")))
