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
from pidistill.export.onnx_file import OneStepModule, write_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def difference(session, student, num):
    """The largest difference from the student's samples, relative to their largest value."""
    z = initial_noise(student, num, seed=num)
    inputs, label = {"z": z.numpy()}, None
    if student.num_classes:
        label = torch.arange(num) % (student.num_classes + 1) - 1  # -1 among them
        inputs["label"] = label.numpy()
    (samples,) = session.run(["samples"], inputs)
    assert samples.dtype == np.float32
    expected = student.sample(z, label=label).x.numpy()
    return np.abs(samples - expected).max() / max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", ["mlp", "points", "song_unet"])
def test_any_batch_gives_the_student_s_samples(name, tmp_path, student_named):
    student = student_named(name)
    write_onnx(tmp_path / "student.onnx", student, {"source": student.source})
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    for num in (1, 3, 8):
        assert difference(session, student, num) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dhariwal_unet", "diffusers_unet", "labelled_diffusers_unet", "text_unet"]
)
def test_any_batch_gives_the_student_s_samples_of_the_other_architectures(
    name, tmp_path, student_named
):
    test_any_batch_gives_the_student_s_samples(name, tmp_path, student_named)


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


def test_a_file_that_does_not_agree_is_refused(tmp_path, student_named, monkeypatch):
    student = student_named("points")
    right = onnx_file.one_step_sample

    def wrong(network, z, label, **scales):
        scale = 1.0 if torch.compiler.is_exporting() else 1.1
        return scale * right(network, z, label, **scales)

    monkeypatch.setattr(onnx_file, "one_step_sample", wrong)
    with pytest.raises(PidistillError, match="onnxruntime's samples differ from torch's by up to"):
        write_onnx(tmp_path / "student.onnx", student, {})
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_the_file_is_written_unchecked(tmp_path, student_named, monkeypatch):
    student = student_named("points")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert write_onnx(tmp_path / "student.onnx", student, {}) is None
    assert (tmp_path / "student.onnx").is_file()


def test_what_onnx_cannot_do_is_one_line(tmp_path, student_named, monkeypatch):
    student = student_named("points")
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 1000)
    with pytest.raises(PidistillError, match="one ONNX file holds at most 2 GiB"):
        write_onnx(tmp_path / "student.onnx", student, {})
    monkeypatch.undo()
    monkeypatch.setattr(OneStepModule, "forward", lambda self, z: z if z.sum() > 0 else -z)
    with pytest.raises(PidistillError, match="the network MLP cannot be turned into ONNX: "):
        write_onnx(tmp_path / "student.onnx", student, {})


def test_missing_libraries_are_named_with_the_remedy(tmp_path, student_named, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PidistillError, match=r'onnxscript.*pip install "pidistill\[onnx\]"'):
        write_onnx(tmp_path / "student.onnx", student_named("points"), {})
