"""Teachers that come with the package, in the project's own format.

`assets/NAME-teacher/config.toml` says how each was trained, and `metrics.json` how good it is. The
weights are stored in half precision and used in single.
"""

import importlib.resources
from pathlib import Path

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.teachers import native


def load_bundled(name: str, locator: str) -> Denoiser:
    """Load the teacher `name`; `locator` is empty, since there is one of each name.

    Raises `PidistillError` when it is not empty.
    """
    if locator:
        raise PidistillError(f"teacher '{name}:{locator}' is not known; the spec is just '{name}'")
    with importlib.resources.as_file(importlib.resources.files("pidistill") / "assets") as assets:
        return native.load(str(Path(assets) / f"{name}-teacher"))
