"""Teacher specs, and teachers in the project's own format."""

import pytest
import torch

from pidistill import PidistillError, load_teacher
from pidistill.model_folder import write_description
from pidistill.storage import write_tensors
from pidistill.teachers import SOURCES, source_module, split_spec


def save(folder, model, ema=0.0):
    folder.mkdir()
    write_description(folder, model, ema)
    write_tensors(folder / "student.safetensors", dict(model.state_dict()))
    return folder


@pytest.fixture
def folder(tmp_path, mlp_teacher):
    return save(tmp_path / "teacher", mlp_teacher)


@pytest.mark.parametrize("prefix", ["native:", ""])
def test_a_native_teacher_is_what_was_saved(folder, mlp_teacher, prefix):
    teacher = load_teacher(f"{prefix}{folder}")
    x, sigma, label = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 1, 10]), torch.tensor([0, 1, -1])
    assert torch.equal(teacher(x, sigma, label), mlp_teacher(x, sigma, label))
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_student_is_no_teacher(tmp_path, mlp_student):
    save(tmp_path / "student", mlp_student)
    with pytest.raises(PidistillError, match="one-step student, not a denoiser"):
        load_teacher(f"native:{tmp_path / 'student'}")


def test_a_spec_that_names_nothing_is_refused(tmp_path):
    with pytest.raises(PidistillError, match="names no folder"):
        load_teacher("native:")
    with pytest.raises(PidistillError, match="is not a folder"):
        load_teacher(f"native:{tmp_path / 'nowhere'}")
    with pytest.raises(PidistillError, match="neither an existing path nor KIND:NAME"):
        load_teacher(str(tmp_path / "nowhere"))
    for name in ("digits", "glyphs"):
        with pytest.raises(PidistillError, match=f"the spec is just '{name}'"):
            load_teacher(f"{name}:0")


def test_a_path_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(PidistillError, match="neither a run folder nor a teacher"):
            load_teacher(str(path))


def test_a_spec_splits_at_its_first_colon():
    assert split_spec("mixture:ring") == ("mixture", "ring")
    assert split_spec("native:/a:b") == ("native", "/a:b")
    assert split_spec("digits") == ("digits", "")


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_loads(kind):
    assert callable(source_module(kind).load)
