"""`pidistill export`."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from pidistill import load_student, load_teacher
from pidistill.cli import main
from pidistill.files import write_text
from pidistill.model_folder import weights_name, write_description
from pidistill.storage import write_tensors


@pytest.fixture
def run(tmp_path, mlp_student):
    """A run folder of a student with random weights."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_tensors(folder / weights_name(0), dict(mlp_student.state_dict()))
    write_tensors(folder / weights_name(0.999), dict(mlp_student.state_dict()))
    write_description(folder, mlp_student, 0.999)
    write_text(folder / "config.toml", 'teacher = "edm:/a/x.pkl"\n\n[method]\nname = "pid"\n')
    return folder


def exported(capsys, *arguments, code=0):
    """Run the verb; the JSON object on stdout, or the line on stderr."""
    assert main(["export", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.err if code else json.loads(captured.out)


def test_to_diffusers(run, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    result = exported(capsys, run, "--to", "diffusers", "--out", out, "--json")
    assert result == {"out": str(out), "to": "diffusers", "nfe": 1, "not_included": []}
    assert (out / "model_index.json").is_file()
    assert ModelCard.load(out / "README.md").data.license == "unknown"
    assert "/a/" not in (out / "README.md").read_text()


def test_an_empty_folder_is_taken(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    exported(capsys, run, "--to", "diffusers", "--out", tmp_path / "out", "--json")
    assert (tmp_path / "out" / "model_index.json").is_file()


def test_to_onnx(run, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "student.onnx"
    result = exported(capsys, run, "--to", "onnx", "--out", out, "--json")
    assert result["max_difference"] < 1e-5
    assert out.is_file()


def test_to_run(run, tmp_path, capsys, mlp_student):
    (run / "state").mkdir()
    exported(capsys, run, "--to", "run", "--out", tmp_path / "out", "--ema", 0, "--json")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.toml", "network.json", "student.safetensors"}
    student = load_student(tmp_path / "out")
    assert torch.equal(student.generate(2, seed=0).x, mlp_student.generate(2, seed=0).x)
    assert "/a/" not in (tmp_path / "out" / "config.toml").read_text()


def test_push(run, tmp_path, capsys, monkeypatch):
    calls = {}
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **o: calls.update(repo=repo_id, **o)
    )
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **o: calls.update(o))
    out = tmp_path / "out"
    arguments = [
        run,
        "--to",
        "diffusers",
        "--out",
        out,
        "--push-to-hub",
        "me/x",
        "--license",
        "mit",
    ]
    result = exported(capsys, *arguments, "--json")
    assert calls["repo"] == "me/x"
    assert calls["private"] is True
    assert calls["folder_path"] == out
    assert result["url"].endswith("/me/x")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit"
    assert 'from_pretrained("me/x"' in card.text


@pytest.mark.parametrize(
    ("to", "name", "expected"),
    [
        ("diffusers", "full", "full exists already"),
        ("diffusers", "file.onnx", "file.onnx exists already"),
        ("onnx", "file.onnx", "file.onnx exists already"),
        ("onnx", "new", "new ends in 'nothing'; expected .onnx"),
        ("onnx", "folder.onnx", "folder.onnx exists already"),
    ],
)
def test_nothing_is_overwritten(run, tmp_path, capsys, to, name, expected):
    (tmp_path / "full").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file.onnx").touch()
    line = exported(capsys, run, "--to", to, "--out", tmp_path / name, code=2)
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert expected in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gone", "--to", "onnx", "--out", "x.onnx"], "gone is not a folder"),
        (["gone", "--to", "tflite", "--out", "x"], "'tflite' is not one of"),
        (["gone", "--to", "run", "--out", "x", "--push-to-hub", "me"], "names no owner"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    line = exported(capsys, *arguments, code=2)
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_a_denoiser_is_no_student(tmp_path, capsys):
    folder = tmp_path / "teacher"
    teacher = load_teacher("digits")
    folder.mkdir()
    write_tensors(folder / weights_name(0), dict(teacher.state_dict()))
    write_description(folder, teacher, 0)
    line = exported(capsys, folder, "--to", "run", "--out", tmp_path / "out", code=2)
    assert "contains a denoiser, not a student" in line
