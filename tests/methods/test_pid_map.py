"""PID of the flow map: exact maps have no residual, and paths start where they should."""

import itertools
import math

import pytest
import torch

from pidistill import initial_noise, load_student, load_teacher, solve
from pidistill.methods.base import Batch
from pidistill.methods.pid_map import PIDMap, PIDMapSettings, pid_map_loss, teacher_N
from pidistill.noise import Draws
from pidistill.students.flow_map import FlowMapStudent

from affine_network import AffineOnLevels
from method_runs import batch_of, build, make_trainer, small


class ExactMap(FlowMapStudent):
    """The flow map of a Gaussian, in closed form."""

    def mean_N(self, y, theta_s, theta, label=None):
        gaussian = self.gaussian
        sigma_s, sigma = (self.sigma_data * t.tan() for t in (theta_s, theta))
        mean = gaussian.means[0].to(y)
        x = (self.to_x(y, theta_s) - mean) @ gaussian.basis[0].to(y)
        growth = (gaussian.variances + sigma[:, None] ** 2) / (
            gaussian.variances + sigma_s[:, None] ** 2
        )
        end = self.to_y((x * growth.sqrt().to(y)) @ gaussian.basis[0].T.to(y) + mean, theta)
        return (end - y) / (theta_s - theta).clamp(min=1e-12)[:, None].to(y)


@pytest.fixture
def exact(gaussian):
    network = AffineOnLevels([0.0], size=2)
    student = ExactMap.from_teacher(gaussian, network=network, second_time=("", 2)).double()
    student.gaussian = gaussian
    return student


def starts_of(student, num=64):
    draws = Draws(0, 0, num)
    share = 0.05 + 0.95 * draws.uniform("start")
    theta_s = student.theta_min + (student.theta_max - student.theta_min) * share
    y = 1.5 * draws.normal("y", student.sample_shape)
    theta = student.theta_min + (theta_s - student.theta_min) * draws.uniform("theta")
    return y, theta_s, theta


def test_the_teachers_velocity_integrates_to_the_ode(gaussian):
    d = gaussian.sigma_data
    z = initial_noise(gaussian, 8, seed=0).double()
    nodes = torch.linspace(
        math.atan(gaussian.sigma_max / d), math.atan(gaussian.sigma_min / d), 2001
    ).double()
    y = z * nodes[0].cos() / d
    for theta, after in itertools.pairwise(nodes):
        middle, half = (theta + after) / 2, (theta - after) / 2
        towards = y + half * teacher_N(gaussian, y, theta.expand(8), None)
        y = y + (theta - after) * teacher_N(gaussian, towards, middle.expand(8), None)
    exact = solve(gaussian, z, steps=400).x
    torch.testing.assert_close(y * d / nodes[-1].cos(), exact, rtol=0, atol=2e-3)


def test_the_residual_of_the_exact_map_vanishes_to_second_order(exact, gaussian):
    y, theta_s, theta = starts_of(exact)
    losses = [
        pid_map_loss(exact, gaussian, y, theta_s, theta, None, step=step)[0].mean().item()
        for step in (0.4, 0.2, 0.1)
    ]
    orders = [math.log2(a / b) / 2 for a, b in itertools.pairwise(losses)]
    assert orders == pytest.approx([2, 2], abs=0.3)


def test_an_untrained_copy_has_the_teachers_velocity_at_the_start_of_every_path(mlp_teacher):
    student = FlowMapStudent.from_teacher(mlp_teacher)
    y, theta_s, _ = starts_of(student, 6)
    label = torch.arange(6) % 3
    own = student.mean_N(y.float(), theta_s, theta_s, label)
    expected = teacher_N(mlp_teacher, y.float(), theta_s, label)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-3)


def test_paths_start_from_noise_or_from_the_students_own_points(mlp_teacher):
    method = build("pid-map", mlp_teacher)
    student = method.student
    draws, label = Draws(0, 0, 400), torch.arange(400) % 3
    y, theta_s = method.starts(Batch(draws, label, None), 0.7)
    first = theta_s == student.theta_max
    assert 0.62 < first.double().mean() < 0.78
    z = student.sigma_max * draws.normal("train z", student.sample_shape).float()
    highest = torch.full((400,), student.sigma_max, dtype=torch.float64)
    expected = student.map(z, highest, student.sigma_data * theta_s.tan(), label)
    torch.testing.assert_close(student.to_x(y, theta_s), expected, rtol=1e-5, atol=1e-5)
    assert not y.requires_grad
    below = theta_s[~first]
    assert below.min() > student.theta_min
    assert below.max() < student.theta_max


def test_on_a_gaussian_training_ends_with_the_map_from_anywhere(tmp_path):
    gaussian = load_teacher("mixture:gaussian")
    config = small(
        "pid-map",
        "mixture:gaussian",
        max_train_steps=1500,
        batch_size=64,
        learning_rate=2e-3,
        lr_end=0.0,
        network={"name": "mlp", "config": {"width": 64, "num_blocks": 2}},
    )
    trainer = make_trainer(config, tmp_path)
    for _ in range(config.max_train_steps):
        trainer.train_step()
    student = trainer.method.student.eval()
    z = initial_noise(gaussian, 500, seed=1)
    exact = solve(gaussian, z, steps=60).x
    with torch.no_grad():
        errors = [
            (student.sample(z, steps=steps).x - exact).square().mean().sqrt() / exact.std()
            for steps in (1, 2, 4)
        ]
    assert max(errors) < 0.1


def test_settings_are_checked():
    with pytest.raises(ValueError, match="greater than 0"):
        PIDMapSettings(share_from_noise=0)
    assert PIDMap.Settings().name == "pid-map"


def test_a_saved_student_needs_no_teacher(tmp_path, mlp_teacher):
    batch_of(mlp_teacher)
    trainer = make_trainer(small("pid-map", max_train_steps=2), tmp_path)
    for _ in trainer.run():
        pass
    loaded = load_student(tmp_path)
    assert isinstance(loaded, FlowMapStudent)
    assert loaded.generate(3, seed=0, steps=2).nfe == 2
