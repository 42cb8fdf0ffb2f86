"""Runs of several processes on one machine: their results, and how they end."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxnn.cli import cluster, output_folder, supervisor
from jaxnn.cli.signals import StopRequest
from jaxnn.cli.terminal import CommandError
from jaxnn.training import load_params, newest_step

COMMAND = [sys.executable, "-c", "import sys; from jaxnn.cli import main; sys.exit(main())", "train"]
LOST = "jaxnn: error: another process of the run is dead or cannot be reached\n"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Run:
    """The processes of one run."""

    def __init__(self, folder, processes, *options, of_process=()):
        self.port = free_port()
        self.output = folder / "results"
        # Each has its own session, so that a signal reaches one process, and all can be killed at the end.
        environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
        self.processes = [
            subprocess.Popen(
                [*COMMAND, "--distributed", "--coordinator", f"127.0.0.1:{self.port}", "--processes", str(processes),
                 "--process-id", str(i), "--output", str(self.output), *options, *(of_process[i] if of_process else ())],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment,
            )
            for i in range(processes)
        ]  # fmt: skip

    def until_trained(self):
        """Wait until process 0 has reported an epoch."""
        for line in self.processes[0].stdout:
            if line.startswith("epoch"):
                return

    def ends(self, within=60, then=lambda: None):
        """Wait for all processes, call `then` before the last one; return their exit codes and standard errors."""
        deadline, ends = time.monotonic() + within, {}
        try:
            while len(ends) < len(self.processes) and time.monotonic() < deadline:
                for i, process in enumerate(self.processes):
                    if i not in ends and process.poll() is not None:
                        ends[i] = process.returncode, process.communicate()[1]
                        if len(ends) == len(self.processes) - 1:
                            then()
                time.sleep(0.05)
        finally:
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return [ends.get(i, "is still there") for i in range(len(self.processes))]

    def child(self, i):
        """Return the process id of the child that trains."""
        with open(f"/proc/{self.processes[i].pid}/task/{self.processes[i].pid}/children") as children:
            return int(children.read().split()[0])


def params(folder):
    return load_params(folder / "params.npz")[0]


@pytest.mark.more
def test_processes_and_devices_give_the_same_bits(tmp_path):
    """Two processes of one device equal one process of two devices, bit for bit. Other numbers agree up to rounding.

    There are two steps of plain SGD: over many steps, and through Adam's division by |g|, a rounding would grow.
    """
    options = ("--epochs", "1", "--dropout", "0", "--batch-size", "647", "--optimizer", "sgd")

    def alone(devices):
        folder = tmp_path / str(devices)
        subprocess.run(
            [*COMMAND, *options, "--devices", str(devices), "--output", str(folder), "--quiet"],
            check=True, timeout=180, env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
        )  # fmt: skip
        return params(folder)

    def together(processes, *more):
        run = Run(tmp_path / f"of {processes}", processes, *options, *more)
        assert run.ends(180) == [(0, "")] * processes
        return params(run.output)

    of_two = together(2)
    for name, expected in alone(2).items():
        np.testing.assert_array_equal(of_two[name], expected)
    for other in (alone(1), alone(8), together(4, "--accumulate", "2")):
        for name, expected in other.items():
            assert np.linalg.norm(of_two[name] - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("how, who", [
    ("kill", 0), ("stop", 1),
    *(pytest.param(*case, marks=pytest.mark.more)
      for case in (("kill", 1), ("kill the child", 0), ("kill the child", 1), ("stop the child", 0))),
])  # fmt: skip
@pytest.mark.more
def test_a_process_that_dies_or_stops_ends_the_others(how, who, tmp_path):
    """It ends, too: a stopped process ends itself when it continues, a stopped child is ended by its parent."""
    run = Run(tmp_path, 2, "--model", "softmax", "--epochs", "100000")
    run.until_trained()
    process = run.processes[who].pid
    os.kill(run.child(who) if "child" in how else process, signal.SIGKILL if "kill" in how else signal.SIGSTOP)
    ends = run.ends(then=lambda: os.kill(process, signal.SIGCONT) if how == "stop" else None)
    assert ends[1 - who] == (1, LOST)
    if how == "kill":
        assert ends[who] == (-signal.SIGKILL, "")
    else:
        assert ends[who][0] == 1 and len(ends[who][1].splitlines()) == 1
    assert not run.output.exists() or (how == "kill" and who == 0)


def test_a_folder_that_another_process_removes_is_no_error(tmp_path, monkeypatch):
    def vanished(folder, pattern):
        raise FileNotFoundError(folder)

    monkeypatch.setattr(Path, "glob", vanished)
    output_folder.clear(tmp_path)


@pytest.mark.more
@pytest.mark.parametrize("given, name, values", [
    ("--seed 1|--seed 2", "--seed", "12"),
    ("--model softmax|--model mlp", "--model", ("softmax", "mlp")),
    ("--batch-size 32|--batch-size 9999", "--batch-size", ("32", "9999")),
    ("--checkpoint-dir steps|", "--checkpoint-dir", ("given", "left out")),
])  # fmt: skip
def test_arguments_that_differ_are_refused_before_the_first_step(given, name, values, tmp_path):
    run = Run(tmp_path, 2, of_process=[options.split() for options in given.split("|")])
    words = f"{name} is {values[0]} in process 0 and {values[1]} in process 1: it must be the same in all processes"
    refused = (1, f"jaxnn: error: {words}\n")
    assert run.ends() == [refused] * 2
    assert not run.output.exists()


@pytest.mark.more
def test_the_checkpoint_folder_must_be_shared(tmp_path):
    options = ("--model", "softmax", "--epochs", "1")
    folders = [["--checkpoint-dir", str(tmp_path / f"steps{i}")] for i in range(2)]
    subprocess.run([*COMMAND, *options, *folders[0], "--output", str(tmp_path / "one")], check=True, timeout=60)
    run = Run(tmp_path, 2, *options, "--resume", of_process=folders)
    words = f"is {newest_step(tmp_path / 'steps0')[0].sha256} in process 0 and None in process 1: it must be the same"
    for code, error in run.ends():
        assert code == 1 and words in error and "--checkpoint-dir, which all must share" in error


@pytest.mark.more
@pytest.mark.parametrize("number, name, expected", [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
def test_a_signal_to_one_process_ends_all(number, name, expected, tmp_path):
    run = Run(tmp_path, 2, "--model", "softmax", "--epochs", "100000", "--checkpoint-dir", str(tmp_path / "steps"))
    run.until_trained()
    run.processes[1].send_signal(number)
    (code, error), other = run.ends()
    assert (code, other) == (expected, (expected, ""))
    assert error.startswith(f"jaxnn: stopped by {name} after") and error.endswith("params.npz\n")
    assert params(run.output)
    assert newest_step(tmp_path / "steps")[0].about["machine"]["processes"] == 2


@pytest.mark.more
@pytest.mark.parametrize("number, name, expected", [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
@pytest.mark.parametrize("seconds", [pytest.param(0.7, marks=pytest.mark.more), 4.0])
def test_a_signal_before_the_processes_have_connected(number, name, expected, seconds):
    process = subprocess.Popen(
        [*COMMAND, "--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process-id", "0"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        deadline = time.monotonic() + 60
        while not Path(children).read_text() and time.monotonic() < deadline:  # the parent is listening from then on
            time.sleep(0.05)
        time.sleep(seconds)
        process.send_signal(number)
        assert process.wait(10) == expected
        assert process.stderr.read() == f"jaxnn: error: stopped by {name} before the training\n"


@pytest.mark.more
def test_a_coordinator_that_does_not_answer():
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    ended = subprocess.run(
        [*COMMAND, "--distributed", "--coordinator", address, "--processes", "2", "--process-id", "1"],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert ended.returncode == 1 and time.monotonic() - start < 60
    assert ended.stderr == (
        f"jaxnn: error: the processes of the run did not connect at --coordinator {address} within 30 seconds; "
        f"start all, and --process-id 0 on the machine of --coordinator\n"
    )


@pytest.mark.parametrize("options, words", [
    (["--coordinator", "a:1"], "--processes, --process-id must also be given"),
    (["--coordinator", "a:1", "--processes", "2", "--process-id", "0"], "--distributed must also be given"),
    (["--distributed", "--coordinator", "a", "--processes", "2", "--process-id", "0"], "must be HOST:PORT"),
    (["--distributed", "--coordinator", "a:1", "--processes", "2", "--process-id", "2"], "must be below --processes"),
    (["--devices", "999"], "set JAX_NUM_CPU_DEVICES=999 for virtual ones"),
    (["--batch-size", "4", "--accumulate", "8"], "must be at least 8: one row for each micro-batch of each device (1 devices, 8"),
])  # fmt: skip
def test_wrong_usage(options, words, capsys):
    from jaxnn.cli import main

    assert main(["train", *options]) == 2
    assert words in capsys.readouterr().err


def test_no_cluster_is_found():
    ended = subprocess.run([*COMMAND, "--distributed"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("jaxnn: error: --distributed found no Slurm, Open MPI, Kubernetes or TPU pod: give")


def test_processes_with_different_numbers_of_devices_are_refused(monkeypatch):
    devices = [types.SimpleNamespace(process_index=i) for i in (0, 0, 1)]
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(CommandError, match=r"must have the same number of devices; they have \[1, 2\]"):
        cluster.connect(argparse.Namespace(coordinator=None, debug=False))


HANGS = """
from jaxnn.cli import supervisor
import os, signal, sys, time
child = supervisor.child()
print("noise of C++", file=sys.__stderr__)
for word in sys.argv[1]:
    child.report(word.encode())
