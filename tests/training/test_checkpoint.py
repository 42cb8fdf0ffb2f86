"""Checkpoints: complete or not there; and a resumed training equals one that was never interrupted."""

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import cli, training
from jaxnn.cli import cluster
from jaxnn.cli.signals import StopRequest
from jaxnn.training import checkpoint

COMMAND = [sys.executable, "-c", "import sys; from jaxnn.cli import main; sys.exit(main())", "train", "--quiet"]
OPTIONS = ("--model", "mlp", "--epochs", "3", "--dropout", "0.2")


def train(folder, *options, expect=0, name="steps"):
    code = cli.main(
        [
            "train",
            "--quiet",
            *OPTIONS,
            "--checkpoint-dir",
            str(folder / name),
            "--output",
            str(folder / "out"),
            *options,
        ]
    )
    assert code == expect


def arrays(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files if name not in ("config", "about")}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The parameters of an uninterrupted training, and its folder of steps."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return arrays(folder / "out" / "params.npz"), folder / "steps"


def state(value=0.0):
    return {"w": jnp.full((2, 3), float(value)), "key": jax.random.key(7), "count": jnp.int32(3)}


@pytest.fixture
def steps(tmp_path):
    """Two steps."""
    steps = training.Checkpoints(tmp_path / "steps")
    for step in (5, 10):
        steps.save(step, state(step), {"note": step})
    steps.wait()
    return tmp_path / "steps"


def test_what_was_saved_comes_back(steps):
    saved, damaged = training.newest_step(str(steps))
    assert (saved.step, saved.about, damaged) == (10, {"note": 10}, [])
    assert training.read_step(str(steps / "step-0000000005")).step == 5
    restored = saved.restored(state())
    np.testing.assert_array_equal(restored["w"], 10.0)
    assert restored["count"].dtype == jnp.int32 and restored["key"].dtype == jax.random.key(0).dtype
    np.testing.assert_array_equal(jax.random.key_data(restored["key"]), jax.random.key_data(jax.random.key(7)))


@pytest.mark.parametrize("like, words", [
    ({"w": jnp.zeros((2, 4))}, r"w \(shape \(2, 3\), float32\) of the step must have shape \(2, 4\)"),
    ({"w": jnp.zeros((2, 3), jnp.float16)}, "dtype float16"),
    ({"v": jnp.zeros((2, 3))}, "v is not in the step"),
    ({"w": jnp.zeros((2, 3)), "key": jax.random.key(0, impl="rbg")}, "key:rbg is not in the step"),
    ({}, "count is only in the step"),
])  # fmt: skip
def test_a_state_of_another_model_is_refused(steps, like, words):
    rest = {"key": jax.random.key(0), "count": jnp.int32(0)} if like else {}
    with pytest.raises(training.CheckpointError, match=words):
        training.newest_step(steps)[0].restored({**rest, **like})


def test_every_flipped_byte_is_noticed(steps):
    """Every byte of the manifest, and 140 bytes of the arrays, with the first and the last ones."""
    step = steps / "step-0000000010"
    chosen = random.Random(0)
    for path in step.iterdir():
        content = path.read_bytes()
        places = range(len(content))
        if path.name != "manifest":
            places = {*places[:40], *places[-40:], *chosen.sample(places, 60)}
        for at in places:
            damaged = bytearray(content)
            damaged[at] ^= 1 << chosen.randrange(8)
            path.write_bytes(damaged)
            saved, lines = training.newest_step(steps)
            assert saved.step == 5 and len(lines) == 1, (path.name, at)
        path.write_bytes(content)
    assert training.newest_step(steps)[0].step == 10


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def longer(path):
    path.write_bytes(path.read_bytes() + b" ")


def swapped(path):
    other = path.parent.parent / "step-0000000005" / path.name
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)


@pytest.mark.parametrize("name", ["state.npz", "manifest"])
@pytest.mark.parametrize("harm", [truncated, longer, lambda p: p.write_bytes(b""), os.unlink, swapped])
def test_every_damaged_file_is_noticed(steps, harm, name):
    harm(steps / "step-0000000010" / name)
    saved, damaged = training.newest_step(steps)
    assert (saved is None and len(damaged) == 2) if harm is swapped else (saved.step == 5 and len(damaged) == 1)


