"""PID: what minimises its loss, where its gradient goes, its draws, and what it costs."""

import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pidistill import initial_noise, load_teacher
from pidistill.derivative import OneSided, chord_intercept, step_for
from pidistill.distance import l2
from pidistill.methods.pid import DERIVATIVES, DRAWS, pid_loss
from pidistill.networks.mlp import MLP
from pidistill.ode import path
from pidistill.precondition import PRECONDITIONS
from pidistill.residual import data_form
from pidistill.schedule import karras_sigmas
from pidistill.students.trajectory import TrajectoryStudent
from pidistill.teachers.mixture import MixtureDenoiser, gaussian_trajectory

from affine_network import AffineOnLevels, ValuesOnNodes
from method_runs import batch_of, build


def published_loss(student, teacher, z, sigma, label=None, *, num_nodes):
    """The published loss of every `z` (b, ...) at `sigma` (b,)."""
    derivative = OneSided(teacher.sigma_min, teacher.sigma_max, num_nodes)
    parts = {"derivative": derivative, "residual": data_form, "distance": l2}
    return pid_loss(student, teacher, z, sigma, label, **parts)[0]


def losses_on_nodes(student, teacher, nodes, z, label=None):
    """The published loss of every node for every `z` (b, ...), shape (N, b)."""
    levels = (sigma.expand(len(z)) for sigma in nodes)
    return torch.stack(
        [published_loss(student, teacher, z, x, label, num_nodes=len(nodes)) for x in levels]
    )


