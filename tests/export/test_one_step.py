"""The formula of an exported student, against the student."""

import pytest
import torch
from torch import nn

from pidistill import PidistillError, initial_noise
from pidistill.export.one_step import one_step_sample, scales_of
from pidistill.students import TRAJECTORIES
from pidistill.students.base import Student, labels_for
from pidistill.students.consistency import ConsistencyStudent
from pidistill.students.euler import EulerStudent


@pytest.mark.parametrize("name", ["mlp", "points", "song_unet", "dhariwal_unet", "diffusers_unet"])
def test_the_formula_is_the_student_to_the_last_bit(name, student_named):
    student = student_named(name)
    z, label = initial_noise(student, 3, seed=1), labels_for(student, 3)
    sample = one_step_sample(student.network, z, label, **vars(scales_of(student)))
    assert torch.equal(sample, student.sample(z, label=label).x)
    assert sample.abs().max() > 0.1


@pytest.mark.parametrize("name", ["mlp", "song_unet", "dhariwal_unet"])
@pytest.mark.parametrize("parametrisation", TRAJECTORIES)
def test_so_it_is_for_every_parametrisation(parametrisation, name, student_named):
    student = student_named(name, TRAJECTORIES[parametrisation])
    z, label = initial_noise(student, 3, seed=1), labels_for(student, 3)
    sample = one_step_sample(student.network, z, label, **vars(scales_of(student)))
    assert torch.equal(sample, student.sample(z, label=label).x)
    assert scales_of(student).noise_share == (
        0 if parametrisation == "soft" else student.sigma_min / student.sigma_max
    )


@pytest.mark.parametrize("name", ["mlp", "song_unet", "dhariwal_unet", "diffusers_unet"])
@pytest.mark.parametrize("student_class", [EulerStudent, ConsistencyStudent])
def test_so_it_is_for_the_other_kinds(student_class, name, student_named):
    student = student_named(name, student_class)
    z, label = initial_noise(student, 3, seed=1), labels_for(student, 3)
    sample = one_step_sample(student.network, z, label, **vars(scales_of(student)))
    torch.testing.assert_close(sample, student.sample(z, label=label).x, rtol=1e-6, atol=1e-5)


def test_a_student_of_several_steps_is_refused(student_named):
    with pytest.raises(PidistillError, match="trained for 4 evaluations a sample; only"):
        scales_of(student_named("mlp", EulerStudent, num_steps=4))


def test_a_student_of_another_kind_is_refused():
    class Other(Student):
        def __init__(self):
            nn.Module.__init__(self)

    with pytest.raises(PidistillError, match="a Other; expected one of the kinds"):
        scales_of(Other())
