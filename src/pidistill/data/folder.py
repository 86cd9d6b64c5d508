"""A folder of images of one size; subfolders, if any, are the classes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pidistill.data.dataset import Dataset
from pidistill.errors import PidistillError
from pidistill.images import from_uint8
from pidistill.paths import user_path

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def load_folder(locator: str) -> Dataset:
    """Load all images below the folder `locator`, as RGB, sorted by path.

    Raises `PidistillError` if there are none, one is damaged, or their sizes differ.
    """
    folder = user_path(locator)
    if not folder.is_dir():
        raise PidistillError(f"data {str(folder)!r} is not a folder; expected a folder of images")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise PidistillError(
            f"data folder {str(folder)!r} holds no images; expected {', '.join(sorted(SUFFIXES))}"
        )
    images = [_read(file) for file in files]
    (height, width, _), *shapes = (image.shape for image in images)
    for file, (h, w, _) in zip(files[1:], shapes, strict=True):
        if (h, w) != (height, width):
            raise PidistillError(
                f"{file} is {w}x{h} pixels, but {files[0].name} is {width}x{height}; resize the "
                "images to one size"
            )
    classes = [file.relative_to(folder).parts[0] for file in files if file.parent != folder]
    names = sorted(set(classes))
    labelled = len(classes) == len(files)
    return Dataset(
        from_uint8(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()),
        torch.tensor([names.index(name) for name in classes]) if labelled else None,
        num_classes=len(names) if labelled else 0,
        name=f"folder:{locator}",
    )


def _read(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise PidistillError(f"{file} is not a readable image: {error}") from error
