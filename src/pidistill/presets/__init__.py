"""Settings to start from: a TOML file each, which may build on another by `base = NAME`.

The first line of a file is a comment that says what the preset is for. Imports no torch.
"""

import importlib.resources
import sys
from typing import Any

from pidistill.errors import PidistillError
from pidistill.settings import merge

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = importlib.resources.files("pidistill") / "presets"


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(file.name[:-5] for file in _FOLDER.iterdir() if file.name.endswith(".toml"))


def preset_summary(name: str) -> str:
    """One line on what the preset is for."""
    return _text(name).partition("\n")[0].lstrip("# ")


def read_preset(name: str, *, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a preset, over those of its base.

    Args:
        name: The preset.
        above: The presets that build on it.

    Raises:
        PidistillError: There is no preset of that name, or it builds on itself.
    """
    if name in above:
        raise PidistillError(f"preset {name!r} builds on itself: {' -> '.join((*above, name))}")
    known = preset_names()
    if name not in known:
        raise PidistillError(f"unknown preset {name!r}; expected one of {', '.join(known)}")
    table = tomllib.loads(_text(name))
    base = table.pop("base", None)
    return table if base is None else merge(read_preset(base, above=(*above, name)), table)


def _text(name: str) -> str:
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
