"""The data set type."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pidistill.devices import kept_on
from pidistill.images import from_uint8
from pidistill.noise import Draws

AT_ONCE = 256
"""Images that are converted at once where all of them are read."""


FEWEST = 16
"""Fewer held-out images say little."""


def nothing() -> None:
    """What is in memory already needs no release."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels.

    Few images are in memory. Many are in a file that is mapped; what a batch reads of it is
    released at once, so that the memory of a process does not grow with the number of images.
    """

    pixels: Tensor
    """Shape (n, c, h, w): uint8, or float32 in [-1, 1]."""
    labels: Tensor | None
    """Shape (n,), int64, in 0 .. `num_classes` - 1; None without labels."""
    num_classes: int
    """0 without labels."""
    name: str
    """The spec it was loaded from."""
    class_names: tuple[str, ...] = ()
    """In the order of the labels, or empty if there are none."""
    mirrored: bool = False
    """Whether the second half of the images is the first half, mirrored."""
    release: Callable[[], None] = nothing
    """Releases what was read of a mapped file."""

    def __len__(self) -> int:
        return len(self.pixels)

    def _replace(self, **changes: Any) -> "Dataset":
        """A copy with other values in some fields, as of a named tuple."""
        return dataclasses.replace(self, **changes)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of an image, (c, h, w)."""
        return tuple(self.pixels.shape[1:])

    def kept_on(self, device: torch.device) -> "Dataset":
        """The data set with its images on a CUDA `device`, if there is room."""
        pixels, labels = kept_on(device, self.pixels, self.labels)
        assert pixels is not None
        return dataclasses.replace(self, pixels=pixels, labels=labels)

    @property
    def images(self) -> Tensor:
        """All images at once (n, c, h, w), float32 in [-1, 1]; `batch` reads some of them."""
        return self.batch(slice(None))

    def batch(self, rows: Tensor | slice) -> Tensor:
        """The images `rows`, float32 in [-1, 1]."""
        x = self.pixels[rows]
        if x.dtype == torch.uint8:
            x = from_uint8(x)
        self.release()
        return x

    def chunks(self) -> Iterator[Tensor]:
        """All images in order, some at a time, float32 in [-1, 1]."""
        return map(self.batch, self._slices())

    def _slices(self) -> Iterator[slice]:
        return (slice(first, first + AT_ONCE) for first in range(0, len(self), AT_ONCE))

    def held_out(self, share: float, most: int) -> tuple[Tensor, Tensor]:
        """Divide the images into those held out and the rest, as indices.

        Held out are this share of the images, at most `most`, drawn at random, always the same, and
        none if they would be fewer than `FEWEST`. A mirror image goes with its original.
        """
        num = len(self) // (2 if self.mirrored else 1)
        order = Draws(0, 0, num).uniform("held out").argsort()
        count = min(int(share * num), most)
        count = count if count >= FEWEST else 0
        parts = order[:count], order[count:].sort().values
        held_out, rest = (torch.cat([p, p + num]) if self.mirrored else p for p in parts)
        return held_out, rest

    @functools.cached_property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all pixels."""
        if self.pixels.dtype != torch.uint8:
            return self.pixels.double().mean().item(), self.pixels.double().std().item()
        counts = torch.zeros(256, dtype=torch.int64)
        for rows in self._slices():
            counts += self.pixels[rows].flatten().bincount(minlength=256)
            self.release()
        levels, num = from_uint8(torch.arange(256)).double(), self.pixels.numel()
        mean = (counts * levels).sum() / num
        variance = (counts * (levels - mean) ** 2).sum() / max(1, num - 1)
        return mean.item(), variance.sqrt().item()

    @functools.cached_property
    def sha256(self) -> str:
        """Content hash of images, as float32, and labels."""
        digest = hashlib.sha256(b"images")
        for x in self.chunks():
            digest.update(x.cpu().contiguous().numpy().data)
        if self.labels is not None:
            digest.update(b"labels")
            digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def fingerprint(data: Dataset) -> str:
    """Content hash of images and labels."""
    return data.sha256
