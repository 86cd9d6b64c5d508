"""Opening what a user names: a run folder, or a teacher by its spec."""

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.model_folder import is_model_folder, load_model
from pidistill.paths import user_path
from pidistill.students.base import Student
from pidistill.teachers import load_teacher


def open_model(name: str, ema: float | None = None) -> Student | Denoiser:
    """The student or denoiser in the run folder `name`, or the teacher that it specifies.

    Raises `PidistillError` when it is neither, or when `ema` is given for what has no averages.
    """
    path = user_path(name)
    if is_model_folder(path):
        model = load_model(path, ema)
        return model.eval().requires_grad_(False)
    if path.is_dir() and (path / "config.toml").is_file():
        raise PidistillError(f"{name} holds a run that has not saved its first checkpoint yet")
    if ema is not None:
        raise PidistillError(f"--ema {ema} is for run folders; {name!r} is none")
    return load_teacher(name)
