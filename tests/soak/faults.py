"""Failures of the file system, injected where a process writes.

A write point is an opening for writing, a write, a flush to the disk, a renaming, a removal or the
making of a folder, below the watched folder. They are counted, and from one of them on everything
fails, as a full disk or a vanished drive would have it, or the process is killed.

Python's audit hooks see all of them except writes and flushes.
"""

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROWS = ("open", "write", "flush", "make")
"""Points that need room on the disk."""

AUDITED = {"os.rename": "rename", "os.remove": "remove", "os.rmdir": "remove", "os.mkdir": "make"}

Strike = Callable[[str, str], None]
"""What happens at a point of a kind, to a path."""


def nothing(kind: str, path: str) -> None:
    """No fault, to count the points."""


def full_disk(kind: str, path: str) -> None:
    """ENOSPC wherever room is needed."""
    if kind in GROWS:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def vanished_drive(kind: str, path: str) -> None:
    """EIO everywhere."""
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


def killed(kind: str, path: str) -> None:
    """SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Strike] = {"ENOSPC": full_disk, "EIO": vanished_drive, "SIGKILL": killed}


class Counter:
    """Counts the write points below `folder`, and strikes from number `first` on, from 0."""

    def __init__(self, folder: Path, strike: Strike, first: int) -> None:
        self.folder, self.strike, self.first = str(folder.resolve()), strike, first
        self.count = 0

    def point(self, kind: str, path: Any) -> None:
        """A point of the process: it counts if it is below the folder."""
        if not isinstance(path, str | os.PathLike):
            return
        absolute = os.path.abspath(path)
        if absolute == self.folder or absolute.startswith(self.folder + os.sep):
            self.count += 1
            if self.count > self.first:
                self.strike(kind, os.fspath(path))

    def install(self) -> None:
        """Count from now on, in this process and for good."""
        sys.addaudithook(self.audit)
        fsync, opener = os.fsync, io.open

        def counting_fsync(descriptor: int) -> None:
            self.point("flush", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def counting_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            stream = opener(file, mode, *rest, **options)
            writes = isinstance(file, str | os.PathLike) and set(mode) & set("wax+")
            return Stream(stream, self, os.fspath(file)) if writes else stream

        os.fsync = counting_fsync
        io.open = counting_open
        builtins.open = counting_open

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.point("open", path)
        elif event in AUDITED:
            self.point(AUDITED[event], arguments[0])


class Stream:
    """A file whose writes are counted; one that fails has written the first half."""

    def __init__(self, stream: Any, counter: Counter, path: str) -> None:
        self._stream, self._counter, self._path = stream, counter, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, content: Any) -> int:
        half = len(content) // 2
        self._stream.write(content[:half])
        self._stream.flush()
        self._counter.point("write", self._path)
        self._stream.write(content[half:])
        return len(content)
