"""The README's code runs as it stands, and its quick start has the two commands it promises."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[2][:40] for block in BLOCKS])
def test_python_blocks_run(block, tmp_path, monkeypatch):
    if "flax" in block or "equinox" in block:
        pytest.importorskip("flax.nnx" if "flax" in block else "equinox")
    monkeypatch.chdir(tmp_path)
    # The reader's JAX is not in this suite's strict mode.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_quick_start_is_two_commands_of_one_line():
    section = README.split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    assert len(blocks) == 2 and all(block.count("\n") == 1 for block in blocks)
    assert len(re.findall(r"^```", section, re.M)) == 4, "exactly two fenced blocks"


def test_no_text_tells_anyone_to_install_the_other_project():
    root = Path(__file__).parents[1]
    for path in [root / "README.md", *root.glob("jaxnn/**/*.py")]:
        assert not re.search(r"pip install\s+(-\S+\s+)*['\"]?jaxnn(?!-vjp)", path.read_text()), path
