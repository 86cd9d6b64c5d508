"""Readers of foreign file formats. They never execute code from a file.

They raise `RefusedError`, which the teacher's loader turns into a `PidistillError` that names the
file.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pidistill.errors import PidistillError


class RefusedError(Exception):
    """What is wrong with a file, as the predicate of a sentence that begins with its name."""


@contextlib.contextmanager
def refusals_of(source: str | Path, ending: str = "") -> Iterator[None]:
    """Turn a `RefusedError` into a `PidistillError` about the file `source`."""
    try:
        yield
    except RefusedError as error:
        raise PidistillError(f"{source} {error}{ending}") from error
