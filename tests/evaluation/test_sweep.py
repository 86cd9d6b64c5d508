"""Several averages and several seeds: what is measured of each, and what they say together."""

import pytest

from pidistill import load_teacher
from pidistill.evaluation.protocol import Terms
from pidistill.evaluation.subject import student_subject
from pidistill.evaluation.sweep import all_samples, over_seeds, sweep
from pidistill.students.trajectory import TrajectoryStudent

NAMES = ("error", "diversity")
TERMS = Terms(num=12, error_num=8)


@pytest.fixture(scope="module")
def subject(random_network):
    teacher = load_teacher("mixture:ring")
    student = TrajectoryStudent.from_teacher(teacher, network=random_network((2,), 8))
    return student_subject(student, teacher)


def test_one_measurement_is_no_sweep(subject):
    swept = sweep([(None, subject)], TERMS, [3], NAMES, reference={})
    assert swept.metrics["seed"] == 3
    assert {"rms_error", "duplicates", "nearest_sample"} <= swept.metrics.keys()
    assert not {"measurements", "over_seeds"} & swept.metrics.keys()


def test_every_average_and_seed_is_measured(subject):
    subjects = [("ema-0.9", subject), ("ema-0.99", subject)]
    swept = sweep(subjects, TERMS, [3, 4], NAMES, reference={})
    measured = [(one["weights"], one["seed"]) for one in swept.metrics["measurements"]]
    assert measured == [("ema-0.9", 3), ("ema-0.9", 4), ("ema-0.99", 3), ("ema-0.99", 4)]
    assert swept.metrics["seed"] == 3
    assert swept.first.seed == 3
    errors = {one["seed"]: one["rms_error"] for one in swept.metrics["measurements"][:2]}
    assert swept.metrics["rms_error"] == errors[3] != errors[4]
    assert "nearest_sample" in swept.metrics
    assert all("nearest_sample" not in one for one in swept.metrics["measurements"])
    first, second = swept.metrics["over_seeds"]
    assert (first["weights"], second["weights"]) == ("ema-0.9", "ema-0.99")
    assert first["rms_error"]["min"] == min(errors.values())
    assert first["rms_error"]["max"] == max(errors.values())


def test_what_seeds_say_together():
    runs = [
        {"seed": seed, "num_samples": 9, "frechet_distance": value}
        for seed, value in enumerate((3.0, 1.0, 2.0))
    ]
    (summary,) = over_seeds(runs)
    assert summary == {
        "frechet_distance": pytest.approx({"min": 1, "mean": 2, "max": 3, "spread": 1})
    }


def test_the_progress_bar_knows_the_end(subject):
    drawn = []
    terms = Terms(num=12, error_num=8, on_batch=drawn.append)
    sweep([(None, subject)], terms, [0, 1], NAMES, reference={})
    assert sum(drawn) == all_samples(terms, NAMES, 2) == 2 * (12 + 8)
