"""The contract of feature networks: images to vectors that distances are taken between."""

import importlib.resources
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from pidistill.images import from_uint8, to_uint8
from pidistill.numerics import set_numerics
from pidistill.storage import load_weights, read_tensors, weights_sha256


class FeatureBatch(NamedTuple):
    """What a feature network says of some images, from one evaluation."""

    features: Tensor
    """Shape (n, d), float32, on the network's device."""
    logits: Tensor | None
    """Shape (n, k), float32, the logits of its classes; None where it is no classifier."""


class FeatureNetwork(nn.Module):
    """A frozen network, called with images (n, c, h, w) in [-1, 1] on its device.

    Images are rounded to 8 bits first, as a file of images would, so that samples and references
    are measured alike wherever they come from. A subclass sets the three attributes and defines
    `extract`; resizing, colours and normalisation are its own business.
    """

    name: str
    """The name that `features_named` knows it by."""
    num_features: int
    version: int = 1
    """Raised when `extract` changes its numbers, so that cached statistics are not mixed up."""

    def __init__(self) -> None:
        """Begin, in full single precision: an accelerator's features are those of the CPU."""
        super().__init__()
        set_numerics()

    def forward(self, x: Tensor) -> FeatureBatch:
        """Features and logits of images `x` (n, c, h, w) in [-1, 1], rounded to 8 bits."""
        return self.extract(from_uint8(to_uint8(x)))

    def extract(self, x: Tensor) -> FeatureBatch:
        """Features and logits of images `x` (n, c, h, w) in [-1, 1] that have 8 bits."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """Name, version and content hash of the weights: equal where the features are."""
        return f"{self.name}-{self.version}-{weights_sha256(self)}"


class Classifier(nn.Module):
    """A small classifier of samples of one shape, whose last hidden layer is of use as features."""

    sample_shape: tuple[int, ...]
    num_features: int
    output: nn.Linear

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer (n, d) for samples `x` (n, *sample_shape) in [-1, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, k) of samples `x` (n, *sample_shape) in [-1, 1]."""
        return self.output(self.features(x))


_Classifier = TypeVar("_Classifier", bound=Classifier)


def load_bundled(classifier: _Classifier, file: str) -> _Classifier:
    """Give `classifier` the weights of the package's asset `file`, freeze and return it."""
    with importlib.resources.as_file(importlib.resources.files("pidistill") / "assets") as assets:
        path = Path(assets) / file
        load_weights(classifier, read_tensors(path), str(path))
    return classifier.eval().requires_grad_(False)


class ClassifierFeatures(FeatureNetwork):
    """The last hidden layer of a small bundled classifier."""

    def __init__(self, name: str, classifier: Classifier) -> None:
        """Wrap a trained `classifier`, which is frozen, under a `name`."""
        super().__init__()
        self.name = name
        self.num_features = classifier.num_features
        self.classifier = classifier.eval().requires_grad_(False)

    def extract(self, x: Tensor) -> FeatureBatch:
        """Hidden layer and logits of images `x` (n, c, h, w) in [-1, 1]."""
        hidden = self.classifier.features(x)
        return FeatureBatch(hidden, self.classifier.output(hidden))
