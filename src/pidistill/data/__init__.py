"""Data sets, chosen by a spec: `digits`, `glyphs`, or `folder:PATH` for a folder of images."""

from typing import NamedTuple

from torch import Tensor

from pidistill.errors import PidistillError


class Dataset(NamedTuple):
    """Images that fit in memory."""

    images: Tensor
    """Shape (n, c, h, w), float32, in [-1, 1]."""
    labels: Tensor | None
    """Shape (n,), int64, or None where there are none."""
    num_classes: int
    """Number of labels; 0 where there are none."""
    name: str
    """The spec that it was loaded from."""


def load_data(spec: str) -> Dataset:
    """Load the data set that `spec` names.

    Raises `PidistillError` when the spec is unknown or the folder is not usable.
    """
    kind, _, locator = spec.partition(":")
    if spec == "digits":
        from pidistill.data.digits import load_digits_images

        return load_digits_images()
    if spec == "glyphs":
        from pidistill.data.glyphs import load_glyphs

        return load_glyphs()
    if kind == "folder" and locator:
        from pidistill.data.folder import load_folder

        return load_folder(locator)
    raise PidistillError(f"unknown data {spec!r}; expected 'digits', 'glyphs' or 'folder:PATH'")
