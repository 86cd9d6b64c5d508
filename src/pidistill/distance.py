"""Per-sample distances between a prediction and its target, both (b, ...); shape (b,)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pidistill.lpips import find_weights, lpips, lpips_standard, require_images

Distance = Callable[[Tensor, Tensor], Tensor]


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference per sample."""
    return (prediction - target).square().flatten(1).mean(1)


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference per sample."""
    return (prediction - target).abs().flatten(1).mean(1)


def pseudo_huber(prediction: Tensor, target: Tensor) -> Tensor:
    """`sqrt(|difference|^2 + c^2) - c` with `c = 0.00054 sqrt(d)` (Song & Dhariwal 2023)."""
    difference = (prediction - target).flatten(1)
    c = 0.00054 * math.sqrt(difference.shape[1])
    return torch.sqrt(difference.square().sum(1) + c**2) - c


def normalised(loss: Tensor, softening: float) -> Tensor:
    """Losses (b,) divided by `sqrt(their detached values + softening)`; 0 leaves them as they are.

    Samples far from the solution then do not dominate the others.
    """
    return loss / (loss.detach() + softening).sqrt() if softening > 0 else loss


DistanceName = Literal["l2", "l1", "pseudo-huber", "lpips", "lpips-standard"]
"""A key of `DISTANCES`, for settings."""

DISTANCES: dict[str, Distance] = {
    "l2": l2,
    "l1": l1,
    "pseudo-huber": pseudo_huber,
    "lpips": lpips,
    "lpips-standard": lpips_standard,
}


def distance_for(name: DistanceName, sample_shape: tuple[int, ...]) -> Distance:
    """The distance `name`, checked against the sample shape.

    Raises `PidistillError` if it does not suit samples of this shape or its weights are missing, so
    that a run fails before it begins rather than in its first step.
    """
    if name in ("lpips", "lpips-standard"):
        require_images(name, sample_shape)
        find_weights()
    return DISTANCES[name]
