"""The residual in its two forms, and in single precision."""

import copy

import pytest
import torch

from pidistill import initial_noise, load_teacher
from pidistill.derivative import Central, ForwardMode, OneSided
from pidistill.distance import DISTANCES
from pidistill.methods.pid import pid_loss
from pidistill.residual import RESIDUALS, data_form, velocity_form
from pidistill.schedule import karras_sigmas
from pidistill.students import TrajectoryStudent

SCHEMES = [OneSided(0.002, 80.0, 250), Central(80.0), ForwardMode()]
LABEL = torch.tensor([0, 1, 2, -1, 0])


def loss_of(student, teacher, z, sigma, form, distance="l2", scheme=SCHEMES[0]):
    """The losses of a batch of five, and the noise levels where they were taken."""
    return pid_loss(
        student,
        teacher,
        z,
        sigma,
        LABEL,
        derivative=scheme,
        residual=form,
        distance=DISTANCES[distance],
    )


@pytest.fixture
def doubled(mlp_student, mlp_teacher):
    """A student, its teacher and noise for both, in float64."""
    teacher = copy.deepcopy(mlp_teacher).double()
    z = initial_noise(teacher, 5, seed=0).double()
    return copy.deepcopy(mlp_student).double(), teacher, z


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sigma", [80.0, 20.0, 0.7, 0.002])
@pytest.mark.parametrize(("distance", "power"), [("l2", 2), ("l1", 1)])
def test_the_two_forms_differ_by_a_weight_only(doubled, scheme, sigma, distance, power):
    """The velocity form's residual is the data form's times -1/sigma; so are its gradients."""
    sigma = torch.full((5,), sigma, dtype=torch.float64)
    parameters = list(doubled[0].parameters())
    losses, gradients = {}, {}
    for name, form in RESIDUALS.items():
        losses[name], level = loss_of(*doubled, sigma, form, distance, scheme)
        gradients[name] = torch.autograd.grad(losses[name].sum(), parameters)
    weight = level[0] ** power
    torch.testing.assert_close(losses["velocity"] * weight, losses["data"], rtol=1e-9, atol=0)
    for of_data, of_velocity in zip(gradients["data"], gradients["velocity"], strict=True):
        size = of_data.abs().max().item()
        torch.testing.assert_close(of_velocity * weight, of_data, rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("form", [data_form, velocity_form])
def test_the_gradient_is_that_of_a_difference_of_losses(doubled, form):
    """Through every evaluation of the student, with the target held still.

    D(x) is cached, as stop-gradient means; in the velocity form x stands in the target too.
    """
    student, teacher, z = doubled
    sigma = torch.tensor([70.0, 10.0, 1.0, 0.1, 0.01], dtype=torch.float64)
    cache = []

    def cached(x, levels, label):
        if not cache:
            cache.append(teacher(x, levels, label))
        return cache[0]

    def loss():
        scheme = OneSided(0.002, 80.0, 50)
        return loss_of(student, cached, z, sigma, form, scheme=scheme)[0].sum()

    (gradient,) = torch.autograd.grad(loss(), [student.network.output.weight])
    direction = torch.randn(gradient.shape, dtype=torch.float64)
    along = []
    with torch.no_grad():
        for step in (1e-4, -1e-4):
            student.network.output.weight += step * direction
            along.append(loss().item())
            student.network.output.weight -= step * direction
    difference = (along[0] - along[1]) / 2e-4  # exact: the loss is quadratic in this layer
    assert (gradient * direction).sum().item() == pytest.approx(difference, rel=1e-6)


def residual_on_grid(student, teacher, z, label, num_nodes):
    """Prediction and target of the data form at every node, each (N, b, ...), in float64."""
    predictions, targets = [], []
    scheme = OneSided(teacher.sigma_min, teacher.sigma_max, num_nodes)

    def keep(prediction, target):
        predictions.append(prediction.double())
        targets.append(target.double())
        return prediction.flatten(1).sum(1)

    for sigma in karras_sigmas(num_nodes, teacher.sigma_min, teacher.sigma_max):
        levels, parts = sigma.expand(len(z)), {"residual": data_form, "distance": keep}
        pid_loss(student, teacher, z, levels, label, derivative=scheme, **parts)
    return torch.stack(predictions), torch.stack(targets)


@pytest.mark.parametrize("anchored", [False, True])
@torch.no_grad()
def test_single_precision_keeps_the_residual_to_1e_5_over_the_whole_grid(anchored):
    """For a copy of the digits teacher at N = 250, against the same weights in float64.

    At every node, the RMS of the error is relative to that of the prediction
    `x - sigma dx/dsigma`: the residual is what remains of it once the target is taken off, and
    vanishes as the student learns. For the published student, where the residual is as large as
    the prediction, the error over all nodes is also relative to the residual itself.
    """
    teacher = load_teacher("digits")
    student = TrajectoryStudent.from_teacher(teacher, anchored=anchored)
    z, label = initial_noise(teacher, 16, seed=0), torch.arange(16) % 10
    single = residual_on_grid(student, teacher, z, label, 250)
    exact = residual_on_grid(
        copy.deepcopy(student).double(), copy.deepcopy(teacher).double(), z.double(), label, 250
    )
    error = (single[0] - single[1]) - (exact[0] - exact[1])
    error_at_node, size_at_node = (v.flatten(1).norm(dim=1) for v in (error, exact[0]))
    assert (error_at_node / size_at_node).max().item() < 1e-5
    if not anchored:
        assert (error.norm() / (exact[0] - exact[1]).norm()).item() < 1e-5