@pytest.mark.parametrize("num_nodes", [2, 3, 10, 250])
def test_zero_loss_on_all_nodes_but_the_last_is_eulers_method(num_nodes):
    """Euler's points have zero loss, and no other points do."""
    teacher = load_teacher("mixture:ring")
    nodes = karras_sigmas(num_nodes, teacher.sigma_min, teacher.sigma_max)
    z, label = initial_noise(teacher, 6, seed=0).double(), torch.tensor([0, 3, 7, -1, -1, 2])
    points = torch.stack([n.x for n in path(teacher, z, nodes, solver="euler", label=label)])
    share = (nodes / teacher.sigma_max)[:, None, None]
    values = (points - share * z) / (1 - share)
    values[0] = 7.0  # F is multiplied by 0 at sigma_max: any value will do
    student = TrajectoryStudent.from_teacher(teacher, network=ValuesOnNodes(nodes, values))
    with torch.no_grad():
        losses = losses_on_nodes(student, teacher, nodes, z, label)
        assert losses[:-1].max() < 1e-20
        assert losses[-1].max() > 1e-13
        for i in range(1, num_nodes, max(1, num_nodes // 10)):
            student.network.values[i] += 1e-3
            assert losses_on_nodes(student, teacher, nodes, z, label)[:-1].max() > 1e-7
            student.network.values[i] -= 1e-3


def trained_to_the_end(gaussian, num_nodes):
    """A student at which the gradient of training by the published loss vanishes.

    The gradient, with its target held still, is affine in the parameters; so its root is that of
    a linear system whose columns are the gradients at the unit vectors.
    """
    nodes = karras_sigmas(num_nodes, gaussian.sigma_min, gaussian.sigma_max)
    student = TrajectoryStudent.from_teacher(
        gaussian, network=AffineOnLevels((nodes.log() / 4).tolist(), 2)
    )
    parameters = list(student.network.parameters())
    z = initial_noise(gaussian, 6, seed=0).double()
    each, zs = nodes.repeat_interleave(len(z)), z.repeat(num_nodes, 1)

    def gradient(flat):
        vector_to_parameters(flat, parameters)
        loss = published_loss(student, gaussian, zs, each, num_nodes=num_nodes)
        return parameters_to_vector(torch.autograd.grad(loss.mean(), parameters))

    start = parameters_to_vector(parameters).detach()
    at_start = gradient(start)
    columns = torch.stack([gradient(unit) for unit in torch.eye(len(start)).double()]) - at_start
    root = torch.linalg.lstsq(columns.T, -at_start, driver="gelsd").solution
    assert gradient(root).abs().max() < 1e-9 * at_start.abs().max()
    return student


def test_a_trained_student_lands_on_the_exact_endpoints_the_better_the_finer_its_grid(gaussian):
    """The paper's predictable trend: the error is that of Euler's method, of first order."""
    z = initial_noise(gaussian, 500, seed=1).double()
    exact = gaussian_trajectory(gaussian, z, torch.full((500,), gaussian.sigma_min).double())
    errors = []
    for num_nodes in (5, 10, 20, 40, 80):
        student = trained_to_the_end(gaussian, num_nodes)
        errors.append((student.sample(z).x - exact).square().mean().sqrt().item())
    assert errors == sorted(errors, reverse=True)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(1, abs=0.25)
    assert errors[-1] < 0.05 * gaussian.sigma_data


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("draw", DRAWS)
def test_losses_depend_on_the_samples_alone_not_on_their_batch(mlp_teacher, derivative, draw):
    pid = build("pid", mlp_teacher, derivative=derivative, draw=draw, num_nodes=30)
    whole = pid.loss(batch_of(mlp_teacher))
    halves = [pid.loss(batch_of(mlp_teacher, 4, first)) for first in (0, 4)]
    torch.testing.assert_close(torch.cat([h.loss for h in halves]), whole.loss, rtol=1e-3, atol=0)
    assert torch.equal(torch.cat([h.sigma for h in halves]), whole.sigma)
    assert whole.loss.shape == whole.sigma.shape == (8,)


def test_the_gradient_flows_through_both_ends_of_the_difference(gaussian):
    """In proportion to their weights in `x - sigma dx/dsigma`, which sum to 1."""
    nodes = karras_sigmas(5, gaussian.sigma_min, gaussian.sigma_max)
    values = torch.ones(5, 2, 2, dtype=torch.float64)
    student = TrajectoryStudent.from_teacher(gaussian, network=ValuesOnNodes(nodes, values))
    z = initial_noise(gaussian, 2, seed=0).double()
    loss = published_loss(student, gaussian, z, nodes[[2, 2]], num_nodes=5)
    loss.sum().backward()
    gradient = student.network.values.grad
    here, partner = chord_intercept(nodes[2], nodes[3], student.share)
    assert (here + partner).item() == pytest.approx(1)
    torch.testing.assert_close(gradient[2] * partner, gradient[3] * here)
    assert gradient[2].abs().min() > 0
    assert gradient[[0, 1, 4]].abs().max() == 0


@pytest.mark.parametrize("derivative", ["one-sided", "central"])
def test_a_sample_costs_the_evaluations_that_are_declared(mlp_teacher, derivative):
    pid = build("pid", mlp_teacher, derivative=derivative)
    seen = {"teacher": 0, "student": 0}
    for name, model in (("teacher", mlp_teacher), ("student", pid.student)):

        def count(module, arguments, name=name):
            seen[name] += len(arguments[0])

        model.network.register_forward_pre_hook(count)
    pid.loss(batch_of(mlp_teacher))
    assert seen["teacher"] == 8 * pid.teacher_evaluations
    assert seen["student"] == 8 * pid.student_evaluations


class Elementwise(torch.nn.Module):
    """A network that autocast leaves alone."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, u, c_noise, label=None):
        return torch.sin(u * self.weight + c_noise[:, None])


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_only_networks_are_evaluated_in_half_precision(gaussian, derivative):
    """Blend, difference, residual and distance are what they are outside of autocast."""
    pid = build("pid", gaussian, network=Elementwise(), derivative=derivative, step=0.1)
    plain = pid.loss(batch_of(gaussian)).loss
    with torch.autocast("cpu", torch.bfloat16):
        mixed = pid.loss(batch_of(gaussian)).loss
    assert torch.equal(mixed, plain)


def test_half_precision_takes_a_wider_difference_and_keeps_the_loss_in_single(mlp_teacher):
    assert [step_for(t) for t in (torch.float64, torch.float32, torch.float16)] == [0.1] * 3
    assert step_for(torch.bfloat16) == 0.5
    pid, batch = build("pid", mlp_teacher, normalise=0.0), batch_of(mlp_teacher, 64)
    wide = build("pid", mlp_teacher, normalise=0.0, step=0.5).loss(batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        mixed = pid.loss(batch).loss
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, wide)
    torch.testing.assert_close(mixed.mean(), wide.mean(), rtol=0.05, atol=0)


def test_normalising_divides_loss_and_gradient_by_the_root_of_the_detached_loss(mlp_teacher):
    losses, gradients = [], []
    for normalise in (0.0, 0.01):
        pid = build("pid", mlp_teacher, normalise=normalise)
        losses.append(pid.loss(batch_of(mlp_teacher, 1)))
        losses[-1].loss.sum().backward()
        gradients.append(pid.student.network.output.weight.grad)
    plain, normalised = losses
    size = (plain.loss.detach() + 0.01).sqrt()
    torch.testing.assert_close(normalised.loss * size, plain.loss)
    torch.testing.assert_close(gradients[1] * size, gradients[0])
    for each in losses:
        torch.testing.assert_close(each.scalars["residual"], plain.loss.mean().detach())
        assert not each.scalars["residual"].requires_grad


class Scaled(torch.nn.Module):
    """A raw network in units smaller by `factor`."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, u, c_noise, label=None):
        return self.factor * self.network(u, c_noise - math.log(self.factor) / 4, label)


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("draw", DRAWS)
def test_no_noise_level_is_hard_coded(gaussian, derivative, draw):
    """With all lengths and noise levels tripled, the squared loss is nine times as large."""
    tripled = MixtureDenoiser(
        3 * gaussian.means,
        9 * gaussian.variances,
        basis=gaussian.basis,
        sigma_min=3 * gaussian.sigma_min,
        sigma_max=3 * gaussian.sigma_max,
    )
    network = MLP((2,), width=8, num_blocks=1).double()
    torch.nn.init.normal_(network.output.weight)
    settings = {"derivative": derivative, "draw": draw, "num_nodes": 20, "normalise": 0.0}
    losses = [
        build("pid", teacher, network=own, anchored=False, parametrisation="linear", **settings)
        .loss(batch_of(gaussian))
        for teacher, own in ((gaussian, network), (tripled, Scaled(network, 3)))
    ]  # fmt: skip
    torch.testing.assert_close(losses[1].sigma, 3 * losses[0].sigma)
    torch.testing.assert_close(losses[1].loss, 9 * losses[0].loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("source", "anchored"), [("edm", True), ("vp", False), ("ve", False), ("iddpm", False)]
)
@pytest.mark.parametrize("name", ["pid", "boot"])
def test_left_out_anchored_follows_what_the_teacher_predicts(mlp_teacher, name, source, anchored):
    mlp_teacher.precondition = PRECONDITIONS[source]()
    assert build(name, mlp_teacher).student.anchored == anchored
    for told in (False, True):
        assert build(name, mlp_teacher, anchored=told).student.anchored == told
