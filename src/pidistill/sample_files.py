"""Files of samples: `.png` grids to look at, `.npz` arrays to measure."""

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
from pidistill.files import replacing

SUFFIXES = (".png", ".npz")
MIN_SAMPLES = 4
FARTHEST = 16
"""Beyond this, pixels were meant to be in another range than [-1, 1], such as 0 .. 255."""


def require_writable(file: Path) -> None:
    """Raise `PidistillError` unless samples can be written to `file`: asked before the work."""
    if file.suffix.lower() not in SUFFIXES:
        raise PidistillError(
            f"--out {file} ends in {file.suffix or 'nothing'!r}; expected .png or .npz"
        )
    if file.is_dir():
        raise PidistillError(f"--out {file} is a folder; expected a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file.parent / f".{file.name}.probe") as temporary:
            temporary.touch()
        (file.parent / f".{file.name}.probe").unlink()
    except OSError as error:
        raise PidistillError(f"--out {file} cannot be written: {error.strerror}") from None


def require_drawable(file: Path, sample_shape: tuple[int, ...]) -> None:
    """Raise `PidistillError` when `file` is a picture and samples of this shape are not."""
    if file.suffix.lower() == ".png":
        images.require_image(sample_shape)


def write_samples(file: Path, x: Tensor) -> None:
    """Write samples (n, c, h, w) in [-1, 1], at once or not at all.

    A `.png` is a grid; an `.npz` holds `samples`, float32, as they are.
    """
    if file.suffix.lower() == ".png":
        images.save_png(file, images.grid(x))
        return
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, samples=x.float().cpu().numpy())


@contextlib.contextmanager
def open_npz(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an `.npz` file to read arrays from it, of which nothing is executed.

    Raises `PidistillError` when it is missing, damaged, no such file, or an array is pickled.
    """
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise PidistillError(f"{file} holds one bare array; expected an .npz of named arrays")
        with loaded as content:
            yield content
    except FileNotFoundError:
        raise PidistillError(f"{file} does not exist") from None
    except PidistillError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PidistillError(f"{file} is not a readable .npz file: {error}") from None


def read_samples(file: Path) -> Tensor:
    """Read the samples of an `.npz` file, shape (n, ...), as float32 in [-1, 1].

    Arguments and errors are those of `read_pixels`.
    """
    x = read_pixels(file)
    return images.from_uint8(x) if x.dtype == torch.uint8 else x


def read_pixels(file: Path) -> Tensor:
    """Read the samples of an `.npz` file as they are in it.

    That is the array `samples`, floating point numbers in [-1, 1] of shape (n, ...), or `arr_0` in
    the form that guided-diffusion's evaluations exchange: 8-bit images of shape (n, h, w, c).

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
