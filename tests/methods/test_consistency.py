"""Consistency distillation: its boundary, what minimises its loss, its target and its samples."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidistill import PidistillError, initial_noise
from pidistill.denoiser import over_sample
from pidistill.distance import l2
from pidistill.methods.consistency import consistency_loss
from pidistill.model_folder import build_model, describe
from pidistill.noise import Draws
from pidistill.ode import SOLVERS, path, sampling_sigmas
from pidistill.precondition import PRECONDITIONS
from pidistill.schedule import karras_sigmas
from pidistill.students.consistency import ConsistencyStudent

from method_runs import make_trainer, small

ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).tolist()
TABLES = {
    **{name: {} for name in ("edm", "vp", "ve", "iddpm", "edm_timestep")},
    "discrete_vp": {"alphas_cumprod": ALPHAS, "sigma_min": 0.02, "sigma_max": 80.0},
    "discrete_ve": {},
    "sub_vp": {},
    "flow": {"sigma_min": 0.002, "sigma_max": 80.0},
}


def test_every_preconditioning_is_tested():
    assert set(TABLES) == set(PRECONDITIONS)


function_fixtures_are_fine = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class GaussianConsistency(torch.nn.Module):
    """The raw network whose consistency function is exact for a Gaussian.

    Along a principal axis of variance v, f(x, sigma) = m + g (x - m) with the growth
    g = sqrt((v + sigma_min^2) / (v + sigma^2)); this is solved for F.
    """

    def __init__(self, gaussian):
        super().__init__()
        self.gaussian = gaussian
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, u, c_noise, label=None):
        gaussian, sigma = self.gaussian, (4 * c_noise).exp()[:, None]
        low, v, basis = gaussian.sigma_min, gaussian.variances[0], gaussian.basis[0]
        data = gaussian.sigma_data
        x = u * (sigma**2 + data**2).sqrt()
        g = ((v + low**2) / (v + sigma**2)).sqrt()
        mean = gaussian.means[0]
        end = mean + (g * ((x - mean) @ basis)) @ basis.T
        c_skip = data**2 / ((sigma - low) ** 2 + data**2)
        c_out = data * (sigma - low) / (sigma**2 + data**2).sqrt()
        return self.scale * torch.where(c_out > 0, (end - c_skip * x) / c_out, 0.0)


@pytest.fixture
def exact(gaussian):
    """The exact consistency function of the Gaussian."""
    return ConsistencyStudent.from_teacher(gaussian, network=GaussianConsistency(gaussian))


def points(gaussian, sigma, seed=0):
    """Noisy samples of the Gaussian at `sigma` (b,), float64."""
    draws = Draws(seed, 0, len(sigma))
    x0 = gaussian.draw(len(sigma), torch.Generator().manual_seed(seed))
    return x0 + over_sample(sigma, x0) * draws.normal("eps", gaussian.sample_shape)


# The boundary, by construction


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("table", TABLES)
def test_at_sigma_min_the_student_is_its_input_exactly(mlp_teacher, table, dtype):
    precondition = PRECONDITIONS[table](**TABLES[table])
    student = ConsistencyStudent(
        mlp_teacher.network, precondition, sample_shape=(1, 4, 4), num_classes=3, source="test"
    )
    x = Draws(0, 0, 6).normal("x", (1, 4, 4)).to(dtype)
    sigma = torch.full((6,), student.sigma_min, dtype=dtype)
    assert torch.equal(student(x, sigma), x)


def test_an_edm_student_has_the_published_scales(mlp_teacher):
    """Song et al. 2023, appendix C."""
    student = ConsistencyStudent.from_teacher(mlp_teacher)
    sigma = karras_sigmas(30, 0.002, 80.0)
    c_skip, c_out, c_in, c_noise = student.scales(sigma)
    torch.testing.assert_close(c_skip, 0.25 / ((sigma - 0.002) ** 2 + 0.25), rtol=1e-14, atol=0)
    expected = 0.5 * (sigma - 0.002) / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(c_out, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(c_in, (sigma**2 + 0.25).rsqrt(), rtol=1e-14, atol=0)
    assert torch.equal(c_noise, sigma.log() / 4)


@pytest.mark.parametrize("table", TABLES)
def test_a_copy_of_any_network_starts_near_its_denoiser(mlp_teacher, table):
    """f = D but for the boundary: |f - D| <= sigma_min / sigma |D| + O(sigma_min)."""
    precondition = PRECONDITIONS[table](**TABLES[table])
    mlp_teacher.precondition = precondition
    student = ConsistencyStudent.from_teacher(mlp_teacher).double()
    teacher = mlp_teacher.double()
    for level in (1.0, 5.0, 60.0):
        sigma = torch.full((6,), level, dtype=torch.float64)
        x = over_sample(sigma, torch.empty(6, 1, 4, 4)) * Draws(0, 0, 6).normal("x", (1, 4, 4))
        size = x.abs().max().item() + teacher(x, sigma).abs().max().item()
        gap = (student(x, sigma) - teacher(x, sigma)).abs().max().item()
        assert gap < 10 * precondition.sigma_min * size / min(level, 1)


def test_it_comes_back_from_a_model_folder(mlp_teacher):
    student = ConsistencyStudent.from_teacher(mlp_teacher)
    again = build_model(describe(student), "a test")
    assert isinstance(again, ConsistencyStudent)
    assert describe(again) == describe(student)


# The loss


def exact_loss(exact, gaussian, num_nodes, solver="heun"):
    """The losses of the exact answer at every node but the last."""
    nodes = karras_sigmas(num_nodes, gaussian.sigma_min, gaussian.sigma_max)
    x, levels = points(gaussian, nodes[:-1]), (nodes[:-1], nodes[1:])
    options = {"solver": SOLVERS[solver], "distance": l2}
    return consistency_loss(exact, exact, gaussian, x, *levels, None, **options).mean().item()


@pytest.mark.parametrize(("solver", "order"), [("heun", 3), ("euler", 2)])
def test_the_exact_answer_leaves_only_the_error_of_a_step(gaussian, exact, solver, order):
    """The residual of the exact function falls with N like one step's local error."""
    coarse, fine = (exact_loss(exact, gaussian, num, solver) ** 0.5 for num in (100, 200))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_the_exact_answer_is_a_minimum(gaussian, exact):
    losses = {}
    for scale in (0.95, 1.0, 1.05):
        exact.network.scale.data.fill_(scale)
        losses[scale] = exact_loss(exact, gaussian, 200)
    assert losses[1.0] < 1e-3 * min(losses[0.95], losses[1.05])


