"""Paths as people write them. Imports no torch."""

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
