"""One process a run folder."""

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from pidistill.errors import PidistillError
from pidistill.files import require_no_way_out
from pidistill.training.heartbeat import HEARTBEAT_FILE

log = logging.getLogger("pidistill")


class FolderHeldError(PidistillError):
    """Another process trains in the folder."""


LOCK_FILE = ".lock"

ATTEMPTS = 6
"""How often a lock is tried, within a quarter of a second."""

NOTHING = frozenset({LOCK_FILE, HEARTBEAT_FILE})
"""A folder with no more than these holds no run."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, which is created where it is missing, for this process.

    The operating system drops the lock when the process ends, however it ends. A folder that is
    created here and still without a run when the block fails is removed again. On a drive that has
    no locks there is a warning, and no protection.

    Raises `FolderHeldError` when another process holds it, and `PidistillError` when it is not
    writable, or an entry of it leads out of it.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_no_way_out(folder)
        # Not truncated: what is there says who holds the folder.
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise PidistillError(
            f"cannot write to the run folder {folder}: {error.strerror or error}"
        ) from None
    try:
        try:
            _lock(descriptor)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise FolderHeldError(
                f"another process is training in {folder} ({holder or 'it does not say which'}); "
                "wait for it, or choose another --out"
            ) from None
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): see to it that only one process trains in it",
                folder,
                error.strerror,
            )
        with contextlib.suppress(OSError):  # for others to read; the disk may be full
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        except BaseException:
            if new and {entry.name for entry in folder.iterdir()} <= NOTHING:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock the file, or raise `BlockingIOError` when another process keeps it locked.

    One that only asks (`is_held`) has it for an instant.
    """
    for attempt in range(ATTEMPTS):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.05)


def is_held(folder: Path) -> bool:
    """Whether a process trains in the run folder at the moment."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a drive without locks
        return False
    finally:
        os.close(descriptor)
    return False
