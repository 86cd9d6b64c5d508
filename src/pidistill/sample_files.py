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
    """Raise `PidistillError` if `path` is for pictures and samples of this shape have none."""
    suffix = Path(path).suffix.lower()
    if suffix != ".npz" and not (suffix == ".png" and images.is_plane(sample_shape)):
        images.require_image(sample_shape)


def write_samples(path: str | Path, x: Tensor, columns: int | None = None) -> None:
    """Write samples (n, ...), images in [-1, 1], each file atomically.

    A `.png` is a grid of `columns`, or nearly square, and of points in the plane a scatter plot; an
    `.npz` stores `samples`, float32, unchanged; a path without a suffix is a folder of pictures,
    000000.png and so on.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        images.save_png(path, images.picture_of(x, columns=columns))
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
    x = pixels_of(array, name, last=False)
    return images.from_uint8(x) if x.dtype == torch.uint8 else x


def read_pixels(file: str | Path) -> Tensor:
    """Read the samples of an `.npz` file, unchanged.

    They are the array `samples`, of shape (n, ...), or `arr_0`, images of shape (n, h, w, c) as in
    guided-diffusion's evaluations; each as in `pixels_of`.

    Returns:
        Shape (n, ...), float32; or shape (n, c, h, w), uint8.

    Raises:
        PidistillError: The file is missing or damaged, or has no such array. Nothing in it is
            executed: pickled arrays are rejected.
    """
    with open_npz(file) as content:
        name = next((name for name in ARRAYS if name in content), None)
        if name is None:
            raise PidistillError(
                f"{file} contains {', '.join(content.files) or 'nothing'}; expected an array "
                "'samples' or 'arr_0'"
            )
        array = content[name]
    samples = pixels_of(array, f"{file}: {name}", last=name == "arr_0")
    if len(samples) < MIN_SAMPLES:
        raise PidistillError(
            f"{file} contains {len(samples)} sample(s); expected at least {MIN_SAMPLES}, two per "
            "half"
        )
    return samples


def pixels_of(array: np.ndarray, name: str, *, last: bool) -> Tensor:
    """Samples in an array, of any byte order and precision.

    Args:
        array: Floating-point numbers (n, ...), for images in [-1, 1]; or images of integers in
            0 .. 255, grey ones also as (n, h, w).
        name: What errors call it.
        last: Whether channels are expected last, where both are possible.

    Returns:
        Shape (n, ...), float32; or images (n, c, h, w), uint8.

    Raises:
        PidistillError: It is neither, not finite, or images in a range that is not [-1, 1].
    """
    is_integer, is_real = array.dtype.kind in "iu", array.dtype.kind == "f"
    if is_integer and array.ndim == 3:  # grey images, as in the files of MNIST
        array = array[:, None]
    axis = channel_axis(array.shape, last)
    if not (is_real and array.ndim > 1) and not (is_integer and axis):
        raise PidistillError(
            f"{name} is {array.dtype} of shape {array.shape}; expected floating-point numbers of "
            "shape (n, ...) in [-1, 1], or 8-bit images of shape (n, h, w, 3) or (n, 3, h, w)"
        )
    if axis == 3:
        array = array.transpose(0, 3, 1, 2)
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if is_integer:
        require_levels(low, high, name)
        return torch.from_numpy(np.ascontiguousarray(array, np.uint8))
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as not finite
        numbers = np.ascontiguousarray(array, np.float32)
    num_bad = int((~np.isfinite(numbers)).sum())
    if num_bad:
        raise PidistillError(f"{name} has {num_bad} numbers that are not finite; expected [-1, 1]")
    if axis and high > 0 and (low >= 0 or max(-low, high) > FARTHEST):
        raise PidistillError(
            f"{name} holds {low:.4g} .. {high:.4g}; expected images in [-1, 1]: store "
            "2 * x - 1 of [0, 1], x / 127.5 - 1 of [0, 255], or 8-bit integers"
        )
    return torch.from_numpy(numbers)


def require_levels(low: int, high: int, name: str) -> None:
    """Raise `PidistillError` unless integers from `low` to `high` can be those of 8-bit images."""
    if low < 0 or high > 255 or high == 1:
        hint = ": store 255 * x of two levels" if (low, high) == (0, 1) else ""
        raise PidistillError(f"{name} holds {low} .. {high}; expected integers in 0 .. 255{hint}")


def channel_axis(shape: tuple[int, ...], last: bool) -> int:
    """The axis of the channels of images of this shape; 0 if they are no images."""
    axes = (3, 1) if last else (1, 3)
    return next((axis for axis in axes if len(shape) == 4 and shape[axis] in (1, 3)), 0)


ARRAYS = ("samples", "arr_0")
"""The arrays of samples by name; the first that is there is read."""
