"""What a data set is."""

from typing import NamedTuple

from torch import Tensor

from pidistill.storage import tensors_sha256


class Dataset(NamedTuple):
    """Images that fit in memory."""

    images: Tensor
    """Shape (n, c, h, w), float32, in [-1, 1]."""
    labels: Tensor | None
    """Shape (n,), int64, or None where there are none."""
    num_classes: int
    """Number of labels; 0 where there are none."""
    name: str
    """The spec that it was loaded from."""


def fingerprint(data: Dataset) -> str:
    """A hash of the images and labels."""
    tensors = {"images": data.images}
    return tensors_sha256(tensors if data.labels is None else {**tensors, "labels": data.labels})
