r"""Schemes for the student's derivative, in the form in which the starting noise `z` cancels.

The student is $x(z, \sigma) = \frac{\sigma}{\sigma_{max}} z
+ (1 - \frac{\sigma}{\sigma_{max}}) F(\sigma)$, so with log-odds time
$\tau = \ln\frac{\sigma}{\sigma_{max} - \sigma}$

$$x - \sigma \frac{dx}{d\sigma} = F - \frac{dF}{d\tau}$$

and `z` is gone: nothing of size `sigma_max` is left to be subtracted. A difference of the student
is an affine combination of F at a few noise levels. Every scheme returns F and F - dF/dtau.

A student that is not pinned at `sigma_max` is the same with an infinite level in its place
(`TrajectoryStudent.pinned_at`): then $x = F$, $\tau$ is $\ln \sigma$ up to a constant, and nothing
cancels any more.

Noise levels and weights are float64 and on the CPU: there are few of them, and the weights (up to
50 at N = 250) multiply every rounding error.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pidistill.schedule import from_log_odds, karras_sigmas, log_odds

RawStudent = Callable[[Tensor], Tensor]
"""F as a function of noise levels (m, b), giving (m, b, ...), for the m * b at once."""


class Point(NamedTuple):
    """The student at one noise level a sample."""

    sigma: Tensor
    """Where the equation is posed, shape (b,), float64."""
    F: Tensor
    """F(sigma), shape (b, ...)."""
    F_minus_dF_dtau: Tensor
    """F - dF/dtau = x - sigma dx/dsigma, shape (b, ...)."""


class DerivativeScheme(Protocol):
    """A way to take the student's derivative."""

    @property
    def order(self) -> float:
        """Order of the error in the step size; infinite where the derivative is exact."""

    @property
    def evaluations(self) -> int:
        """Student evaluations that one point costs (a jvp counts as two)."""

    def __call__(self, F: RawStudent, sigma: Tensor) -> Point:
        """Evaluate the student `F` at the noise levels `sigma`, shape (b,), float64."""
        ...


class Stencil(NamedTuple):
    """Noise levels at which F is evaluated, and the affine weights of the two results."""

    sigma: Tensor
    """Where the equation is posed, shape (b,)."""
    nodes: Tensor
    """Where F is evaluated, shape (m, b)."""
    value: Tensor
    """Weights of F(sigma), shape (m, b); they sum to 1."""
    balance: Tensor
    """Weights of F - dF/dtau, shape (m, b); they sum to 1."""

    def apply(self, F: RawStudent) -> Point:
        """Evaluate F at all nodes in one batched call and combine."""
        values = F(self.nodes)
        return Point(self.sigma, _combine(self.value, values), _combine(self.balance, values))


def _combine(weights: Tensor, values: Tensor) -> Tensor:
    """Sum over the first axis of `weights` (m, b) times `values` (m, b, ...)."""
    weights = weights.to(values).reshape(*weights.shape, *([1] * (values.ndim - 2)))
    return (weights * values).sum(0)


def chord_intercept(sigma_i: Tensor, sigma_j: Tensor, pinned_at: float) -> Tensor:
    r"""Weights of F(sigma_i), F(sigma_j) in `x - sigma dx/dsigma` on the chord through both.

    The chord through $(\sigma_i, x_i)$ and $(\sigma_j, x_j)$ meets $\sigma = 0$ at
    $\frac{\sigma_i x_j - \sigma_j x_i}{\sigma_i - \sigma_j}$; the multiples of `z` in it cancel.
    Identity 1 of docs/mathematics.md. `pinned_at` is `sigma_max`, or infinite where F is x itself.
    Returns shape (2, b).
    """
    gap = sigma_i - sigma_j
    return torch.stack(
        [-sigma_j * (1 - sigma_i / pinned_at) / gap, sigma_i * (1 - sigma_j / pinned_at) / gap]
    )


