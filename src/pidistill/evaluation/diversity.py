"""Are samples new? Their nearest neighbours among themselves and among training images.

Distances are RMS differences of pixels from -1 to 1, of samples as they are measured: in 8 bits
where they are images.
"""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pidistill.evaluation.neighbours import squared_distances
from pidistill.images import from_uint8

LOOK_THE_SAME = 0.02
"""RMS distance below which two images count as near duplicates: 2.5 grey levels of 255."""


class Nearest(NamedTuple):
    """The nearest neighbour of every sample."""

    distance: Tensor
    """RMS distance to it, shape (n,), float64."""
    which: Tensor
    """Which it is, shape (n,), int64."""


def as_pixels(x: Tensor) -> Tensor:
    """Samples as numbers that are compared: float32, images in [-1, 1]."""
    return from_uint8(x) if x.dtype == torch.uint8 else x.float()


def nearest_among(x: Tensor, others: Tensor, device: torch.device | None = None) -> Nearest:
    """The nearest of `others` (m, *sample_shape) to every sample `x` (n, *sample_shape).

    Args:
        x: Samples, in 8 bits or in [-1, 1].
        others: What they are compared with. Where it is `x` itself, a sample is not its own
            neighbour.
        device: Where to compute; None means where `x` is.
    """
    place = x.device if device is None else device
    alone = others is x
    best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=place)
    index = torch.zeros(len(x), dtype=torch.int64, device=place)
    flat, flat_others = as_pixels(x).flatten(1), as_pixels(others).flatten(1)
    for rows, columns, squares in squared_distances(flat, flat_others, place):
        if alone:
            own = torch.arange(rows.start, rows.stop, device=place)[:, None]
            squares[own == torch.arange(columns.start, columns.stop, device=place)] = torch.inf
        found, where = squares.min(1)
        nearer = found < best[rows]
        best[rows] = torch.where(nearer, found, best[rows])
        index[rows] = torch.where(nearer, where + columns.start, index[rows])
    return Nearest((best / flat.shape[1]).sqrt().cpu(), index.cpu())


def neighbour_metrics(nearest: Nearest, of_teacher: Nearest | None) -> dict[str, Any]:
    """What the nearest neighbours of samples say, as JSON values.

    Args:
        nearest: The nearest neighbours of samples from different starting noises.
        of_teacher: Those of the teacher's samples from the same noises; None leaves them out.

    Returns:
        The median and the least distance, and how many samples look the same as their neighbour;
        of the teacher's samples under names that begin with `teacher_`.
    """
    values: dict[str, Any] = {"num_samples": len(nearest.distance)}
    for prefix, found in (("", nearest), ("teacher_", of_teacher)):
        if found is not None:
            values[f"{prefix}median"] = found.distance.median().item()
            values[f"{prefix}least"] = found.distance.min().item()
            values[f"{prefix}look_the_same"] = int((found.distance < LOOK_THE_SAME).sum())
    return values


def fingerprints(x: Tensor) -> Tensor:
    """A 63-bit hash of every sample (n, ...), shape (n,), int64: equal where the bytes are."""
    rows = x.cpu().contiguous().reshape(len(x), -1).view(torch.uint8).numpy()
    hashes = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(value, "big") >> 1 for value in hashes])


def count_duplicates(prints: Tensor) -> int:
    """How many samples are bit for bit the same as an earlier one, from their fingerprints."""
    return len(prints) - len(prints.unique())
