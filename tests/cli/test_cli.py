"""The command `jaxnn train`: what it writes, how it ends, and its errors in one line."""

import gzip
import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxnn.training
from jaxnn import cli, files
from jaxnn.cli import output_folder, predict
from jaxnn.cli import train as train_command
from jaxnn.data import mnist

OUTPUTS = {"metrics.jsonl", "params.npz", "curves.png", "confusion.png", "filters.png"}


def train(*options):
    return cli.main(["train", *map(str, options)])


def refused(capsys, *options):
    """Return the exit code and the one line of an error."""
    try:
        code = train(*options)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n"), (out, err)
    return code, err


def test_every_model_has_defaults():
    assert {model for _, model in train_command.DEFAULTS} == set(jaxnn.models.MODELS)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("model", jaxnn.models.MODELS)
def test_every_model_trains_and_writes_its_files(model, tmp_path, capsys):
    assert train("--model", model, "--epochs", 2, "--output", tmp_path / "new" / "folder") == 0
    folder = tmp_path / "new" / "folder"
    assert {p.name for p in folder.iterdir()} == OUTPUTS
    *epochs, last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert set(epochs[0]) == {
        "epoch",
        "step",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "seconds",
    }
    assert set(last) == {"test_loss", "test_accuracy", "seconds"}
    out, err = capsys.readouterr()
    assert f"{last['test_accuracy']:.2%}" in out and str(folder / "params.npz") in out and err == ""
    params, config = jaxnn.training.load_params(folder / "params.npz")
    assert config["model"] == model and config["input_shape"] == [8, 8, 1] and config["seed"] == 0
    # The file alone is enough to use the network again.
    from sklearn.datasets import load_digits

    images = load_digits().images[..., None].astype(np.uint8)[:10]
    mean, std = config["normalisation"]["mean"], config["normalisation"]["std"]
    logits = jaxnn.models.MODELS[model].apply(params, (images.astype(np.float32) - np.float32(mean)) / np.float32(std))
    assert logits.shape == (10, len(config["classes"]))


def test_the_default_run_learns_to_read(tmp_path, capsys):
    assert train("--output", tmp_path, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_accuracy"] > 0.97


@pytest.mark.more
@pytest.mark.one_in(4)
@pytest.mark.parametrize("model", ["mlp", "softmax", "cnn", "convnet"])
def test_jax_enable_x64_changes_no_bit_of_a_training(model, tmp_path):
    """Parameters, checkpoints and a resumed run are those of float32; either way they can be predicted with."""
    for x64 in (False, True):
        steps = tmp_path / f"steps-{x64}"
        options = ("--model", model, "--epochs", 1, "--quiet", "--output", tmp_path / str(x64))
        with jax.enable_x64(x64):
            assert train(*options, "--checkpoint-dir", steps) == 0
            loaded = [
                predict.read_trained(str(path)).params for path in (tmp_path / "False", tmp_path / str(x64), steps)
            ]
        for params in loaded:
            for leaf, expected in zip(jax.tree.leaves(params), jax.tree.leaves(loaded[0]), strict=True):
                assert leaf.dtype == np.float32
                np.testing.assert_array_equal(leaf, expected)
    with jax.enable_x64(not x64):
        assert train(*options, "--checkpoint-dir", steps, "--resume") == 0


def test_every_model_has_float32_parameters_under_x64():
    with jax.enable_x64(True):
        for model in jaxnn.models.MODELS.values():
            leaves = jax.tree.leaves(model.init(jax.random.key(0), (8, 8, 1), 10))
            assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


def process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "jaxnn", *map(str, arguments)], env={**os.environ, **environment}, capture_output=True, text=True
    )  # fmt: skip


@pytest.mark.more
@pytest.mark.parametrize("backend", ["module://no_such_package.backend", "no such backend"])
def test_a_notebooks_backend_does_not_matter(backend, tmp_path):
    """A notebook names its own backend to the commands that it starts; theirs may not have the packages for it."""
    run = process("train", "--model", "softmax", "--epochs", 1, "--quiet", "--output", tmp_path, MPLBACKEND=backend)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "") and set(contents(tmp_path)) == OUTPUTS


@pytest.mark.one_in(3)
@pytest.mark.parametrize("arguments", [("train",), ("compare", "relu"), ("predict", "params.npz", "a.png")])
def test_a_platform_that_is_not_here_is_one_line_with_the_cure(arguments):
    if jax.default_backend() == "gpu":
        pytest.skip("CUDA is here")
    run = process(*arguments, JAX_PLATFORMS="cuda")
    assert (
        run.returncode == (2 if arguments[0] == "compare" else 1) and run.stdout == "" and run.stderr.count("\n") == 1
    )
    assert "JAX_PLATFORMS ('cuda') must name platforms that JAX can use here" in run.stderr and "unset it" in run.stderr


def test_the_package_runs_as_a_module():
    assert process("--version").stdout.startswith("jaxnn ")


