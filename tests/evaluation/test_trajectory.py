"""Errors and residuals along the path, for students with known errors."""

import pytest
import torch

from pidistill import initial_noise
from pidistill.evaluation.trajectory import (
    Paths,
    error_along_path,
    residual_along_path,
    rms,
    straightness,
    trajectory_metrics,
)
from pidistill.schedule import karras_sigmas
from pidistill.students.flow_map import FlowMapStudent
from pidistill.teachers.mixture import gaussian_trajectory

SIGMAS = karras_sigmas(9, 0.002, 80.0)


@pytest.fixture
def z(gaussian):
    return initial_noise(gaussian, 5, seed=0).double()


def points(gaussian, z):
    return torch.stack([gaussian_trajectory(gaussian, z, s.expand(len(z))) for s in SIGMAS])


@torch.no_grad()
def paths_of(student, teacher_points, z, label=None):
    """The student's paths at `SIGMAS` beside given points."""
    own = torch.stack([student(z, sigma.expand(len(z)), label) for sigma in SIGMAS])
    return Paths(SIGMAS, own if teacher_points is None else teacher_points, own, z, label, 0)


def test_the_exact_student_has_neither_error_nor_residual(gaussian, gaussian_student, z):
    paths = paths_of(gaussian_student, points(gaussian, z), z)
    errors = error_along_path(paths)
    residuals = residual_along_path(gaussian_student, gaussian, paths)
    assert errors.shape == residuals.shape == (9, 5)
    assert errors.max() < 1e-12
    assert residuals.max() < 1e-12


def test_an_error_of_the_raw_output_shows_in_proportion(gaussian, gaussian_student, z):
    """Scaling F by 1.1 changes x by `0.1 (1 - sigma/sigma_max) F`, which is 0 at sigma_max."""
    exact = points(gaussian, z)
    gaussian_student.network.scale.data.fill_(1.1)
    errors = error_along_path(paths_of(gaussian_student, exact, z))
    for sigma, x, error in zip(SIGMAS, exact, errors, strict=True):
        expected = 0.1 * rms(x - sigma / 80 * z)
        assert rms(error) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.fixture
def digits_copy(digits):
    teacher, student = digits
    return student, teacher, initial_noise(teacher, 3, seed=0), torch.arange(3)


def test_an_anchored_copy_has_no_residual_at_sigma_max(digits_copy):
    student, teacher, z, label = digits_copy
    residuals = residual_along_path(student, teacher, paths_of(student, None, z, label))
    assert residuals[0].max() < 1e-5
    assert residuals[4].max() > 1e-2


def test_an_untrained_flow_map_has_no_residual_at_sigma_max(digits_copy):
    _, teacher, z, label = digits_copy
    student = FlowMapStudent.from_teacher(teacher)
    paths = paths_of(student, None, z, label)
    torch.testing.assert_close(paths.student[0], z)
    residuals = residual_along_path(student, teacher, paths)
    assert residuals[0].max() < 1e-5
    assert residuals[4].max() > 1e-2


def test_a_flow_map_has_metrics_along_its_path(digits_copy):
    _, teacher, _, _ = digits_copy
    student = FlowMapStudent.from_teacher(teacher)
    metrics = trajectory_metrics(student, teacher, 6, seed=0, steps=5, batch_size=4)
    curves = metrics["trajectory"]
    assert curves["error"][0] < 1e-5 < curves["error"][-1]
    assert curves["residual"][0] < 1e-5 < curves["residual"][-1]
    assert metrics["straightness"] > 0


class TestStraightness:
    def test_a_single_point_of_data_has_straight_paths(self):
        """x - m = (sigma / sigma_max) (z - m): a line in EDM coordinates and in these."""
        m = torch.tensor([[0.3, -0.2]])
        z = 80 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
        points = torch.stack([m + sigma / 80 * (z - m) for sigma in SIGMAS])
        assert straightness(SIGMAS, points, 0.5).max() < 1e-20

    def test_a_quarter_of_a_circle_has_a_closed_form(self):
        """y = (cos, sin)(a t): dy/dt has length a, the chord 2 sin(a/2); S = a^2 - chord^2, halved.

        For the mean over two pixels, and as int dy/dt = chord.
        """
        time = torch.linspace(0.99, 0.01, 2000, dtype=torch.float64)
        sigmas = 0.5 * time / (1 - time)
        angle = (time - time[0]) / (time[-1] - time[0]) * torch.pi / 2
        y = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None]
        expected = ((torch.pi / 2) ** 2 - 2) / 2
        points = y * (0.5 + sigmas)[:, None, None]
        assert straightness(sigmas, points, 0.5).item() == pytest.approx(expected, rel=1e-5)

    def test_more_nodes_converge(self, gaussian, z):
        def at(num):
            sigmas = karras_sigmas(num, 0.002, 80.0)
            exact = [gaussian_trajectory(gaussian, z, s.expand(len(z))) for s in sigmas]
            return straightness(sigmas, torch.stack(exact), gaussian.sigma_data).mean()

        assert abs(at(80) - at(160)) < abs(at(20) - at(40)) / 4
        assert at(40).item() == pytest.approx(at(160).item(), rel=0.02)


def test_the_metrics_of_exact_paths(gaussian, gaussian_student):
    metrics = trajectory_metrics(gaussian_student, gaussian, 20, seed=0, steps=40, batch_size=20)
    curves = metrics["trajectory"]
    assert curves["num_samples"] == 20
    assert len(curves["sigma"]) == len(curves["error"]) == len(curves["residual"]) == 40
    assert max(curves["error"]) < 0.02  # the solver's own
    assert max(curves["residual"]) < 1e-5
    assert metrics["straightness"] == pytest.approx(metrics["teacher_straightness"], rel=0.01)


def test_metrics_along_the_path_do_not_depend_on_the_batch_size(digits_copy):
    student, teacher, _, _ = digits_copy
    settings = {"num": 5, "seed": 1, "steps": 4}
    whole = trajectory_metrics(student, teacher, **settings, batch_size=5)
    parts = trajectory_metrics(student, teacher, **settings, batch_size=2)
    assert parts["straightness"] == pytest.approx(whole["straightness"], rel=1e-4)
    for name in ("error", "residual"):
        assert parts["trajectory"][name] == pytest.approx(
            whole["trajectory"][name], rel=1e-3, abs=1e-5
        )
