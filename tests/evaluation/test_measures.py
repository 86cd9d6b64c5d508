"""Which metrics there are, what each needs, and what is chosen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, load_teacher
from pidistill.data import load_data
from pidistill.evaluation.features import features_for
from pidistill.evaluation.frechet import Statistics
from pidistill.evaluation.measures import (
    DEFAULT,
    MEASURES,
    NEEDS,
    choose_measures,
    gather_evidence,
    metrics_of,
    what_is_there,
)
from pidistill.evaluation.protocol import Terms
from pidistill.evaluation.reference import ReferenceData
from pidistill.evaluation.subject import samples_subject, student_subject, teacher_subject
from pidistill.students.trajectory import TrajectoryStudent

needs = st.sets(st.sampled_from(sorted(NEEDS)))


@given(needs)
def test_by_default_comes_what_can_be_had(there):
    chosen = choose_measures(None, there)
    assert set(chosen) <= set(DEFAULT)
    assert "diversity" in chosen
    for name in DEFAULT:
        assert (name in chosen) == (MEASURES[name].needs <= there)


@given(needs, st.sampled_from(sorted(MEASURES)))
def test_what_is_asked_for_comes_or_is_refused(there, name):
    missing = MEASURES[name].needs - there
    if not missing:
        assert choose_measures([name, name], there) == (name,)
        return
    with pytest.raises(PidistillError, match=f"'{name}' needs"):
        choose_measures([name], there)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(PidistillError, match=r"'fod'.*fid.*speed"):
        choose_measures(["fod"], set(NEEDS))


def test_every_need_that_a_metric_has_is_explained():
    assert set().union(*(measure.needs for measure in MEASURES.values())) <= NEEDS.keys()


def test_what_there_is_of_subjects_and_references(gaussian, gaussian_student):
    images = ReferenceData("x", torch.zeros(4, 1, 8, 8), None, None)
    only_statistics = ReferenceData("x", None, None, Statistics(torch.zeros(2), torch.eye(2)))
    network = features_for((1, 8, 8))
    student = student_subject(gaussian_student, gaussian)
    alone = student_subject(gaussian_student)
    assert what_is_there(student, None, None) == {"teacher", "path", "model"}
    assert what_is_there(alone, None, images) == {"reference", "images", "model"}
    teacher = teacher_subject(gaussian)
    assert what_is_there(teacher, network, only_statistics) == {"features", "reference", "model"}
    assert what_is_there(samples_subject(torch.zeros(4, 2), "x"), None, None) == set()


def test_training_images_that_were_copied_are_found_out():
    images = load_data("digits").images[:300]
    rival = images[40:60]
    subject = samples_subject(rival, "rival")
    evidence = gather_evidence(
        subject, Terms(num=20), 0, ["training-images"], reference={}, images=images
    )
    metrics = metrics_of(evidence, ["training-images"])
    assert metrics["nearest_training_image"]["look_the_same"] == 20
    assert metrics["nearest_training_image"]["median"] == pytest.approx(0, abs=1e-9)
    assert evidence.training_neighbours[0].which.tolist() == list(range(40, 60))


def test_diversity_compares_as_many_of_the_teachers(digits_pair):
    student, teacher = digits_pair
    subject = student_subject(student, teacher)
    names = ["error", "diversity"]
    evidence = gather_evidence(subject, Terms(num=30, error_num=20), 0, names, reference={})
    metrics = metrics_of(evidence, names)
    assert metrics["nearest_sample"]["num_samples"] == 20
    assert metrics["nearest_sample"]["teacher_median"] > 0.05
    assert metrics["error_num_samples"] == 20
    own, of_teacher = evidence.neighbours
    assert len(own.distance) == len(of_teacher.distance) == 20


def test_the_teacher_is_left_alone_where_no_error_is_asked_for(digits_pair):
    student, _ = digits_pair

    def refuse(*given, **named):
        raise AssertionError("the teacher was asked")

    subject = student_subject(student)._replace(teacher_sampler=refuse)
    assert gather_evidence(subject, Terms(num=5), 0, ["diversity"], reference={}) is not None


def test_the_speed_of_a_teacher_is_that_of_its_solver(gaussian):
    few, many = (
        teacher_subject(gaussian, steps=steps).speed(4)["ms_per_sample"] for steps in (2, 40)
    )
    assert 0 < few < many


@pytest.fixture(scope="module")
def digits_pair():
    teacher = load_teacher("digits")
    return TrajectoryStudent.from_teacher(teacher, anchored=True), teacher
