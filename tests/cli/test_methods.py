"""Every distillation method from the command line: distil, resume, sample, evaluate."""

import json
from pathlib import Path

import numpy as np
import pytest

from pidistill.cli import main
from pidistill.methods import NAMES

SETTINGS = {
    "pid": [],
    "consistency": ["--data", "digits", "--set", "method.num_nodes=6"],
    "progressive": ["--data", "digits", "--set", "method.start_steps=4"],
    "boot": ["--set", "method.num_nodes=30"],
    "knowledge": ["--set", "method.num_pairs=32", "--set", "method.steps=3"],
}
FEW = ["--max-train-steps", "4", "--batch-size", "8", "--checkpointing-steps", "2"]


def distill(method: str, folder: Path, *more: str) -> int:
    arguments = ["distill", "--teacher", "digits", "--method", method, "--out", str(folder)]
    return main([*arguments, *SETTINGS[method], *FEW, *more])


def sample(folder: Path, file: Path, *more: str) -> np.ndarray:
    assert main(["sample", str(folder), "--seed", "3", "--out", str(file), *more]) == 0
    array: np.ndarray = np.load(file)["samples"]
    return array


def test_every_method_is_here() -> None:
    assert set(SETTINGS) == set(NAMES)


@pytest.mark.parametrize("method", NAMES)
def test_a_run_samples_and_is_measured(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert distill(method, folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4
    config = (folder / "config.toml").read_text()
    for setting in SETTINGS[method][1::2]:
        assert setting.removeprefix("method.").replace("=", " = ").strip('"') in config
    x = sample(folder, tmp_path / "x.npz", "-n", "5")
    assert x.shape == (5, 1, 8, 8)
    assert np.isfinite(x).all()
    part = sample(folder, tmp_path / "part.npz", "-n", "3", "--batch-size", "2")
    np.testing.assert_allclose(part, x[:3], atol=1e-4)
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--reference", "digits", "--num", "16", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["nfe"] == 1
    assert metrics["rms_error"] > 0
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained_by"] == method


@pytest.mark.parametrize("method", NAMES)
def test_a_run_is_resumed_without_naming_anything(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert distill(method, folder) == 0
    assert main(["distill", "--out", str(folder), "--resume", "--max-train-steps", "6"]) == 0
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 6
    assert sample(folder, tmp_path / "x.npz", "-n", "2").shape == (2, 1, 8, 8)


def test_a_consistency_student_takes_several_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert distill("consistency", folder) == 0
    one = sample(folder, tmp_path / "one.npz", "-n", "6")
    capsys.readouterr()
    three = sample(folder, tmp_path / "three.npz", "-n", "6", "--steps", "3", "--json")
    assert json.loads(capsys.readouterr().out)["nfe"] == 3
    assert not np.allclose(one, three, atol=1e-2)
    batched = ["-n", "4", "--steps", "3", "--batch-size", "3"]
    again = sample(folder, tmp_path / "again.npz", *batched)
    np.testing.assert_allclose(again, three[:4], atol=1e-4)


@pytest.mark.parametrize("method", ["consistency", "progressive"])
def test_images_have_to_be_named(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", "--teacher", "digits", "--method", method]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert f"error: {method} trains on images; name them with --data" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["pid", "boot", "knowledge"])
def test_a_method_without_data_gets_none(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(method, tmp_path / "run", "--data", "digits") == 2
    assert f"error: data is 'digits', but {method} trains without data" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("method.num_node=5", "'method.num_nodes'"),
        ("method.mu=1", "method.mu is 1"),
        ("method.solver=rk4", "'heun' or 'euler'"),
    ],
)
def test_settings_of_a_method_are_checked(
    assignment: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill("consistency", tmp_path / "run", "--set", assignment) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert words in lines[0]
