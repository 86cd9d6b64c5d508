"""The constants of an exported flow map, against the student."""

import pytest
import torch

from pidistill import initial_noise
from pidistill.export.export import export_student
from pidistill.export.flow_map import MOST_STEPS, flow_map_sample, flow_scales
from pidistill.model_folder import load_student
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.labels import labels_for


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", ["mlp", "points", "song_unet", "dhariwal_unet", "diffusers_unet"])
def test_sampling_by_constants_is_the_student_to_the_last_bit(name, steps, student_named):
    student = student_named(name, FlowMapStudent)
    z, label = initial_noise(student, 3, seed=1), labels_for(student, 3)
    scales = flow_scales(student, steps)
    assert len(scales.maps) == steps
    sample = flow_map_sample(student.network, student.layer, student.second_time, z, label, scales)
    assert sample.abs().max() > 0.1
    assert torch.equal(sample, student.sample(z, label=label, steps=steps).x)


def test_the_second_time_matters(student_named):
    """Otherwise, the tests here would say nothing about it."""
    student = student_named("mlp", FlowMapStudent)
    before = student.generate(3, seed=0).x
    student.second_time.linear1.weight.zero_()
    assert (student.generate(3, seed=0).x - before).abs().max() > 0.1


@pytest.mark.parametrize(
    ("to", "headline", "how", "left_out"),
    [
        ("diffusers", "evaluation** or more", f"1 to {MOST_STEPS}.", f"more than {MOST_STEPS} "),
        ("run", "evaluation** or more", "`--steps K`", None),
    ],
)
def test_the_card_says_how_many_evaluations(
    to, headline, how, left_out, tmp_path, student_named, run_of
):
    run = run_of(tmp_path / "run", student_named("mlp", FlowMapStudent))
    exported = export_student(run, tmp_path / "out", to=to)
    assert headline in exported.card
    assert how in exported.card
    assert len(exported.not_included) == (left_out is not None)
    assert left_out is None or left_out in exported.not_included[0]
    one = export_student(run_of(tmp_path / "one", student_named("mlp")), tmp_path / "b", to=to)
    assert headline not in one.card
    assert how not in one.card


def test_an_exported_run_samples_as_before(tmp_path, student_named, run_of):
    student = student_named("mlp", FlowMapStudent)
    export_student(run_of(tmp_path / "run", student), tmp_path / "out", to="run")
    options = {"seed": 0, "steps": 2, "refine": 1}
    again = load_student(tmp_path / "out").generate(4, **options)
    assert torch.equal(again.x, student.generate(4, **options).x)
