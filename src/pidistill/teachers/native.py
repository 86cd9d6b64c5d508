"""Teachers in the native format: a folder with `network.json` and safetensors weights.

`pidistill train-teacher` writes such folders. Two are bundled with the package: `digits` and
`glyphs`, both class-conditional with an unconditional mode. In `assets/NAME-teacher`,
`config.toml` has the training settings and `metrics.json` the scores. Their weights are stored in
half precision.
"""

import importlib.resources
from pathlib import Path

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.model_folder import is_model_folder, load_model
from pidistill.paths import user_path


def load(locator: str) -> Denoiser:
    """Load the denoiser from the folder `locator`, with its default weights.

    Raises `PidistillError` if the folder is missing, damaged, or holds a student.
    """
    if not locator:
        raise PidistillError("teacher 'native:' names no folder; expected native:DIR")
    model = load_model(user_path(locator))
    if not isinstance(model, Denoiser):
        raise PidistillError(f"{locator} holds a student; a teacher must be a denoiser")
    return model


def recognises(path: Path) -> bool:
    """Whether `path` is a model folder."""
    return is_model_folder(path)


class Bundled:
    """Source of a teacher bundled with the package."""

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self, locator: str) -> Denoiser:
        """Load the teacher. Raises `PidistillError` if `locator` is not empty."""
        if locator:
            raise PidistillError(
                f"teacher '{self.name}:{locator}' is unknown; the spec is just '{self.name}'"
            )
        assets = importlib.resources.files("pidistill") / "assets"
        with importlib.resources.as_file(assets / f"{self.name}-teacher") as folder:
            return load(str(folder))


digits, glyphs = Bundled("digits"), Bundled("glyphs")
"""8x8 handwritten digits, and 32x32 colour glyphs."""