@dataclasses.dataclass(frozen=True)
class OneSided:
    """The published difference: node `i` of the rho-7 grid with node `i + 1`, the last with N - 2.

    Zero residual on the nodes 0 .. N - 2 is Euler's method on the grid.
    """

    sigma_min: float
    sigma_max: float
    num_nodes: int = 250
    order: float = 1
    evaluations: int = 2
    pinned_at: float | None = None
    """`TrajectoryStudent.pinned_at`; None means `sigma_max`."""

    def __call__(self, F: RawStudent, sigma: Tensor) -> Point:
        """See `DerivativeScheme`; between the nodes, the partner is the next node below."""
        nodes = karras_sigmas(self.num_nodes, self.sigma_min, self.sigma_max)
        index = torch.searchsorted(-nodes, -sigma, right=True)
        index = torch.where(index < self.num_nodes, index, self.num_nodes - 2)
        sigma_j = nodes[index]
        one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
        balance = chord_intercept(sigma, sigma_j, self.pinned_at or self.sigma_max)
        stencil = Stencil(sigma, torch.stack([sigma, sigma_j]), torch.stack([one, zero]), balance)
        return stencil.apply(F)


@dataclasses.dataclass(frozen=True)
class Central:
    """The chord between `sigma * exp(+step/2)` and `sigma * exp(-step/2)`, read at `sigma`.

    Near `sigma_max` the upper end stops there, and the point moves to the middle of what is left.
    """

    sigma_max: float
    step: float = 0.1
    order: float = 2
    evaluations: int = 2
    pinned_at: float | None = None
    """`TrajectoryStudent.pinned_at`; None means `sigma_max`."""

    def __call__(self, F: RawStudent, sigma: Tensor) -> Point:
        """See `DerivativeScheme`."""
        pinned_at = self.pinned_at or self.sigma_max
        upper = (sigma * math.exp(self.step / 2)).clamp(max=self.sigma_max)
        lower = upper * math.exp(-self.step)
        middle = (upper * lower).sqrt()
        share = (middle - lower) / (upper - lower)
        far = 1 - torch.stack([upper, lower]) / pinned_at
        value = torch.stack([share, 1 - share]) * far / (1 - middle / pinned_at)
        balance = chord_intercept(upper, lower, pinned_at)
        return Stencil(middle, torch.stack([upper, lower]), value, balance).apply(F)


LAST_TAU = 12.0
"""Log-odds time that stands for `sigma_max`, where it is infinite: 1 - sigma/sigma_max is 6e-6."""


@dataclasses.dataclass(frozen=True)
class LogOdds:
    """Central difference and mean of F between `tau + step/2` and `tau - step/2`.

    In log-odds time the equation `F - dF/dtau = D` has constant coefficients, and so the weights
    are the same at every noise level (identity 2 of docs/mathematics.md). Only for a student that
    is pinned at `sigma_max`.
    """

    sigma_max: float
    step: float = 0.1
    order: float = 2
    evaluations: int = 2

    def __call__(self, F: RawStudent, sigma: Tensor) -> Point:
        """See `DerivativeScheme`."""
        tau = log_odds(sigma, self.sigma_max).clamp(max=LAST_TAU)
        nodes = torch.stack([tau + self.step / 2, tau - self.step / 2])
        half = torch.full_like(nodes, 0.5)
        slope = torch.tensor([[1.0], [-1.0]], dtype=tau.dtype) / self.step
        return Stencil(
            from_log_odds(tau, self.sigma_max),
            from_log_odds(nodes, self.sigma_max),
            value=half,
            balance=half - slope,
        ).apply(F)


@dataclasses.dataclass(frozen=True)
class ForwardMode:
    """The exact derivative by a Jacobian-vector product in forward mode."""

    pinned_at: float
    """`TrajectoryStudent.pinned_at`."""
    order: float = math.inf
    evaluations: int = 2

    def __call__(self, F: RawStudent, sigma: Tensor) -> Point:
        """See `DerivativeScheme`; `dF/dtau = sigma (1 - sigma/pinned_at) dF/dsigma`."""
        sigma = sigma.contiguous()  # forward mode refuses an expanded tensor
        dsigma_dtau = sigma * (1 - sigma / self.pinned_at)
        value, dF_dtau = torch.func.jvp(F, (sigma[None],), (dsigma_dtau[None],))  # type: ignore[misc]
        return Point(sigma, value[0], value[0] - dF_dtau[0])
