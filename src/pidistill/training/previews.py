"""What a run draws and measures of its student as it goes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill import images
from pidistill.methods.base import Method
from pidistill.numerics import precise
from pidistill.training.log import PREVIEWS, preview_columns


def num_in_preview(sample_shape: tuple[int, ...]) -> int:
    """The number of samples to show: none unless they are images or points in the plane."""
    if images.is_plane(sample_shape):
        return 1000
    return 40 if images.is_image(sample_shape) else 0


@precise()
@torch.no_grad()
def draw_preview(method: Method, num: int) -> Tensor:
    """Samples (num, *sample_shape) of the method's student."""
    return method.preview(num)


@precise()
def validated(method: Method) -> dict[str, Any]:
    """What `Method.validate` finds, for the log."""
    return method.validate()


def save_preview(folder: Path, step: int, x: Tensor, num_classes: int) -> np.ndarray:
    """Write a picture of samples to the run folder; returns it, as `images.picture_of` does."""
    (folder / PREVIEWS).mkdir(exist_ok=True)
    picture = images.picture_of(x, columns=preview_columns(num_classes))
    images.save_png(folder / PREVIEWS / f"step-{step:09d}.png", picture)
    return picture
