"""Model cards."""

import json

import pytest
from huggingface_hub import ModelCard

from pidistill.export.card import hub_name, model_card, provenance_of, without_folders
from pidistill.model_folder import load_student
from pidistill.students.euler import EulerStudent


def card_of(run, *, ema=None, to="diffusers", **options):
    """The card of the student in a run folder, as the library reads it."""
    options = {"licence": None, "notes": [], **options, "name": "me/small", "file": "x.onnx"}
    return ModelCard(model_card(load_student(run, ema), provenance_of(run, ema), to=to, **options))


@pytest.mark.parametrize(
    ("to", "library"), [("diffusers", "diffusers"), ("onnx", "onnx"), ("run", "pidistill")]
)
def test_the_front_matter_is_read_by_the_hub_s_library(mlp_run, to, library):
    data = card_of(mlp_run, to=to).data
    assert data.library_name == library
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert "pidistill" in data.tags
    assert data.base_model is None


def test_the_card_says_where_the_student_comes_from(mlp_run):
    entry = {"step": 50, "images": 6400, "loss": 0.1, "teacher_evals": 6400, "seconds": 1.0}
    (mlp_run / "metrics.jsonl").write_text(json.dumps(entry) + "\n")
    text = card_of(mlp_run).text
    for part in (
        "| Teacher | `digits` |",
        "| Method | `pid` |",
        "| Samples | 1 x 4 x 4, 3 classes |",
        "| Weights | `student.safetensors` |",
        "50 steps, 6,400 samples, 6,400 teacher evaluations",
        'teacher = "digits"',
        "2411.08378",
    ):
        assert part in text
    assert "Not included" not in text
    assert "- A decoder <or> so." in card_of(mlp_run, notes=["A decoder <or> so."]).text


def test_a_run_of_several_evaluations_says_so(tmp_path, student_named, run_of):
    student = student_named("mlp", EulerStudent, num_steps=4)
    text = card_of(run_of(tmp_path / "run", student), to="run").text
    assert "samples in **4 network evaluations**" in text
    assert (
        "hf download me/small --local-dir student\npidistill sample student -n 64 --steps 4 "
        in text
    )


def test_metrics_are_those_of_the_weights(mlp_run):
    metrics = {"nfe": 1, "rms_error": 0.123456, "quantiles": [1, 2]}
    (mlp_run / "metrics.json").write_text(json.dumps(metrics))
    text = card_of(mlp_run).text
    assert "| `rms_error` | 0.123 |" in text
    assert "quantiles" not in text
    of_others = "Measured with `student.safetensors`, not with the weights exported here."
    assert of_others in card_of(mlp_run, ema=0.999).text
    assert of_others not in text
    (mlp_run / "metrics.json").write_text(json.dumps({**metrics, "step": 40}))
    assert "Measured at step 40;" in card_of(mlp_run).text


@pytest.mark.parametrize(
    ("teacher", "licence", "identifier", "name", "said"),
    [
        ("edm:x.pkl", None, "unknown", None, "unknown"),
        ("edm:x.pkl", "CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0", None, "CC-BY-NC-SA-4.0"),
        ("edm:x.pkl", "My own (2024)", "other", "my-own-2024", "My own (2024)"),
        ("digits", None, "apache-2.0", None, "apache-2.0"),
    ],
)
def test_licence(tmp_path, student_named, run_of, teacher, licence, identifier, name, said):
    config = f'teacher = "{teacher}"\n\n[method]\nname = "pid"\n'
    card = card_of(run_of(tmp_path / "run", student_named("mlp"), config), licence=licence)
    assert card.data.license == identifier
    assert getattr(card.data, "license_name", None) == name
    assert said in card.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edm:/home/me/models/a.pkl", "edm:a.pkl"),
        ("distilled from native:~/runs/teacher", "distilled from native:teacher"),
        ("diffusers:/data/p?prompts=/data/my prompts/x.txt", "diffusers:p?prompts=x.txt"),
        ("edm:C:\\models\\a.pkl", "edm:a.pkl"),
        ("diffusers:OWNER/NAME?guidance=2", "diffusers:OWNER/NAME?guidance=2"),
        ("native:runs/teacher", "native:runs/teacher"),
        ("digits", "digits"),
    ],
)
def test_local_folders_are_nobody_s_business(text, expected):
    assert without_folders({"a": [text]}) == {"a": [expected]}


def test_a_teacher_on_the_hub_is_the_base_model(tmp_path, student_named, run_of):
    config = 'teacher = "diffusers:owner/name?guidance=2.0"\n\n[method]\nname = "pid"\n'
    card = card_of(run_of(tmp_path / "run", student_named("mlp"), config))
    assert card.data.base_model == "owner/name"
    assert hub_name("native:runs/teacher") is None


def test_a_folder_without_a_config_has_a_card_too(mlp_run):
    (mlp_run / "config.toml").unlink()
    card = card_of(mlp_run)
    assert "| Teacher | `distilled from random weights` |" in card.text
    assert card.data.license == "unknown"
    assert "Settings" not in card.text
