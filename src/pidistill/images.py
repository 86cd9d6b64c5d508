"""Samples as pictures: 8-bit conversion, grids and PNG files."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.files import replacing


def is_image(sample_shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are images with 1 or 3 channels."""
    return len(sample_shape) == 3 and sample_shape[0] in (1, 3)


def require_image(sample_shape: tuple[int, ...]) -> None:
    """Raise `PidistillError` unless samples of this shape are images."""
    if not is_image(sample_shape):
        raise PidistillError(
            f"samples of shape {tuple(sample_shape)} are not images with 1 or 3 channels; "
            "write them to an .npz file"
        )


def to_uint8(x: Tensor) -> Tensor:
    """Round samples in [-1, 1] to 8 bits, as published metrics do; clips values outside."""
    return (x.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """8-bit pixels as float32 in [-1, 1]; `to_uint8` is the exact inverse."""
    return pixels.float() / 127.5 - 1


def grid(x: Tensor, *, columns: int | None = None, zoom: int | None = None) -> np.ndarray:
    """Arrange samples in one picture, row by row, with thin white borders.

    Args:
        x: Images in [-1, 1], shape (n, c, h, w), with 1 or 3 channels.
        columns: Number of columns; None makes the grid roughly square.
        zoom: Integer magnification; None enlarges small images to about 48 pixels.

    Returns:
        Shape (height, width, 3), uint8.

    Raises:
        PidistillError: The samples are not images.
    """
    require_image(tuple(x.shape[1:]))
    num, _, height, _ = x.shape
    columns = columns or math.ceil(math.sqrt(num))
    zoom = zoom or max(1, round(48 / height))
    tiles = to_uint8(x.cpu()).expand(-1, 3, -1, -1)
    tiles = tiles.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=255)
    blank = -num % columns
    tiles = torch.cat([tiles, tiles.new_full((blank, *tiles.shape[1:]), 255)])
    rows = tiles.unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    picture = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return picture.contiguous().numpy()


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture (height, width, 3), uint8, as PNG, atomically."""
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="png")
