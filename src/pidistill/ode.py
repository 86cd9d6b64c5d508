r"""The probability-flow ODE of a denoiser and its solvers.

$\frac{dx}{d\sigma} = \frac{x - D(x, \sigma)}{\sigma}$, from `sigma_max` down (Karras et al. 2022,
equation 3 in EDM coordinates). A solver step is a plain function; `path` is a generator that yields
every node, `solve` returns the last.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.denoiser import Denoiser, over_sample
from pidistill.errors import PidistillError
from pidistill.schedule import karras_sigmas


class Solution(NamedTuple):
    """Samples and their cost."""

    x: Tensor
    """The samples, shape (b, *sample_shape)."""
    nfe: int
    """Network evaluations per sample (for a single solver step: denoiser calls)."""


def velocity(denoiser: Denoiser, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
    """`dx/dsigma = (x - D(x, sigma)) / sigma`, at `x` (b, ...) and `sigma`, a scalar or (b,)."""
    levels = sigma.to(x).expand(len(x))
    return (x - denoiser(x, levels, label)) / over_sample(levels, x)


def euler(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, label: Tensor | None = None
) -> Solution:
    """One Euler step from `sigma` to `sigma_next` (0 allowed): one evaluation.

    The levels are scalars or, per sample, of shape (b,).
    """
    step = over_sample(sigma_next - sigma, x)
    return Solution(x + step * velocity(denoiser, x, sigma, label), 1)


def heun(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, label: Tensor | None = None
) -> Solution:
    """One Heun step (Karras et al. 2022, algorithm 1): two evaluations, or one if it ends at 0.

    The levels are scalars or, per sample, of shape (b,) and positive.
    """
    step = over_sample(sigma_next - sigma, x)
    dx_dsigma = velocity(denoiser, x, sigma, label)
    x_euler = x + step * dx_dsigma
    if sigma_next.ndim == 0 and sigma_next == 0:
        return Solution(x_euler, 1)
    dx_dsigma_next = velocity(denoiser, x_euler, sigma_next, label)
    return Solution(x + step * (dx_dsigma + dx_dsigma_next) / 2, 2)


@dataclasses.dataclass(frozen=True)
class Solver:
    """A step function and the order of its global error in the step size."""

    step: Callable[[Denoiser, Tensor, Tensor, Tensor, Tensor | None], Solution]
    order: int


SOLVERS = {"euler": Solver(euler, order=1), "heun": Solver(heun, order=2)}


class Node(NamedTuple):
    """One point on a solved path."""

    sigma: float
    x: Tensor
    nfe: int
    """Network evaluations per sample so far."""


def sampling_sigmas(denoiser: Denoiser, steps: int, *, final_zero: bool = True) -> Tensor:
    """The rho-7 grid of `steps` nodes over the denoiser's range, by default followed by 0.

    With `final_zero` the solver takes `steps` steps, the last from `sigma_min` to 0 as in EDM;
    without it, `steps - 1` steps, ending at `sigma_min`.
    """
    nodes = karras_sigmas(steps, denoiser.sigma_min, denoiser.sigma_max)
    return torch.cat([nodes, nodes.new_zeros(1)]) if final_zero else nodes


@torch.no_grad()
def path(
    denoiser: Denoiser,
    z: Tensor,
    sigmas: Tensor,
    *,
    solver: str = "heun",
    label: Tensor | None = None,
) -> Iterator[Node]:
    """Solve the ODE from `z` at `sigmas[0]` along the decreasing `sigmas`, yielding every node.

    Raises `PidistillError` if the solver is unknown or the levels do not decrease towards 0.
    """
    if solver not in SOLVERS:
        raise PidistillError(f"unknown solver {solver!r}; expected one of {', '.join(SOLVERS)}")
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
    if sigmas.ndim != 1 or len(sigmas) < 2 or (sigmas.diff() >= 0).any() or sigmas[-1] < 0:
        raise PidistillError(
            f"sigmas is {sigmas.tolist()}; expected at least two strictly decreasing noise levels; "
            "the last may be 0"
        )
    x, nfe = z, 0
    yield Node(sigmas[0].item(), x, nfe)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x, evaluations = SOLVERS[solver].step(denoiser, x, sigma, sigma_next, label)
        # Any callable with a denoiser's signature works, such as a wrapper that counts calls.
        nfe += evaluations * getattr(denoiser, "evaluations_per_call", 1)
        yield Node(sigma_next.item(), x, nfe)


def solve(
    denoiser: Denoiser,
    z: Tensor,
    *,
    steps: int | None = None,
    solver: str = "heun",
    label: int | Tensor | None = None,
    sigmas: Tensor | None = None,
) -> Solution:
    """Draw samples by integrating the probability-flow ODE from `z`.

    Args:
        denoiser: The teacher.
        z: Starting noise at `sigma_max` (see `initial_noise`), shape (b, *sample_shape); the
            computation uses its dtype.
        steps: Number of nodes of the rho-7 grid. The last step goes to sigma 0, so Heun takes
            `2 * steps - 1` evaluations and Euler `steps`.
        solver: `"heun"` or `"euler"`.
        label: Class labels (b,), int64, or one label for all; None means unconditional.
        sigmas: Decreasing noise levels to step through, instead of the grid of `steps` nodes.

    Raises:
        PidistillError: The solver is unknown, there are fewer than 2 nodes, or `steps` and `sigmas`
            contradict each other.
    """
    if sigmas is None:
        if steps is None or steps < 2:
            raise PidistillError(f"steps is {steps}; the solver needs at least 2 nodes")
        sigmas = sampling_sigmas(denoiser, steps)
    elif steps is not None and steps != len(sigmas) - 1:
        raise PidistillError(
            f"steps is {steps}, but sigmas has {len(sigmas)} levels, which is "
            f"{len(sigmas) - 1} steps; omit one of the two"
        )
    if label is not None:
        label = torch.as_tensor(label, device=z.device).expand(len(z))
    *_, last = path(denoiser, z, sigmas, solver=solver, label=label)
    return Solution(last.x, last.nfe)
