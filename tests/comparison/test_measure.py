import numpy as np
import pytest
import torch

from pidistill import PidistillError, initial_noise, load_student, load_teacher, solve
from pidistill.comparison.measure import MEASURED_FILE, Terms, measure
from pidistill.evaluation.trajectory import per_sample_rms, rms
from pidistill.files import read_json
from pidistill.noise import Draws
from pidistill.students.base import labels_for

from method_runs import small, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    train(small("consistency"), folder)
    return folder


def terms(cache=None, num=24, **options):
    teacher = load_teacher("mixture:ring")
    return Terms(teacher, reference=None, num=num, seed=3, cache=cache, **options)


def test_the_error_is_that_of_the_definition(run):
    of = terms()
    measured = measure(run, of, [1, 2])
    student = load_student(run)
    for steps in (1, 2):
        x = student.generate(24, seed=3, steps=steps).x
        z = initial_noise(student, 24, seed=3)
        solution = solve(of.teacher, z, steps=40, label=labels_for(student, 24)).x
        assert measured[steps]["rms_error"] == pytest.approx(rms(per_sample_rms(x, solution)))
        assert measured[steps]["nfe"] == steps
        assert "frechet_distance" not in measured[steps]


def test_a_student_of_one_step_is_measured_in_one(tmp_path):
    train(small("pid"), tmp_path)
    assert list(measure(tmp_path, terms(), [1, 2, 4])) == [1]


def test_another_reference_of_the_same_name_is_another_one(tmp_path):
    """The cache of a run's metrics knows the samples, not only their file."""
    train(small("pid", teacher="digits"), tmp_path / "run")
    teacher, file = load_teacher("digits"), tmp_path / "reference.npz"
    draws = Draws(0, 0, 64).normal("x", (1, 8, 8)).float()

    def distance(scale):
        np.savez(file, samples=(scale * draws).clamp(-1, 1).numpy())
        of = Terms(teacher, reference=str(file), num=16, seed=3, cache=None)
        return measure(tmp_path / "run", of, [1])[1]["frechet_distance"]

    first = distance(0.1)
    assert distance(1.0) != first
    assert distance(0.1) == first


def test_a_student_of_several_steps_is_measured_with_those(tmp_path):
    method = {"name": "progressive", "start_steps": 8, "end_steps": 2}
    train(small("progressive", method=method), tmp_path)
    assert list(measure(tmp_path, terms(), [1])) == [2]


def test_what_was_measured_is_not_drawn_again(run, tmp_path):
    drawn = []
    measure(run, terms(tmp_path, on_batch=drawn.append), [1])
    first = sum(drawn)
    measure(run, terms(tmp_path, on_batch=drawn.append), [1])
    assert sum(drawn) == first
    measure(run, terms(tmp_path, num=25, on_batch=drawn.append), [1])
    assert sum(drawn) == first + 2 * 25


def test_other_weights_are_measured_anew(tmp_path):
    train(small("pid", max_train_steps=2), tmp_path)
    before = measure(tmp_path, terms(), [1])
    train(small("pid", max_train_steps=4), tmp_path)
    assert measure(tmp_path, terms(), [1]) != before
    assert len(read_json(tmp_path / MEASURED_FILE)) == 2


def test_the_teacher_is_solved_once_for_all(tmp_path):
    first = terms(tmp_path)
    again = terms(tmp_path, on_batch=lambda count: pytest.fail("solved again"))
    assert torch.equal(first.solved.x, again.solved.x)
    assert first.solved.nfe == again.solved.nfe == 79


def test_a_reference_of_another_shape_is_refused():
    bad = Terms(load_teacher("mixture:ring"), reference="digits", num=4, seed=0, cache=None)
    with pytest.raises(PidistillError, match=r"\(1, 8, 8\); the teacher draws \(2,\)"):
        _ = bad.reference


def test_a_reference_of_statistics_is_refused(tmp_path):
    file = tmp_path / "statistics.npz"
    np.savez(file, mu=np.zeros(4), sigma=np.eye(4))
    bad = Terms(load_teacher("mixture:ring"), reference=str(file), num=4, seed=0, cache=None)
    with pytest.raises(PidistillError, match="statistics only"):
        _ = bad.reference
