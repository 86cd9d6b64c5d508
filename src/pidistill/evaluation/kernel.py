r"""The kernel distance of Binkowski et al. (2018), KID, an unbiased estimate of a squared MMD.

The kernel is the cube $k(x, y) = (x \cdot y / d + 1)^3$ of features of size $d$; the estimate is
the mean over subsets.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pidistill.errors import PidistillError

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020
"""Of the subsets: those that torch-fidelity draws by default."""


class KernelDistance(NamedTuple):
    """The estimates of the subsets, summed up."""

    value: float
    """Their mean; it may be below zero."""
    spread: float
    """Their standard deviation."""


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """`(x . y / d + 1)^3` of features (n, d) and (m, d), giving (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate of the squared MMD from features (n, d) and (m, d), n and m over 1.

    It is Gretton et al. (2012), equation 3: the diagonals of a sample with itself are left out.
    """
    n, m = len(x), len(y)
    own, other = cubic_kernel(x, x), cubic_kernel(y, y)
    return (
        (own.sum() - own.trace()) / (n * (n - 1))
        + (other.sum() - other.trace()) / (m * (m - 1))
        - 2 * cubic_kernel(x, y).mean()
    )


def kernel_distance(x: Tensor, y: Tensor, *, device: torch.device | None = None) -> KernelDistance:
    """The kernel distance between features `x` (n, d) and `y` (m, d), in float64.

    It is the mean over 100 pairs of subsets of 1,000 features, or of as many as there are; any
    size gives an unbiased estimate.

    Args:
        x: Features of the samples.
        y: Features of the reference.
        device: Where to compute; None means where `x` is.

    Raises:
        PidistillError: There are fewer than two of one.
    """
    size = min(SUBSET_SIZE, len(x), len(y))
    if size < 2:
        raise PidistillError(f"{size} sample(s) have no kernel distance; expected at least 2")
    place = device or x.device
    draws = np.random.RandomState(SEED)  # its stream is frozen for good
    values = torch.stack(
        [
            unbiased_mmd(
                *(
                    features[draws.choice(len(features), size, replace=False)].to(place).double()
                    for features in (x, y)
                )
            )
            for _ in range(SUBSETS)
        ]
    )
    return KernelDistance(values.mean().item(), values.std(correction=0).item())
