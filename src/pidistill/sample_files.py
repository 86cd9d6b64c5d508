"""Files of samples: `.png` grids and folders to look at, `.npz` arrays to measure."""

import contextlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pidistill import images
from pidistill.errors import PidistillError
from pidistill.files import replacing

SUFFIXES = (".png", ".npz", "")
MIN_SAMPLES = 4
FARTHEST = 16
"""Beyond this, pixels were meant to be in another range than [-1, 1], such as 0 .. 255."""


def require_writable(path: str | Path) -> None:
    """Raise `PidistillError` unless samples can be written to `path` (see `write_samples`).

    Asked before the work; a missing folder is made.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise PidistillError(f"{path} ends in {path.suffix!r}; expected .png, .npz or a folder")
    if path.suffix and path.is_dir():
        raise PidistillError(f"{path} is a folder; expected a file")
    folder = path.parent if path.suffix else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PidistillError(f"{path} cannot be written: {error.strerror}") from error


def require_drawable(path: str | Path, sample_shape: tuple[int, ...]) -> None:
    """Raise `PidistillError` when `path` is for pictures and samples of this shape are not."""
    if Path(path).suffix.lower() != ".npz":
        images.require_image(sample_shape)


def write_samples(path: str | Path, x: Tensor) -> None:
    """Write samples (n, c, h, w) in [-1, 1], each file at once or not at all.

    A `.png` is a grid; an `.npz` holds `samples`, float32, unchanged; a path without an end is a
    folder of pictures, 000000.png and so on.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        images.save_png(path, images.grid(x))
    elif path.suffix.lower() == ".npz":
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, samples=x.float().cpu().numpy())
    else:
        images.require_image(tuple(x.shape[1:]))
        path.mkdir(parents=True, exist_ok=True)
        pictures = images.to_uint8(x.cpu()).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        for i, picture in enumerate(pictures):
            images.save_png(path / f"{i:06d}.png", picture.numpy())


@contextlib.contextmanager
def open_npz(file: str | Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an `.npz` file to read arrays from; nothing in it is executed.

    Raises `PidistillError` when it is missing or damaged, or an array is pickled.
    """
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise PidistillError(f"{file} holds one bare array; expected an .npz of named arrays")
        with loaded as content:
            yield content
    except FileNotFoundError as error:
        raise PidistillError(f"{file} does not exist") from error
    except PidistillError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PidistillError(f"{file} is not a readable .npz file: {error}") from error


def read_samples(file: str | Path) -> Tensor:
    """Read the samples of an `.npz` file, shape (n, ...), as float32 in [-1, 1].

    Arguments and errors are those of `read_pixels`.
    """
    x = read_pixels(file)
    return images.from_uint8(x) if x.dtype == torch.uint8 else x


def read_pixels(file: str | Path) -> Tensor:
    """Read the samples of an `.npz` file, unchanged.

    They are the array `samples`, floating point numbers in [-1, 1] of shape (n, ...), or `arr_0` in
    the form of guided-diffusion's evaluations, 8-bit images of shape (n, h, w, c).

    Returns:
        Shape (n, ...), float32; or shape (n, c, h, w), uint8.

    Raises:
        PidistillError: The file is missing, damaged or holds no such array. Nothing in it is
            executed: pickled arrays are refused.
    """
    with open_npz(file) as content:
        name = next((name for name in READERS if name in content), None)
        if name is None:
            raise PidistillError(
                f"{file} holds {', '.join(content.files) or 'nothing'}; expected an array "
                "'samples' or 'arr_0'"
            )
        array = content[name]
    samples = READERS[name](array, f"{file}: {name}")
    if len(samples) < MIN_SAMPLES:
        raise PidistillError(
            f"{file} holds {len(samples)} sample(s); expected at least {MIN_SAMPLES}, two for each "
            "half of them"
        )
    return samples


def _floats(array: np.ndarray, name: str) -> Tensor:
    """Samples as this project writes them."""
    if array.dtype.kind != "f" or array.ndim < 2:
        raise PidistillError(
            f"{name} is {array.dtype} of shape {array.shape}; expected floating point numbers of "
            "shape (n, ...) in [-1, 1]"
        )
    if not np.isfinite(array).all():
        raise PidistillError(f"{name} holds a number that is not finite; expected [-1, 1]")
    reach = float(np.abs(array).max(initial=0))
    if images.is_image(array.shape[1:]) and reach > FARTHEST:
        raise PidistillError(f"{name} reaches {reach:.4g}; expected images in [-1, 1]")
    return torch.from_numpy(array).float()


def _bytes(array: np.ndarray, name: str) -> Tensor:
    """Images as guided-diffusion's evaluations write them."""
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise PidistillError(
            f"{name} is {array.dtype} of shape {array.shape}; expected 8-bit images of shape "
            "(n, h, w, 3)"
        )
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


READERS = {"samples": _floats, "arr_0": _bytes}
"""Arrays that hold samples, by their name in a file; the first that is there is read."""
