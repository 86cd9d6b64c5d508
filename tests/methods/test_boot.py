"""BOOT: its far end, what has no loss, how it differs from PID, and where its gradient goes."""

import math

import pytest
import torch

from pidistill import initial_noise, solve
from pidistill.derivative import OneSided
from pidistill.distance import l1, l2
from pidistill.methods.base import Batch
from pidistill.methods.boot import BOOT, BOOTSettings, bootstrap_loss, boundary_loss, signal
from pidistill.methods.pid import pid_loss
from pidistill.noise import Draws
from pidistill.ode import path
from pidistill.residual import data_form
from pidistill.schedule import karras_sigmas
from pidistill.students.trajectory import TrajectoryStudent
from pidistill.teachers.mixture import gaussian_trajectory

from affine_network import ValuesOnNodes


def on_nodes(gaussian, num_nodes):
    """Nodes of the grid and noise, repeated so that every node but the last meets every noise."""
    nodes = karras_sigmas(num_nodes, gaussian.sigma_min, gaussian.sigma_max)
    z = initial_noise(gaussian, 6, seed=0).double()
    t, s = nodes[:-1].repeat_interleave(6), nodes[1:].repeat_interleave(6)
    return nodes, z, z.repeat(num_nodes - 1, 1), t, s


def test_the_signal_is_the_sample_without_its_noise(gaussian, gaussian_student):
    _, _, z, t, _ = on_nodes(gaussian, 30)
    x = gaussian_trajectory(gaussian, z, t)
    expected = x - (t / gaussian.sigma_max)[:, None] * z
    torch.testing.assert_close(signal(gaussian_student, z, t, None), expected, rtol=0, atol=1e-12)


def test_the_far_end_of_the_exact_answer_has_no_loss(gaussian, gaussian_student):
    """F(z, sigma_max) = D(z, sigma_max) in closed form."""
    z = initial_noise(gaussian, 50, seed=0).double()
    assert boundary_loss(gaussian_student, gaussian, z, None, distance=l2).max() < 1e-25


def test_an_anchored_copy_starts_without_boundary_loss(mlp_teacher):
    student = TrajectoryStudent.from_teacher(mlp_teacher.double(), anchored=True)
    z, label = initial_noise(student, 8, seed=0).double(), torch.arange(8) % 3
    assert boundary_loss(student, mlp_teacher, z, label, distance=l2).max() < 1e-25
    published = TrajectoryStudent.from_teacher(mlp_teacher, anchored=False)
    assert boundary_loss(published, mlp_teacher, z, label, distance=l2).min() > 1e-4


def test_the_exact_answer_leaves_only_the_error_of_a_step(gaussian, gaussian_student):
    """Divided by the step, the error of an Euler step is of first order."""
    residuals = []
    for num_nodes in (200, 400):
        _, _, z, t, s = on_nodes(gaussian, num_nodes)
        loss = bootstrap_loss(gaussian_student, gaussian, z, t, s, None, distance=l2)
        residuals.append(loss.mean().sqrt().item())
    assert math.log2(residuals[0] / residuals[1]) == pytest.approx(1, abs=0.05)


def euler_student(gaussian, num_nodes):
    """The student that is Euler's method on the grid, at its nodes and for the noise of them."""
    nodes, z, *_ = on_nodes(gaussian, num_nodes)
    x = torch.stack([node.x for node in path(gaussian, z, nodes, solver="euler")])
    share = (nodes / gaussian.sigma_max)[:, None, None]
    F = torch.where(share < 1, (x - share * z) / (1 - share), 0.0)
    F[0] = gaussian(z, nodes[:1].expand(len(z)))
    return TrajectoryStudent.from_teacher(gaussian, network=ValuesOnNodes(nodes, F))


def test_both_losses_are_zero_for_eulers_method_on_the_grid(gaussian):
    student = euler_student(gaussian, 20)
    _, base, z, t, s = on_nodes(gaussian, 20)
    assert bootstrap_loss(student, gaussian, z, t, s, None, distance=l2).max() < 1e-20
    assert boundary_loss(student, gaussian, base, None, distance=l2).max() < 1e-25
    sigmas = karras_sigmas(20, gaussian.sigma_min, gaussian.sigma_max)
    expected = solve(gaussian, base, sigmas=sigmas, solver="euler").x
    torch.testing.assert_close(student.sample(base).x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", [l2, l1])
def test_the_loss_is_that_of_pid_but_its_gradient_is_not(gaussian, distance):
    """The same residual; PID's gradient reaches both ends of the difference, BOOT's the lower."""
    student = euler_student(gaussian, 12)
    nodes, _, z, t, s = on_nodes(gaussian, 12)
    values = student.network.values
    with torch.no_grad():
        values += Draws(0, 0, len(values)).normal("off", values.shape[1:])
    picked = (t == nodes[5]).nonzero()[:, 0]
    picked_z, picked_t, picked_s = z[picked], t[picked], s[picked]
    boot = bootstrap_loss(student, gaussian, picked_z, picked_t, picked_s, None, distance=distance)
    pid, _ = pid_loss(
        student,
        gaussian,
        picked_z,
        picked_t,
        None,
        derivative=OneSided(gaussian.sigma_min, gaussian.sigma_max, 12),
        residual=data_form,
        distance=distance,
    )
    torch.testing.assert_close(boot, pid, rtol=1e-9, atol=1e-12)
    reached = [
        torch.autograd.grad(loss.mean(), values)[0].abs().sum((1, 2)).nonzero()[:, 0].tolist()
        for loss in (boot, pid)
    ]
    assert reached == [[6], [5, 6]]


def test_a_batch_pairs_nodes_with_the_next_below(gaussian):
    settings = BOOTSettings(num_nodes=9, boundary_weight=0.5)
    student = TrajectoryStudent.from_teacher(
        gaussian, network=ValuesOnNodes(torch.ones(1).double(), torch.zeros(1, 1, 2).double())
    )
    method = BOOT(settings, student, gaussian)
    losses = method.loss(Batch(Draws(0, 0, 400), None, None))
    nodes = karras_sigmas(9, gaussian.sigma_min, gaussian.sigma_max)
    assert sorted(set(losses.sigma.tolist()), reverse=True) == nodes[1:].tolist()
    total = losses.scalars["bootstrap"] + 0.5 * losses.scalars["boundary"]
    torch.testing.assert_close(losses.loss.mean().detach(), total)
