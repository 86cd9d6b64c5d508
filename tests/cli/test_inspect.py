"""`pidistill inspect`: teachers, data sets, and where a run stands."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from pidistill.cli import main
from pidistill.files import read_json, write_json
from pidistill.model_folder import load_model

from method_runs import small, train


@pytest.fixture
def run(tmp_path):
    """A run that was stopped at step 4 of 10."""
    train(small("pid"), tmp_path / "run", stop_at=4)
    return tmp_path / "run"


def facts_of(name, capsys):
    capsys.readouterr()
    assert main(["inspect", str(name), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("name", "num_classes"), [("digits", 10), ("mixture:ring", 8)])
def test_a_teacher(name, num_classes, capsys):
    facts = facts_of(name, capsys)
    assert facts["num_classes"] == num_classes
    assert facts["sigma_max"] == 80.0
    assert ("data" in facts) == (name == "digits")


def test_data(tmp_path, capsys):
    assert facts_of("digits", capsys)["data"]["num_samples"] == 1797
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    facts = facts_of(f"folder:{tmp_path}", capsys)
    assert (facts["num_samples"], facts["sample_shape"]) == (1, [3, 8, 8])


def test_a_path_without_its_kind_is_hinted_at(tmp_path, refused):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8))
    for verb in ("inspect", "train-features", "train-teacher"):
        out = [] if verb == "inspect" else ["--out", tmp_path / "out"]
        refused([verb, tmp_path, *out], f"did you mean folder:{tmp_path}?")
    refused(["inspect", tmp_path / "x.npz"], "did you mean npz:")
    refused(["inspect", "mixture:ring", "--examples", tmp_path / "e.png"], "a data set")


def test_examples_are_drawn_by_class(tmp_path, capsys):
    for name, grey, num in (("a", 0, 1), ("b", 100, 3), ("c", 200, 30)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(num):
            Image.new("L", (8, 8), grey).save(tmp_path / "images" / name / f"{i}.png")
    file = tmp_path / "new" / "examples.png"
    assert main(["inspect", f"folder:{tmp_path / 'images'}", "--examples", str(file)]) == 0
    with Image.open(file) as picture:
        tiles = np.asarray(picture.resize((9, 5), Image.Resampling.BOX).convert("L"))
    expected = np.tile([0, 100, 200], 3)
    assert (np.abs(tiles.astype(int) - expected) < 30).all()  # thin white borders


def test_features(tmp_path, capsys):
    out = tmp_path / "features"
    options = ["--max-train-steps", "2", "--batch-size", "8", "--out", str(out)]
    assert main(["train-features", "digits", *options]) == 0
    facts = facts_of(out, capsys)
    assert (facts["kind"], facts["data"], facts["num_classes"]) == ("features", "digits", 10)
    assert facts["sample_shape"] == [1, 8, 8]
    assert 0 <= facts["held_out_accuracy"] <= 1


def test_how_good_a_teacher_is(tmp_path, capsys):
    tiny = 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}'
    options = ["--set", tiny, "--set", "method.held_out=0.1", "--batch-size", "8"]
    out = tmp_path / "teacher"
    train = ["train-teacher", "digits", "--out", str(out)]
    assert main([*train, *options, "--max-train-steps", "2"]) == 0
    printed = capsys.readouterr().out
    facts = facts_of(out, capsys)
    assert "179 held-out images" in facts["quality"]
    assert facts["quality"] in printed
    assert facts["next"] == f"pidistill {' '.join(train)} --resume --max-train-steps 6000"
    assert facts["then"] == f"pidistill distill --teacher native:{out} --out DIR"
    assert main([*train, "--resume", "--max-train-steps", "3"]) == 0


def test_where_a_run_stands(run, capsys, monkeypatch):
    facts = facts_of(run, capsys)
    assert (facts["trained_by"], facts["trained_on"]) == ("pid", "mixture:ring")
    assert (facts["step"], facts["max_train_steps"], facts["state"]) == (4, 10, "stopped")
    assert facts["seconds_left"] > 0
    assert facts["next"] == f"pidistill distill --out {run} --resume"
    assert facts["best_checkpoint"].endswith("step-000000004")
    model = load_model(run)
    assert facts["sigma_data"] == model.sigma_data
    assert (facts["kind"], facts["evaluations"]) == ("trajectory-edm", 1)
    assert facts["parameters"] == sum(tensor.numel() for tensor in model.state_dict().values())
    monkeypatch.setattr("pidistill.cli.inspect.is_held", lambda folder: True)
    assert facts_of(run, capsys)["state"] == "running"


def test_a_finished_run(run, capsys):
    train(small("pid"), run)
    write_json(run / "metrics.json", {"frechet_distance": 1.5})
    facts = facts_of(run, capsys)
    assert (facts["step"], facts["state"]) == (10, "finished")
    assert "seconds_left" not in facts
    assert facts["metrics"] == {"frechet_distance": 1.5}
    assert facts["next"].startswith(f"pidistill sample {run} ")
    assert main(["inspect", str(run)]) == 0
    assert "frechet_distance 1.50" in capsys.readouterr().out


def test_a_run_whose_plug_in_is_not_installed(run, capsys):
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('name = "pid"', 'name = "theirs"'))
    description = read_json(run / "network.json")
    description["network"] = {"name": None, "class": "theirs:Network", "config": None}
    write_json(run / "network.json", description)
    facts = facts_of(run, capsys)
    assert (facts["trained_by"], facts["network"]) == ("theirs", "theirs:Network")
    assert "theirs" not in sys.modules


@pytest.mark.parametrize("line", ["[1]", '{"a": 1}', "{", ""])
def test_a_log_that_was_cut_off(run, line, capsys):
    (run / "metrics.jsonl").write_text(line + "\n")
    facts = facts_of(run, capsys)
    assert "loss" not in facts
    assert facts["step"] == 4  # the checkpoint's


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "metrics.jsonl",
            '{"step": 3, "images": "x", "seconds": 2, "teacher_evals": 0, "loss": 1}',
        ),
        ("metrics.jsonl", '{"step": 0, "images": 1, "seconds": 2, "teacher_evals": 0, "loss": 1}'),
        ("config.toml", "= "),
        ("network.json", "[]"),
        ("network.json", '{"network": 3}'),
        ("ema-0.9.safetensors", "weights"),
        ("metrics.json", "{"),
    ],
)
def test_a_damaged_folder_is_one_line(run, file, text, capsys):
    (run / file).write_text(text)
    assert main(["inspect", str(run)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {run}") or file == "config.toml"
