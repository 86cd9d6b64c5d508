"""`pidistill evaluate` end to end: runs, teachers, files, sweeps, and calls that were killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pidistill import load_student
from pidistill.cli import main
from pidistill.evaluation import sampling
from pidistill.images import to_uint8

TINY = ["--max-train-steps", "4", "--batch-size", "8", "--set", "ema_rates=[0.9,0.99]"]
SMALL_NETWORK = ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}']


def run_of(teacher: str, folder: Path) -> Path:
    """A run of a few steps with two averages of the weights."""
    arguments = ["distill", "--teacher", teacher, "--out", str(folder)]
    assert main([*arguments, *TINY, *SMALL_NETWORK]) == 0
    return folder


@pytest.fixture(scope="module")
def ring_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of("mixture:ring", tmp_path_factory.mktemp("evaluate") / "ring")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of("digits", tmp_path_factory.mktemp("evaluate") / "digits")


def measured(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    """What `evaluate --json` prints."""
    capsys.readouterr()
    assert main(["evaluate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Assert that `evaluate` ends with one line that holds `words`."""
    capsys.readouterr()
    assert main(["evaluate", *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_a_run_has_metrics_and_pictures(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(digits_run), "--reference", "digits", "--num", "40", "--num-error", "8"]
    metrics = measured(arguments, capsys)
    assert metrics == json.loads((digits_run / "metrics.json").read_text())
    assert {"trajectory", "nearest_sample", "nearest_training_image"} <= metrics.keys()
    assert (metrics["num_samples"], metrics["error_num_samples"]) == (40, 8)
    pictures = {file.name for file in (digits_run / "evaluation").iterdir()}
    assert pictures == {"samples.png", "trajectory.png", "neighbours.png", "nearest.png"}
    for name in pictures:
        with Image.open(digits_run / "evaluation" / name) as image:
            assert image.width > 100


def test_metrics_are_chosen_by_name(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "fid, kid,is,precision-recall"
    arguments = [str(digits_run), "--reference", "digits", "--num", "40", "--metrics", names]
    metrics = measured(arguments, capsys)
    assert {"frechet_distance", "kernel_distance", "inception_score", "recall"} <= metrics.keys()
    assert not {"rms_error", "teacher_nfe", "ms_per_sample", "trajectory"} & metrics.keys()


def test_a_teacher_is_measured_by_its_spec(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deeper" / "teacher.json"
    arguments = ["digits", "--reference", "digits", "--num", "40", "--steps", "5"]
    metrics = measured([*arguments, "--solver", "euler", "--out", str(file)], capsys)
    assert metrics == json.loads(file.read_text())
    assert metrics["nfe"] == 5
    assert {"frechet_distance", "ms_per_sample", "target"} <= metrics.keys()
    assert not {"rms_error", "teacher_nfe"} & metrics.keys()
    assert (tmp_path / "deeper" / "teacher" / "samples.png").is_file()


def test_a_rivals_samples_are_scored_by_the_same_code(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In our form, and in that of guided-diffusion: 8 bits, channels last."""
    x = load_student(digits_run).generate(40, seed=0, batch_size=256).x
    np.savez(tmp_path / "ours.npz", samples=x.numpy())
    np.savez(tmp_path / "theirs.npz", arr_0=to_uint8(x).permute(0, 2, 3, 1).numpy())
    arguments = ["--reference", "digits", "--metrics", "fid,kid"]
    run = measured([str(digits_run), *arguments, "--num", "40"], capsys)
    for name in ("ours", "theirs"):
        metrics = measured([str(tmp_path / f"{name}.npz"), *arguments], capsys)
        for key in ("frechet_distance", "kernel_distance", "num_samples"):
            assert metrics[key] == pytest.approx(run[key], rel=1e-6)
        assert not {"nfe", "seed", "ms_per_sample"} & metrics.keys()
    assert {file.suffix for file in tmp_path.iterdir()} == {".npz"}


def test_every_average_and_seed_in_one_table(
    ring_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--num", "16", "--metrics", "error", "--ema", "all", "--seed", "0", "--seed", "1"]
    capsys.readouterr()
    assert main(["evaluate", str(ring_run), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "ema-0.99, seed 1" in printed
    assert "rms_error over the seeds: min" in printed
    metrics = json.loads((ring_run / "metrics.json").read_text())
    assert len(metrics["measurements"]) == 4


REFUSED = {
    "unknown metric": (["--metrics", "error,fids"], "'fids'"),
    "metric without a reference": (["--metrics", "precision-recall"], "'precision-recall'"),
    "unknown features": (["--reference", "digits", "--features", "incepton"], "'incepton'"),
    "weights of no features": (["--weights", "x.pth"], "x.pth"),
    "average that is no number": (["--ema", "half"], "half"),
    "solver of a student": (["--solver", "heun"], "'heun'"),
    "file that is not JSON": (["--num", "2", "--out", "x.txt"], "x.txt"),
}


@pytest.mark.parametrize(("arguments", "word"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_one_line(
    arguments: list[str], word: str, digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused([str(digits_run), *arguments], capsys, word)


@pytest.mark.parametrize(
    "option",
    [["--num", "9"], ["--solver", "heun"], ["--ema", "all"], ["--reference", "teacher"]],
)
def test_options_that_samples_do_not_take(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", samples=np.zeros((8, 1, 8, 8), dtype=np.float32))
    refused([str(tmp_path / "x.npz"), *option], capsys, option[1])


def wait_for(condition, process: subprocess.Popen) -> None:
    """Wait until a condition holds of a process that is alive."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_call_that_was_killed_goes_on(
    ring_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    num = 40_000
    arguments = [str(ring_run), "--num", str(num), "--metrics", "diversity"]
    samples = ring_run / "evaluation" / "samples"
    process = subprocess.Popen(
        [sys.executable, "-m", "pidistill", "evaluate", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(lambda: len(list(samples.glob("*/*.safetensors"))) >= 3, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = [file.name for file in samples.glob("*/*.safetensors")]
    num_blocks = len(sampling.blocks(num))
    assert 3 <= len(kept) < num_blocks
    drawn, draw = [], sampling.Sampler._draw
    monkeypatch.setattr(
        sampling.Sampler, "_draw", lambda *given: drawn.append(given[1]) or draw(*given)
    )
    resumed = measured(arguments, capsys)
    assert len(drawn) + len(kept) == num_blocks
    assert not samples.exists()
    at_once = measured([*arguments, "--keep-samples"], capsys)
    assert resumed == at_once
    assert len(list(samples.glob("*/*.safetensors"))) == num_blocks
    assert main(["evaluate", *arguments]) == 0
    assert f"resuming: {num_blocks} blocks" in capsys.readouterr().out
    assert not samples.exists()


@pytest.mark.slow
def test_torchrun_gives_the_same_metrics(
    digits_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(digits_run), "--reference", "digits", "-n", "1200", "--num-error", "40"]
    names = ["--metrics", "fid,kid,precision-recall,error,diversity", "--json"]
    alone = measured([*arguments, *names[:2]], capsys)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "pidistill", "evaluate", *arguments, *names],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == alone


def test_a_teacher_draws_the_reference(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's own teacher, another by its spec, and the same samples from a file agree."""
    file = tmp_path / "drawn.npz"
    sample = ["sample", "digits", "-n", "60", "--seed", "1", "--steps", "40", "--out", str(file)]
    assert main(sample) == 0
    common = [str(digits_run), "--num", "40", "--num-error", "60", "--metrics", "fid"]
    distances = [
        measured([*common, "--reference", reference], capsys)["frechet_distance"]
        for reference in ("teacher", "teacher:digits", str(file))
    ]
    assert distances[0] == distances[1] == pytest.approx(distances[2], rel=1e-6)
