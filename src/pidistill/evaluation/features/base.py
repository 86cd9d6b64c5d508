"""The contract of feature networks: images to vectors that distances are taken between."""

import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.images import from_uint8, is_image, to_uint8
from pidistill.storage import weights_sha256


class FeatureBatch(NamedTuple):
    """What a feature network says of some images, from one evaluation."""

    features: Tensor
    """Shape (n, d), float32."""
    logits: Tensor | None
    """Shape (n, k), float32, the logits of its classes; None where it is no classifier."""


class FeatureNetwork(nn.Module):
    """A frozen network, called with images (n, c, h, w) in [-1, 1] on its device.

    Images are rounded to 8 bits first, as a file of images would, so that samples and references
    are measured alike wherever they come from. A subclass sets the attributes and defines
    `extract`, which resizes and normalises as it needs.
    """

    name: str
    num_features: int
    version: int = 1
    """Raised when `extract` changes its numbers, so that cached statistics are not mixed up."""
    sample_shape: tuple[int, ...] | None = None
    """The only shape of images that it takes; None means 1 or 3 channels and any size."""

    def forward(self, x: Tensor) -> FeatureBatch:
        """Features and logits of images `x` (n, c, h, w) in [-1, 1], rounded to 8 bits.

        Convolutions keep full single precision: an accelerator's features are those of the CPU.
        """
        cudnn = torch.backends.cudnn
        with cudnn.flags(cudnn.enabled, cudnn.benchmark, allow_tf32=False):
            return self.extract(from_uint8(to_uint8(x)))

    def extract(self, x: Tensor) -> FeatureBatch:
        """Features and logits of images `x` (n, c, h, w) in [-1, 1] that have 8 bits."""
        raise NotImplementedError

    def takes(self, sample_shape: tuple[int, ...]) -> bool:
        """Whether it takes images of this shape (c, h, w)."""
        if self.sample_shape is None:
            return is_image(sample_shape)
        return tuple(sample_shape) == self.sample_shape

    @property
    def identity(self) -> str:
        """Name, version and content hash of the weights: equal where the features are."""
        return f"{self.name}-{self.version}-{weights_sha256(self)}"


def gather_features(batches: Iterable[FeatureBatch], num: int) -> FeatureBatch:
    """The features and logits of `num` samples, in temporary files that go with the tensors.

    Args:
        batches: Features in the order of the samples, on any device, however they are split.
        num: How many samples there are in all.

    Raises:
        PidistillError: There are more or fewer samples, or a feature is not finite.
    """
    whole: FeatureBatch | None = None
    seen = 0
    for features, logits in batches:
        if not features.isfinite().all():
            raise PidistillError("a feature is not finite; are the samples?")
        if whole is None:
            on_disk = None if logits is None else _on_disk(num, logits.shape[1])
            whole = FeatureBatch(_on_disk(num, features.shape[1]), on_disk)
        rows = slice(seen, seen + len(features))
        seen += len(features)
        if seen > num:
            raise PidistillError(f"more than {num} samples came in")
        whole.features[rows] = features.cpu()
        if whole.logits is not None and logits is not None:
            whole.logits[rows] = logits.cpu()
    if whole is None or seen != num:
        raise PidistillError(f"{seen} samples came in; expected {num}")
    return whole


def _on_disk(num: int, width: int) -> Tensor:
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(num, width)))