time.sleep(1)
if sys.argv[2:]:
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(600)
"""
NO_STEP, NO_ANSWER = "no step ended within", "the training process did not answer for"


def test_a_child_has_the_parents_path_and_its_end_is_explained(monkeypatch, tmp_path, capfd):
    (tmp_path / "queue.py").write_text("raise SystemExit('from the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as a console script has it
    monkeypatch.setattr(supervisor, "_CHILD", "\nimport os, queue, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    end = supervisor.run([])
    assert (end.code, end.unexplained) == (1, "the process was ended by SIGSEGV") and capfd.readouterr().err == ""


@pytest.mark.parametrize("apart, ends", [(0, True), (60, False)])
def test_a_signal_that_comes_twice(apart, ends, monkeypatch):
    """A supervised process gets a signal from its process group and from its parent: it counts once."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    stop = StopRequest(apart)
    stop.handle(signal.SIGTERM, None)
    stop.handle(signal.SIGTERM, None)
    assert (ended == [143]) == ends and stop()


@pytest.mark.more
@pytest.mark.parametrize(
    "words, how, why, seconds",
    [
        ("", "hangs", NO_STEP, 6),
        ("cs", "hangs", NO_STEP, 2),
        ("c", "stops", NO_ANSWER, 2),
        pytest.param("c", "hangs", NO_STEP, 6, marks=pytest.mark.more),
        pytest.param("", "stops", NO_ANSWER, 2, marks=pytest.mark.more),
        pytest.param("cst", "stops", NO_STEP, 6, marks=pytest.mark.more),
    ],
)
def test_a_process_that_hangs_or_stops_is_ended(words, how, why, seconds, monkeypatch, capfd):
    """It gets more time before its first chunk of steps, where it compiles, and after the last, where it draws."""
    monkeypatch.setattr(supervisor, "_CHILD", HANGS)
    monkeypatch.setattr(supervisor, "STARTING", 6.0 if why == NO_STEP else 60.0)
    monkeypatch.setattr(supervisor, "SILENCE", 2.0)
    end = supervisor.run([words, *(["stops"] if how == "stops" else [])])
    assert (end.code, end.connected) == (1, "c" in words)
    assert end.unexplained.startswith(f"{why} {seconds} seconds")
    assert capfd.readouterr().err == ""
