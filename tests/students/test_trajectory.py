"""Every parametrisation: exact solutions in it, what it pins down, its start, its files."""

import math

import pytest
import torch

from pidistill import PidistillError, initial_noise, load_student
from pidistill.derivative import Central, ForwardMode, LogOdds, OneSided
from pidistill.distance import l2
from pidistill.methods.pid import boundary_penalty, pid_loss
from pidistill.model_folder import KINDS, describe, write_description
from pidistill.noise import Draws
from pidistill.precondition import EDMPrecondition, VPPrecondition
from pidistill.precondition.discrete import DiscreteVPPrecondition
from pidistill.residual import RESIDUALS, data_form
from pidistill.schedule import karras_sigmas
from pidistill.storage import write_tensors
from pidistill.students.parametrisations import LAST_TOLD, PARAMETRISATIONS, SoftTrajectoryStudent
from pidistill.students.trajectory import TrajectoryStudent
from pidistill.teachers.mixture import MixtureDenoiser, gaussian_trajectory

PINNED = [name for name in PARAMETRISATIONS if name != "soft"]
LEVELS = [80.0, 79.99, 60.0, 5.0, 0.3, 0.02, 0.002]

every_parametrisation = pytest.mark.parametrize("name", PARAMETRISATIONS)
every_pinned_one = pytest.mark.parametrize("name", PINNED)


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
        if self.name == "log-odds":
            sigma = sigma / (1 + sigma / S)
        F = self.gaussian_F(u, sigma[:, 0].log() / 4)
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
        return PARAMETRISATIONS[name].from_teacher(gaussian, network=network)

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
def test_the_exact_student_follows_the_exact_trajectory(exact, gaussian, z, name, sigma):
    levels = torch.full((5,), sigma, dtype=torch.float64)
    expected = gaussian_trajectory(gaussian, z, levels)
    torch.testing.assert_close(exact(name)(z, levels), expected, rtol=1e-11, atol=1e-11)


@every_parametrisation
@pytest.mark.parametrize("form", RESIDUALS)
@pytest.mark.parametrize("sigma", LEVELS)
def test_the_exact_student_has_no_loss(exact, gaussian, z, name, form, sigma):
    student = exact(name)
    scheme = ForwardMode(student.pinned_at)
    size = 1.0 if form == "data" else 1 / sigma**2
    left = loss_at(student, gaussian, z, sigma, scheme, RESIDUALS[form])
    cut = name == "log-odds" and sigma == 80  # the time that the network is told has to end
    assert left.max() < (1e-16 if cut else 1e-22) * size
    with torch.no_grad():
        student.network.scale *= 1.001
    off = loss_at(student, gaussian, z, sigma, scheme, RESIDUALS[form])
    assert off.min() > 1e-18 * size


@every_parametrisation
@pytest.mark.parametrize("sigma", [80.0, 40.0, 5.0, 0.5, 0.002])
def test_central_differences_have_their_order_in_every_parametrisation(
    exact, gaussian, z, name, sigma
):
    student = exact(name)
    kinds = [lambda step: Central(80.0, step, pinned_at=student.pinned_at)]
    kinds += [lambda step: LogOdds(80.0, step)] if name in PINNED else []
    for kind in kinds:
        errors = [
            loss_at(student, gaussian, z, sigma, kind(step)).mean().sqrt() for step in (0.1, 0.05)
        ]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@every_parametrisation
@pytest.mark.parametrize("share", [0.25, 0.5, 1])
def test_the_one_sided_difference_has_its_order_in_every_parametrisation(
    exact, gaussian, z, name, share
):
    student, errors = exact(name), []
    for num_nodes in (129, 257):
        sigma = karras_sigmas(num_nodes, 0.002, 80.0)[int(share * (num_nodes - 1))].item()
        scheme = OneSided(0.002, 80.0, num_nodes, pinned_at=student.pinned_at)
        errors.append(loss_at(student, gaussian, z, sigma, scheme).mean().sqrt())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)


@every_pinned_one
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pinned_student_starts_at_its_noise_exactly(mlp_teacher, name, anchored, dtype):
    student = PARAMETRISATIONS[name].from_teacher(mlp_teacher, anchored=anchored)
    z = initial_noise(student, 20, seed=0).to(dtype)
    sigma = torch.full((20,), student.sigma_max, dtype=torch.float64)
    assert torch.equal(student(z, sigma, torch.arange(20) % 3), z)
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
    student = SoftTrajectoryStudent.from_teacher(mlp_teacher).double()
    z = initial_noise(student, 4, seed=0).double()
    for sigma in (80.0, 1.0, 0.002):
        levels = torch.full((4,), sigma, dtype=torch.float64)
        raw = student.network(z / math.sqrt(80**2 + 0.25), levels.log() / 4)
        torch.testing.assert_close(student(z, levels), math.sqrt(sigma**2 + 0.25) * raw)


