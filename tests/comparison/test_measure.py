import numpy as np
import pytest

from pidistill import PidistillError, initial_noise, load_student, load_teacher, solve
from pidistill.comparison.measure import MEASURED_FILE, Measurement
from pidistill.comparison.plan import plan_folders
from pidistill.evaluation.trajectory import per_sample_rms, rms
from pidistill.files import read_json
from pidistill.noise import Draws
from pidistill.students.labels import labels_for

from method_runs import small, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    train(small("consistency"), folder)
    return folder


def measured(folder, store, **options):
    """The metrics of the run in `folder`, by NFE."""
    plan = plan_folders([folder], num_samples=24, seed=3, **options)
    (row,) = Measurement(plan, store).comparison(plan, {}).rows["Runs"]
    return {steps: {name: s.mean for name, s in of.items()} for steps, of in row.metrics.items()}


def test_the_error_is_that_of_the_definition(run, tmp_path):
    found = measured(run, tmp_path)
    assert list(found) == [1, 2, 4]
    student, teacher = load_student(run), load_teacher("mixture:ring")
    z = initial_noise(student, 24, seed=3)
    solution = solve(teacher, z, steps=40, label=labels_for(student, 24)).x
    for steps in (1, 2):
        x = student.generate(24, seed=3, steps=steps).x
        assert found[steps] == {"rms_error": pytest.approx(rms(per_sample_rms(x, solution)))}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "pid"}, [1]),
        ({"name": "progressive", "start_steps": 16, "end_steps": 8}, [8]),
    ],
)
def test_a_student_is_measured_at_the_nfe_that_it_supports(tmp_path, method, expected):
    train(small(method["name"], method=method), tmp_path / "run")
    assert list(measured(tmp_path / "run", tmp_path)) == expected


def test_another_reference_of_the_same_name_is_another_one(tmp_path):
    """What is kept in a run folder depends on the samples, not on the name of their file."""
    train(small("pid", teacher="digits"), tmp_path / "run")
    file = tmp_path / "reference.npz"
    draws = Draws(0, 0, 64).normal("x", (1, 8, 8)).float()

    def distance(scale):
        np.savez(file, samples=(scale * draws).clamp(-1, 1).numpy())
        return measured(tmp_path / "run", tmp_path, reference=str(file))[1]["frechet_distance"]

    first = distance(0.1)
    assert distance(1.0) != first
    assert distance(0.1) == first


def test_what_was_measured_is_not_measured_again(run, tmp_path, monkeypatch):
    first = measured(run, tmp_path)
    plan = plan_folders([run], num_samples=24, seed=3)
    again = Measurement(plan, tmp_path)
    monkeypatch.setattr(again, "_evaluate", lambda *_, **__: pytest.fail("measured again"))
    (row,) = again.comparison(plan, {}).rows["Runs"]
    for steps, of in row.metrics.items():
        assert of["rms_error"].mean == first[steps]["rms_error"]


def test_other_weights_are_measured_anew(tmp_path):
    train(small("pid", max_train_steps=2), tmp_path)
    before = measured(tmp_path, tmp_path)
    train(small("pid", max_train_steps=4), tmp_path)
    assert measured(tmp_path, tmp_path) != before
    assert len(read_json(tmp_path / MEASURED_FILE)) == 2


def test_a_run_that_cannot_be_measured_is_a_failure(tmp_path):
    for seed in (0, 1):
        train(small("pid", seed=seed), tmp_path / str(seed))
    plan = plan_folders([tmp_path / "0", tmp_path / "1"], num_samples=4)
    (tmp_path / "0" / "ema-0.9.safetensors").unlink()
    (row,) = Measurement(plan, tmp_path).comparison(plan, {}).rows["Runs"]
    assert list(row.failures) == [0]
    assert len(row.metrics[1]["rms_error"].values) == 1


def test_a_reference_of_another_shape_is_refused(run, tmp_path):
    plan = plan_folders([run], reference="digits", num_samples=4)
    with pytest.raises(PidistillError, match="digits"):
        Measurement(plan, tmp_path)
