"""The test suites of public libraries: those parts that reach the library's own rules, and how to get and run them.

Nothing of these libraries is kept here. The tests come from the source distribution of the version that is installed,
from the repository at that version's tag where the source distribution has no tests, or they are installed with the
library. They are brought into a cache folder at run time.
"""

import dataclasses
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SDIST, INSTALLED = "source distribution", "installed with the library"


@dataclasses.dataclass(frozen=True)
class Suite:
    """The part of a library's tests that reaches its rules, within about a minute of one CPU core.

    Attributes:
      distribution: what `pip` calls the library.
      version: the version whose tests these are.
      package: what is imported; rules that are defined in it are the library's own.
      source: SDIST, INSTALLED, or a repository and its tag, "owner/name@tag".
      arguments: arguments of pytest, run in the folder of the tests.
      needs: distributions that the tests need beside the library.
    """

    distribution: str
    version: str
    package: str
    source: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()


TYPED = ("beartype", "pytest-benchmark")  # the pytest options in these libraries' own configuration need these
SUITES = (
    Suite(
        "optax", "0.2.8", "optax", SDIST,
        ("optax/projections/_projections_test.py", "optax/losses/_classification_test.py", "optax/_src/utils_test.py",
         "-k", "simplex or safe_softmax or SafeSoftmax or scale_gradient"),
    ),
    Suite(
        "flax", "0.12.8", "flax", SDIST,
        ("tests/linen/linen_test.py", "tests/nnx/transforms_test.py", "tests/core/design/core_custom_vjp_test.py",
         "tests/linen/linen_transforms_test.py", "-k", "fp8_dot or fp8_meta or custom_vjp"),
    ),
    Suite(
        "equinox", "0.13.8", "equinox", "patrick-kidger/equinox@v0.13.8",
        ("tests/test_ad.py", "tests/test_errors.py", "tests/test_while_loop.py",
         "-k", "filter_custom or test_grad or trivial_vjp or symbolic_zero or unperturbed"), TYPED,
    ),
    Suite(
        "lineax", "0.1.1", "lineax", "patrick-kidger/lineax@v0.1.1",
        ("tests/test_norm.py", "tests/test_misc.py"), TYPED,
    ),
    Suite(
        "diffrax", "0.7.2", "diffrax", "patrick-kidger/diffrax@v0.7.2",
        ("test/test_adjoint.py", "-k", "seminorm or closure_fixed or backprop_ts"), TYPED,
    ),
    Suite(
        "optimistix", "0.1.0", "optimistix", "patrick-kidger/optimistix@v0.1.0",
        ("tests/test_misc.py", "-k", "asarray or feasible"), TYPED,
    ),
    Suite(
        "numpyro", "0.22.0", "numpyro", SDIST,
        ("test/test_distributions.py", "test/test_distributions_util.py",
         "-k", "DoublyTruncatedPowerLaw and (test_log_prob_gradient or test_jit_log_likelihood or cdf)"),
    ),
    Suite(
        "distrax", "0.1.9", "distrax", SDIST,
        ("distrax/_src/utils/math_test.py", "distrax/_src/distributions/von_mises_test.py",
         "distrax/_src/distributions/multinomial_test.py", "-k", "Math or cdf or entropy"),
    ),
    Suite("rlax", "0.1.9", "rlax", SDIST, ("rlax/_src/clipping_test.py",)),
    Suite(
        "ott-jax", "0.6.0", "ott", "ott-jax/ott@0.6.0",
        ("tests/math", "tests/geometry/costs_test.py",
         "-k", "lse or norm or legendre or test_sqrtm or test_grad"),
    ),
    Suite(
        "jaxopt", "0.8.5", "jaxopt", "google/jaxopt@jaxopt-v0.8.5",
        ("tests/isotonic_test.py", "tests/implicit_diff_test.py",
         "-k", "test_gradient_min_max or custom_root_with_kwargs_grad"), ("scikit-learn",),
    ),
    Suite(
        "e3nn-jax", "0.21.0", "e3nn_jax", SDIST,
        ("tests/_src/spherical_harmonics/sh_test.py", "-k", "check_grads and component"),
    ),
    Suite(
        "jax-cce", "0.1.0", "jax_cce", SDIST,
        ("tests/test_core.py", "-k", "gradients_both or jit_grad or gradients_bfloat16 or shift_gradient"),
    ),
    Suite(
        "tokamax", "0.0.12", "tokamax", INSTALLED,
        ("--pyargs", "tokamax._src.ops.normalization.api_test"),
    ),
    Suite(
        "jax", "0.10.2", "jax", "jax-ml/jax@jax-v0.10.2",
        ("tests/nn_test.py", "tests/custom_root_test.py",
         "-k", "Relu or testSoftmaxGrad or testLog1mexp or custom_root_scalar"),
    ),
)  # fmt: skip


def folder(suite: Suite, cache: Path) -> Path:
    """Return the folder in which the suite's tests run. What the cache folder does not hold yet is fetched.

    Raises:
      RuntimeError: if the tests cannot be fetched.
    """
    if suite.source == INSTALLED:
        return cache
    found = cache / f"{suite.distribution}-{suite.version}"
    if not found.exists():
        (_from_sdist if suite.source == SDIST else _from_repository)(suite, found)
    return found


def pytest_command(suite: Suite, cache: Path, *options: str) -> tuple[list[str], Path]:
    """Return the command that runs a suite, and the folder to run it in."""
    return [sys.executable, "-m", "pytest", "-q", *options, *suite.arguments], folder(suite, cache)


def _from_sdist(suite: Suite, target: Path) -> None:
    name = suite.distribution
    download = ["download", "-q", "--no-deps", "--no-binary", name, f"{name}=={suite.version}"]
    with tempfile.TemporaryDirectory(dir=_made(target.parent)) as temporary:
        _run(suite, [sys.executable, "-m", "pip", *download, "-d", temporary])
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            archive.extractall(temporary, filter="data")
        next(path for path in Path(temporary).iterdir() if path.is_dir()).rename(target)


def _from_repository(suite: Suite, target: Path) -> None:
    name, _, tag = suite.source.partition("@")
    tests = next(part for part in suite.arguments if not part.startswith("-")).partition("/")[0]
    with tempfile.TemporaryDirectory(dir=_made(target.parent)) as temporary:
        clone = ["clone", "-q", "--depth", "1", "--filter=blob:none", "--sparse", "--branch", tag]
        _run(suite, ["git", *clone, f"https://github.com/{name}", temporary + "/tests"])
        _run(suite, ["git", "-C", temporary + "/tests", "sparse-checkout", "set", tests])
        Path(temporary, "tests").rename(target)


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _run(suite: Suite, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(
            f"the tests of {suite.distribution} {suite.version} cannot be fetched ({suite.source}): {reason}"
        )
