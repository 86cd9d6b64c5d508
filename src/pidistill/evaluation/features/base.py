"""The interface of feature networks, which map images to vectors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError
from pidistill.images import from_uint8, is_image, to_uint8
from pidistill.noise import device_of
from pidistill.storage import weights_sha256

AT_ONCE = 128
"""Images per batch."""


class FeatureBatch(NamedTuple):
    """The output of a feature network."""

    features: Tensor
    """Shape (n, d), float32."""
    logits: Tensor | None
    """Class logits, shape (n, k), float32; None if the network is not a classifier."""


class FeatureNetwork(nn.Module):
    """A frozen network, called with images (n, c, h, w) in [-1, 1] on its device.

    Images are rounded to 8 bits first, as image files are, so that samples and references are
    treated alike. A subclass sets the attributes and defines `extract`, which resizes and
    normalises as needed.
    """

    name: str
    num_features: int
    version: int = 1
    """Increase this when the output of `extract` changes, to invalidate cached statistics."""
    sample_shape: tuple[int, ...] | None = None
    """The only accepted image shape; None means 1 or 3 channels and any size."""

    def forward(self, x: Tensor) -> FeatureBatch:
        """Features and logits of images `x` (n, c, h, w) in [-1, 1], rounded to 8 bits.

        Convolutions do not use TF32, so that features on a GPU match those on the CPU.
        """
        cudnn = torch.backends.cudnn
        with cudnn.flags(cudnn.enabled, cudnn.benchmark, allow_tf32=False):
            return self.extract(from_uint8(to_uint8(x)))

    def extract(self, x: Tensor) -> FeatureBatch:
        """Features and logits of images `x` (n, c, h, w) in [-1, 1], already rounded to 8 bits."""
        raise NotImplementedError

    def takes(self, sample_shape: tuple[int, ...]) -> bool:
        """Whether the network accepts images of this shape (c, h, w)."""
        if self.sample_shape is None:
            return is_image(sample_shape)
        return tuple(sample_shape) == self.sample_shape

    @property
    def identity(self) -> str:
        """Name, version and content hash of the weights: identifies the features."""
        return f"{self.name}-{self.version}-{weights_sha256(self)}"


@torch.no_grad()
def features_of(
    x: Tensor, network: FeatureNetwork, on_batch: Callable[[int], None] = lambda count: None
) -> FeatureBatch:
    """Features and logits, on the CPU, of images (n, c, h, w) in [-1, 1] or uint8.

    Raises `PidistillError` if a feature is not finite.
    """
    device = device_of(network)
    batches = []
    for part in x.split(AT_ONCE):
        part = part.to(device)
        features, logits = network(from_uint8(part) if part.dtype == torch.uint8 else part)
        if not features.isfinite().all():
            raise PidistillError("a feature is not finite; are the samples?")
        batches.append(FeatureBatch(features.cpu(), None if logits is None else logits.cpu()))
        on_batch(len(part))
    return joined(batches)


def joined(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    """Concatenate batches."""
    logits = [batch.logits for batch in batches if batch.logits is not None]
    return FeatureBatch(
        torch.cat([batch.features for batch in batches]), torch.cat(logits) if logits else None
    )
