"""The pixels of many images: in memory if they are few, else in a file that is mapped.

The file is in the cache folder, under a hash of what it was read from, so that the next command
finds it. Only the newest for each place is kept.
"""

import itertools
import logging
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor

from pidistill.data.dataset import AT_ONCE, nothing
from pidistill.errors import PidistillError
from pidistill.files import clear_leftovers, held, replacing, sha256_of
from pidistill.paths import cache_folder
from pidistill.progress import Show

log = logging.getLogger("pidistill")

IN_MEMORY = 64 * 2**20
"""Bytes of pixels; more are kept in a file."""
FOR_EVER = -1.0


class Pixels(NamedTuple):
    """Images (n, c, h, w), uint8, and what releases the part of them that was read."""

    values: Tensor
    release: Callable[[], None]


class Origin(NamedTuple):
    """What identifies images before any is read, as JSON values."""

    place: str
    """Where they are."""
    content: Any
    """What changes when they do, such as sizes and times of files."""


def fits_memory(size: int) -> bool:
    """Whether pixels of so many bytes are held in memory."""
    return size <= IN_MEMORY


def gather(
    images: Iterable[np.ndarray],
    num: int,
    origin: Origin,
    progress: Show,
    *,
    channels: int | None = None,
    flip: bool = False,
) -> Pixels:
    """Read `num` images, or find them in the cache if they were read before.

    Args:
        images: 8-bit pixels (height, width, 1 or 3), of one height and width, read one by one.
        num: Their number, at least 1.
        origin: What identifies them.
        progress: Shows how many are read.
        channels: 1 or 3; None means grey if all are.
        flip: Whether the mirror image of each follows them.

    Raises:
        PidistillError: They need a file, and it cannot be written.
    """
    stream = iter(images)
    first = next(stream)
    stream = itertools.chain([first], stream)
    size = num * (1 + flip) * first[..., 0].size * (channels or first.shape[2])
    if fits_memory(size):
        pixels = _read(stream, num, channels, flip, _in_memory, progress)
        return Pixels(torch.from_numpy(pixels), nothing)
    folder = cache_folder() / "images" / sha256_of([origin.place, channels, flip])[:16]
    name = f"{sha256_of([origin.content, PIL.__version__])[:32]}.npy"
    try:
        with held(folder, FOR_EVER):  # one of several processes reads, the others wait
            clear_leftovers(folder)
            if not (folder / name).is_file():
                for old in folder.glob("*.npy"):
                    old.unlink()
                with replacing(folder / name) as temporary:

                    def allocate(shape: tuple[int, ...]) -> np.ndarray:
                        return _new_file(temporary.with_name(f"{shape[1]}.npy"), shape)

                    pixels = _read(stream, num, channels, flip, allocate, progress)
                    temporary.with_name(f"{pixels.shape[1]}.npy").rename(temporary)
                log.info("%s: %.3g GB of pixels, kept for the next time", folder, size / 1e9)
            return _mapped(folder / name)
    except OSError as error:
        raise PidistillError(
            f"cannot write {size / 1e9:.3g} GB of pixels to {folder}: {error.strerror}; make room, "
            "or name another folder with PIDISTILL_CACHE"
        ) from error


def _read(
    images: Iterable[np.ndarray],
    num: int,
    channels: int | None,
    flip: bool,
    allocate: Callable[[tuple[int, ...]], np.ndarray],
    progress: Show,
) -> np.ndarray:
    """The images (n, c, h, w) in arrays that `allocate` makes."""
    pixels, num_grey = np.empty((0, 0, 0, 0), np.uint8), 0
    with progress("reading images", num, "images") as advance:
        for i, image in enumerate(images):
            num_grey += image.shape[2] == 1
            wide = channels or max(pixels.shape[1], image.shape[2])
            if wide != pixels.shape[1]:  # the first, or the first in colour
                wider = allocate((num * (1 + flip), wide, *image.shape[:2]))
                for rows in _slices(i):
                    wider[rows] = pixels[rows]
                    forget(wider)
                pixels = wider
            pixels[i] = with_channels(image, wide).transpose(2, 0, 1)
            if i % AT_ONCE == 0:
                forget(pixels)
            advance(1)
    if channels is None and 0 < num_grey < num:
        log.info("%d of %d images are grey; all become RGB", num_grey, num)
    for rows in _slices(num) if flip else ():
        pixels[num + rows.start : num + rows.stop] = pixels[rows, ..., ::-1]
        forget(pixels)
    return pixels


def _slices(num: int) -> list[slice]:
    return [slice(first, min(num, first + AT_ONCE)) for first in range(0, num, AT_ONCE)]


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


def _new_file(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mapped array in a new file, for which there is room: writing it cannot fail."""
    pixels = np.lib.format.open_memmap(file, "w+", np.dtype(np.uint8), shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return pixels


def _mapped(file: Path) -> Pixels:
    """The pixels in a file; who changes them changes a copy in memory."""
    try:
        pixels = np.load(file, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PidistillError(f"the cached file {file} is damaged; delete it") from error
    return Pixels(torch.from_numpy(pixels), lambda: forget(pixels))


def forget(pixels: np.ndarray) -> None:
    """Take what was read or written of a mapped array out of this process's memory."""
    mapping: Any = pixels.base
    if isinstance(mapping, mmap.mmap):
        mapping.madvise(mmap.MADV_DONTNEED)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """8-bit pixels (height, width, 1 or 3) with this number of channels; grey is luma."""
    if image.shape[2] == channels or channels == 3:
        return image
    luma = image @ np.array([0.299, 0.587, 0.114])
    return luma.round().astype(np.uint8)[..., None]
