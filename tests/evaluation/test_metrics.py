"""Which metrics there are, what each needs, and what they say."""

import json

import pytest
import torch

from pidistill import PidistillError, load_teacher
from pidistill.data import load_data
from pidistill.evaluation import evaluate
from pidistill.evaluation.features import features_for
from pidistill.evaluation.frechet import Statistics
from pidistill.evaluation.metrics import DEFAULT, METRICS, NEEDS, choose_metrics, error_metrics
from pidistill.evaluation.opening import Opened
from pidistill.evaluation.reference import Reference
from pidistill.evaluation.sampling import GivenSamples, Sampler
from pidistill.evaluation.speed import measure_speed
from pidistill.students.trajectory import TrajectoryStudent

OF_FEATURES = ("fid", "kid", "is", "precision-recall")


def opened(model, teacher=None):
    return Opened({None: Sampler(model, 1)}, teacher, {})


@pytest.fixture
def digits_student():
    return TrajectoryStudent.from_teacher(load_teacher("digits"), anchored=True)


def test_what_can_be_had_by_default(gaussian, gaussian_student, digits_student):
    images = Reference("x", torch.zeros(4, 1, 8, 8))
    drawn = images._replace(are_drawn=True)
    edm = Reference("x", None, statistics=Statistics(torch.zeros(2), torch.eye(2)))
    network = features_for((1, 8, 8))
    samples = Opened({None: GivenSamples(torch.zeros(4, 2), "x", torch.device("cpu"))}, None, {})
    digits = opened(digits_student)
    for given, reference, features, expected in [
        (opened(gaussian_student, gaussian), None, None, "error trajectory diversity speed"),
        (opened(gaussian), None, None, "diversity speed"),
        (digits, images, network, "fid diversity training-images speed"),
        (digits, drawn, network, "fid diversity speed"),
        (digits, edm, network, "fid diversity speed"),
        (digits, images, None, "diversity training-images speed"),
        (samples, None, None, "diversity"),
    ]:
        assert " ".join(choose_metrics(None, given, reference, features)) == expected


@pytest.mark.parametrize(
    ("name", "word"),
    [("fid", "reference"), ("kid", "images"), ("error", "teacher"), ("trajectory", "pid")],
)
def test_what_is_asked_for_and_cannot_be_had_is_refused(digits_student, name, word):
    with pytest.raises(PidistillError, match=f"'{name}' needs .*{word}"):
        choose_metrics([name], opened(digits_student), None, features_for((1, 8, 8)))


def test_names_are_checked_and_taken_once(digits_student):
    assert choose_metrics(["speed", "speed"], opened(digits_student), None, None) == ("speed",)
    with pytest.raises(PidistillError, match=r"'fod'.*fid.*speed"):
        choose_metrics(["fod"], opened(digits_student), None, None)
    assert set().union(*(metric.needs for metric in METRICS.values())) == NEEDS.keys()
    assert set(DEFAULT) <= METRICS.keys()


def test_all_of_them_tell_digits_from_noisy_digits():
    images = load_data("digits").images
    first, second = images[:600], images[600:1200]
    noisy = first + torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
    near = evaluate(second, first, metrics=OF_FEATURES)
    far = evaluate(noisy, second, metrics=OF_FEATURES)
    assert json.loads(json.dumps(near, allow_nan=False)) == near
    assert near.keys() == far.keys()
    for name in ("frechet_distance", "kernel_distance"):
        assert far[name] > 3 * abs(near[name])
    assert near["precision"] > far["precision"] + 0.2
    assert far["inception_score"] < near["inception_score"] < 10
    alone = {}
    for name in OF_FEATURES:
        alone |= evaluate(second, first, metrics=[name])
    assert alone == near


def test_errors_and_their_quantiles():
    errors = torch.arange(101.0, dtype=torch.float64)
    metrics = error_metrics(errors)
    assert metrics["rms_error"] == pytest.approx((errors.square().mean().item()) ** 0.5)
    assert metrics["error_quantiles"] == pytest.approx({"0.5": 50, "0.9": 90, "0.99": 99})


def test_training_images_that_were_copied_are_found_out():
    images = load_data("digits").images[:300]
    metrics = evaluate(images[40:60], images, metrics=["training-images"])
    assert metrics["nearest_training_image"]["look_the_same"] == 20
    assert metrics["nearest_training_image"]["median"] == pytest.approx(0, abs=1e-9)


def test_diversity_compares_as_many_of_the_teachers(digits_student):
    metrics = evaluate(
        digits_student, teacher="digits", num=30, num_error=20, metrics=["error", "diversity"]
    )
    assert metrics["nearest_sample"]["num_samples"] == metrics["error_num_samples"] == 20
    assert metrics["nearest_sample"]["teacher_median"] > 0.05


def test_the_speed_of_a_teacher_is_that_of_its_solver(gaussian, gaussian_student):
    few, many = (
        measure_speed(Sampler(gaussian, steps), None, 4)["ms_per_sample"] for steps in (2, 40)
    )
    assert 0 < few < many
    both = measure_speed(Sampler(gaussian_student, 1), gaussian, 4)
    assert 0 < both["ms_per_sample"] < both["teacher_ms_per_sample"]
