"""The data set type."""

from typing import NamedTuple

from torch import Tensor

from pidistill.storage import tensors_sha256


class Dataset(NamedTuple):
    """Images in memory.

    `images` (n, c, h, w) are float32 in [-1, 1]. `labels` (n,) are int64 in
    0 .. `num_classes` - 1; without labels they are None and `num_classes` is 0. `name` is the spec
    it was loaded from. `class_names` are in the order of the labels, or empty if there are none.
    """

    images: Tensor
    labels: Tensor | None
    num_classes: int
    name: str
    class_names: tuple[str, ...] = ()


def fingerprint(data: Dataset) -> str:
    """Content hash of images and labels."""
    tensors = {"images": data.images}
    return tensors_sha256(tensors if data.labels is None else {**tensors, "labels": data.labels})
