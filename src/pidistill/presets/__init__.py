"""Settings to start from: a TOML file each. This module imports nothing heavy."""

import importlib.resources


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = importlib.resources.files("pidistill") / "presets"
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".toml"))
