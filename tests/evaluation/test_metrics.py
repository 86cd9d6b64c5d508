"""The available metrics, their requirements and their values."""

import contextlib
import json

import pytest
import torch

from pidistill import PidistillError
from pidistill.data import load_data
from pidistill.evaluation import evaluate
from pidistill.evaluation.choice import choose_metrics
from pidistill.evaluation.features import features_for
from pidistill.evaluation.frechet import Statistics
from pidistill.evaluation.metrics import error_metrics
from pidistill.evaluation.reference import Reference
from pidistill.evaluation.sampling import GivenSamples, Sampler
from pidistill.evaluation.speed import measure_speed
from pidistill.students.flow_map import FlowMapStudent
from pidistill.teachers import load_teacher

OF_FEATURES = ("fid", "kid", "is", "precision-recall")
IMAGES = Reference("x", torch.zeros(4, 1, 8, 8))


def chosen(asked, model, teacher=None, reference=None, network=None):
    subject = (
        GivenSamples(model, torch.device("cpu")) if torch.is_tensor(model) else Sampler(model, 1)
    )
    return choose_metrics(asked, subject, teacher, reference, network)


def test_what_can_be_had_by_default(gaussian, gaussian_student, digits):
    drawn = IMAGES._replace(images=None, teacher=load_teacher("digits"))
    edm = Reference("x", None, Statistics(torch.zeros(2), torch.eye(2)))
    network, (_, student) = features_for((1, 8, 8)), digits
    flow_map = FlowMapStudent.from_teacher(digits[0])
    for given, expected in [
        ((flow_map, digits[0]), "error trajectory diversity speed"),
        ((gaussian_student, gaussian), "error trajectory diversity speed"),
        ((gaussian,), "diversity speed"),
        ((student, None, IMAGES, network), "fid label-agreement diversity training-images speed"),
        ((student, None, drawn, network), "fid label-agreement diversity speed"),
        ((student, None, edm, network), "fid label-agreement diversity speed"),
        ((student, None, IMAGES), "diversity training-images speed"),
        ((torch.zeros(4, 2),), "diversity"),
    ]:
        assert " ".join(chosen(None, *given)) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fid", "'fid' needs .*reference"),
        ("kid", "'kid' needs .*images"),
        ("error", "'error' needs .*teacher"),
        ("trajectory", "'trajectory' needs .*pid"),
        ("fod", "'fod'.*fid.*speed"),
    ],
)
def test_what_is_asked_for_and_cannot_be_had_is_refused(digits, name, words):
    with pytest.raises(PidistillError, match=words):
        chosen([name], digits[1], network=features_for((1, 8, 8)))


def test_names_are_taken_once(digits):
    assert chosen(["speed", "speed"], digits[1]) == ("speed",)


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


def test_copies_among_samples_are_counted():
    x = torch.zeros(40, 1, 8, 8)
    x[0] = 1
    assert evaluate(x, metrics=["diversity"])["duplicates"] == 38


def test_diversity_compares_as_many_of_the_teachers(digits):
    teacher, student = digits
    metrics = evaluate(
        student, teacher=teacher, num=30, num_error=20, metrics=["error", "diversity"]
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


def test_slow_metrics_say_how_far_they_are(gaussian, gaussian_student):
    """Each of `total` is counted once."""
    counts = {}

    @contextlib.contextmanager
    def show(title, total, unit):
        counts[title] = [total, 0]
        yield lambda count, text="": counts[title].__setitem__(1, counts[title][1] + count)

    names = ["trajectory", "speed"]
    evaluate(gaussian_student, teacher=gaussian, num=50, metrics=names, progress=show)
    assert counts == {"sampling": [50, 50], "following paths": [50, 50], "timing": [2, 2]}
