"""Names of files that are being written, and what killed processes left of them.

Without torch, which `watch` does without.
"""

import os
import socket
import time
from pathlib import Path

DAY = 24 * 60 * 60


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process takes, on no machine."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`.

    Which processes of other machines were killed is not known; their files go when they are a day
    old.
    """
    for path in folder.glob(".*.tmp"):
        *name, process = path.name.removesuffix(".tmp").split(".")
        here = ".".join(name).endswith(f".{socket.gethostname()}")
        if here and process.isdecimal():
            left = not _is_running(int(process))
        else:
            left = path.stat().st_mtime < time.time() - DAY
        if left:
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
