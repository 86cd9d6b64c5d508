r"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017).

$d^2 = |\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError

BLOCK = 1000
"""Features whose moments are taken at once; fixed, so that no other split of them shows."""


class Statistics(NamedTuple):
    """Mean and covariance of features."""

    mean: Tensor
    """Shape (d,), float64, on the CPU."""
    covariance: Tensor
    """Shape (d, d), float64, on the CPU, with the unbiased normalisation."""


class Moments:
    """Mean and covariance in one pass over features, in memory that does not grow with them.

    Blocks are merged in the order that they come in (Chan, Golub & LeVeque 1979), in float64 and
    about the mean so far, so that features far from zero keep their digits.
    """

    def __init__(self) -> None:
        """Begin with no features."""
        self.num = 0
        self.mean: Tensor | None = None
        self.comoment: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Take in a block of features (n, d), on any device.

        Raises `PidistillError` when one of them is not finite.
        """
        if not features.isfinite().all():
            raise PidistillError("a feature is not finite; are the samples?")
        block = in_float64(features)
        mean = block.mean(0)
        block = block - mean
        comoment = block.T @ block
        num = len(block)
        if self.mean is None or self.comoment is None:
            self.num, self.mean, self.comoment = num, mean, comoment
            return
        total = self.num + num
        shift = mean - self.mean
        self.comoment += comoment
        self.comoment += (self.num * num / total) * torch.outer(shift, shift)
        self.mean = self.mean + shift * (num / total)
        self.num = total

    def result(self) -> Statistics:
        """Statistics of all features so far.

        Raises `PidistillError` when there are fewer than two.
        """
        if self.num < 2 or self.mean is None or self.comoment is None:
            raise PidistillError(f"{self.num} sample(s) have no covariance; expected at least 2")
        return Statistics(self.mean.cpu(), (self.comoment / (self.num - 1)).cpu())


def in_float64(x: Tensor) -> Tensor:
    """`x` in float64, on its device where that has such numbers, else on the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features (n, d), computed in float64.

    Raises `PidistillError` when there are fewer than two samples or a feature is not finite.
    """
    moments = Moments()
    for block in features.split(BLOCK):
        moments.add(block)
    return moments.result()


def frechet_distance(first: Statistics, second: Statistics) -> float:
    r"""The squared Frechet distance, the number that is reported as FID.

    With roots $\Sigma_i = R_i R_i^T$, the trace of $(\Sigma_1 \Sigma_2)^{1/2}$ is the sum of the
    singular values of $R_1^T R_2$. Nothing is added to a singular covariance: it has as many
    columns in its root as its rank is.

    Raises `PidistillError` when a covariance has a negative eigenvalue, or the sizes differ.
    """
    if first.mean.shape != second.mean.shape:
        raise PidistillError(
            f"statistics of {len(first.mean)} and of {len(second.mean)} features have no distance; "
            "take both in the same feature network"
        )
    overlap = torch.linalg.svdvals(_root(first.covariance).T @ _root(second.covariance)).sum()
    distance = (
        (first.mean - second.mean).square().sum()
        + first.covariance.trace()
        + second.covariance.trace()
        - 2 * overlap
    )
    return distance.item()


def _root(covariance: Tensor) -> Tensor:
    """A root R (d, rank) of a covariance (d, d) of any rank: `R R^T` is the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    largest = values[-1].clamp(min=0)
    # What eigenvalues that are zero may come out as, with the customary constant of `matrix_rank`.
    rounding = largest * len(values) * torch.finfo(values.dtype).eps
    if values[0] < -1e3 * rounding or not values.isfinite().all():
        raise PidistillError(
            f"a covariance has the eigenvalue {values[0].item():.3g} beside "
            f"{largest.item():.3g}, so it is none; expected a symmetric, non-negative matrix"
        )
    kept = values > rounding
    return vectors[:, kept] * values[kept].sqrt()
