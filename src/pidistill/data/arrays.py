"""Images in arrays: `.npz` files, and the files of the MNIST family."""

import gzip
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pidistill.data.dataset import Dataset, nothing
from pidistill.data.pixels import Origin, Pixels, fits_memory, gather
from pidistill.errors import PidistillError
from pidistill.paths import user_path
from pidistill.progress import Show, no_progress
from pidistill.sample_files import channel_axis, open_npz, pixels_of, require_levels

IMAGES = ("images", "samples", "arr_0", "x", "data")
LABELS = ("labels", "label", "arr_1", "y", "targets")
"""The names under which `.npz` files have images and labels; the first that is there is read."""


def load_npz(
    name: str, locator: str, options: dict[str, Any], progress: Show = no_progress
) -> Dataset:
    """Load the images of an `.npz` file, with its labels if it has any.

    Images are 8-bit or in [-1, 1], channels first or last; labels are integers (n,).

    Raises `PidistillError` if the file is damaged or holds something else.
    """
    file = user_path(locator)
    with open_npz(file) as content:
        key = next((key for key in IMAGES if key in content), None)
        if key is None:
            raise PidistillError(
                f"{file} contains {', '.join(content.files) or 'nothing'}; expected images as one "
                f"of {', '.join(IMAGES)}"
            )
        streamed = _streamed(content, key, file, progress)
        if streamed is None:
            images, release = pixels_of(content[key], f"{file}: {key}", last=True), nothing
        else:
            images, release = streamed
        label_key = next((key for key in LABELS if key in content), None)
        labels = None if label_key is None else content[label_key]
    if images.ndim != 4:
        raise PidistillError(f"{file}: {key} has shape {tuple(images.shape)}; expected images")
    return _dataset(name, images, labels, f"{file}: {label_key}", release)


def _streamed(content: np.lib.npyio.NpzFile, key: str, file: Path, progress: Show) -> Pixels | None:
    """The 8-bit images of an array too large for memory; None if it is small or holds others."""
    assert content.zip is not None  # it is open
    with content.zip.open(f"{key}.npy") as stream:
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(np.lib.format.read_magic(stream))
        shape, fortran, dtype = read(stream) if read else ((), False, None)
        axis = 1 if len(shape) == 3 else channel_axis(shape, last=True)
        if dtype != np.uint8 or fortran or not axis or fits_memory(math.prod(shape)):
            return None

        def images() -> Iterator[np.ndarray]:
            high = 0
            for _ in range(shape[0]):
                image = np.frombuffer(stream.read(math.prod(shape[1:])), np.uint8)
                high = max(high, image.max())
                image = image.reshape(shape[1:] if len(shape) == 4 else (1, *shape[1:]))
                yield image if axis == 3 else image.transpose(1, 2, 0)
            require_levels(0, high, f"{file}: {key}")

        stat = file.stat()
        origin = Origin(f"npz {file.resolve()} {key}", [stat.st_size, stat.st_mtime_ns])
        return gather(images(), shape[0], origin, progress)


def load_idx(
    name: str, locator: str, options: dict[str, Any], progress: Show = no_progress
) -> Dataset:
    """Load a folder of the MNIST family's own files, gzipped or not.

    `options` may have `split`: `train` (the default), `test` or `t10k`, whichever is in the names.

    Raises `PidistillError` if a file is missing or damaged.
    """
    folder = user_path(locator)
    split = options.get("split", "train")
    images = _read_idx(_idx_file(folder, split, "images"), 3)
    labels_file = _idx_file(folder, split, "labels")
    return _dataset(
        name,
        torch.from_numpy(images[:, None]),
        _read_idx(labels_file, 1),
        str(labels_file),
    )


def _idx_file(folder: Path, split: str, kind: str) -> Path:
    splits = {"test": ("test", "t10k"), "t10k": ("t10k", "test")}.get(split, (split,))
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [f for f in files if kind in f.name and any(s in f.name for s in splits)]
    if not found:
        raise PidistillError(
            f"{folder} has no {kind} of the split {split!r}; expected a file such as "
            f"{split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte or the same with .gz"
        )
    return found[0]


def _read_idx(file: Path, rank: int) -> np.ndarray:
    """The array of 8-bit numbers in an idx file."""
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError) as error:
        raise PidistillError(f"{file} is not readable: {error}") from error
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * rank], ">u4").astype(int))
    is_idx = content[:4] == bytes([0, 0, 8, rank]) and len(shape) == rank
    if not is_idx or len(content) != 4 + 4 * rank + int(np.prod(shape)):
        raise PidistillError(
            f"{file} is damaged, or not an idx file of 8-bit numbers with {rank} axes"
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()


def _dataset(
    name: str,
    images: torch.Tensor,
    labels: np.ndarray | None,
    source: str,
    release: Callable[[], None] = nothing,
) -> Dataset:
    """A data set whose classes are the distinct labels in order, which are also their names."""
    if labels is None:
        return Dataset(images, None, 0, name, release=release)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise PidistillError(
            f"{source} holds labels {labels.dtype} of shape {labels.shape}; expected integers of "
            f"shape ({len(images)},)"
        )
    values, index = np.unique(labels, return_inverse=True)
    names = tuple(map(str, values))
    return Dataset(
        images, torch.from_numpy(index).long(), len(values), name, names, release=release
    )
