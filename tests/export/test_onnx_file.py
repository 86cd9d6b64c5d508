"""Exported ONNX files, run by onnxruntime."""

import json
import re
import sys

import numpy as np
import pytest
import torch

from pidistill import PidistillError, initial_noise
from pidistill.export import onnx_file
from pidistill.export.export import export_student
from pidistill.export.onnx_file import OneStepModule
from pidistill.model_folder import load_student
from pidistill.networks.mlp import MLP
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.trajectory import TrajectoryStudent

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def write(folder, student):
    return onnx_file.write_onnx(folder / "student.onnx", student)


def difference(session, student, num):
    """The maximum difference from the student's samples, relative to their maximum."""
    z = initial_noise(student, num, seed=num)
    inputs, label = {"z": z.numpy()}, None
    if student.num_classes:
        label = torch.arange(num) % (student.num_classes + 1) - 1  # -1 among them
        inputs["label"] = label.numpy()
    (samples,) = session.run(["samples"], inputs)
    assert samples.dtype == np.float32
    expected = student.sample(z, label=label).x.numpy()
    return np.abs(samples - expected).max() / max(1, np.abs(expected).max())


@pytest.mark.parametrize("kind", [TrajectoryStudent, FlowMapStudent])
@pytest.mark.parametrize("name", ["mlp", "points", "song_unet"])
def test_any_batch_gives_the_student_s_samples(name, kind, tmp_path, student_named):
    student = student_named(name, kind)
    write(tmp_path, student)
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    for num in (1, 3, 8):
        assert difference(session, student, num) < (4e-6 if kind is FlowMapStudent else 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TrajectoryStudent, FlowMapStudent])
@pytest.mark.parametrize(
    "name",
    [
        "dhariwal_unet",
        "diffusers_unet",
        "labelled_diffusers_unet",
        "text_unet",
        "class_transformer",
        "prompt_transformer",
    ],
)
def test_any_batch_gives_the_student_s_samples_of_the_other_architectures(
    name, kind, tmp_path, student_named
):
    test_any_batch_gives_the_student_s_samples(name, kind, tmp_path, student_named)


def test_a_flow_map_is_exported_for_one_evaluation(tmp_path, student_named, run_of):
    """Also where its network knows of the second time through its input."""

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, u, c_noise, label=None):
            return self.layer(torch.cat([u, c_noise[:, None]], dim=1))

    points = student_named("points")
    student = FlowMapStudent(
        Plain(), points.precondition, sample_shape=(2,), source="random weights"
    )
    torch.nn.init.normal_(student.second_time.linear1.weight, std=0.3)
    assert student.layer == ""
    run = run_of(tmp_path / "run", student.requires_grad_(False))
    exported = export_student(run, tmp_path / "a.onnx", to="onnx", network=Plain())
    assert exported.max_difference < 1e-5
    assert exported.not_included[0].startswith("Sampling in several evaluations")
    assert "one network evaluation** or more" not in exported.card
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["nfe"]) == 1
    assert difference(session, student, 4) < 2e-6


def test_the_file_says_what_it_takes(tmp_path, student_named, mlp_run):
    exported = export_student(mlp_run, tmp_path / "student.onnx", to="onnx")
    assert exported.max_difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    shapes = {value.name: value.shape[1:] for value in session.get_inputs()}
    assert shapes == {"z": [1, 4, 4], "label": []}
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["source"] == "distilled from random weights"
    assert json.loads(facts["sigma_max"]) == 80
    assert json.loads(facts["sample_shape"]) == [1, 4, 4]
    assert json.loads(facts["num_classes"]) == 3
    assert json.loads(facts["nfe"]) == 1


def test_the_card_s_code_runs(tmp_path, mlp_run, monkeypatch):
    exported = export_student(mlp_run, tmp_path / "student.onnx", to="onnx", name="me/small")
    (code,) = re.findall(r"```python\n(.*?)```", exported.card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)  # noqa: S102
    assert names["samples"].shape == (16, 1, 4, 4)


def test_a_network_of_the_user_s_own_is_exported_when_it_is_passed(tmp_path, mlp_run, run_of):
    class Own(MLP):
        pass

    own = load_student(mlp_run)
    own.network.__class__ = Own
    run = run_of(tmp_path / "own", own)
    fresh = Own(**own.network.config)
    exported = export_student(run, tmp_path / "a.onnx", to="onnx", network=fresh)
    assert exported.max_difference < 1e-5
    with pytest.raises(PidistillError, match="Own"):
        export_student(run, tmp_path / "a", to="diffusers", network=fresh)


def test_a_file_that_does_not_agree_is_refused(tmp_path, mlp_run, monkeypatch):
    right = onnx_file.one_step_sample

    def wrong(*arguments):
        return (1.0 if torch.compiler.is_exporting() else 1.1) * right(*arguments)

    monkeypatch.setattr(onnx_file, "one_step_sample", wrong)
    with pytest.raises(PidistillError, match="differ"):
        export_student(mlp_run, tmp_path / "student.onnx", to="onnx")
    assert list(tmp_path.iterdir()) == [mlp_run]


def test_without_onnxruntime_the_file_is_written_unchecked(tmp_path, student_named, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert write(tmp_path, student_named("points")) is None
    assert (tmp_path / "student.onnx").is_file()


def test_what_cannot_be_turned_into_onnx_is_refused(tmp_path, student_named, monkeypatch):
    student = student_named("points")
    with monkeypatch.context() as small:
        small.setattr(onnx_file, "MOST_BYTES", 1000)
        with pytest.raises(PidistillError, match="2 GiB"):
            write(tmp_path, student)
    with monkeypatch.context() as branching:
        branching.setattr(OneStepModule, "forward", lambda self, z: z if z.sum() > 0 else -z)
        with pytest.raises(PidistillError, match="MLP"):
            write(tmp_path, student)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PidistillError, match=r"onnxscript.*pidistill\[onnx\]"):
        write(tmp_path, student)