def test_folders_that_exchange_their_names_are_noticed(steps):
    one, two = steps / "step-0000000005", steps / "step-0000000010"
    one.rename(steps / "step")
    two.rename(one)
    (steps / "step").rename(two)
    assert training.newest_step(steps)[0] is None


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_is_not_executed(steps, tmp_path, monkeypatch):
    """Its manifest is valid, so that the file is opened."""
    monkeypatch.chdir(tmp_path)
    step = steps / "step-0000000010"
    np.savez(step / "state.npz", about=np.array([Payload()], object), w=np.array([Payload()], object))
    data = (step / "state.npz").read_bytes()
    manifest = {"bytes": len(data), "score": None, "sha256": checkpoint.hashlib.sha256(data).hexdigest(), "step": 10}
    (step / "manifest").write_bytes(checkpoint._manifest_bytes(manifest))
    saved, (line,) = training.newest_step(steps)
    assert saved.step == 5 and "is not a step of a training" in line
    assert not (tmp_path / "executed").exists()


def test_the_newest_and_the_best_are_kept(tmp_path):
    steps = training.Checkpoints(tmp_path, keep=2)
    for step, score in ((1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, 0.6), (6, None)):
        steps.save(step, state(), {}, None if score is None else [score, -1.0])
    steps.wait()
    assert sorted(p.name for p in tmp_path.glob("*step*")) == ["step-0000000002", "step-0000000005", "step-0000000006"]


def test_damaged_steps_do_not_count_as_kept_ones(tmp_path):
    """The training was resumed from an old step; the damaged steps are newer, and one of them was the best."""
    steps = training.Checkpoints(tmp_path, keep=3)
    for step, score in ((10, 0.5), (100, 0.9), (200, None)):
        steps.save(step, state(), {}, None if score is None else [score])
    steps.wait()
    steps.close()
    for step in (100, 200):
        truncated(tmp_path / f"step-{step:010d}" / "state.npz")
    (tmp_path / "step-0000000300").symlink_to("step-0000000010")  # a step under another name is damaged
    steps = training.Checkpoints(tmp_path, keep=2)
    for step in (11, 12, 13):
        steps.save(step, state(step), {})
    steps.wait()
    assert [int(p.name[5:]) for p in sorted(tmp_path.glob("step-*"))] == [10, 12, 13, 100, 200, 300]
    assert training.newest_step(tmp_path)[0].step == 13


def test_one_training_at_a_time_uses_a_folder(tmp_path, capsys):
    steps = training.Checkpoints(tmp_path / "steps")
    steps.save(1, state(), {})
    (tmp_path / "steps" / ".step-being-written").mkdir()
    for options in ((), ("--resume",)):
        train(tmp_path, *options, expect=1)
        assert "steps' is used by another training: wait for its end, or" in capsys.readouterr().err
    assert (tmp_path / "steps" / ".step-being-written").exists()
    steps.wait()
    steps.close()
    training.Checkpoints(tmp_path / "steps").close()


def test_a_step_is_not_a_folder_of_steps(steps, capsys):
    train(steps, "--resume", name="step-0000000005", expect=1)
    assert "step-0000000005' is a step: give the folder that contains it" in capsys.readouterr().err


@pytest.mark.more
def test_steps_and_results_in_one_folder(tmp_path):
    train(tmp_path, name="out")
    assert (tmp_path / "out" / "params.npz").exists() and training.newest_step(tmp_path / "out")[0].step == 123


def test_others_may_read_a_step(tmp_path):
    former = os.umask(0o027)
    try:
        steps = training.Checkpoints(tmp_path)
        steps.save(1, state(), {})
        steps.wait()
    finally:
        os.umask(former)
    assert (tmp_path / "step-0000000001").stat().st_mode & 0o777 == 0o750


def test_an_unfinished_step_of_a_killed_process_is_removed(tmp_path):
    (tmp_path / ".step-abc").mkdir()
    (tmp_path / ".step-abc" / "state.npz").write_text("half")
    steps = training.Checkpoints(tmp_path)
    assert not list(tmp_path.glob("*step*"))
    for value in (1.0, 2.0):  # the same step twice, as after resuming from an earlier one
        steps.save(4, state(value), {})
    steps.wait()
    np.testing.assert_array_equal(training.newest_step(tmp_path)[0].arrays["w"], 2.0)


