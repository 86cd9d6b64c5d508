"""Teachers in the project's own format: a folder with `network.json` and safetensors weights.

`pidistill train-teacher` writes such folders.
"""

from pathlib import Path

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.model_folder import is_model_folder, load_model
from pidistill.paths import user_path


def load(locator: str) -> Denoiser:
    """Load the denoiser in the folder `locator`, with its default weights.

    Raises `PidistillError` when the folder is missing, damaged, or holds a student.
    """
    if not locator:
        raise PidistillError("teacher 'native:' names no folder; expected native:DIR")
    model = load_model(user_path(locator))
    if not isinstance(model, Denoiser):
        raise PidistillError(
            f"{locator} holds a one-step student, not a denoiser; a teacher must be a denoiser"
        )
    return model


def recognises(path: Path) -> bool:
    """Whether `path` is a model folder."""
    return is_model_folder(path)
