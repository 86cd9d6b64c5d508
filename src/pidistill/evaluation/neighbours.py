"""Nearest neighbours: precision and recall in feature space, near duplicates in pixel space.

Precision and recall are those of Kynkaanniemi et al. (2019): the ball around a sample extends to
its third neighbour in its own set. Precision is the share of samples within a ball of the
reference, recall the share of the reference within a ball of the samples.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.images import from_uint8

NEIGHBOUR = 3
"""The neighbour that defines the radius of a ball."""
TILE = 2048
"""Rows and columns of the distance matrix in memory at once."""
ROUNDING = 1e-12
"""Bound on the computed squared distance of equal points, relative to their squared norms."""
LOOK_THE_SAME = 0.02
"""RMS distance below which images count as near duplicates: 2.5 of 255 grey levels."""


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(x: Tensor, y: Tensor, device: torch.device | None = None) -> PrecisionRecall:
    """Precision and recall of features `x` (n, d) with respect to reference features `y` (m, d).

    Distances are computed in float64 on `device`, or the device of `x`, tile by tile, so that
    memory does not grow with n m. Raises `PidistillError` if either has fewer than four rows.
    """
    for features, what in ((x, "sample(s)"), (y, "reference sample(s)")):
        if len(features) <= NEIGHBOUR:
            raise PidistillError(
                f"{len(features)} {what} have no third neighbour; expected at least "
                f"{NEIGHBOUR + 1} for precision and recall"
            )
    place = device or x.device
    reach_x, reach_y = _reach(x, place), _reach(y, place)
    in_reference = torch.zeros(len(x), dtype=torch.bool, device=place)
    in_samples = torch.zeros(len(y), dtype=torch.bool, device=place)
    for rows, columns, distances in squared_distances(x, y, place):
        in_reference[rows] |= (distances <= reach_y[columns]).any(1)
        in_samples[columns] |= (distances <= reach_x[rows, None]).any(0)
    return PrecisionRecall(in_reference.double().mean().item(), in_samples.double().mean().item())


def _reach(features: Tensor, device: torch.device) -> Tensor:
    """Squared distance of each feature vector (n, d) to its third neighbour, shape (n,)."""
    nearest = torch.full((len(features), NEIGHBOUR + 1), torch.inf, dtype=torch.float64).to(device)
    for rows, _, distances in squared_distances(features, features, device):
        candidates = torch.cat([nearest[rows], distances], dim=1)
        nearest[rows] = candidates.topk(NEIGHBOUR + 1, largest=False).values
    return nearest[:, -1]  # the first one is the feature itself


def squared_distances(
    x: Tensor, y: Tensor, device: torch.device
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows, columns and tile of the squared distances of (n, d) and (m, d), in float64.

    8-bit pixels are taken as in [-1, 1].

    Distances within rounding error of zero are set to zero, so equal features are at distance 0.
    """
    for first in range(0, len(x), TILE):
        left = _in_range(x[first : first + TILE]).to(device).double()
        left_squares = left.square().sum(1)[:, None]
        for other in range(0, len(y), TILE):
            right = _in_range(y[other : other + TILE]).to(device).double()
            squares = left_squares + right.square().sum(1)
            distances = squares - 2 * left @ right.T
            distances[distances < ROUNDING * squares] = 0
            yield slice(first, first + len(left)), slice(other, other + len(right)), distances


def _in_range(x: Tensor) -> Tensor:
    return from_uint8(x) if x.dtype == torch.uint8 else x


class Nearest(NamedTuple):
    """The nearest neighbour of each sample."""

    distance: Tensor
    """RMS distance to it, shape (n,), float64."""
    which: Tensor
    """Its index, shape (n,), int64."""


def nearest_among(x: Tensor, others: Tensor, device: torch.device | None = None) -> Nearest:
    """The nearest of `others` (m, *sample_shape) to each sample in `x` (n, *sample_shape).

    If `others` is `x`, samples are not their own neighbours. Computed on `device`, or the device of
    `x`; the result is on the CPU.
    """
    place = device or x.device
    best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=place)
    index = torch.zeros(len(x), dtype=torch.int64, device=place)
    flat, flat_others = x.flatten(1), others.flatten(1)
    for rows, columns, squares in squared_distances(flat, flat_others, place):
        if others is x:
            own = torch.arange(rows.start, rows.stop, device=place)[:, None]
            squares[own == torch.arange(columns.start, columns.stop, device=place)] = torch.inf
        found, where = squares.min(1)
        nearer = found < best[rows]
        best[rows] = torch.where(nearer, found, best[rows])
        index[rows] = torch.where(nearer, where + columns.start, index[rows])
    return Nearest((best / flat.shape[1]).sqrt().cpu(), index.cpu())


def neighbour_metrics(nearest: Nearest, of_teacher: Nearest | None) -> dict[str, Any]:
    """Median and minimum distance, and the number of near duplicates.

    Values for the teacher's samples, if given, are prefixed with `teacher_`.
    """
    values: dict[str, Any] = {"num_samples": len(nearest.distance)}
    for prefix, found in (("", nearest), ("teacher_", of_teacher)):
        if found is not None:
            values[f"{prefix}median"] = found.distance.median().item()
            values[f"{prefix}least"] = found.distance.min().item()
            values[f"{prefix}look_the_same"] = int((found.distance < LOOK_THE_SAME).sum())
    return values


def fingerprints(x: Tensor) -> Tensor:
    """A 63-bit hash of the bytes of each sample (n, ...), shape (n,), int64."""
    rows = x.cpu().contiguous().reshape(len(x), -1).view(torch.uint8).numpy()
    hashes = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(value, "big") >> 1 for value in hashes])
