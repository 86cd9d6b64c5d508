"""The formula of an exported student, against the student."""

import pytest
import torch
from torch import nn

from pidistill import PidistillError, initial_noise
from pidistill.export.one_step import one_step_sample, scales_of
from pidistill.students import TRAJECTORIES
from pidistill.students.base import Student
from pidistill.students.consistency import ConsistencyStudent
from pidistill.students.euler import EulerStudent
from pidistill.students.labels import labels_for

NAMES = ["mlp", "song_unet", "dhariwal_unet", "diffusers_unet"]


def samples_of(student):
    """Samples by the formula and by the student."""
    z, label = initial_noise(student, 3, seed=1), labels_for(student, 3)
    sample = one_step_sample(student.network, z, label, scales_of(student))
    assert sample.abs().max() > 0.1
    return sample, student.sample(z, label=label).x


@pytest.mark.parametrize("name", ["points", *NAMES])
def test_the_formula_is_the_student_to_the_last_bit(name, student_named):
    assert torch.equal(*samples_of(student_named(name)))


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("parametrisation", TRAJECTORIES)
def test_so_it_is_for_every_parametrisation(parametrisation, name, student_named):
    assert torch.equal(*samples_of(student_named(name, TRAJECTORIES[parametrisation])))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("student_class", [EulerStudent, ConsistencyStudent])
def test_so_it_is_up_to_rounding_for_the_other_kinds(student_class, name, student_named):
    sample, expected = samples_of(student_named(name, student_class))
    torch.testing.assert_close(sample, expected, rtol=1e-6, atol=1e-5)


def test_a_student_of_several_steps_is_refused(student_named):
    with pytest.raises(PidistillError, match="4 evaluations"):
        scales_of(student_named("mlp", EulerStudent, num_steps=4))


def test_a_student_of_another_kind_is_refused():
    class Other(Student):
        def __init__(self):
            nn.Module.__init__(self)

    with pytest.raises(PidistillError, match="Other"):
        scales_of(Other())
