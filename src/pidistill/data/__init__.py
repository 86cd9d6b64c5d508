"""Data sets, selected by a spec: `digits`, `glyphs`, or `folder:PATH` for a folder of images."""

from pidistill.data.dataset import Dataset, fingerprint
from pidistill.data.digits import load_digits_images
from pidistill.data.folder import load_folder
from pidistill.data.glyphs import load_glyphs
from pidistill.errors import PidistillError

__all__ = ["Dataset", "fingerprint", "load_data"]

BUNDLED = {"digits": load_digits_images, "glyphs": load_glyphs}


def load_data(spec: str) -> Dataset:
    """Load the data set named by `spec`.

    Raises `PidistillError` if the spec is unknown or the folder is unusable.
    """
    kind, _, locator = spec.partition(":")
    if spec in BUNDLED:
        return BUNDLED[spec]()
    if kind == "folder" and locator:
        return load_folder(locator)
    raise PidistillError(f"unknown data {spec!r}; expected 'digits', 'glyphs' or 'folder:PATH'")
