"""Atomic file writes, and run folders locked by one process. Imports no torch."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pidistill.errors import FolderHeldError, PidistillError

log = logging.getLogger("pidistill")

LOCK_FILE = ".lock"


@contextlib.contextmanager
def held(folder: str | Path, patience: float = 0.25) -> Iterator[None]:
    """Hold a run folder for this process, creating it if missing.

    Waits `patience` seconds for another process to release it, or for ever if it is -1. The
    operating system releases the lock when the process ends, even if killed. If the block fails, a
    folder created here that contains only the lock is removed. On a drive without locks, a warning
    is logged and nothing protects the folder.

    Raises:
        FolderHeldError: Another process holds the folder.
        PidistillError: The folder is not writable, or a link in it points outside.
    """
    folder = Path(folder)
    try:
        new = not folder.exists() or _holds_lock_only(folder)
        folder.mkdir(parents=True, exist_ok=True)
        require_no_way_out(folder)
        (folder / LOCK_FILE).touch()
    except OSError as error:
        raise PidistillError(
            f"cannot write to the folder {folder}: {error.strerror or error}"
        ) from error
    lock = _lock(folder)
    try:
        lock.acquire(timeout=patience)  # `is_held` takes it briefly
    except TimeoutError as error:
        raise FolderHeldError(
            f"another process is working in {folder}; wait for it, or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        log.warning("%s cannot be locked (%s): let only one process work in it", folder, error)
    try:
        yield
    except BaseException:
        if new and _holds_lock_only(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.release()


def _holds_lock_only(folder: Path) -> bool:
    return [entry.name for entry in folder.iterdir()] == [LOCK_FILE]


def is_held(folder: str | Path) -> bool:
    """Whether any process, including this one, currently holds the run folder."""
    if not (Path(folder) / LOCK_FILE).exists():
        return False
    try:
        with _lock(Path(folder)).acquire(timeout=0):
            return False
    except TimeoutError:
        return True
    except (OSError, NotImplementedError):  # no write permission, or a drive without locks
        return False


def _lock(folder: Path) -> Any:
    import filelock  # slow to import

    return filelock.FileLock(folder / LOCK_FILE, thread_local=False)


def clear_leftovers(folder: str | Path) -> None:
    """Remove the temporary folders that killed processes left in `folder`.

    Only the process that holds `folder` may call this: those of a live process look the same.
    """
    for path in Path(folder).glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; the file or folder written there replaces `path` at the end.

    If the block fails, `path` is unchanged. The data are flushed to disk before the rename, and the
    rename before the context exits. An `OSError` always names a file. An existing folder is
    replaced only if it is empty.
    """
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
        ) as beside:
            temporary = Path(beside) / path.name
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    except OSError as error:
        if error.filename is None:  # writing and flushing do not set it
            error.filename = str(path)
        raise


def require_writable_folder(folder: str | Path) -> None:
    """Make `folder` if it is missing; raise `PidistillError` unless files can be written to it.

    Meant to be called before the work whose results go there.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PidistillError(f"cannot write to the folder {folder}: {error.strerror}") from error


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, so they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        unsupported = (errno.EINVAL, errno.ENOTSUP)  # folders, on some network drives
        if error.errno not in unsupported or not path.is_dir():
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def require_no_way_out(folder: str | Path) -> None:
    """Raise `PidistillError` if an entry of `folder` is a link that points outside.

    Checked before writing to a run folder, which may come from an untrusted source.
    """
    home = Path(folder).resolve()
    for entry in Path(folder).iterdir():
        if entry.is_symlink() and not entry.resolve().is_relative_to(home):
            raise PidistillError(
                f"{entry} is a link to {os.readlink(entry)}, outside {folder}; replace it with a "
                "copy, since a run does not write through links"
            )


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` to `path` as indented JSON, atomically."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """`content` as indented JSON."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; raises `PidistillError` if the file is missing or holds anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PidistillError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PidistillError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise PidistillError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def sha256_of(facts: Any) -> str:
    """SHA-256 of JSON values, independent of key order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
