"""Paths as people write them."""

from pathlib import Path

from pidistill.errors import PidistillError


def user_path(text: str | Path) -> Path:
    """The path that `text` names, `~` being somebody's home.

    Raises `PidistillError` when nobody of that name has one.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise PidistillError(f"{str(text)!r} begins with the home of an unknown user") from None
