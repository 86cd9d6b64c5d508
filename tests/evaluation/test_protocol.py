"""`evaluate`: its inputs and results, and that nothing else changes the numbers."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch

from pidistill import PidistillError, load_teacher
from pidistill.data import load_data
from pidistill.evaluation import evaluate, sampling
from pidistill.evaluation.features import FeatureBatch, FeatureNetwork
from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
from pidistill.evaluation.trajectory import per_sample_rms, rms
from pidistill.processes import join_processes
from pidistill.sample_files import write_samples
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.trajectory import TrajectoryStudent

from method_runs import small, train
from together import together

OF_REFERENCE = ("frechet_distance", "reference_split_frechet_distance")
CHEAP = ("fid", "error", "speed")


@pytest.fixture(scope="module")
def ring_run(tmp_path_factory):
    """A short run with two weight averages."""
    folder = tmp_path_factory.mktemp("ring")
    train(small("pid", max_train_steps=4, ema_rates=[0.9, 0.99]), folder)
    return folder


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("with_reference", [False, True])
def test_a_metric_that_cannot_be_computed_is_absent(digits, with_teacher, with_reference):
    teacher, student = digits
    metrics = evaluate(
        student,
        "digits" if with_reference else None,
        teacher=teacher if with_teacher else None,
        num=12,
    )
    expected = {"nfe", "num_samples", "seed", "speed_batch_size", "ms_per_sample"}
    expected |= {"duplicates", "nearest_sample", "label_agreement", "features"}
    if with_teacher:
        expected |= {"rms_error", "error_num_samples", "error_quantiles", "teacher_nfe"}
        expected |= {"trajectory", "straightness", "teacher_straightness", "teacher_ms_per_sample"}
        expected |= {"teacher_label_agreement"}
        assert metrics["teacher_nfe"] == 2 * TEACHER_STEPS - 1
        assert 0 < metrics["ms_per_sample"] < metrics["teacher_ms_per_sample"]
    if with_reference:
        expected |= {"reference", "nearest_training_image", *OF_REFERENCE}
    if with_teacher and with_reference:
        expected |= {"teacher_frechet_distance"}
    assert metrics.keys() == expected
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["nfe"] == 1


def test_a_model_and_its_samples_have_the_same_metrics(digits, tmp_path):
    teacher, _ = digits
    x = teacher_samples(teacher, 24, seed=0, steps=4).x
    write_samples(tmp_path / "x.npz", x)
    options = {"reference": load_data("digits"), "metrics": ["fid", "kid"]}
    own = evaluate(teacher, num=24, steps=4, **options)
    named = evaluate("digits", num=24, steps=4, **options)
    assert own == named | {"target": own["target"]}
    for given in (x, tmp_path / "x.npz"):
        metrics = evaluate(given, **options)
        for key in ("frechet_distance", "kernel_distance", "num_samples"):
            assert metrics[key] == pytest.approx(own[key], rel=1e-6)
        assert "nfe" not in metrics


def test_student_and_teacher_start_from_the_same_noise(gaussian, gaussian_student):
    """Then the error of the exact student is that of the solver."""
    metrics = evaluate(gaussian_student, teacher=gaussian, num=50, seed=2, metrics=["error"])
    assert metrics["rms_error"] < 0.02
    other = gaussian_student.generate(50, seed=3).x
    assert rms(per_sample_rms(other, teacher_samples(gaussian, 50, seed=2).x)) > 0.3


def test_a_coarse_solution_is_compared_with_the_fine_one(gaussian):
    errors = [
        evaluate(gaussian, teacher=gaussian, steps=steps, num=20, metrics=["error"])["rms_error"]
        for steps in (5, 10, TEACHER_STEPS)
    ]
    assert errors[0] > 2 * errors[1] > errors[2] == 0


def test_the_numbers_do_not_depend_on_the_batch_size(digits):
    teacher, student = digits
    once, again = (
        evaluate(student, "digits", teacher=teacher, num=20, batch_size=size, metrics=CHEAP)
        for size in (256, 7)
    )
    for name in (*OF_REFERENCE, "teacher_frechet_distance", "rms_error"):
        assert again[name] == pytest.approx(once[name], rel=1e-4)


def _measure(file, store=None):
    """The metrics of a student, computed by all processes and written by the main one."""
    teacher = load_teacher("digits")
    student = TrajectoryStudent.from_teacher(teacher, anchored=True)
    metrics = evaluate(
        student,
        load_data("digits").images[:200],
        teacher=teacher,
        num=100,
        num_error=40,
        seed=5,
        metrics=["fid", "kid", "is", "precision-recall", "error", "diversity"],
        processes=join_processes(),
        store=store,
    )
    if metrics:
        file.write_text(json.dumps(metrics))


@pytest.mark.parametrize("num", [2, 3])
def test_any_number_of_processes_gives_the_same_metrics(num, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK", 16)
    _measure(tmp_path / "one.json")
    done = together(num, lambda rank: _measure(tmp_path / "more.json", tmp_path / "samples"))
    assert done == [""] * num
    assert (tmp_path / "more.json").read_text() == (tmp_path / "one.json").read_text()


def test_what_was_kept_is_not_drawn_again_and_the_teacher_is_shared(digits, tmp_path, monkeypatch):
    teacher, student = digits
    common = {"teacher": teacher, "num": 24, "metrics": ["error"], "store": tmp_path}
    first = evaluate(student, **common)

    def refuse(*args, **kwargs):
        raise AssertionError("drew again")

    monkeypatch.setattr(teacher, "forward", refuse)
    other = TrajectoryStudent.from_teacher(teacher, anchored=False)
    assert evaluate(other, **common)["rms_error"] != first["rms_error"]
    monkeypatch.setattr(student, "sample", refuse)
    notes = []
    assert evaluate(student, **common, say=notes.append) == first
    assert any("resuming" in note for note in notes)


def test_every_average_and_seed_is_measured(ring_run):
    metrics = evaluate(
        ring_run, num=12, seed=[3, 4], ema="all", metrics=["error", "diversity"], num_error=8
    )
    names = ["ema-0.9.safetensors", "ema-0.99.safetensors"]
    every = metrics["measurements"]
    assert [(one["weights"], one["seed"]) for one in every] == [
        (name, seed) for name in names for seed in (3, 4)
    ]
    errors = {one["seed"]: one["rms_error"] for one in every[:2]}
    assert metrics["seed"] == 3
    assert metrics["weights"] == names[0]
    assert metrics["rms_error"] == errors[3] != errors[4]
    assert "nearest_sample" in metrics
    assert all("nearest_sample" not in one for one in every)
    first, second = metrics["over_seeds"]
    assert [first["weights"], second["weights"]] == names
    (low, high), spread = sorted(errors.values()), first["rms_error"]
    assert (spread["min"], spread["max"]) == (low, high)
    assert spread["mean"] == pytest.approx((low + high) / 2)
    assert spread["spread"] == pytest.approx((high - low) / 2**0.5)
    alone = evaluate(ring_run, num=12, seed=4, ema=0.99, metrics=["error"], num_error=8)
    assert alone["rms_error"] == every[3]["rms_error"]
    assert not {"measurements", "over_seeds"} & alone.keys()


def test_the_progress_bar_knows_the_end(ring_run):
    bars = []

    @contextlib.contextmanager
    def bar(title, total, unit):
        done = []
        yield done.append
        bars.append((sum(done), total))

    evaluate(ring_run, num=12, num_error=8, metrics=["error"], progress=bar)
    assert bars == [(20, 20)]


def test_a_flow_map_is_measured_in_several_evaluations_and_refined(digits):
    teacher, _ = digits
    student = FlowMapStudent.from_teacher(teacher)
    options = {"teacher": teacher, "num": 8, "metrics": ["error", "speed"]}
    plain = evaluate(student, steps=2, **options)
    refined = evaluate(student, steps=2, refine=3, **options)
    assert (plain["nfe"], refined["nfe"], refined["refine"]) == (2, 5, 3)
    assert "refine" not in plain
    assert refined["rms_error"] != plain["rms_error"]
    assert min(refined["ms_per_sample"], plain["ms_per_sample"]) > 0


class Mean(FeatureNetwork):
    """The mean and the first pixel of an image."""

    name, num_features = "mean", 2

    def extract(self, x):
        return FeatureBatch(torch.stack([x.flatten(1).mean(1), x.flatten(1)[:, 0]], 1), None)


def test_a_feature_network_of_ones_own(mlp_student):
    images = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metrics = evaluate(mlp_student, images, num=20, features=Mean(), metrics=["fid"])
    assert metrics["features"].startswith("mean-1-")
    with pytest.raises(PidistillError, match=r"'is' needs .*classifier"):
        evaluate(mlp_student, images, num=20, features=Mean(), metrics=["is"])
    with pytest.raises(PidistillError, match=r"'mean'.*1 or 3 channels.*\(2,\)"):
        evaluate(torch.zeros(9, 2), features=Mean())


def test_a_run_whose_teacher_is_not_there(ring_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(ring_run, folder)
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace("mixture:ring", f"native:{tmp_path}/gone"))
    notes = []
    metrics = evaluate(folder, num=12, say=notes.append)
    assert not {"rms_error", "teacher_nfe", "trajectory"} & metrics.keys()
    assert any("gone" in note for note in notes)
    assert "rms_error" in evaluate(folder, num=12, teacher="mixture:ring", metrics=["error"])


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ("digits", {"ema": 0.9}, r"ema .*0\.9"),
        ("digits", {"num": 0}, "num is 0"),
        ("digits", {"features": "incepton"}, "'incepton'.*inception"),
        ("digits", {"features": "glyphs"}, r"'glyphs' .*\(3, 32, 32\).*\(1, 8, 8\)"),
        ("digits", {"weights": "x.pth"}, r"x\.pth"),
        ("digits", {"reference": torch.zeros(9, 1, 4, 4)}, r"\(1, 4, 4\).*\(1, 8, 8\)"),
        ("digits", {"reference": "teacher"}, "'teacher'"),
        (torch.zeros(9, 2), {"num": 10}, "10.*9"),
        (torch.zeros(9, 2), {"steps": 3}, "steps is 3"),
        (torch.zeros(9, 2), {"refine": 3}, "refine is 3"),
        ("digits", {"refine": 2}, "refine is 2, but a teacher"),
    ],
)
def test_what_does_not_fit_is_refused(given, options, words):
    with pytest.raises(PidistillError, match=words):
        evaluate(given, **{"num": 9, "metrics": ["diversity"], **options})


def test_statistics_of_other_features_are_refused_before_the_work(tmp_path):
    np.savez(tmp_path / "edm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(PidistillError, match="2048 features"):
        evaluate("digits", tmp_path / "edm.npz", num=10**9, metrics=["fid"])
