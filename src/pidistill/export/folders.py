"""Folders that are either whole or absent."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pidistill.errors import PidistillError
from pidistill.files import replacing


def require_free(path: Path, *, suffix: str | None) -> None:
    """Raise `PidistillError` where `path` holds something, which nothing here ever replaces.

    Args:
        path: Where a folder is going to be written, or a file.
        suffix: What the name of the file has to end in; None for a folder.
    """
    if suffix is not None and path.suffix != suffix:
        raise PidistillError(
            f"--out {path} ends in {path.suffix or 'nothing'!r}; expected {suffix}"
        )
    if path.is_dir() and suffix is not None:
        raise PidistillError(f"--out {path} is a folder; expected a file")
    if path.is_dir() and any(path.iterdir()):
        raise PidistillError(f"--out {path} is a folder that is not empty; choose another --out")
    if path.exists() and not path.is_dir():
        raise PidistillError(f"--out {path} exists already; remove it or choose another --out")


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`; it takes its place, with its content, at the end.

    When the block fails, `folder` stays as it was: absent or empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as temporary:
        temporary.mkdir()
        yield temporary
