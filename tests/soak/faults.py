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

GROWS = ("open", "write", "flush", "make")
"""Points that need room on the disk."""

AUDITED = {"os.rename": "rename", "os.remove": "remove", "os.rmdir": "remove", "os.mkdir": "make"}


def full_disk(kind, path):
    if kind in GROWS:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def vanished_drive(kind, path):
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


def killed(kind, path):
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {"ENOSPC": full_disk, "EIO": vanished_drive, "SIGKILL": killed}


class Counter:
    """Counts the write points below `folder`; from number `first` on, from 0, it strikes."""

    def __init__(self, folder, strike=None, first=0):
        self.folder, self.strike, self.first = str(folder.resolve()), strike, first
        self.count = 0

    def point(self, kind, path):
        if not isinstance(path, str | os.PathLike):
            return
        if f"{os.path.abspath(path)}{os.sep}".startswith(self.folder + os.sep):
            self.count += 1
            if self.strike and self.count > self.first:
                self.strike(kind, os.fspath(path))

    def install(self):
        """Count from now on, in this process and for good."""
        sys.addaudithook(self.audit)
        fsync, opener = os.fsync, io.open

        def counting_fsync(descriptor):
            self.point("flush", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def counting_open(file, mode="r", *rest, **options):
            stream = opener(file, mode, *rest, **options)
            writes = isinstance(file, str | os.PathLike) and set(mode) & set("wax+")
            return Stream(stream, self, os.fspath(file)) if writes else stream

        os.fsync = counting_fsync
        io.open = builtins.open = counting_open

    def audit(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.point("open", path)
        elif event in AUDITED:
            self.point(AUDITED[event], arguments[0])


class Stream:
    """A file whose writes are counted; one that fails has written the first half."""

    def __init__(self, stream, counter, path):
        self._stream, self._counter, self._path = stream, counter, path

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def write(self, content):
        half = len(content) // 2
        self._stream.write(content[:half])
        self._stream.flush()
        self._counter.point("write", self._path)
        self._stream.write(content[half:])
        return len(content)
