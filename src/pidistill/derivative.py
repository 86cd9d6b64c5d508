r"""Schemes for the student's derivative, in a form from which the starting noise `z` cancels.

The student is $x(z, \sigma) = s z + (1 - s) F(\sigma)$ with $s = \frac{\sigma}{\sigma_{max}}$. Its
tangent meets $\sigma = 0$ at

$$x - \sigma \frac{dx}{d\sigma} = F - \sigma (1 - s) \frac{dF}{d\sigma}$$

where `z` has dropped out, which avoids cancellation between terms of size `sigma_max` (identity 1
of docs/mathematics.md). For a finite difference, the intercept is an affine combination of F at a
few noise levels. Every scheme returns F and the intercept.

Noise levels and weights are float64: there are few of them, and the weights (up to 50 at N = 250)
amplify every rounding error.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pidistill.schedule import karras_sigmas

RawStudent = Callable[[Tensor], Tensor]
"""F as a function of noise levels (m, b), returning (m, b, ...) from one evaluation of m * b."""
Share = Callable[[Tensor], Tensor]
"""s as a function of noise levels of any shape (`TrajectoryStudent.share`)."""


class Point(NamedTuple):
    """The student at one noise level per sample."""

    sigma: Tensor
    """Where the ODE is evaluated, shape (b,), float64."""
    F: Tensor
    """F(sigma), shape (b, ...)."""
    intercept: Tensor
    """x - sigma dx/dsigma, shape (b, ...): where the tangent or chord meets sigma = 0."""


class DerivativeScheme(Protocol):
    """A way to compute the student's derivative."""

    @property
    def order(self) -> float:
        """Order of the error in the step size; infinite if the derivative is exact."""

    @property
    def evaluations(self) -> int:
        """Student evaluations per point; a jvp counts as two."""

    def __call__(self, F: RawStudent, s: Share, sigma: Tensor) -> Point:
        """Differentiate the student given by F and s at noise levels `sigma` (b,), float64."""
        ...


def chord_intercept(sigma_i: Tensor, sigma_j: Tensor, s: Share) -> Tensor:
    r"""Weights of F(sigma_i) and F(sigma_j) in the intercept of the chord through both points.

    The chord through $(\sigma_i, x_i)$ and $(\sigma_j, x_j)$ meets $\sigma = 0$ at
    $\frac{\sigma_i x_j - \sigma_j x_i}{\sigma_i - \sigma_j}$, where the terms in `z` cancel.
    Returns shape (2, b); the weights sum to 1.
    """
    gap = sigma_i - sigma_j
    return torch.stack([-sigma_j * (1 - s(sigma_i)) / gap, sigma_i * (1 - s(sigma_j)) / gap])


def _combine(weights: Tensor, values: Tensor) -> Tensor:
    """Sum `weights` (m, b) times `values` (m, b, ...) over the first axis."""
    weights = weights.to(values).reshape(*weights.shape, *([1] * (values.ndim - 2)))
    return (weights * values).sum(0)


@dataclasses.dataclass(frozen=True)
class OneSided:
    """The published difference: node `i` of the rho-7 grid with `i + 1`, the last with N - 2.

    Zero residual on the nodes 0 .. N - 2 is equivalent to Euler's method on the grid.
    """

    sigma_min: float
    sigma_max: float
    num_nodes: int = 250
    order: float = 1
    evaluations: int = 2

    def __call__(self, F: RawStudent, s: Share, sigma: Tensor) -> Point:
        """See `DerivativeScheme`; for levels between nodes, the partner is the next node below."""
        nodes = karras_sigmas(self.num_nodes, self.sigma_min, self.sigma_max, device=sigma.device)
        index = torch.searchsorted(-nodes, -sigma, right=True)
        index = torch.where(index < self.num_nodes, index, self.num_nodes - 2)
        partner = nodes[index]
        values = F(torch.stack([sigma, partner]))
        return Point(sigma, values[0], _combine(chord_intercept(sigma, partner, s), values))


STEP = 0.1
"""Width of a central difference in ln(sigma) in single precision."""
EPSILONS = 64
"""Least width of a central difference in a coarser type, in machine epsilons. The residual's noise
is the rounding error over the width; docs/numeric-traps.md has the measurements."""


def step_for(precision: torch.dtype) -> float:
    """The width of a central difference for a student evaluated in `precision`."""
    return max(STEP, EPSILONS * torch.finfo(precision).eps)


@dataclasses.dataclass(frozen=True)
class Central:
    """The chord between `sigma * exp(+step/2)` and `sigma * exp(-step/2)`, evaluated at `sigma`.

    The upper end is clamped to `sigma_max`; the interval keeps its width in ln(sigma), and the
    point moves to its geometric mean.
    """

    sigma_max: float
    step: float = STEP
    order: float = 2
    evaluations: int = 2

    def __call__(self, F: RawStudent, s: Share, sigma: Tensor) -> Point:
        """See `DerivativeScheme`."""
        upper = (sigma * math.exp(self.step / 2)).clamp(max=self.sigma_max)
        lower = upper * math.exp(-self.step)
        middle = (upper * lower).sqrt()
        nodes = torch.stack([upper, lower])
        values = F(nodes)
        t = (middle - lower) / (upper - lower)
        of_x = torch.stack([t, 1 - t])
        of_F = of_x * (1 - s(nodes)) / (1 - s(middle))
        intercept = _combine(chord_intercept(upper, lower, s), values)
        return Point(middle, _combine(of_F, values), intercept)


@dataclasses.dataclass(frozen=True)
class ForwardMode:
    """The exact derivative, by a forward-mode Jacobian-vector product."""

    order: float = math.inf
    evaluations: int = 2

    def __call__(self, F: RawStudent, s: Share, sigma: Tensor) -> Point:
        """See `DerivativeScheme`."""
        sigma = sigma.contiguous()  # forward mode rejects expanded tensors
        tangent = sigma * (1 - s(sigma))
        value, change = torch.func.jvp(F, (sigma[None],), (tangent[None],))  # type: ignore[misc]
        return Point(sigma, value[0], value[0] - change[0])
