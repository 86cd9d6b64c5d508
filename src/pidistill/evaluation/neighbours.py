"""Precision and recall of samples by nearest neighbours (Kynkaanniemi et al. 2019).

A ball about each reference sample reaches to its third neighbour among the reference. Precision is
the share of samples in one of these balls; recall the share of the reference in a sample's ball.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError

NEIGHBOUR = 3
"""The neighbour that a ball reaches to."""
TILE = 2048
"""Rows, and columns, of the matrix of distances that are in memory at once."""
ROUNDING = 1e-12
"""What squared distances of equal points come out as, at most, beside their squared length."""


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    x: Tensor, y: Tensor, *, device: torch.device | None = None
) -> PrecisionRecall:
    """Precision and recall of features `x` (n, d) against those of a reference, `y` (m, d).

    Distances are computed in float64, tile by tile, so that memory does not grow with n m; each
    distance between `x` and `y` serves both.

    Args:
        x: Features of the samples.
        y: Features of the reference.
        device: Where to compute; None means where `x` is.

    Raises:
        PidistillError: There are fewer than four of one.
    """
    for features, what in ((x, "sample(s)"), (y, "reference sample(s)")):
        if len(features) <= NEIGHBOUR:
            raise PidistillError(
                f"{len(features)} {what} have no third neighbour; expected at least "
                f"{NEIGHBOUR + 1} for precision and recall"
            )
    place = device or x.device
    reach_x, reach_y = reach(x, place), reach(y, place)
    in_reference = torch.zeros(len(x), dtype=torch.bool, device=place)
    in_samples = torch.zeros(len(y), dtype=torch.bool, device=place)
    for rows, columns, distances in squared_distances(x, y, place):
        in_reference[rows] |= (distances <= reach_y[columns]).any(1)
        in_samples[columns] |= (distances <= reach_x[rows, None]).any(0)
    return PrecisionRecall(in_reference.double().mean().item(), in_samples.double().mean().item())


def reach(features: Tensor, device: torch.device) -> Tensor:
    """Squared distance from each feature (n, d) to its third neighbour among them, shape (n,)."""
    nearest = torch.full((len(features), NEIGHBOUR + 1), torch.inf, dtype=torch.float64).to(device)
    for rows, _, distances in squared_distances(features, features, device):
        candidates = torch.cat([nearest[rows], distances], dim=1)
        nearest[rows] = candidates.topk(NEIGHBOUR + 1, largest=False).values
    # The nearest of all is the feature itself.
    return nearest[:, -1]


def squared_distances(
    x: Tensor, y: Tensor, device: torch.device
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of the squared distances between features (n, d) and (m, d), float64.

    Those within rounding of zero are zero, so that equal features are.

    Yields:
        Rows, columns, and the tile (rows, columns).
    """
    for first in range(0, len(x), TILE):
        left = x[first : first + TILE].to(device).double()
        left_squares = left.square().sum(1)[:, None]
        for other in range(0, len(y), TILE):
            right = y[other : other + TILE].to(device).double()
            squares = left_squares + right.square().sum(1)
            distances = squares - 2 * left @ right.T
            distances[distances < ROUNDING * squares] = 0
            yield slice(first, first + len(left)), slice(other, other + len(right)), distances
