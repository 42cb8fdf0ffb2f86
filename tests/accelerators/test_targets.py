"""Names of targets, what they need, and turns at libtpu."""

import platform
import subprocess
import sys

import jax
import pytest

from jaxnn.accelerators import targets


@pytest.mark.parametrize(
    "name, complete, count",
    [
        ("tpu:v5e:2x2", "tpu:v5e:2x2", 4),
        ("tpu:v5e", "tpu:v5e:1x1", 1),
        ("tpu:v5p:4x4x4", "tpu:v5p:4x4x4", 64),
        ("cuda:h100", "cuda:h100:1", 1),
        ("cuda:b200:8", "cuda:b200:8", 8),
    ],
)
def test_a_target_by_its_name(name, complete, count):
    found = targets.target(name)
    assert found.name == complete and found.figures.bandwidth > 1e11
    product = 1
    for n in found.topology:
        product *= n
    assert product == count


@pytest.mark.parametrize(
    "name, message",
    [
        ("tpu:v5x", "target 'tpu:v5x' must begin with a known platform and chip: tpu:v5p, tpu:v5e"),
        ("gpu:h100", "cuda:h100"),
        ("", "tpu:v5e, tpu:v5p, tpu:v6e, cuda:h100, cuda:b200"),
        ("tpu:v5e:2", "must have a topology of 2 positive numbers with an x between, for example 'tpu:v5e:2x2'"),
        ("tpu:v5e:0x2", "2 positive numbers"),
        ("tpu:v5e:axb", "2 positive numbers"),
        ("cuda:h100:2x2", "one positive number, for example 'cuda:h100:8'"),
        ("tpu:v5e:32x32", "(1024 chips) must have at most 256 chips, the size of a pod"),
        ("cuda:h100:16", "(16 chips) must have at most 8 chips, the size of a host"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_line(name, message):
    with pytest.raises(ValueError) as error:
        targets.target(name)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tpu:v5e", "cuda:h100"])
def test_a_compiler_that_is_missing_is_named_with_its_cure(name, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(targets, "_installed", lambda module: False)
    with pytest.raises(targets.Unavailable, match=r"not installed; pip install 'jax\["):
        targets.target(name).require()


@pytest.mark.parametrize(
    "name, system, machine",
    [("tpu:v5e", "Darwin", "arm64"), ("tpu:v5e", "Linux", "aarch64"), ("cuda:h100", "Windows", "AMD64")],
)
def test_a_platform_without_a_wheel_is_refused_politely(name, system, machine, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(targets.Unavailable, match=f"no wheel for {system} on {machine}; use Linux on x86_64"):
        targets.target(name).require()


@pytest.mark.parametrize("name", ["tpu:v5e", "cuda:h100"])
def test_a_process_without_the_variables_is_told_them(name, monkeypatch):
    monkeypatch.setattr(targets.Target, "require", lambda self: None)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cuda")
    with pytest.raises(targets.Unavailable, match="start the process with JAX_PLATFORMS=cpu"):
        targets.target(name).devices()


@pytest.mark.skipif(sys.platform != "linux", reason="libtpu runs on Linux")
@pytest.mark.parametrize("whose", ["jaxnn-libtpu.lock", "libtpu_lockfile"])
def test_a_second_process_waits_and_says_so(whose, tmp_path):
    lock = "flock" if whose[0] == "j" else "lockf"
    code = f"import fcntl; f = open('{tmp_path / whose}', 'w'); fcntl.{lock}(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        message = r"another process uses libtpu \(waited 0.3 s\); wait for it to end"
        with pytest.raises(targets.Unavailable, match=message), targets.only_libtpu(0.3, str(tmp_path)):
            pass
        other.communicate(b"\n")
    with targets.only_libtpu(0.3, str(tmp_path)):
        pass


def test_a_function_is_compiled_for_a_device_from_shapes_alone():
    shapes = {"x": jax.ShapeDtypeStruct((3, 5), "float32")}, jax.ShapeDtypeStruct((5, 7), "float32")
    compiled = targets.compiled_for(jax.devices()[1], lambda a, b: a["x"] @ b, shapes)
    assert [s.device_set for s in jax.tree.leaves(compiled.output_shardings)] == [{jax.devices()[1]}]


def test_the_description_of_a_gpu_is_complete():
    for chip in targets.CHIPS["cuda"]:
        text = targets.target_config(chip)
        assert text.count("{") == text.count("}") and "core_count" in text and "NVIDIA" in text


def test_a_lock_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "jaxnn-libtpu.lock").mkdir()  # as unusable as another user's file, also for root
    message = r"jaxnn-libtpu\.lock cannot be opened \(Is a directory\); let its owner delete it"
    with pytest.raises(targets.Unavailable, match=message), targets.only_libtpu(0.3, str(tmp_path)):
        pass
