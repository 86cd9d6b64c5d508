"""Teacher specs, kinds from other packages, and teachers in the native format."""

import importlib.resources
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch

from pidistill import PidistillError, load_teacher, teachers
from pidistill.evaluation import evaluate
from pidistill.files import read_json
from pidistill.model_folder import write_description
from pidistill.storage import write_tensors
from pidistill.teachers import SOURCES, absolute_spec, sources, split_spec

ASSETS = importlib.resources.files("pidistill") / "assets"


def save(folder, model):
    write_description(folder, model, 0.0)
    write_tensors(folder / "student.safetensors", dict(model.state_dict()))
    return folder


@pytest.fixture
def folder(tmp_path, mlp_teacher):
    return save(tmp_path, mlp_teacher)


@pytest.mark.parametrize("prefix", ["native:", ""])
def test_a_native_teacher_is_what_was_saved(folder, mlp_teacher, prefix):
    teacher = load_teacher(f"{prefix}{folder}")
    x, sigma, label = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 1, 10]), torch.tensor([0, 1, -1])
    assert torch.equal(teacher(x, sigma, label), mlp_teacher(x, sigma, label))


def test_a_student_is_not_a_teacher(tmp_path, mlp_student):
    with pytest.raises(PidistillError, match="holds a student"):
        load_teacher(save(tmp_path, mlp_student))


@pytest.mark.parametrize("spec", ["native:", "native:nowhere", "nowhere", "digits:0", "glyphs:0"])
def test_a_spec_that_names_nothing_is_refused(spec):
    with pytest.raises(PidistillError, match=spec.removeprefix("native:") or "native:"):
        load_teacher(spec)


def test_a_path_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(PidistillError, match="not recognised as a teacher"):
            load_teacher(path)


def test_a_spec_splits_at_its_first_colon():
    assert split_spec("mixture:ring") == ("mixture", "ring")
    assert split_spec("native:/a:b") == ("native", "/a:b")
    assert split_spec("digits") == ("digits", "")


def test_a_weight_that_is_not_finite_is_named(folder, mlp_teacher):
    mlp_teacher.network.output.weight.data[0, 0] = torch.nan
    write_tensors(folder / "student.safetensors", dict(mlp_teacher.state_dict()))
    with pytest.raises(PidistillError, match=r"'network\.output\.weight' is not finite"):
        load_teacher(folder)


class Plugin:
    """A source from another package."""

    @staticmethod
    def load(locator):
        return load_teacher(f"mixture:{locator.removesuffix('.mine').rpartition('/')[2]}")

    @staticmethod
    def recognises(path):
        return path.suffix == ".mine"


def test_other_packages_add_kinds_but_do_not_replace_ours(tmp_path, monkeypatch):
    points = [
        EntryPoint("mine", f"{__name__}:Plugin", "pidistill.teachers"),
        EntryPoint("digits", "os:system", "pidistill.teachers"),
    ]
    monkeypatch.setattr(teachers, "entry_points", lambda group: points)
    assert list(sources()) == [*SOURCES, "mine"]
    assert load_teacher("mine:ring").num_classes == 8
    assert load_teacher("digits").num_classes == 10
    (tmp_path / "grid.mine").touch()
    assert split_spec(tmp_path / "grid.mine") == ("mine", f"{tmp_path}/grid.mine")
    assert load_teacher(tmp_path / "grid.mine").sample_shape == (2,)


def test_specs_are_read_without_torch():
    code = "import sys; from pidistill.teachers import *; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_a_bundled_teacher_says_how_good_it_is(name):
    with importlib.resources.as_file(ASSETS / f"{name}-teacher") as folder:
        scores = read_json(folder / "metrics.json")
        assert (folder / "config.toml").is_file()
    assert scores["num_samples"] >= 2000
    assert min(scores["conditional_frechet_distance"]) > 0
    assert load_teacher(name).num_classes == 10
    if name == "digits":  # by the metric of today
        metrics = evaluate("digits", "digits", num=4, steps=2, metrics=["fid"])
        key = "reference_split_frechet_distance"
        assert scores[key] == pytest.approx(metrics[key])


@pytest.mark.parametrize("spec", ["digits", "mixture:ring", "native:nowhere?guide=there"])
def test_specs_without_existing_paths_stay_as_they_are(spec):
    assert absolute_spec(spec) == spec


def test_the_name_of_a_mixture_is_no_path(tmp_path, monkeypatch):
    (tmp_path / "ring").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("mixture:ring") == "mixture:ring"
