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
    for rate in (0, 0.999):
        write_tensors(folder / weights_name(rate), dict(mlp_student.state_dict()))
    write_description(folder, mlp_student, 0.999)
    write_text(folder / "config.toml", 'teacher = "edm:/a/x.pkl"\n\n[method]\nname = "pid"\n')
    return folder


@pytest.fixture
def export(run, capsys):
    """A function: export the run, and return the JSON object."""

    def do(*arguments):
        assert main(["export", str(run), *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return do


@pytest.mark.parametrize("exists", [False, True])
def test_to_diffusers(export, tmp_path, exists):
    out = tmp_path / "deep" / "out"
    if exists:  # an empty folder is taken
        out.mkdir(parents=True)
    result = export("--to", "diffusers", "--out", out)
    assert result == {"out": str(out), "to": "diffusers", "nfe": 1, "not_included": []}
    assert (out / "model_index.json").is_file()
    assert ModelCard.load(out / "README.md").data.license == "unknown"
    assert "/a/" not in (out / "README.md").read_text()


def test_to_onnx(export, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "student.onnx"
    assert export("--to", "onnx", "--out", out)["max_difference"] < 1e-5
    assert out.is_file()


def test_to_run(export, run, tmp_path, mlp_student):
    (run / "state").mkdir()
    export("--to", "run", "--out", tmp_path / "out", "--ema", 0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.toml", "network.json", "student.safetensors"}
    student = load_student(tmp_path / "out")
    assert torch.equal(student.generate(2, seed=0).x, mlp_student.generate(2, seed=0).x)
    assert "/a/" not in (tmp_path / "out" / "config.toml").read_text()


def test_push(export, tmp_path, monkeypatch):
    calls = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo, **o: calls.update(repo=repo, **o))
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **o: calls.update(o))
    out = tmp_path / "out"
    hub = ["--push-to-hub", "me/x", "--license", "mit"]
    result = export("--to", "diffusers", "--out", out, *hub)
    assert (calls["repo"], calls["private"], calls["folder_path"]) == ("me/x", True, out)
    assert result["url"].endswith("/me/x")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit"
    assert 'from_pretrained("me/x"' in card.text


@pytest.mark.parametrize(
    ("to", "name", "expected"),
    [
        ("diffusers", "full", "full already exists"),
        ("diffusers", "file.onnx", "file.onnx already exists"),
        ("onnx", "file.onnx", "file.onnx already exists"),
        ("onnx", "new", "new ends in 'nothing'; expected .onnx"),
        ("onnx", "folder.onnx", "folder.onnx already exists"),
    ],
)
def test_nothing_is_overwritten(run, tmp_path, refused, to, name, expected):
    for folder in ("full", "folder.onnx"):
        (tmp_path / folder).mkdir()
    for file in ("full/x", "file.onnx"):
        (tmp_path / file).touch()
    refused(["export", run, "--to", to, "--out", tmp_path / name], expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gone", "--to", "onnx", "--out", "x.onnx"], "gone is not a folder"),
        (["gone", "--to", "tflite", "--out", "x"], "'tflite' is not one of"),
        (["gone", "--to", "run", "--out", "x", "--push-to-hub", "me"], "has no owner"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, refused, arguments, expected):
    monkeypatch.chdir(tmp_path)
    refused(["export", *arguments], expected)
    assert list(tmp_path.iterdir()) == []


def test_a_denoiser_is_no_student(tmp_path, refused):
    folder = tmp_path / "teacher"
    teacher = load_teacher("digits")
    folder.mkdir()
    write_tensors(folder / weights_name(0), dict(teacher.state_dict()))
    write_description(folder, teacher, 0)
    refused(["export", folder, "--to", "run", "--out", tmp_path / "out"], "contains a denoiser")
