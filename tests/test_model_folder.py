"""Model folders: what is written is what is loaded, and nothing outside is touched."""

import json

import pytest
import torch
from torch import nn

from pidistill import PidistillError, load_student, load_teacher
from pidistill.model_folder import (
    MODEL_FILE,
    describe,
    is_model_folder,
    load_model,
    weights_name,
    write_description,
)
from pidistill.precondition import EDMPrecondition
from pidistill.storage import write_tensors
from pidistill.students.trajectory import TrajectoryStudent


def save(folder, model, ema=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    write_description(folder, model, ema)
    write_tensors(folder / weights_name(ema), dict(model.state_dict()))


@pytest.fixture
def folder(tmp_path, mlp_student):
    save(tmp_path / "run", mlp_student)
    return tmp_path / "run"


def edit(folder, change):
    """Change the description of a folder, by a function of its JSON."""
    description = json.loads((folder / MODEL_FILE).read_text())
    change(description)
    (folder / MODEL_FILE).write_text(json.dumps(description))


@pytest.mark.parametrize("anchored", [False, True])
def test_a_student_comes_back_as_it_was(tmp_path, mlp_teacher, anchored):
    student = TrajectoryStudent.from_teacher(mlp_teacher, anchored=anchored)
    save(tmp_path, student)
    again = load_student(str(tmp_path))
    assert describe(again) == describe(student)
    assert torch.equal(again.generate(4, seed=0).x, student.generate(4, seed=0).x)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_denoiser_comes_back_as_it_was(tmp_path, mlp_teacher):
    save(tmp_path, mlp_teacher)
    again = load_teacher(f"native:{tmp_path}")
    assert describe(again) == describe(mlp_teacher)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(again(x, torch.ones(2)), mlp_teacher(x, torch.ones(2)))
    with pytest.raises(PidistillError, match="denoiser"):
        load_student(tmp_path)


def test_weights_are_chosen_by_their_averaging_rate(tmp_path, folder, mlp_student):
    averaged = {name: 2 * value for name, value in mlp_student.state_dict().items()}
    write_tensors(folder / "ema-0.999.safetensors", averaged)
    for ema, factor in ((None, 1), (0, 1), (0.999, 2)):
        weight = load_model(folder, ema).network.output.weight
        assert torch.equal(weight, factor * mlp_student.network.output.weight)
    with pytest.raises(PidistillError, match=r"ema-0\.5\.safetensors does not exist"):
        load_student(folder, ema=0.5)
    save(tmp_path / "other", mlp_student, ema=0.9999)  # the default is what the folder names
    assert load_student(tmp_path / "other").generate(1, seed=0).nfe == 1


class Own(nn.Module):
    """A network that nobody registered, as in a notebook; it keeps no config."""

    def __init__(self, width=3):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, width), nn.Linear(width, 2)

    def forward(self, u, c_noise, label=None):
        return self.outer(torch.tanh(self.inner(u) + c_noise[:, None]))


def test_an_unregistered_network_comes_back_through_one_that_is_passed(tmp_path):
    student = TrajectoryStudent(Own(), EDMPrecondition(), sample_shape=(2,), source="a notebook")
    save(tmp_path, student)
    network = json.loads((tmp_path / MODEL_FILE).read_text())["network"]
    assert network == {"name": None, "class": f"{__name__}:Own", "config": None}
    with pytest.raises(PidistillError, match=rf"{__name__}:Own.*network="):
        load_student(tmp_path)
    again = load_student(tmp_path, network=Own())
    assert torch.equal(again.generate(4, seed=0).x, student.generate(4, seed=0).x)
    with pytest.raises(PidistillError, match=r"'network\.inner\.bias' .*\(3,\).*\(4,\)"):
        load_student(tmp_path, network=Own(width=4))


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "{absolute}", "sub/../../secret.safetensors", "..", "", "."]
)
def test_weights_cannot_be_taken_from_outside_the_folder(folder, mlp_student, name):
    outside = folder.parent / "secret.safetensors"
    write_tensors(outside, dict(mlp_student.state_dict()))
    edit(folder, lambda d: d.update(weights=name.format(absolute=outside)))
    with pytest.raises(PidistillError, match=r"does not (exist|name its weights)"):
        load_student(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(format=2), "format 2"),
        (lambda d: d.update(kind="oracle"), "'oracle'"),
        (lambda d: d.pop("kind"), "'kind'"),
        (lambda d: d["network"].update(name="os.system"), r"'os\.system'"),
        (lambda d: d["network"]["config"].update(depth=3), "'mlp'"),
        (lambda d: d["precondition"].update(name="x"), "'x'"),
        (lambda d: d["precondition"]["config"].update(x=1), MODEL_FILE),
        (lambda d: d["precondition"]["config"].update(sigma_max=1e-9), "1e-09"),
        (lambda d: d.update(network="mlp"), MODEL_FILE),
        (lambda d: d["network"].pop("name"), "'name'"),
        (lambda d: d["network"].update(name=None), "'class'"),
        (lambda d: d.update(options={"x": 1}), MODEL_FILE),
        (lambda d: d.update(sample_shape=None), MODEL_FILE),
        (lambda d: d["network"]["config"].update(width=33), "has shape"),
        (lambda d: d["network"]["config"].update(num_blocks=3), "lacks the weight"),
        (lambda d: d["network"]["config"].update(num_blocks=1), "unexpected weight"),
        (lambda d: d["network"]["config"].update(width="wide"), "'mlp'|network"),
    ],
)
def test_a_damaged_description_is_refused_in_one_line(folder, change, named):
    edit(folder, change)
    with pytest.raises(PidistillError, match=named) as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_or_weights_is_refused(tmp_path, mlp_student):
    assert not is_model_folder(tmp_path)
    for path, named in ((tmp_path, r"network\.json"), (tmp_path / "nowhere", "not a folder")):
        with pytest.raises(PidistillError, match=named):
            load_student(path)
    write_description(tmp_path, mlp_student, 0)
    with pytest.raises(PidistillError, match="no weights yet"):
        load_student(tmp_path)


def test_a_class_that_is_not_of_this_package_cannot_be_described(mlp_teacher):
    class OwnStudent(TrajectoryStudent):
        pass

    class OwnPrecondition(EDMPrecondition):
        pass

    with pytest.raises(PidistillError, match="OwnStudent"):
        describe(OwnStudent.from_teacher(mlp_teacher))
    mlp_teacher.precondition = OwnPrecondition()
    with pytest.raises(PidistillError, match="OwnPrecondition"):
        describe(mlp_teacher)