@pytest.mark.more
def test_the_same_seed_gives_the_same_parameters(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert train("--epochs", 1, "--seed", seed, "--output", tmp_path / name, "--quiet") == 0
    a, b, c = (jaxnn.training.load_params(tmp_path / name / "params.npz")[0]["W0"] for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


BAD_USAGE = [
    (
        ("--model", "convent"),
        "unknown name 'convent', must be one of softmax, mlp, cnn, convnet; did you mean 'convnet'?",
    ),
    (("--dataset", "mnits"), "did you mean 'mnist'?"),
    (("--optimizer", "adm"), "did you mean 'adam'?"),
    (("--schedule", "cos"), "did you mean 'cosine'?"),
    (("--batch-size", 0), "argument --batch-size: 0 must be at least 1 and at most"),
    (("--batch-size", -4), "argument --batch-size: -4 must be at least 1"),
    (("--epochs", "1" + "0" * 400), "must be at least 1 and at most 1000000"),
    (("--output", ""), "--output ('') must name a folder"),
    (("--dataset", "MNIST"), "did you mean 'mnist'?"),
    (("--batch-size", 1.5), "'1.5' is not a whole number"),
    (("--batch-size", 1295), "--batch-size (1295) must be at most the 1294 training images"),
    (("--epochs", 0), "argument --epochs: 0 must be at least 1"),
    (("--learning-rate", 0), "argument --learning-rate: 0 must be above 0 and finite"),
    (("--learning-rate", "nan"), "argument --learning-rate: nan must be above 0 and finite"),
    (("--dropout", 1.5), "argument --dropout: 1.5 must be at least 0 and at most 1"),
    (("--l2", "much"), "argument --l2: 'much' is not a number"),
    (("--seed", -1), "argument --seed: -1 must be at least 0"),
    (("--sed", 1), "unrecognized arguments: --sed 1"),
]


@pytest.mark.parametrize("options, words", BAD_USAGE, ids=[" ".join(map(str, options)) for options, _ in BAD_USAGE])
def test_wrong_usage_is_one_line_and_exit_code_2(options, words, tmp_path, capsys):
    output = () if "--output" in options else ("--output", tmp_path / "o")
    code, line = refused(capsys, *output, *options)
    assert code == 2 and words in line
    assert not any((tmp_path / "o").glob("*")), "no file may be left"


EARLIER = {name: name.encode() for name in OUTPUTS}


def earlier_result(folder):
    for name, content in EARLIER.items():
        (folder / name).write_bytes(content)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "options, words",
    [
        (("--optimizer", "sgd", "--learning-rate", 1e30), r"not finite in epoch \d+, step \d+: try a lower --learning-rate"),
        # After the one step the parameters are finite but useless: only the evaluation notices.
        (("--model", "softmax", "--optimizer", "sgd", "--learning-rate", 1e38, "--batch-size", 1294, "--epochs", 1, "--schedule", "constant"), "not finite"),
        (("--dropout", 1.0, "--l2", 1e38), "not finite"),
    ],
)  # fmt: skip
def test_a_diverging_training_says_so_and_leaves_an_earlier_result_alone(options, words, tmp_path, capsys):
    earlier_result(tmp_path)
    code, line = refused(capsys, *options, "--quiet", "--output", tmp_path)
    assert code == 1 and re.search(words, line), line
    assert contents(tmp_path) == EARLIER


def test_an_unwritable_folder_is_found_before_the_training(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    code, line = refused(capsys, "--output", tmp_path / "file")
    assert code == 1 and "cannot write to the output folder" in line and "--output" in line
    code, line = refused(capsys, "--output", "/proc/nowhere")
    assert code == 1 and "cannot write to the output folder '/proc/nowhere'" in line


def test_an_unexpected_error_is_one_line_and_has_a_traceback_only_with_debug(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_command, "load", lambda *_, **__: 1 // 0)
    code, line = refused(capsys, "--output", tmp_path)
    assert code == 1 and "ZeroDivisionError" in line and "--debug" in line
    with pytest.raises(ZeroDivisionError):
        train("--output", tmp_path, "--debug")


def write_idx(path, array):
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A folder of four IDX files, whose hashes replace the published ones."""
    rng, folder, hashes = np.random.default_rng(0), tmp_path / "idx", {}
    folder.mkdir()
    for part, n in (("train", 240), ("t10k", 60)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = (rng.integers(0, 60, (n, 28, 28)) + 18 * labels[:, None, None]).astype(np.uint8)
        hashes[f"{part}-images"] = write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        hashes[f"{part}-labels"] = write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    monkeypatch.setattr(mnist, "SHA256", {"mnist": hashes, "fashion_mnist": mnist.SHA256["fashion_mnist"]})
    return folder


@pytest.mark.more
def test_idx_folders_are_trained_on(small_mnist, tmp_path, capsys):
    options = ("--data-dir", small_mnist, "--epochs", 1, "--batch-size", 32, "--output", tmp_path / "o")
    assert train("--dataset", "mnist", "--model", "softmax", *options) == 0
    assert "60 test images" in capsys.readouterr().out
    code, line = refused(capsys, "--dataset", "fashion_mnist", *options)
    assert code == 1 and "set --dataset to mnist, or use another folder" in line


def test_bad_data_is_one_line_and_exit_code_1(small_mnist, tmp_path, capsys):
    options = ("--dataset", "mnist", "--output", tmp_path / "o")
    code, line = refused(capsys, *options)
    assert code == 1 and "pass it as --data-dir, or pass --download" in line and "`" not in line
    code, line = refused(capsys, *options, "--data-dir", tmp_path / "none")
    assert code == 1 and "train-images-idx3-ubyte" in line
    path = small_mnist / "train-labels-idx1-ubyte"
    whole = path.read_bytes()
    for damage, words in (
        (b"<!DOCTYPE html><html>", "HTML"),
        (whole[:-1], "train-labels"),
        (b"\0\0\x09\x01" + whole[4:], "train-labels"),
        (whole[:-1] + b"\x0a", "label"),
        (b"", "empty"),
    ):
        path.write_bytes(damage)
        code, line = refused(capsys, *options, "--data-dir", small_mnist)
        assert code == 1 and words in line, line
    assert not any((tmp_path / "o").glob("*"))


def command(*options):
    return [
        sys.executable,
        "-c",
        "import sys; from jaxnn.cli import main; sys.exit(main())",
        "train",
        *map(str, options),
    ]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("number, code, earlier", [
    (signal.SIGINT, 130, False), (signal.SIGTERM, 143, True),
    pytest.param(signal.SIGHUP, 129, False, marks=pytest.mark.more),
])  # fmt: skip
def test_a_signal_ends_in_one_line_and_keeps_the_parameters(number, code, earlier, tmp_path):
    if earlier:
        earlier_result(tmp_path)
    process = subprocess.Popen(
        command("--epochs", 100000, "--output", tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not [*tmp_path.glob(".unfinished-*/metrics.jsonl")] and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    name = "stopped-params.npz" if earlier else "params.npz"
    assert err.count("\n") == 1 and "stopped by" in err and f"the parameters are in {tmp_path / name}\n" in err
    params, _ = jaxnn.training.load_params(tmp_path / name)
    assert np.isfinite(params["W0"]).all()
    metrics = name.replace("params.npz", "metrics.jsonl")
    assert all(json.loads(line)["epoch"] for line in (tmp_path / metrics).read_text().splitlines())
    assert set(contents(tmp_path)) == ({name, metrics} | (OUTPUTS if earlier else set()))
    assert contents(tmp_path).items() >= (EARLIER if earlier else {}).items(), "an earlier result is unchanged"


TERMINAL_CLOSES = """
import os, pty, sys, time
from pathlib import Path
process, terminal = pty.fork()
if not process:
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
while not list(Path(sys.argv[1]).glob(".unfinished-*/metrics.jsonl")):
    os.read(terminal, 4096)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


@pytest.mark.more
def test_the_parameters_are_kept_when_the_terminal_closes(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", TERMINAL_CLOSES, str(tmp_path), *command("--epochs", 100000, "--model", "softmax", "--output", tmp_path)[1:]],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (ended.stdout, ended.stderr) == ("129\n", "")
    assert set(contents(tmp_path)) == {"params.npz", "metrics.jsonl"}


@pytest.mark.more
def test_help_and_a_closed_pipe(tmp_path):
    run = subprocess.run([*command()[:-1], "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "train" in run.stdout
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(command("--epochs", 1, "--output", tmp_path), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, ""), "a closed pipe must not end a training"
    assert set(contents(tmp_path)) == OUTPUTS


def test_a_folder_in_the_place_of_a_file_and_no_empty_folder_left_behind(tmp_path, capsys):
    (tmp_path / "o" / "params.npz").mkdir(parents=True)
    code, line = refused(capsys, "--output", tmp_path / "o")
    assert code == 1 and "is a folder, in the place of a file to write" in line
    (tmp_path / "s" / "stopped-params.npz").mkdir(parents=True)
    assert "stopped-params.npz' is a folder, in the place of" in refused(capsys, "--output", tmp_path / "s")[1]
    refused(capsys, "--output", tmp_path / "new", "--batch-size", 5000)
    assert not (tmp_path / "new").exists()


def test_the_hidden_folder_of_a_killed_run_is_removed_and_that_of_a_running_one_is_not(tmp_path, capsys):
    (tmp_path / ".unfinished-dead").mkdir()
    (tmp_path / ".unfinished-dead" / "metrics.jsonl").write_text("{}")
    (tmp_path / ".unfinished-running").mkdir()
    unlock = files.lock(tmp_path / ".unfinished-running")
    refused(capsys, "--output", tmp_path, "--batch-size", 5000)
    unlock()
    assert [path.name for path in tmp_path.iterdir()] == [".unfinished-running"]


def test_a_stop_leaves_no_file_of_an_earlier_one(tmp_path):
    results = output_folder.OutputFolder(tmp_path)
    (tmp_path / "stopped-metrics.jsonl").write_text("of another training")
    (results.staged / "params.npz").write_text("new")
    with results:
        results.finish("stopped-")
    assert [path.name for path in tmp_path.iterdir()] == ["stopped-params.npz"]
