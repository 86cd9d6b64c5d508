"""The bundled teacher of 32x32 colour glyphs, class-conditional with an unconditional mode."""

from pidistill.denoiser import Denoiser
from pidistill.teachers.bundled import load_bundled


def load(locator: str) -> Denoiser:
    """Load it (`load_bundled`)."""
    return load_bundled("glyphs", locator)
