r"""The kernel distance (Binkowski et al. 2018) and the Inception Score (Salimans et al. 2016)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pidistill.errors import PidistillError

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020
"""Seed of the subsets, torch-fidelity's default."""
SPLITS = 10
"""Consecutive parts of the samples whose Inception Scores are averaged."""


class Estimate(NamedTuple):
    """The mean of estimates over subsets or parts, and their standard deviation."""

    value: float
    spread: float


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """`(x . y / d + 1)^3` of features (n, d) and (m, d), giving (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate of the squared MMD from features (n, d) and (m, d), n and m over 1.

    Gretton et al. (2012), equation 3: pairs of a sample with itself are left out.
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

    It is the mean over 100 pairs of subsets of 1,000 features, or of as many as there are; any
    size gives an unbiased estimate, which may be below zero. It is computed on `device`, or where
    `x` is. Raises `PidistillError` when there are fewer than two of one.
    """
    size = min(SUBSET_SIZE, len(x), len(y))
    if size < 2:
        raise PidistillError(f"{size} sample(s) have no kernel distance; expected at least 2")
    draws = np.random.RandomState(SEED)  # its stream is frozen for good

    def subset(features: Tensor) -> Tensor:
        rows = draws.choice(len(features), size, replace=False)
        return features[rows].to(device or x.device).double()

    return _estimate(torch.stack([unbiased_mmd(subset(x), subset(y)) for _ in range(SUBSETS)]))


def inception_score(logits: Tensor) -> Estimate:
    r"""$\exp \mathbb{E}_x \, \mathrm{KL}(p(y|x) \,\|\, p(y))$ of logits (n, k), in float64.

    It is the mean over ten consecutive parts, or over the samples where there are fewer.
    """
    splits = min(SPLITS, len(logits))
    scores = []
    for part in range(splits):
        rows = logits[part * len(logits) // splits : (part + 1) * len(logits) // splits]
        log_p = rows.double().log_softmax(1)
        p = log_p.exp().mean(0)
        scores.append((log_p.exp() * log_p).sum(1).mean() - torch.special.xlogy(p, p).sum())
    return _estimate(torch.stack(scores).exp())


def _estimate(values: Tensor) -> Estimate:
    return Estimate(values.mean().item(), values.std(correction=0).item())
