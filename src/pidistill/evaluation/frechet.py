r"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017).

$d^2 = |\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError


class Statistics(NamedTuple):
    """Mean and covariance of features."""

    mean: Tensor
    """Shape (d,), float64."""
    covariance: Tensor
    """Shape (d, d), float64, with the unbiased normalisation."""


def statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features (n, d), computed in float64.

    Raises `PidistillError` when there are fewer than two samples or a feature is not finite.
    """
    if len(features) < 2:
        raise PidistillError(f"{len(features)} sample(s) have no covariance; expected at least 2")
    features = features.double()
    if not features.isfinite().all():
        raise PidistillError("a feature is not finite; are the samples?")
    mean = features.mean(0)
    centred = features - mean
    return Statistics(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """The squared Frechet distance, the number that is reported as FID.

    The trace of the matrix root comes from the eigenvalues of the symmetric product
    `R second R` with `R` the root of `first`, so singular covariances need no repair.
    """
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ second.covariance @ root)
    distance = (
        (first.mean - second.mean).square().sum()
        + first.covariance.trace()
        + second.covariance.trace()
        - 2 * product.clamp(min=0).sqrt().sum()
    )
    return distance.item()