def test_a_zero_loss_is_the_teachers_solution_on_the_grid(gaussian):
    """If f(x_i) = f(x_{i+1}) at every node of a path by Heun's method, f(z) is that path's end."""
    nodes = sampling_sigmas(gaussian, 18, final_zero=False)
    z = initial_noise(gaussian, 5, seed=0).double()
    ends = list(path(gaussian, z, nodes))
    f = ends[-1].x
    for node in ends[:-1]:
        index = [round(n.sigma, 9) for n in ends].index(round(node.sigma, 9))
        levels = nodes[index].expand(5), nodes[index + 1].expand(5)
        loss = consistency_loss(
            lambda *_: f, lambda x, *_: f, gaussian, node.x, *levels, None,
            solver=SOLVERS["heun"], distance=l2,
        )  # fmt: skip
        assert loss.max() == 0
        step = SOLVERS["heun"].step(gaussian, node.x, *levels, None).x
        torch.testing.assert_close(step, ends[index + 1].x, rtol=1e-12, atol=1e-12)


# The target


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_the_target_follows_the_student_at_its_rate(tmp_path, mu):
    config = small("consistency", method={"name": "consistency", "mu": mu})
    trainer = make_trainer(config, tmp_path)
    method = trainer.method
    weights = dict(method.student.named_parameters())
    expected = {name: weight.detach().clone() for name, weight in weights.items()}
    for _ in trainer.run():
        for name, weight in weights.items():
            expected[name].mul_(mu).add_(weight.detach(), alpha=1 - mu)
        for name, weight in method.target.named_parameters():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-7)
            assert not weight.requires_grad
    moved = torch.equal(method.target.network.output.weight, weights["network.output.weight"])
    assert moved == (mu == 0)


# Samples


@pytest.fixture
def student(mlp_teacher):
    return ConsistencyStudent.from_teacher(mlp_teacher)


@function_fixtures_are_fine
@given(
    num=st.integers(1, 12),
    batch_size=st.integers(1, 13),
    seed=st.integers(0, 5),
    steps=st.integers(1, 4),
)
def test_samples_depend_on_seed_and_index_only(student, num, batch_size, seed, steps):
    whole = student.generate(12, seed=seed, steps=steps)
    part = student.generate(num, seed=seed, steps=steps, batch_size=batch_size)
    assert part.nfe == whole.nfe == steps
    torch.testing.assert_close(part.x, whole.x[:num], rtol=0, atol=1e-4)


def test_several_steps_by_hand(student):
    """Algorithm 1 of Song et al. 2023, with three evaluations."""
    student = student.double()
    z = initial_noise(student, 3, seed=7).double()
    sigmas = karras_sigmas(4, student.sigma_min, student.sigma_max)
    x = student(z, sigmas[:1].expand(3))
    for step in (1, 2):
        eps = Draws(7, 0, 3).normal(f"sampling step {step}", student.sample_shape)
        x = x + (sigmas[step] ** 2 - student.sigma_min**2).sqrt() * eps
        x = student(x, sigmas[step].expand(3))
    solution = student.sample(z, steps=3, draws=Draws(7, 0, 3))
    assert solution.nfe == 3
    torch.testing.assert_close(solution.x, x)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_exact_student_samples_the_data_in_any_number_of_steps(gaussian, exact, steps):
    x = exact.generate(20_000, seed=0, steps=steps, batch_size=5000).x.double()
    variance = gaussian.variances[0] + gaussian.sigma_min**2
    covariance = gaussian.basis[0] @ variance.diag() @ gaussian.basis[0].T
    torch.testing.assert_close(x.mean(0), gaussian.means[0], rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.02)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(student, steps):
    with pytest.raises(PidistillError, match=f"steps is {steps}"):
        student.generate(2, seed=0, steps=steps)
