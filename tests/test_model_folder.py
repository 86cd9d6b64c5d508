"""Model folders: what is written is what is loaded, and nothing outside is touched."""

import json

import pytest
import torch

from pidistill import PidistillError, load_student, load_teacher
from pidistill.model_folder import (
    MODEL_FILE,
    build_model,
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
    again = load_student(tmp_path)
    assert describe(again) == describe(student)
    assert torch.equal(again.generate(4, seed=0).x, student.generate(4, seed=0).x)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_denoiser_comes_back_as_it_was(tmp_path, mlp_teacher):
    save(tmp_path, mlp_teacher)
    again = load_teacher(f"native:{tmp_path}")
    assert describe(again) == describe(mlp_teacher)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(again(x, torch.ones(2)), mlp_teacher(x, torch.ones(2)))


def test_a_description_is_json_that_builds_the_same_model(mlp_student):
    description = json.loads(json.dumps(describe(mlp_student)))
    assert describe(build_model(description, "a test")) == describe(mlp_student)


def test_weights_are_chosen_by_their_averaging_rate(folder, mlp_student):
    averaged = {name: 2 * value for name, value in mlp_student.state_dict().items()}
    write_tensors(folder / "ema-0.999.safetensors", averaged)
    for ema, factor in ((None, 1), (0, 1), (0.999, 2)):
        weight = load_model(folder, ema).network.output.weight
        assert torch.equal(weight, factor * mlp_student.network.output.weight)
    with pytest.raises(PidistillError, match=r"ema-0\.5\.safetensors does not exist; .* student"):
        load_student(folder, ema=0.5)


def test_the_default_weights_are_those_that_the_folder_names(tmp_path, mlp_student):
    save(tmp_path, mlp_student, ema=0.9999)
    assert load_student(tmp_path).generate(1, seed=0).nfe == 1
    assert not (tmp_path / "student.safetensors").exists()


def test_a_denoiser_is_no_student(tmp_path, mlp_teacher):
    save(tmp_path, mlp_teacher)
    with pytest.raises(PidistillError, match="holds a denoiser, not a student"):
        load_student(tmp_path)


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
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "has format 2; this version of pidistill reads format 1"),
        (lambda d: d.pop("format"), "has format None"),
        (lambda d: d.update(kind="oracle"), "unknown kind 'oracle'; expected denoiser, trajectory"),
        (lambda d: d.pop("kind"), "does not describe a model: 'kind'"),
        (lambda d: d["network"].update(name="os.system"), "unknown network 'os.system'"),
        (lambda d: d["network"]["config"].update(depth=3), "network 'mlp' does not take"),
        (lambda d: d["precondition"].update(name="x"), "unknown preconditioning 'x'"),
        (lambda d: d["precondition"]["config"].update(x=1), "does not describe a model"),
        (lambda d: d["precondition"]["config"].update(sigma_max=1e-9), "sigma_max is 1e-09"),
        (lambda d: d["precondition"]["config"].update(sigma_max="a"), "does not describe a model"),
        (lambda d: d.update(network="mlp"), "does not describe a model"),
        (lambda d: d.update(options={"x": 1}), "does not describe a model"),
        (lambda d: d.update(sample_shape=None), "does not describe a model"),
        (lambda d: d["network"]["config"].update(width=33), "has shape"),
        (lambda d: d["network"]["config"].update(num_blocks=3), "lacks the weight"),
        (lambda d: d["network"]["config"].update(num_blocks=1), "unexpected weight"),
        (lambda d: d["network"]["config"].update(width=-1), "does not take these arguments"),
        (lambda d: d["network"]["config"].update(width="wide"), "does not"),
    ],
)
def test_a_damaged_description_is_refused_in_one_line(folder, change, message):
    edit(folder, change)
    with pytest.raises(PidistillError, match=message) as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert not is_model_folder(tmp_path)
    with pytest.raises(PidistillError, match=r"holds no network\.json"):
        load_student(tmp_path)
    with pytest.raises(PidistillError, match="is not a folder"):
        load_student(tmp_path / "nowhere")


def test_a_folder_without_weights_says_so(tmp_path, mlp_student):
    write_description(tmp_path, mlp_student, 0)
    with pytest.raises(PidistillError, match="the folder holds no weights yet"):
        load_student(tmp_path)


def test_a_model_that_is_not_registered_cannot_be_described(mlp_teacher, gaussian_student):
    class Unheard(TrajectoryStudent):
        pass

    with pytest.raises(PidistillError, match="not registered"):
        describe(gaussian_student)
    with pytest.raises(PidistillError, match="not registered"):
        describe(Unheard.from_teacher(mlp_teacher))

    class UnheardPrecondition(EDMPrecondition):
        pass

    mlp_teacher.precondition = UnheardPrecondition()
    with pytest.raises(PidistillError, match="not registered"):
        describe(mlp_teacher)
