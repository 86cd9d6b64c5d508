"""Errors and residuals along the path, for students whose answer is known."""

import pytest
import torch

from pidistill import initial_noise, load_teacher
from pidistill.evaluation.trajectory import (
    error_along_path,
    per_sample_rms,
    residual_along_path,
    rms,
)
from pidistill.schedule import karras_sigmas
from pidistill.student import TrajectoryStudent
from pidistill.teachers.mixture import gaussian_trajectory

SIGMAS = karras_sigmas(9, 0.002, 80.0)


@pytest.fixture
def z(gaussian):
    return initial_noise(gaussian, 5, seed=0).double()


def points(gaussian, z):
    return torch.stack([gaussian_trajectory(gaussian, z, s.expand(len(z))) for s in SIGMAS])


def test_the_exact_student_has_neither_error_nor_residual(gaussian, gaussian_student, z):
    errors = error_along_path(gaussian_student, z, SIGMAS, points(gaussian, z), None)
    residuals = residual_along_path(gaussian_student, gaussian, z, SIGMAS, None)
    assert len(errors) == len(residuals) == 9
    assert max(errors) < 1e-12
    assert max(residuals) < 1e-12


def test_an_error_of_the_raw_output_shows_in_proportion(gaussian, gaussian_student, z):
    """F scaled by 1.1 puts x off by `0.1 (1 - sigma/sigma_max) F`, and nothing at sigma_max."""
    exact = points(gaussian, z)
    gaussian_student.network.scale.data.fill_(1.1)
    errors = error_along_path(gaussian_student, z, SIGMAS, exact, None)
    for sigma, x, error in zip(SIGMAS, exact, errors, strict=True):
        expected = 0.1 * rms(x - sigma / 80 * z)
        assert error == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_residual_does_not_depend_on_how_many_samples_there_are(digits_copy):
    student, teacher, z, label = digits_copy
    together = residual_along_path(student, teacher, z, SIGMAS, label)
    alone = [
        residual_along_path(student, teacher, z[i : i + 1], SIGMAS, label[i : i + 1])
        for i in range(len(z))
    ]
    mean = torch.tensor(alone).square().mean(0).sqrt()
    torch.testing.assert_close(torch.tensor(together), mean, rtol=1e-3, atol=1e-6)


@pytest.fixture
def digits_copy():
    teacher = load_teacher("digits")
    student = TrajectoryStudent.from_teacher(teacher, anchored=True)
    return student, teacher, initial_noise(teacher, 3, seed=0), torch.arange(3)


def test_an_anchored_copy_has_no_residual_at_sigma_max(digits_copy):
    student, teacher, z, label = digits_copy
    residuals = residual_along_path(student, teacher, z, SIGMAS, label)
    assert residuals[0] < 1e-5
    assert residuals[4] > 1e-2


def test_root_mean_squares():
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert per_sample_rms(x, torch.zeros_like(x)).tolist() == pytest.approx([12.5**0.5, 0])
    assert rms(torch.tensor([3.0, 4.0])) == pytest.approx(12.5**0.5)
