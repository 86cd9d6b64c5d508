"""Files that are either whole or absent: text and JSON. Imports no torch."""

import contextlib
import errno
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pidistill.errors import PidistillError

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what is written there takes its place at the end.

    When the block fails, `path` stays as it was. The data are on the disk before the rename, and
    the rename is before anything else is done. An `OSError` names a file.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename is None:  # writing and flushing do not say
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # the failure itself is the news
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file to the disk, or the entries of a folder, so that they survive a power cut."""
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


def require_no_way_out(folder: Path) -> None:
    """Raise `PidistillError` when an entry of `folder` is a link to somewhere outside.

    Asked of a run folder before it is written to: it may come from a stranger.
    """
    home = folder.resolve()
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.resolve().is_relative_to(home):
            raise PidistillError(
                f"{entry} is a link to {os.readlink(entry)}, outside of {folder}; nothing is "
                "written through it: replace it by what it stands for"
            )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` as indented JSON, at once or not at all."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """`content` as indented JSON."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises `PidistillError` when the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PidistillError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise PidistillError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def sha256_of(facts: Any) -> str:
    """Hash of JSON values, the order of keys left aside."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