@pytest.mark.parametrize("what", ["bomb", "pipe", "pipe for a manifest"])
def test_a_step_that_would_exhaust_memory_or_time_is_refused(what, steps):
    step = steps / "step-0000000010"
    if what == "bomb":
        with zipfile.ZipFile(step / "state.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("about.npy", bytes(100 << 20))
        data = (step / "state.npz").read_bytes()
        manifest = {
            "bytes": len(data),
            "score": None,
            "sha256": checkpoint.hashlib.sha256(data).hexdigest(),
            "step": 10,
        }
        (step / "manifest").write_bytes(checkpoint._manifest_bytes(manifest))
    else:
        path = step / ("manifest" if "manifest" in what else "state.npz")
        path.unlink()
        os.mkfifo(path)
    saved, (line,) = training.newest_step(steps)
    assert saved.step == 5
    assert {"bomb": "it is compressed", "pipe": "not a regular file"}.get(what, "no valid manifest") in line


def test_an_error_in_the_writing_thread_is_raised(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise MemoryError("no room")

    steps = training.Checkpoints(tmp_path)
    monkeypatch.setattr(np, "savez", fails)
    steps.save(1, state(), {})
    with pytest.raises(MemoryError, match="no room"):
        steps.wait()


@pytest.mark.more
@pytest.mark.parametrize("call, number", [("fsync", errno.ENOSPC), ("rename", errno.EACCES), ("fsync", errno.EROFS)])
def test_a_disk_error_ends_the_run_and_keeps_the_earlier_step(call, number, tmp_path, monkeypatch, capsys):
    calls, real = itertools.count(), getattr(os, call)

    def fails(*args):
        if next(calls) > 4:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(checkpoint.os, call, fails)
    train(tmp_path, "--checkpoint-every", "7", expect=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxnn: error: cannot write to --checkpoint-dir") and os.strerror(number) in line
    saved, damaged = training.newest_step(tmp_path / "steps")
    assert saved.step > 0 and damaged == []
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "steps").glob(".step*"))


def test_a_stopped_training_resumes_bit_for_bit(whole, tmp_path, monkeypatch):
    """It is stopped twice within an epoch. A chunk is one step here; a longer one could end with the epoch."""
    monkeypatch.setattr(sys.modules["jaxnn.training.fit"], "CHUNK_SECONDS", 0)
    for after in (3, 5):
        chunks = itertools.count()
        monkeypatch.setattr(StopRequest, "__call__", lambda stop, c=chunks, a=after: next(c) >= a)
        train(tmp_path, "--resume", expect=130)
    monkeypatch.undo()
    saved, _ = training.newest_step(tmp_path / "steps")
    assert 0 < saved.about["position"][1] < 41
    train(tmp_path, "--resume")
    assert_same(arrays(tmp_path / "out" / "params.npz"), whole[0])
    last = [training.newest_step(folder)[0] for folder in (tmp_path / "steps", whole[1])]
    assert_same(last[0].arrays, last[1].arrays)
    for row, expected in zip(*(saved.about["rows"] for saved in last), strict=True):
        del row["seconds"], expected["seconds"]
        # Metrics are float32 sums over a chunk, and the chunks depend on the clock: 41 terms in another order.
        assert row == pytest.approx(expected, rel=41 * 2**-24)


@pytest.mark.more
def test_a_finished_training_is_resumed_at_its_end(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "steps")
    train(tmp_path, "--resume")
    assert_same(arrays(tmp_path / "out" / "params.npz"), whole[0])
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.more
def test_a_training_that_is_killed_at_random_moments_resumes_bit_for_bit(whole, tmp_path):
    """`scripts/soak.py` does it fifty times."""
    chosen = random.Random(1)
    command = [*COMMAND, *OPTIONS, "--checkpoint-dir", tmp_path / "steps", "--output", tmp_path / "out", "--resume"]
    command += ["--checkpoint-every", "3"]
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        before = len(list(tmp_path.glob("steps/step-*")))
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("steps/step-*"))) <= min(before, 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chosen.uniform(0, 0.2))
        process.kill()
        assert process.communicate()[1] == ""
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert_same(arrays(tmp_path / "out" / "params.npz"), whole[0])


@pytest.mark.parametrize("option, value, words", [
    ("--seed", "1", "seed was 0 and is 1"), ("--model", "softmax", "model was mlp and is softmax"),
    ("--learning-rate", "0.5", "--learning-rate was 0.003 and is 0.5; restore it, or choose another --checkpoint-dir"),
    ("--epochs", "4", "--epochs was 3 and is 4"),
])  # fmt: skip
def test_another_run_is_refused(option, value, words, whole, tmp_path, capsys):
    shutil.copytree(whole[1], tmp_path / "steps")
    train(tmp_path, "--resume", option, value, expect=1)
    assert words in capsys.readouterr().err
    train(tmp_path, option, value, expect=1)
    assert "already holds a training (step 123); continue it with --resume" in capsys.readouterr().err


