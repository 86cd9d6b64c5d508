"""The residual in its two forms, and in single precision."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import initial_noise, load_teacher
from pidistill.derivative import Central, ForwardMode, LogOdds, OneSided
from pidistill.distance import DISTANCES
from pidistill.methods.pid import pid_loss
from pidistill.residual import RESIDUALS, data_form, trajectory, velocity_form
from pidistill.schedule import karras_sigmas
from pidistill.students.trajectory import TrajectoryStudent

SCHEMES = [OneSided(0.002, 80.0, 250), Central(80.0), LogOdds(80.0), ForwardMode(80.0)]
LABEL = torch.tensor([0, 1, 2, -1, 0])


@given(st.floats(1e-3, 1e5), st.sampled_from([torch.float32, torch.float64]), st.floats(-1e6, 1e6))
def test_the_trajectory_starts_at_its_noise_exactly(sigma_max, dtype, size):
    z = torch.tensor([[0.1, -7.3, 1e-30, size]], dtype=dtype)
    F = torch.tensor([[1e10, 1.0, -1.0, size / 3]], dtype=dtype)
    sigma = torch.tensor([sigma_max], dtype=torch.float64)
    assert torch.equal(trajectory(z, sigma, F, sigma_max), z)


def gradients_of(form, distance, student, teacher, sigma, scheme):
    """Losses (b,), and the gradient of their sum for every parameter, in float64."""
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    z = initial_noise(teacher, 5, seed=0).double()
    loss, levels = pid_loss(
        student,
        teacher,
        z,
        torch.full((5,), sigma, dtype=torch.float64),
        LABEL,
        derivative=scheme,
        residual=RESIDUALS[form],
        distance=DISTANCES[distance],
    )
    loss.sum().backward()
    return loss.detach(), levels[0], [p.grad for p in student.parameters()]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sigma", [80.0, 20.0, 0.7, 0.002])
@pytest.mark.parametrize(("distance", "power"), [("l2", 2), ("l1", 1)])
def test_the_two_forms_differ_by_a_weight_only(
    mlp_student, mlp_teacher, scheme, sigma, distance, power
):
    """The velocity form's residual is the data form's times -1/sigma; so are its gradients."""
    models = (mlp_student, mlp_teacher, sigma, scheme)
    data, level, data_gradients = gradients_of("data", distance, *models)
    velocity, _, velocity_gradients = gradients_of("velocity", distance, *models)
    torch.testing.assert_close(velocity * level**power, data, rtol=1e-9, atol=0)
    for of_data, of_velocity in zip(data_gradients, velocity_gradients, strict=True):
        size = of_data.abs().max().item()
        torch.testing.assert_close(of_velocity * level**power, of_data, rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("form", [data_form, velocity_form])
def test_the_gradient_is_that_of_a_difference_of_losses(mlp_student, mlp_teacher, form):
    """Through every evaluation of the student, with the target held still.

    D(x) is cached, as stop-gradient means; in the velocity form x stands in the target too.
    """
    student, teacher = copy.deepcopy(mlp_student).double(), copy.deepcopy(mlp_teacher).double()
    z = initial_noise(teacher, 5, seed=0).double()
    sigma = torch.tensor([70.0, 10.0, 1.0, 0.1, 0.01], dtype=torch.float64)
    cache = []

    def cached(x, levels, label):
        if not cache:
            cache.append(teacher(x, levels, label))
        return cache[0]

    def loss():
        return pid_loss(
            student,
            cached,
            z,
            sigma,
            LABEL,
            derivative=OneSided(0.002, 80.0, 50),
            residual=form,
            distance=DISTANCES["l2"],
        )[0].sum()

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
    for sigma in karras_sigmas(num_nodes, teacher.sigma_min, teacher.sigma_max):

        def keep(prediction, target):
            predictions.append(prediction.double())
            targets.append(target.double())
            return prediction.flatten(1).sum(1)

        pid_loss(
            student,
            teacher,
            z,
            sigma.expand(len(z)),
            label,
            derivative=scheme,
            residual=data_form,
            distance=keep,
        )
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
