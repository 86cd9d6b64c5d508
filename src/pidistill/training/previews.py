"""Grids of samples that a run draws as it goes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pidistill import images
from pidistill.methods.base import Method
from pidistill.numerics import precise
from pidistill.training.log import PREVIEW_COLUMNS, PREVIEWS

NUM = 40
"""Samples in a grid."""


@precise()
@torch.no_grad()
def draw_preview(method: Method) -> Tensor:
    """Samples (NUM, *sample_shape) of the method's student."""
    return method.preview(NUM)


def save_preview(folder: Path, step: int, x: Tensor) -> np.ndarray:
    """Write a grid of samples to the run folder; returns it, as `images.grid` does."""
    (folder / PREVIEWS).mkdir(exist_ok=True)
    picture = images.grid(x, columns=PREVIEW_COLUMNS)
    images.save_png(folder / PREVIEWS / f"step-{step:09d}.png", picture)
    return picture
