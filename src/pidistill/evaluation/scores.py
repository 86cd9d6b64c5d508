r"""The kernel distance (Binkowski et al. 2018) and the Inception Score (Salimans et al. 2016)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pidistill.errors import PidistillError

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020
"""Seed of the subsets; torch-fidelity's default."""
SPLITS = 10
"""Number of consecutive splits whose Inception Scores are averaged."""


class Estimate(NamedTuple):
    """Mean and standard deviation over subsets or splits."""

    value: float
    spread: float


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """`(x . y / d + 1)^3` for features (n, d) and (m, d), shape (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate of the squared MMD of features (n, d) and (m, d), with n, m > 1.

    Gretton et al. (2012), equation 3: pairs of a sample with itself are omitted.
    """
    n, m = len(x), len(y)
    own, other = cubic_kernel(x, x), cubic_kernel(y, y)
    return (
        (own.sum() - own.trace()) / (n * (n - 1))
        + (other.sum() - other.trace()) / (m * (m - 1))
        - 2 * cubic_kernel(x, y).mean()
    )


def kernel_distance(x: Tensor, y: Tensor, device: torch.device | None = None) -> Estimate:
    """The kernel distance (KID) between features (n, d) and (m, d), in float64.

    It is the mean over 100 pairs of subsets of 1,000 features, or of all features if there are
    fewer. The estimate is unbiased for any size, and may be negative. It is computed on `device`,
    or the device of `x`. Raises `PidistillError` if either has fewer than two rows.
    """
    size = min(SUBSET_SIZE, len(x), len(y))
    if size < 2:
        raise PidistillError(f"{size} sample(s) have no kernel distance; expected at least 2")
    draws = np.random.RandomState(SEED)  # its stream never changes

    def subset(features: Tensor) -> Tensor:
        rows = draws.choice(len(features), size, replace=False)
        return features[rows].to(device or x.device).double()

    return _estimate(torch.stack([unbiased_mmd(subset(x), subset(y)) for _ in range(SUBSETS)]))


def inception_score(logits: Tensor) -> Estimate:
    r"""$\exp \mathbb{E}_x \, \mathrm{KL}(p(y|x) \,\|\, p(y))$ from logits (n, k), in float64.

    It is the mean over ten consecutive splits; n is at least 20.
    """
    scores = []
    for part in range(SPLITS):
        rows = logits[part * len(logits) // SPLITS : (part + 1) * len(logits) // SPLITS]
        log_p = rows.double().log_softmax(1)
        p = log_p.exp().mean(0)
        scores.append((log_p.exp() * log_p).sum(1).mean() - torch.special.xlogy(p, p).sum())
    return _estimate(torch.stack(scores).exp())


def _estimate(values: Tensor) -> Estimate:
    return Estimate(values.mean().item(), values.std(correction=0).item())