def test_a_silent_network_is_exact_for_gaussian_data_in_edms_form():
    """The skip is the trajectory of centred Gaussian data of standard deviation sigma_data."""
    teacher = MixtureDenoiser(torch.zeros(1, 3), torch.full((1, 1), 0.49), sigma_max=20.0)
    network = torch.nn.Linear(3, 3).double()
    network.forward = lambda u, c_noise, label=None: 0 * u
    student = PARAMETRISATIONS["edm"].from_teacher(teacher, network=network)
    z = initial_noise(teacher, 6, seed=0).double()
    sigma = torch.tensor([20.0, 19.0, 3.0, 0.7, 0.05, 0.002], dtype=torch.float64)
    torch.testing.assert_close(student(z, sigma), gaussian_trajectory(teacher, z, sigma))
    for level in sigma.tolist():
        assert loss_at(student, teacher, z, level, ForwardMode(20.0)).max() < 1e-24


@pytest.mark.parametrize("precondition", [EDMPrecondition(), VPPrecondition()])
@pytest.mark.parametrize("name", ["linear", "edm"])
def test_an_anchored_copy_starts_with_the_exact_answer_at_sigma_max(
    mlp_teacher, precondition, name
):
    """For log-odds it does not: there the network is told another time than the teacher's."""
    mlp_teacher.precondition = precondition
    mlp_teacher.sigma_min, mlp_teacher.sigma_max = precondition.sigma_min, precondition.sigma_max
    student = PARAMETRISATIONS[name].from_teacher(mlp_teacher, anchored=True).double()
    z = initial_noise(student, 6, seed=0).double()
    sigma = torch.full((6,), student.sigma_max, dtype=torch.float64)
    expected = mlp_teacher.double()(z, sigma)
    torch.testing.assert_close(student.F(z, sigma), expected, rtol=1e-10, atol=1e-10)


def test_in_edms_form_anchoring_changes_next_to_nothing_for_an_edm_teacher(mlp_teacher):
    plain, anchored = (
        PARAMETRISATIONS["edm"].from_teacher(mlp_teacher, anchored=flag) for flag in (False, True)
    )
    sigma = karras_sigmas(20, 0.002, 80.0)
    for one, other in zip(plain.scales(sigma), anchored.scales(sigma), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-12)


def test_log_odds_conditioning_is_the_published_one_far_below_sigma_max(mlp_teacher):
    student = PARAMETRISATIONS["log-odds"].from_teacher(mlp_teacher)
    sigma = torch.tensor([0.002, 0.08, 8.0, 40.0, 79.0], dtype=torch.float64)
    told = student.scales(sigma).c_noise
    torch.testing.assert_close(told, (sigma / (1 - sigma / 80)).log() / 4)
    assert (told[:2] - sigma[:2].log() / 4).abs().max() < 1e-3 / 4 * 1.01
    last = student.scales(torch.tensor([80.0], dtype=torch.float64)).c_noise
    assert last.item() == pytest.approx((math.log(80) + LAST_TOLD) / 4)


def test_log_odds_conditioning_is_refused_where_timesteps_end(mlp_student):
    table = [0.999 * 0.99**i for i in range(100)]
    precondition = DiscreteVPPrecondition(table, sigma_min=0.1, sigma_max=1.2)
    with pytest.raises(PidistillError, match=r"'log-odds', .* a table that ends; choose linear"):
        PARAMETRISATIONS["log-odds"](
            mlp_student.network, precondition, sample_shape=(1, 4, 4), source="a test"
        )


@every_parametrisation
def test_a_student_comes_back_as_it_was(tmp_path, mlp_teacher, name):
    student = PARAMETRISATIONS[name].from_teacher(mlp_teacher, anchored=True)
    write_description(tmp_path, student, 0)
    write_tensors(tmp_path / "student.safetensors", dict(student.state_dict()))
    again = load_student(tmp_path)
    assert type(again) is PARAMETRISATIONS[name]
    assert describe(again) == describe(student)
    assert torch.equal(again.generate(4, seed=0).x, student.generate(4, seed=0).x)


def test_every_parametrisation_has_a_kind_of_its_own():
    assert len(set(PARAMETRISATIONS.values())) == len(PARAMETRISATIONS)
    assert set(PARAMETRISATIONS.values()) <= set(KINDS.values())
    assert PARAMETRISATIONS["linear"] is TrajectoryStudent


@pytest.mark.parametrize(
    ("name", "bound"), [("linear", 1e-5), ("edm", 1e-5), ("log-odds", 1e-5), ("soft", 2e-3)]
)
def test_what_single_precision_costs(mlp_teacher, name, bound):
    """Largest error of the published difference on its grid, in units of D: z cancels but for soft.

    There numbers of size sigma_max remain in the difference, and their rounding in the residual.
    """
    student = PARAMETRISATIONS[name].from_teacher(mlp_teacher)
    sigma = karras_sigmas(250, 0.002, 80.0)
    z = 80 * Draws(0, 0, 250).normal("z", (1, 4, 4))
    scheme = OneSided(0.002, 80.0, 250, pinned_at=student.pinned_at)

    def balance(dtype):
        model, noise = student.to(dtype), z.to(dtype)

        def F(nodes):
            repeated = noise.repeat(len(nodes), 1, 1, 1)
            return model.F(repeated, nodes.flatten()).unflatten(0, (len(nodes), -1))

        with torch.no_grad():
            return scheme(F, sigma).F_minus_dF_dtau.double()

    error = (balance(torch.float32) - balance(torch.float64)).flatten(1).norm(dim=1) / 4
    assert error.max().item() < bound
    if name == "soft":
        assert error.max().item() > 5e-5
