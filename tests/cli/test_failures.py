"""What the world does to a command: one line, exit code 2, and nothing lost."""

import errno
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from pidistill.cli import main, one_line
from pidistill.errors import PidistillError
from pidistill.evaluation import sampling
from pidistill.methods.pid_map import PIDMap
from pidistill.storage import read_tensors, write_tensors
from pidistill.training.trainer import Trainer

from recipes import RUNS, TINY, write_recipe

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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sample digits --out {}/a.npz --label 99999999999999999999999", ("label", "0 .. 9")),
        ("sample digits --out {}/a.npz --device meta", ("device 'meta'",)),
        ("sample digits --out {}/file/a.npz", ("{}/file",)),
        ("evaluate digits --out {}/file/a.json", ("{}/file",)),
        ("evaluate digits --reference teacher:glyphs", ("(3, 32, 32)", "(1, 8, 8)")),
        ("evaluate digits --reference teacher:digits --features colours", ("'colours'",)),
        ("evaluate digits --reference teacher:digits --metrics beauty", ("'beauty'",)),
        ("compare --recipe {}/recipe.toml --out {}/file/c", ("{}/file",)),
        ("distill --teacher digits --out {}/run --set help=1", ("'help'; expected one of",)),
        ("distill --teacher digits --out {}/run --set seeed=1", ("did you mean 'seed'",)),
    ],
)
def test_what_can_be_checked_is_checked_before_any_work(
    tmp_path, refused, monkeypatch, arguments, words
):
    def work(*arguments, **options):
        raise AssertionError("it began to work")

    monkeypatch.setattr(sampling, "solve", work)
    monkeypatch.setattr(Trainer, "train_step", work)
    (tmp_path / "file").write_text("not a folder")
    write_recipe(tmp_path, TINY, RUNS)
    refused(arguments.format(tmp_path, tmp_path).split(), *(w.format(tmp_path) for w in words))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused_where_they_leave_a_model(
    tmp_path, refused, digits_student, number
):
    """The weights are finite, but their products are not."""
    run = tmp_path / "run"
    shutil.copytree(digits_student, run)
    for file in run.glob("*.safetensors"):
        weights = {key: 1e30 * value + 1e20 for key, value in read_tensors(file).items()}
        write_tensors(file, weights)
    for command in (
        ["sample", run, "--out", tmp_path / "a.png"],
        ["evaluate", run, "-n", "20", "--json"],
    ):
        refused(command, "not finite", "sample 0")
    assert not (tmp_path / "a.png").exists()
    key = min(weights)
    for file in run.glob("*.safetensors"):
        write_tensors(file, {**weights, key: torch.full_like(weights[key], number)})
    refused(["sample", run, "--out", tmp_path / "a.png"], key, "not finite")
