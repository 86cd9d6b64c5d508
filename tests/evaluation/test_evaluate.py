"""The metrics of a student, and which of them there are."""

import json

import pytest
import torch

from pidistill import load_teacher, solve
from pidistill.data import load_data
from pidistill.evaluation.evaluate import error_metrics, evaluate, reference_statistics
from pidistill.evaluation.features import features_for
from pidistill.evaluation.features.digits import DigitsClassifier, load_digits_classifier
from pidistill.evaluation.sampling import TEACHER_STEPS, teacher_samples
from pidistill.students.trajectory import TrajectoryStudent

ALWAYS = {"nfe", "num_samples", "seed", "ms_per_sample"}
OF_TEACHER = {"rms_error", "error_quantiles", "teacher_nfe", "teacher_ms_per_sample"}
OF_REFERENCE = {"frechet_distance", "reference_split_frechet_distance"}


@pytest.fixture(scope="module")
def digits():
    """The digits teacher and a student that starts as its copy."""
    teacher = load_teacher("digits")
    return teacher, TrajectoryStudent.from_teacher(teacher, anchored=True)


@pytest.fixture(scope="module")
def reference():
    return reference_statistics(load_data("digits").images)


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("with_reference", [False, True])
def test_a_metric_that_cannot_be_computed_is_absent(
    digits, reference, with_teacher, with_reference
):
    teacher, student = digits
    metrics = evaluate(
        student,
        teacher=teacher if with_teacher else None,
        reference=reference if with_reference else None,
        num=12,
        seed=0,
    )
    expected = set(ALWAYS)
    expected |= OF_TEACHER if with_teacher else set()
    expected |= OF_REFERENCE if with_reference else set()
    expected |= {"teacher_frechet_distance"} if with_teacher and with_reference else set()
    assert expected <= metrics.keys()
    assert not (ALWAYS | OF_TEACHER | OF_REFERENCE | {"teacher_frechet_distance"}) & (
        metrics.keys() - expected
    )
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_the_numbers_do_not_depend_on_the_batch_size(digits, reference):
    teacher, student = digits
    settings = {"teacher": teacher, "reference": reference, "num": 20, "seed": 5}
    once = evaluate(student, **settings)
    again = evaluate(student, **settings, batch_size=7)
    for name in (OF_TEACHER | OF_REFERENCE) - {"error_quantiles", "teacher_ms_per_sample"}:
        assert again[name] == pytest.approx(once[name], rel=1e-4)


def test_the_cost_is_that_of_one_evaluation_against_the_solvers(digits):
    teacher, student = digits
    metrics = evaluate(student, teacher=teacher, reference=None, num=4, seed=0)
    assert metrics["nfe"] == 1
    assert metrics["teacher_nfe"] == 2 * TEACHER_STEPS - 1
    assert 0 < metrics["ms_per_sample"] < metrics["teacher_ms_per_sample"]


def test_student_and_teacher_start_from_the_same_noise(gaussian, gaussian_student):
    """Then the exact student is off by the error of the solver alone."""
    solved = teacher_samples(gaussian, 50, seed=2)
    drawn = gaussian_student.generate(50, seed=2)
    assert error_metrics(drawn.x, solved.x)["rms_error"] < 0.02
    other = gaussian_student.generate(50, seed=3)
    assert error_metrics(other.x, solved.x)["rms_error"] > 0.3


def test_samples_of_the_teacher_are_its_solution_by_seed_and_index(digits):
    teacher, _ = digits
    whole = teacher_samples(teacher, 10, seed=1, steps=6)
    parts = teacher_samples(teacher, 10, seed=1, steps=6, batch_size=3)
    torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-4)
    z = 80 * torch.randn(3, 1, 8, 8)
    assert solve(teacher, z, steps=6).nfe == whole.nfe


def test_errors_and_their_quantiles():
    x = torch.arange(101.0).reshape(-1, 1)
    metrics = error_metrics(x, torch.zeros_like(x))
    assert metrics["rms_error"] == pytest.approx((x.square().mean().item()) ** 0.5)
    assert metrics["error_quantiles"] == pytest.approx({"0.5": 50, "0.9": 90, "0.99": 99})


def test_half_of_the_reference_is_near_the_other_half(reference):
    assert 0 < reference.split_half < 50
    assert reference.distance(load_data("digits").images) == pytest.approx(0, abs=1e-3)
    noise = torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert reference.distance(noise) > 20 * reference.split_half


def test_the_bundled_classifier_knows_the_digits():
    data = load_data("digits")
    guess = load_digits_classifier()(data.images).argmax(1)
    assert (guess == data.labels).float().mean() > 0.97


def test_only_digits_have_features():
    assert features_for((3, 31, 31)) is None
    assert reference_statistics(torch.zeros(4, 2)) is None
    features, logits = features_for((1, 8, 8))(torch.zeros(2, 1, 8, 8))
    assert features.shape == (2, DigitsClassifier.num_features)
    assert logits.shape == (2, 10)
