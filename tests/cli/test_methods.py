"""Every distillation method from the command line: distil, resume, sample, evaluate."""

import json

import numpy as np
import pytest

from pidistill.cli import main
from pidistill.methods import NAMES

SETTINGS = {
    "pid": [],
    "pid-map": ["--set", "method.share_from_noise=0.6"],
    "correction": ["--set", "method.auxiliary_warmup=2"],
    "consistency": ["--data", "digits", "--set", "method.num_nodes=6"],
    "progressive": ["--data", "digits", "--set", "method.start_steps=4"],
    "boot": ["--set", "method.num_nodes=30"],
    "knowledge": ["--set", "method.num_pairs=32", "--set", "method.steps=3"],
}
FEW = ["--max-train-steps", "4", "--batch-size", "8", "--checkpointing-steps", "2"]


def distill(method, folder, *more):
    arguments = ["distill", "--teacher", "digits", "--method", method, "--out", str(folder)]
    return main([*arguments, *SETTINGS[method], *FEW, *more])


def sample(folder, file, *more):
    assert main(["sample", str(folder), "--seed", "3", "--out", str(file), *more]) == 0
    return np.load(file)["samples"]


def test_every_method_is_here():
    assert set(SETTINGS) == set(NAMES)


@pytest.mark.parametrize("method", NAMES)
def test_a_run_samples_is_measured_and_resumed(method, tmp_path, capsys):
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
    resumed = ["distill", "--out", str(folder), "--resume", "--max-train-steps", "6", "--json"]
    assert main(resumed) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 6
    assert not np.array_equal(sample(folder, tmp_path / "later.npz", "-n", "5"), x)


def test_a_consistency_student_takes_several_steps(tmp_path, capsys):
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


@pytest.mark.parametrize("method", NAMES)
def test_images_go_to_the_methods_that_train_on_them(method, tmp_path, capsys):
    arguments = ["distill", "--teacher", "digits", "--method", method, *FEW]
    data = [] if method in ("consistency", "progressive") else ["--data", "digits"]
    assert main([*arguments, *data, "--out", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert method in line
    assert "data" in line
    assert not (tmp_path / "run").exists()
