"""The bundled teacher of 8x8 handwritten digits, class-conditional with an unconditional mode."""

from pidistill.denoiser import Denoiser
from pidistill.teachers.bundled import load_bundled


def load(locator: str) -> Denoiser:
    """Load it (`load_bundled`)."""
    return load_bundled("digits", locator)
