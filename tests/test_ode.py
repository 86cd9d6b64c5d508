"""Solvers of the probability-flow ODE, against exact trajectories."""

import math

import pytest
import torch

from pidistill import PidistillError, initial_noise, solve
from pidistill.ode import SOLVERS, path, sampling_sigmas
from pidistill.schedule import karras_sigmas
from pidistill.teachers.mixture import gaussian_trajectory


class Counted(torch.nn.Module):
    """A denoiser that counts how many samples it is asked for."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.evaluations = 0

    def forward(self, x, sigma, label=None):
        self.evaluations += len(x)
        return self.denoiser(x, sigma, label)


@pytest.fixture
def z(gaussian):
    return initial_noise(gaussian, 6, seed=0).double()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_has_the_order_that_it_declares(gaussian, z, solver):
    exact = gaussian_trajectory(gaussian, z, torch.full((6,), gaussian.sigma_min))
    errors = []
    for num_nodes in (65, 129):
        sigmas = karras_sigmas(num_nodes, gaussian.sigma_min, gaussian.sigma_max)
        errors.append((solve(gaussian, z, sigmas=sigmas, solver=solver).x - exact).norm())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(SOLVERS[solver].order, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [2, 3, 18])
def test_a_solution_says_what_it_cost(gaussian, z, solver, steps):
    counted = Counted(gaussian)
    solution = solve(counted, z, steps=steps, solver=solver)
    assert solution.nfe == (2 * steps - 1 if solver == "heun" else steps)
    assert counted.evaluations == 6 * solution.nfe


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solution_is_the_last_node_of_the_path(gaussian, z, solver):
    sigmas = sampling_sigmas(gaussian, 7)
    nodes = list(path(gaussian, z, sigmas, solver=solver))
    solution = solve(gaussian, z, steps=7, solver=solver)
    assert [node.sigma for node in nodes] == sigmas.tolist()
    assert torch.equal(nodes[0].x, z)
    assert torch.equal(nodes[-1].x, solution.x)
    assert nodes[-1].nfe == solution.nfe


def test_the_last_step_goes_to_zero_and_lands_on_the_denoiser(gaussian, z):
    *_, before, last = path(gaussian, z, sampling_sigmas(gaussian, 7))
    levels = torch.full((6,), before.sigma, dtype=torch.float64)
    torch.testing.assert_close(last.x, gaussian(before.x, levels), rtol=1e-12, atol=1e-12)


def test_without_the_last_step_it_ends_at_sigma_min(gaussian):
    sigmas = sampling_sigmas(gaussian, 7, final_zero=False)
    assert len(sigmas) == 7
    assert sigmas[-1] == gaussian.sigma_min


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_computation_is_in_the_dtype_of_the_noise(gaussian, z, dtype):
    assert solve(gaussian, z.to(dtype), steps=5).x.dtype == dtype


def test_labels_reach_the_denoiser(mlp_teacher):
    z = initial_noise(mlp_teacher, 3, seed=0)
    label = torch.tensor([0, 1, 2])
    together = solve(mlp_teacher, z, steps=4, label=label).x
    for i in range(3):
        alone = solve(mlp_teacher, z[i : i + 1], steps=4, label=label[i : i + 1]).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, solve(mlp_teacher, z, steps=4).x, atol=1e-2)


@pytest.mark.parametrize(
    "sigmas", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, 0.5, -0.1], [[2.0, 1.0], [1.0, 0.5]]]
)
def test_noise_levels_that_do_not_decrease_are_refused(gaussian, z, sigmas):
    with pytest.raises(PidistillError, match="strictly decreasing"):
        solve(gaussian, z, sigmas=torch.tensor(sigmas))


def test_bad_arguments_are_refused_by_name(gaussian, z):
    with pytest.raises(PidistillError, match="unknown solver 'rk4'; expected one of euler, heun"):
        solve(gaussian, z, steps=4, solver="rk4")
    for steps in (None, 0, 1):
        with pytest.raises(PidistillError, match=f"steps is {steps}"):
            solve(gaussian, z, steps=steps)
    with pytest.raises(PidistillError, match="steps is 4, but sigmas has 3 levels"):
        solve(gaussian, z, steps=4, sigmas=torch.tensor([2.0, 1.0, 0.5]))
