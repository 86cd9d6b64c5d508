r"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017).

$d^2 = |\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.noise import Draws

BLOCK = 1000
"""Features per block of the moment computation."""


class Statistics(NamedTuple):
    """Mean and covariance of features."""

    mean: Tensor
    """Shape (d,), float64, on the CPU."""
    covariance: Tensor
    """Shape (d, d), float64, on the CPU, unbiased."""


def statistics(features: Tensor, device: torch.device | None = None) -> Statistics:
    """Mean and covariance of features (n, d), in float64, computed on `device` or the CPU.

    Blocks are merged about the running mean (Chan, Golub & LeVeque 1979), which keeps precision for
    features far from zero and only one block at a time in float64.

    Raises `PidistillError` if there are fewer than two samples, or a feature is not finite.
    """
    if len(features) < 2:
        raise PidistillError(f"{len(features)} sample(s) have no covariance; expected at least 2")
    size = features.shape[1]
    num = 0
    mean = torch.zeros(size, dtype=torch.float64, device=device)
    comoment = torch.zeros(size, size, dtype=torch.float64, device=device)
    for part in features.split(BLOCK):
        if not part.isfinite().all():
            raise PidistillError("a feature is not finite; are the samples?")
        block = part.to(mean)
        total = num + len(block)
        block_mean = block.mean(0)
        block = block - block_mean
        shift = block_mean - mean
        comoment += block.T @ block
        comoment += (num * len(block) / total) * torch.outer(shift, shift)
        mean = mean + shift * (len(block) / total)
        num = total
    return Statistics(mean.cpu(), (comoment / (num - 1)).cpu())


def frechet_distance(first: Statistics, second: Statistics) -> float:
    r"""The squared Frechet distance, reported as FID.

    With roots $\Sigma_i = R_i R_i^T$, the trace of $(\Sigma_1 \Sigma_2)^{1/2}$ is the sum of the
    singular values of $R_1^T R_2$. Singular covariances need no regularisation: their root has as
    many columns as their rank.

    Raises `PidistillError` if a covariance has a negative eigenvalue, or the sizes differ.
    """
    if first.mean.shape != second.mean.shape:
        raise PidistillError(
            f"statistics of {len(first.mean)} and of {len(second.mean)} features cannot be "
            "compared; compute both with the same feature network"
        )
    overlap = torch.linalg.svdvals(_root(first.covariance).T @ _root(second.covariance)).sum()
    distance = (
        (first.mean - second.mean).square().sum()
        + first.covariance.trace()
        + second.covariance.trace()
        - 2 * overlap
    )
    return distance.item()


def split_half_distance(features: Tensor, device: torch.device | None = None) -> float:
    """The Frechet distance between two random halves of features (n, d): the noise floor.

    `device` as in `statistics`.
    """
    order = Draws(0, 0, len(features)).uniform("split").argsort()
    first, second = (rows.sort().values for rows in order.tensor_split([len(features) // 2]))
    return frechet_distance(
        statistics(features[first], device), statistics(features[second], device)
    )


def _root(covariance: Tensor) -> Tensor:
    """A root R (d, rank) of a covariance (d, d), with `R R^T` equal to the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    largest = values[-1].clamp(min=0)
    # The tolerance of `matrix_rank` for zero eigenvalues.
    rounding = largest * len(values) * torch.finfo(values.dtype).eps
    if values[0] < -1e3 * rounding or not values.isfinite().all():
        raise PidistillError(
            f"not a covariance: the smallest eigenvalue is {values[0].item():.3g}, the largest "
            f"{largest.item():.3g}; expected a symmetric, non-negative matrix"
        )
    kept = values > rounding
    return vectors[:, kept] * values[kept].sqrt()
