"""What a data set is."""

from typing import NamedTuple

from torch import Tensor

from pidistill.storage import tensors_sha256


class Dataset(NamedTuple):
    """Images that fit in memory.

    `images` (n, c, h, w) are float32, in [-1, 1]; `labels` (n,) are int64, below `num_classes`, or
    None and 0 where there are none. `name` is the spec that it was loaded from.
    """

    images: Tensor
    labels: Tensor | None
    num_classes: int
    name: str


def fingerprint(data: Dataset) -> str:
    """A hash of the images and labels."""
    tensors = {"images": data.images}
    return tensors_sha256(tensors if data.labels is None else {**tensors, "labels": data.labels})
