"""Every parametrisation of the trajectory: exact solutions in it, its boundary, start and file."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, initial_noise, load_student
from pidistill.derivative import Central, ForwardMode, OneSided
from pidistill.distance import l2
from pidistill.methods.pid import boundary_penalty, pid_loss
from pidistill.model_folder import describe, write_description
from pidistill.noise import Draws
from pidistill.precondition import EDMPrecondition, VPPrecondition
from pidistill.residual import RESIDUALS, data_form
from pidistill.schedule import karras_sigmas
from pidistill.storage import write_tensors
from pidistill.students import TRAJECTORIES, SoftBoundaryStudent, TrajectoryStudent
from pidistill.teachers.mixture import MixtureDenoiser, gaussian_trajectory

LEVELS = [80.0, 79.99, 60.0, 5.0, 0.3, 0.02, 0.002]

every_parametrisation = pytest.mark.parametrize("name", TRAJECTORIES)
every_pinned_one = pytest.mark.parametrize("name", ["linear", "edm"])


class ExactNetwork(torch.nn.Module):
    """The output that a raw network must have for x to be the exact trajectory of a Gaussian.

    Written down once more for each parametrisation, from its formula in docs/mathematics.md, in
    terms of the F of the published one, `gaussian_F`, in which nothing cancels.
    """

    def __init__(self, name, gaussian, gaussian_F):
        super().__init__()
        self.name, self.gaussian, self.gaussian_F = name, gaussian, gaussian_F
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, u, c_noise, label=None):
        S, d = self.gaussian.sigma_max, self.gaussian.sigma_data
        z = u * math.sqrt(S**2 + d**2)
        sigma = (4 * c_noise).exp()[:, None]
        F = self.gaussian_F(u, c_noise)
        if self.name == "edm":
            growth = ((sigma**2 + d**2) / (S**2 + d**2)).sqrt()
            F = (F - d**2 / (S**2 + d**2) * (1 + sigma / S) / (growth + sigma / S) * z) / d
        if self.name == "soft":
            x = sigma / S * z + (1 - sigma / S) * F
            F = x / (sigma**2 + d**2).sqrt()
        return self.scale * F


@pytest.fixture
def exact(gaussian, gaussian_student):
    """The function that builds the exact student in a parametrisation."""

    def build(name):
        network = ExactNetwork(name, gaussian, gaussian_student.network)
        return TRAJECTORIES[name].from_teacher(gaussian, network=network)

    return build


@pytest.fixture
def z(gaussian):
    return initial_noise(gaussian, 5, seed=0).double()


def loss_at(student, teacher, z, sigma, scheme, form=data_form):
    """The squared PID loss of every `z` at one noise level."""
    levels = torch.full((len(z),), sigma, dtype=torch.float64)
    loss, _ = pid_loss(
        student, teacher, z, levels, None, derivative=scheme, residual=form, distance=l2
    )
    return loss.detach()


@every_parametrisation
@pytest.mark.parametrize("sigma", LEVELS)
def test_the_exact_student_follows_the_exact_trajectory_and_has_no_loss(
    exact, gaussian, z, name, sigma
):
    student = exact(name)
    levels = torch.full((5,), sigma, dtype=torch.float64)
    expected = gaussian_trajectory(gaussian, z, levels)
    torch.testing.assert_close(student(z, levels), expected, rtol=1e-11, atol=1e-11)
    for form, residual in RESIDUALS.items():
        size = 1.0 if form == "data" else 1 / sigma**2
        student.network.scale.data.fill_(1.0)
        left = loss_at(student, gaussian, z, sigma, ForwardMode(), residual)
        assert left.max() < 1e-22 * size
        student.network.scale.data.fill_(1.001)
        off = loss_at(student, gaussian, z, sigma, ForwardMode(), residual)
        assert off.min() > 1e-18 * size


@every_parametrisation
@pytest.mark.parametrize("sigma", [80.0, 40.0, 5.0, 0.5, 0.002])
def test_central_differences_have_their_order_in_every_parametrisation(
    exact, gaussian, z, name, sigma
):
    student = exact(name)
    errors = [
        loss_at(student, gaussian, z, sigma, Central(80.0, step)).mean().sqrt()
        for step in (0.1, 0.05)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@every_parametrisation
@pytest.mark.parametrize("down", [0.25, 0.5, 1])
def test_the_one_sided_difference_has_its_order_in_every_parametrisation(
    exact, gaussian, z, name, down
):
    student, errors = exact(name), []
    for num_nodes in (129, 257):
        sigma = karras_sigmas(num_nodes, 0.002, 80.0)[int(down * (num_nodes - 1))].item()
        scheme = OneSided(0.002, 80.0, num_nodes)
        errors.append(loss_at(student, gaussian, z, sigma, scheme).mean().sqrt())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)


# --- the boundary condition


@given(st.floats(1e-2, 1e5), st.sampled_from([torch.float32, torch.float64]), st.floats(-1e6, 1e6))
def test_whatever_the_network_says_the_trajectory_starts_at_its_noise_exactly(
    sigma_max, dtype, size
):
    precondition = EDMPrecondition(sigma_max=sigma_max)
    student = TrajectoryStudent(torch.nn.Identity(), precondition, sample_shape=(4,), source="")
    z = torch.tensor([[0.1, -7.3, 1e-30, size]], dtype=dtype)
    F = torch.tensor([[1e10, 1.0, -1.0, size / 3]], dtype=dtype)
    assert torch.equal(student.blend(z, torch.tensor([sigma_max], dtype=torch.float64), F), z)


@every_pinned_one
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pinned_student_starts_at_its_noise_exactly(mlp_teacher, name, anchored, dtype):
    student = TRAJECTORIES[name].from_teacher(mlp_teacher, anchored=anchored)
    z = initial_noise(student, 20, seed=0).to(dtype)
    sigma = torch.full((20,), student.sigma_max, dtype=torch.float64)
    x = student(z, sigma, torch.arange(20) % 3)
    assert x.dtype == dtype
    assert torch.equal(x, z)
    assert boundary_penalty(student, z, None).max() == 0


def test_the_soft_boundary_condition_has_no_penalty_only_where_it_holds(exact, gaussian, z):
    student = exact("soft")
    assert boundary_penalty(student, z, None).max() < 1e-28
    with torch.no_grad():
        student.network.scale += 0.01
    penalty = boundary_penalty(student, z, None)
    torch.testing.assert_close(penalty, (0.01 * z / gaussian.sigma_max).square().mean(1))
    penalty.sum().backward()
    assert student.network.scale.grad.item() == pytest.approx(2 * penalty.sum().item() / 0.01)


def test_the_soft_student_is_its_network_at_the_scale_of_a_noisy_sample(mlp_teacher):
    student = SoftBoundaryStudent.from_teacher(mlp_teacher).double()
    z = initial_noise(student, 4, seed=0).double()
    for sigma in (80.0, 1.0, 0.002):
        levels = torch.full((4,), sigma, dtype=torch.float64)
        raw = student.network(z / math.sqrt(80**2 + 0.25), levels.log() / 4)
        torch.testing.assert_close(student(z, levels), math.sqrt(sigma**2 + 0.25) * raw)


# --- how it starts


def test_a_silent_network_is_exact_for_gaussian_data_in_edms_form():
    """The skip is the trajectory of centred Gaussian data of standard deviation sigma_data."""
    teacher = MixtureDenoiser(torch.zeros(1, 3), torch.full((1, 1), 0.49), sigma_max=20.0)
    network = torch.nn.Linear(3, 3).double()
    network.forward = lambda u, c_noise, label=None: 0 * u
    student = TRAJECTORIES["edm"].from_teacher(teacher, network=network)
    z = initial_noise(teacher, 6, seed=0).double()
    sigma = torch.tensor([20.0, 19.0, 3.0, 0.7, 0.05, 0.002], dtype=torch.float64)
    torch.testing.assert_close(student(z, sigma), gaussian_trajectory(teacher, z, sigma))
    for level in sigma.tolist():
        assert loss_at(student, teacher, z, level, ForwardMode()).max() < 1e-24


@pytest.mark.parametrize("precondition", [EDMPrecondition(), VPPrecondition()])
@every_pinned_one
def test_an_anchored_copy_starts_with_the_exact_answer_at_sigma_max(
    mlp_teacher, precondition, name
):
    """There the equation says F = D(z, sigma_max): identity 3 of docs/mathematics.md."""
    mlp_teacher.precondition = precondition
    mlp_teacher.sigma_min, mlp_teacher.sigma_max = precondition.sigma_min, precondition.sigma_max
    student = TRAJECTORIES[name].from_teacher(mlp_teacher, anchored=True).double()
    z, label = initial_noise(student, 6, seed=0).double(), torch.arange(6) % 3
    sigma = torch.full((6,), student.sigma_max, dtype=torch.float64)
    expected = mlp_teacher.double()(z, sigma, label)
    torch.testing.assert_close(student.F(z, sigma, label), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("anchored", [False, True])
def test_the_student_starts_as_a_copy_of_its_teachers_network(mlp_teacher, anchored):
    student = TrajectoryStudent.from_teacher(mlp_teacher, anchored=anchored)
    assert student.network.state_dict().keys() == mlp_teacher.network.state_dict().keys()
    for name, weight in mlp_teacher.network.state_dict().items():
        assert torch.equal(student.network.state_dict()[name], weight)
    with torch.no_grad():
        next(student.parameters()).add_(1)
    assert not torch.equal(next(student.parameters()), next(mlp_teacher.parameters()))
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not student.network.training


def test_a_student_of_a_teacher_without_a_network_needs_one(gaussian, mlp_student):
    student = TrajectoryStudent.from_teacher(gaussian, network=mlp_student.network)
    for name in ("sigma_min", "sigma_max", "sigma_data", "sample_shape", "num_classes"):
        assert getattr(student, name) == getattr(gaussian, name)
    with pytest.raises(PidistillError, match="mixture:gaussian has no network"):
        TrajectoryStudent.from_teacher(gaussian)


# --- its file, and its precision


@every_parametrisation
def test_a_student_comes_back_as_it_was(tmp_path, mlp_teacher, name):
    student = TRAJECTORIES[name].from_teacher(mlp_teacher, anchored=True)
    write_description(tmp_path, student, 0)
    write_tensors(tmp_path / "student.safetensors", dict(student.state_dict()))
    again = load_student(tmp_path)
    assert type(again) is TRAJECTORIES[name]
    assert describe(again) == describe(student)
    assert torch.equal(again.generate(4, seed=0).x, student.generate(4, seed=0).x)


@pytest.mark.parametrize(("name", "bound"), [("linear", 1e-5), ("edm", 1e-5), ("soft", 2e-3)])
def test_what_single_precision_costs(mlp_teacher, name, bound):
    """Largest error of the published difference on its grid, in units of D: z cancels but for soft.

    There numbers of size sigma_max remain in the difference, and their rounding in the residual.
    """
    student = TRAJECTORIES[name].from_teacher(mlp_teacher)
    sigma = karras_sigmas(250, 0.002, 80.0)
    z = 80 * Draws(0, 0, 250).normal("z", (1, 4, 4))
    scheme = OneSided(0.002, 80.0, 250)

    def intercept(dtype):
        model, noise = student.to(dtype), z.to(dtype)

        def F(nodes):
            repeated = noise.repeat(len(nodes), 1, 1, 1)
            return model.F(repeated, nodes.flatten()).unflatten(0, (len(nodes), -1))

        with torch.no_grad():
            return scheme(F, model.share, sigma).intercept.double()

    error = (intercept(torch.float32) - intercept(torch.float64)).flatten(1).norm(dim=1) / 4
    assert error.max().item() < bound
    if name == "soft":
        assert error.max().item() > 5e-5
