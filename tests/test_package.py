"""The package: who imports whom, what an import costs, and the wheel alone in an empty environment."""

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import jaxnn
from jaxnn import components

ROOT = Path(jaxnn.__file__).parent

# The house, from the ground up. A room (a folder of the package, or a file at its top) imports from lower floors and
# from itself. The front door, `jaxnn/__init__.py` and `__main__.py`, opens to all of them.
FLOORS = [
    {"errors", "files", "rules", "tracing", "accelerators"},
    {"layers", "losses", "gradcheck", "graph"},
    {"components", "models", "training", "data", "plots", "exercises"},
    {"cli"},
    {"experiments", "scripts"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
GENERIC = {"training", "plots", "data"}  # they take functions and arrays, and know no component
# Who may import what else.
OUTSIDE = {
    "jax": set(FLOOR) - {"errors", "files", "data", "plots"},
    "numpy": set(FLOOR),
    "jaxtyping": set(FLOOR),
    "optax": {"training"},
    "sklearn": set(),
    "matplotlib": {"plots"},
    "rich": {"cli"},
    "PIL": {"cli", "data"},
    "tensorflow_datasets": {"data"},
    "latex2mathml": {"graph"},
    "pytest": {"gradcheck"},
    "_pytest": {"gradcheck"},
    "cloudpickle": {"gradcheck"},
}


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path, source=None):
    """The modules a file imports, `import a.b` and `from a.b import c` as "a.b" and "a.b.c"; not those for types."""
    tree = ast.parse(path.read_text() if source is None else source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(path, source=None):
    """What is wrong with the imports of a file of the package, a line each."""
    room, own = room_of(path), path.stem
    for name in imports(path, source):
        top, target, *rest = [*name.split("."), "", ""]
        if top != "jaxnn":
            if room not in OUTSIDE.get(top, ()) and top not in sys.stdlib_module_names:
                yield f"{room} may not import {name}; who may is in OUTSIDE"
        elif target not in FLOOR:
            yield f"{room} may not import {name}: only the folders and files of FLOORS"
        elif target == room:
            # A component imports no other one: only what its room shares, and private files named after itself.
            within = room not in ("layers", "losses") or own == "__init__"
            if not within and component_of(rest[0]) not in (None, component_of(own)):
                yield f"{own} may not import {name}: components never import each other"
        elif FLOOR[target] >= FLOOR[room]:
            yield f"{room} may not import {name}: {target} is not on a lower floor"
        elif room in GENERIC and target in ("layers", "losses"):
            yield f"{room} may not import {name}: it takes functions, and knows no component"


COMPONENTS = sorted({p.stem for d in ("layers", "losses") for p in (ROOT / d).glob("[!_]*.py")}, key=len, reverse=True)


def component_of(stem):
    """The component whose file, or private file, this is: "conv2d" of "_conv2d_cpu"."""
    stem = stem.removeprefix("_")
    return next((name for name in COMPONENTS if stem == name or stem.startswith(f"{name}_")), None)


FILES = [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem[0] != "_"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    assert not list(forbidden(path))


def test_every_room_is_on_one_of_five_floors():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert rooms | {"experiments", "scripts"} == set(FLOOR)
    assert len(FLOORS) == 5 and sum(map(len, FLOORS)) == len(FLOOR)


@pytest.mark.parametrize(
    "file, source",
    [
        ("layers/relu.py", "from jaxnn.cli import supervisor"),
        ("layers/_conv2d_cpu.py", "from jaxnn.cli.supervisor import run"),
        ("layers/softmax.py", "from jaxnn.layers.relu import relu"),
        ("losses/_labels.py", "from jaxnn.losses.nll import nll"),
        ("losses/nll.py", "from jaxnn.losses._linear_cross_entropy_blocks import over_blocks"),
        ("losses/nll.py", "from jaxnn.layers import softmax"),
        ("training/step.py", "from jaxnn.layers import relu\nfrom jaxnn import data"),
        ("gradcheck/report.py", "from jaxnn import graph"),
        ("graph/trace.py", "from jaxnn.losses import nll"),
        ("graph/trace.py", "from jaxnn.gradcheck._subject import Subject"),
        ("tracing/kinds.py", "from jaxnn.layers import relu"),
        ("gradcheck/report.py", "from jaxnn import components"),
        ("cli/train.py", "import experiments.digit_cnn"),
        ("rules/blocks.py", "import optax"),
        ("layers/relu.py", "def f():\n    import sklearn"),
        ("layers/relu.py", "import jaxnn"),
        ("layers/relu.py", "from jaxnn import tanh"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_seen(file, source):
    assert len(list(forbidden(ROOT / file, source))) == source.count("import")


def python(code, executable=sys.executable, **options):
    return subprocess.run([executable, "-c", code], capture_output=True, text=True, check=True, **options).stdout


def test_importing_pulls_in_nothing_heavy_and_starts_no_backend():
    code = """
import sys, jax, jax.numpy, jaxtyping
before = set(sys.modules)
import jaxnn
jaxnn.relu, jaxnn.nll, jaxnn.automatic  # they are imported when they are first used
from jax._src import xla_bridge
print({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"jaxnn"})
print(xla_bridge.backends_are_initialized())
"""
    extra, started = python(code).splitlines()
    # wadler_lindig is what jaxtyping prints types with.
    assert set(ast.literal_eval(extra) if extra != "set()" else ()) <= {
        "jax",
        "jaxlib",
        "numpy",
        "jaxtyping",
        "wadler_lindig",
    }
    assert started == "False"


def test_the_parts_of_the_library_are_attributes_that_are_imported_when_used():
    code = """
import sys, jaxnn
parts = ["data", "gradcheck", "graph", "models", "training"]
print([part for part in parts if f"jaxnn.{part}" in sys.modules], set(parts) <= set(dir(jaxnn)))
print([getattr(jaxnn, part).__name__ for part in parts])
try:
    jaxnn.nothing
except AttributeError as error:
    print(error)
"""
    before, after, missing = python(code).splitlines()
    assert before == "[] True"
    assert after == "['jaxnn.data', 'jaxnn.gradcheck', 'jaxnn.graph', 'jaxnn.models', 'jaxnn.training']"
    assert missing == "module 'jaxnn' has no attribute 'nothing'"


def test_the_module_is_the_command():
    for module in ("jaxnn", "jaxnn.cli"):
        help_text = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        assert help_text.stdout.startswith("usage: jaxnn ")


def test_every_public_name_is_documented():
    for name in jaxnn.__all__:
        if callable(value := getattr(jaxnn, name)):
            for part in ("Args:", "Returns:", "Raises:", "Example:", "References:"):
                assert part in value.__doc__, f"{name} lacks {part}"
            assert name == "automatic" or callable(value.definition)


WHEEL_CHECK = """
import jax, jax.numpy as jnp, jaxnn
from jaxnn import components
for line in components.COMPONENTS:
    args = line.example(components.TINY)
    def loss(x):
        y = line(x, *args[1:])
        y = y[0] if isinstance(y, tuple) else y
        return (y * jnp.arange(1.0, y.size + 1).reshape(y.shape)).sum()
    gradient = jax.grad(loss)(jnp.asarray(args[0]))
    assert gradient.shape == args[0].shape and jnp.isfinite(gradient).all() and jnp.any(gradient != 0), line.name
print(jaxnn.__file__)
"""


def test_every_public_function_is_in_the_table_of_components():
    public = {name for name in jaxnn.__all__ if hasattr(getattr(jaxnn, name), "definition")}
    assert {line.f.__name__ for line in components.COMPONENTS} == public
    assert len({line.name for line in components.COMPONENTS}) == len(components.COMPONENTS)


@pytest.mark.more
def test_the_wheel_alone_in_an_empty_environment_differentiates_every_layer(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT.parent],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("jaxnn_vjp-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    executable = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [executable, "-m", "pip", "install", "--quiet", f"jax=={jaxnn_jax_version()}", wheel]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(install, check=True, capture_output=True, env=alone)
    where = python(WHEEL_CHECK, executable, cwd=tmp_path, env=alone).strip()
    assert where.startswith(str(tmp_path)), "the installed one, not the checkout"
    assert (Path(where).parent / "py.typed").exists()
    installed = {p.name for p in Path(where).parent.iterdir()} - {"__pycache__"}
    assert installed == {p.name for p in ROOT.iterdir()} - {"__pycache__"}, "nothing left out, nothing left over"


def jaxnn_jax_version():
    import jax

    return jax.__version__
