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
from pidistill.storage import replacing

SUFFIXES = (".png", ".npz")
MIN_SAMPLES = 4


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
    """Read the array `samples` of an `.npz` file, shape (n, ...), as float32.

    Raises `PidistillError` when the file is missing, damaged or holds no such array. Nothing in it
    is executed: pickled arrays are refused.
    """
    with open_npz(file) as content:
        if "samples" not in content:
            raise PidistillError(
                f"{file} holds {', '.join(content.files) or 'nothing'}; expected an array 'samples'"
            )
        samples = content["samples"]
    if samples.dtype.kind != "f" or samples.ndim < 2:
        raise PidistillError(
            f"{file}: samples is {samples.dtype} of shape {samples.shape}; expected floating "
            "point numbers of shape (n, ...) in [-1, 1]"
        )
    if len(samples) < MIN_SAMPLES:
        raise PidistillError(
            f"{file} holds {len(samples)} sample(s); expected at least {MIN_SAMPLES}, two for each "
            "half of them"
        )
    return torch.from_numpy(samples).float()