def test_damage_is_reported_and_the_earlier_step_is_used(whole, tmp_path, capsys, monkeypatch):
    shutil.copytree(whole[1], tmp_path / "steps")
    truncated(tmp_path / "steps" / "step-0000000123" / "state.npz")
    monkeypatch.setattr(cluster, "is_main_process", lambda: False)  # other processes print nothing
    train(tmp_path, "--resume")
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    train(tmp_path, "--resume")
    assert "is damaged: its SHA-256 differs from the manifest's; resuming from step 82" in capsys.readouterr().err
    assert_same(arrays(tmp_path / "out" / "params.npz"), whole[0])
    for step in (tmp_path / "steps").glob("step-*"):
        (step / "manifest").write_text("{}")
    train(tmp_path, "--resume", expect=1)
    assert "no step can be resumed" in capsys.readouterr().err


@pytest.mark.more
def test_on_other_devices_it_resumes_up_to_rounding(tmp_path, capsys, monkeypatch):
    """Two steps of plain SGD, one before and one after the stop: over more steps a rounding would grow."""
    options = ("--dropout", "0", "--epochs", "1", "--batch-size", "647", "--optimizer", "sgd", "--devices")
    train(tmp_path, *options, "1", name="alone")
    expected = arrays(tmp_path / "out" / "params.npz")
    monkeypatch.setattr(StopRequest, "__call__", lambda stop: True)
    train(tmp_path, *options, "1", expect=130)
    monkeypatch.undo()
    capsys.readouterr()
    train(tmp_path, *options, "2", "--resume")
    assert (
        "equals an uninterrupted one up to rounding, not bit for bit: devices was 1 and is 2" in capsys.readouterr().err
    )
    for name, a in arrays(tmp_path / "out" / "params.npz").items():
        assert np.linalg.norm(a - expected[name]) <= 1e-5 * np.linalg.norm(a)


def test_a_divergence_keeps_the_last_finite_step_and_says_where_it_was(tmp_path, capsys):
    train(tmp_path, "--optimizer", "sgd", "--learning-rate", "1e20", expect=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not finite in epoch 1, step" in line and "try a lower --learning-rate" in line
    assert line.endswith(f"and another --checkpoint-dir: {str(tmp_path / 'steps')!r} keeps the steps before")
    saved, _ = training.newest_step(tmp_path / "steps")
    assert f"step {saved.step + 1}:" in line
    assert all(np.isfinite(a).all() for a in saved.arrays.values())


def test_not_finite_names_what_is_not():
    import optax

    def loss(params, batch, key):
        return jnp.sum(jnp.sqrt(params["a"])) + jnp.sum(params["b"]), {}

    step = training.make_step(loss, optax.sgd(0.1))
    start = training.init_state({"a": jnp.zeros(2), "b": jnp.ones(1)}, optax.sgd(0.1), jax.random.key(0))
    data = np.zeros((2, 1)), np.zeros(2, np.int32)
    with pytest.raises(training.Diverged, match="the gradient of a is not finite in epoch 1, step 1"):
        next(training.fit(step, start, *data, epochs=1, batch_size=2))


@pytest.mark.more
def test_a_second_signal_ends_at_once(tmp_path):
    process = subprocess.Popen([*COMMAND[:-1], "--model", "convnet", "--epochs", "1000", "--batch-size", "1294",
                                "--output", str(tmp_path)], stdout=subprocess.PIPE)  # fmt: skip
    with process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (130, 143)  # of 1000 epochs, which take minutes


def test_a_folder_without_a_name_is_refused(capsys):
    assert cli.main(["train", "--checkpoint-dir", ""]) == 2
    assert capsys.readouterr().err == "jaxnn: error: --checkpoint-dir ('') must name a folder\n"


@pytest.mark.parametrize("options", [("--resume",), ("--checkpoint-every", "3")])
def test_options_that_need_the_folder(options, capsys):
    assert cli.main(["train", *options]) == 2
    assert "--checkpoint-dir must also be given" in capsys.readouterr().err
