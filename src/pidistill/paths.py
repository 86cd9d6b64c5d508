"""Paths as people write them. Imports no torch."""

import os
from pathlib import Path

from pidistill.errors import PidistillError


def user_path(text: str | Path) -> Path:
    """The path that `text` names, with `~` and `~user` expanded.

    Raises `PidistillError` if there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise PidistillError(f"{str(text)!r} begins with the home of an unknown user") from error


def cache_folder() -> Path:
    """The folder of cached files: PIDISTILL_CACHE, or `pidistill` in the user's cache folder.

    It may not exist, and may be deleted at any time.
    """
    named = os.environ.get("PIDISTILL_CACHE")
    if named:
        return user_path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pidistill"
