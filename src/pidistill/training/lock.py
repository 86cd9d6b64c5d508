"""One process a run folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from pidistill.errors import PidistillError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, which is created where it is missing, for this process.

    The operating system drops the lock when the process ends, however it ends.

    Raises `PidistillError` when the folder is not writable or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise PidistillError(f"cannot write to the run folder {folder}: {error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PidistillError(
                f"another process is training in {folder}; wait for it, or choose another --out"
            ) from None
        yield
