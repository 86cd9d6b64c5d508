"""The bundled teacher of 8x8 handwritten digits, class-conditional with an unconditional mode.

It was trained by the command in `assets/digits-teacher/config.toml`; the scores are in
`assets/digits-teacher/metrics.json`. Its weights are stored in half precision and used in single.
"""

import importlib.resources
from pathlib import Path

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.teachers import native


def load(locator: str) -> Denoiser:
    """Load the bundled teacher; `locator` is empty, since there is only one."""
    if locator:
        raise PidistillError(f"teacher 'digits:{locator}' is not known; the spec is just 'digits'")
    with importlib.resources.as_file(importlib.resources.files("pidistill") / "assets") as assets:
        return native.load(str(Path(assets) / "digits-teacher"))
