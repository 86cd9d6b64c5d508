"""Sample files: `.png` grids and folders for viewing, `.npz` arrays for evaluation."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pidistill import images
from pidistill.errors import PidistillError
from pidistill.files import replacing, require_writable_folder

SUFFIXES = (".png", ".npz", "")
MIN_SAMPLES = 4
FARTHEST = 16
"""Larger absolute values mean that pixels are not in [-1, 1] but, say, in 0 .. 255."""


def require_writable(path: str | Path) -> None:
    """Raise `PidistillError` unless samples can be written to `path` (see `write_samples`).

    Meant to be called before sampling. Creates a missing folder.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise PidistillError(f"{path} ends in {path.suffix!r}; expected .png, .npz or a folder")
    if path.suffix and path.is_dir():
        raise PidistillError(f"{path} is a folder; expected a file")
    require_writable_folder(path.parent if path.suffix else path)


def require_drawable(path: str | Path, sample_shape: tuple[int, ...]) -> None:
    """Raise `PidistillError` if `path` is for pictures and samples of this shape are not images."""
    if Path(path).suffix.lower() != ".npz":
        images.require_image(sample_shape)


def write_samples(path: str | Path, x: Tensor) -> None:
    """Write samples (n, c, h, w) in [-1, 1], each file atomically.

    A `.png` is a grid; an `.npz` stores `samples`, float32, unchanged; a path without a suffix is a
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
    """Open an `.npz` file for reading arrays; nothing in it is executed.

    Raises `PidistillError` if it is missing or damaged, or an array is pickled.
    """
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise PidistillError(f"{file} is a single array; expected an .npz of named arrays")
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

    Arguments and errors as in `read_pixels`.
    """
    x = read_pixels(file)
    return images.from_uint8(x) if x.dtype == torch.uint8 else x


def samples_of(array: np.ndarray, name: str) -> Tensor:
    """Given samples (n, ...) as float32 in [-1, 1]; images (n, c, h, w) may have 8 bits.

    Raises `PidistillError`, which calls them `name`, if they are neither, or not finite.
    """
    if array.dtype == np.uint8 and array.ndim == 4:
        return images.from_uint8(torch.from_numpy(array))
    return _floats(array, name)


def read_pixels(file: str | Path) -> Tensor:
    """Read the samples of an `.npz` file, unchanged.

    They are the array `samples`, floating-point numbers in [-1, 1] of shape (n, ...), or `arr_0`,
    8-bit images of shape (n, h, w, c) as in guided-diffusion's evaluations.

    Returns:
        Shape (n, ...), float32; or shape (n, c, h, w), uint8.

    Raises:
        PidistillError: The file is missing or damaged, or has no such array. Nothing in it is
            executed: pickled arrays are rejected.
    """
    with open_npz(file) as content:
        name = next((name for name in READERS if name in content), None)
        if name is None:
            raise PidistillError(
                f"{file} contains {', '.join(content.files) or 'nothing'}; expected an array "
                "'samples' or 'arr_0'"
            )
        array = content[name]
    samples = READERS[name](array, f"{file}: {name}")
    if len(samples) < MIN_SAMPLES:
        raise PidistillError(
            f"{file} contains {len(samples)} sample(s); expected at least {MIN_SAMPLES}, two per "
            "half"
        )
    return samples


def _floats(array: np.ndarray, name: str) -> Tensor:
    """Samples as pidistill writes them."""
    if array.dtype.kind != "f" or array.ndim < 2:
        raise PidistillError(
            f"{name} is {array.dtype} of shape {array.shape}; expected floating-point numbers of "
            "shape (n, ...) in [-1, 1]"
        )
    if not np.isfinite(array).all():
        raise PidistillError(f"{name} has a number that is not finite; expected [-1, 1]")
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
"""Readers of sample arrays by name; the first array present is read."""
