"""What the world does to a command: one line, exit code 2, and nothing lost."""

import errno
import os
import signal

import numpy as np
import pytest
import torch

from pidistill.cli import main, one_line
from pidistill.errors import PidistillError
from pidistill.methods.pid_map import PIDMap

NETWORK = ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}']
TRAIN = ["distill", "--teacher", "mixture:ring", "--batch-size", "8", *NETWORK]


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(10**15),
        lambda: torch.nn.Linear(10**9, 10**7),
        lambda: np.zeros(2**58),
        lambda: bytearray(2**62),
    ],
)
def test_exhausted_memory_is_one_line(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    line = one_line(caught.value)
    assert line.startswith("out of memory: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 has 1 GiB free."), "GPU 0 has 1 GiB"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/state"), "run/state"),
        (OSError("something"), "something"),
        (PidistillError("a line"), "a line"),
    ],
)
def test_what_the_world_does_is_one_line(error, words):
    assert words in one_line(error)


def test_a_lost_process_is_one_line_where_there_are_several(monkeypatch):
    error = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert one_line(error) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "is gone" in one_line(error)


@pytest.mark.parametrize("bug", [RuntimeError("mat1 and mat2"), ValueError("x"), KeyError("y")])
def test_bugs_keep_their_traceback(bug, monkeypatch, tmp_path):
    assert one_line(bug) is None

    def broken(self, batch):
        raise bug

    monkeypatch.setattr(PIDMap, "loss", broken)
    with pytest.raises(type(bug)):
        main([*TRAIN, "--max-train-steps", "2", "--out", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
        (MemoryError(), "out of memory"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/net/drive"), "/net/drive"),
    ],
)
def test_a_run_that_fails_half_way_keeps_its_checkpoint(
    tmp_path, capsys, monkeypatch, error, words
):
    folder = tmp_path / "run"
    arguments = [*TRAIN, "--max-train-steps", "9", "--checkpointing-steps", "2"]
    loss, calls = PIDMap.loss, []

    def failing(self, batch):
        calls.append(batch)
        if len(calls) == 5:
            raise error
        return loss(self, batch)

    with monkeypatch.context() as context:
        context.setattr(PIDMap, "loss", failing)
        assert main([*arguments, "--out", str(folder)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert sorted(file.name for file in (folder / "state").iterdir())[-1] == "step-000000004"
    assert main([*arguments, "--out", str(folder), "--resume"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "straight")]) == 0
    weights = [
        (tmp_path / name / "student.safetensors").read_bytes() for name in ("run", "straight")
    ]
    assert weights[0] == weights[1]


def train_with_signal(monkeypatch, folder, number):
    """Train for 9 steps; the signal arrives in the middle of the fourth. Returns the exit code."""
    loss, calls = PIDMap.loss, []

    def signalling(self, batch):
        calls.append(batch)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return loss(self, batch)

    monkeypatch.setattr(PIDMap, "loss", signalling)
    return main([*TRAIN, "--max-train-steps", "9", "--out", str(folder)])


@pytest.fixture
def _terminal():
    """Whoever started the tests may have done so under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_terminal")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_every_signal_to_stop_saves_and_says_so(tmp_path, capsys, monkeypatch, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    assert train_with_signal(monkeypatch, tmp_path, number) == 130
    assert f"stopping ({name})" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["step-000000004"]
    assert signal.getsignal(number) == before
    assert main(["distill", "--out", str(tmp_path), "--resume"]) == 0
    assert (tmp_path / "state" / "step-000000009").is_dir()


def test_a_run_under_nohup_does_not_stop_when_the_terminal_closes(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train_with_signal(monkeypatch, tmp_path, signal.SIGHUP) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
