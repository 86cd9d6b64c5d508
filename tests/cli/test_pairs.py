"""`pidistill pairs`: pairs that runs of knowledge distillation share."""

import json

from pidistill.cli import main
from pidistill.data.pairs import load_pairs

RING = ["pairs", "--teacher", "mixture:ring", "--steps", "4"]


def test_pairs_are_made_once_and_trained_on(tmp_path, capsys):
    folder = tmp_path / "pairs"
    assert main([*RING, "-n", "30", "--out", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_pairs"] == 30
    shard = folder / "shard-00000.safetensors"
    before = shard.stat().st_mtime_ns
    settings = ["--set", "method.steps=4", "--set", "method.num_pairs=30"]
    small = ["--set", 'network={name="mlp",config={width=8}}', "--max-train-steps", "2"]
    arguments = ["distill", "--teacher", "mixture:ring", "--method", "knowledge", *settings, *small]
    shared = ["--set", f"method.pairs={folder}", "--batch-size", "4"]
    assert main([*arguments, *shared, "--out", str(tmp_path / "run")]) == 0
    assert shard.stat().st_mtime_ns == before
    assert not (tmp_path / "run" / "pairs").exists()


def test_more_pairs_are_added_to_those_there(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    assert main([*RING, "-n", "10", "--out", str(few)]) == 0
    assert main([*RING, "-n", "25", "--out", str(few)]) == 0
    assert main([*RING, "-n", "25", "--out", str(many)]) == 0
    assert load_pairs(few, 25).z.equal(load_pairs(many, 25).z)


def test_pairs_made_otherwise_are_refused(tmp_path, capsys):
    assert main([*RING, "-n", "4", "--out", str(tmp_path)]) == 0
    assert main([*RING, "-n", "4", "--seed", "1", "--out", str(tmp_path)]) == 2
    assert "were made with seed 0" in capsys.readouterr().err
