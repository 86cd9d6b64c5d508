"""The classifiers bundled with the package, one per bundled data set."""

import importlib.resources
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork
from pidistill.storage import load_weights, read_tensors


class Bundled(NamedTuple):
    """The properties of a bundled classifier."""

    sample_shape: tuple[int, ...]
    widths: tuple[int, ...]
    """Output channels of its convolutions."""
    stands_for_shape: bool
    """Whether images of this shape almost certainly resemble its training data."""


BUNDLED = {
    "digits": Bundled((1, 8, 8), (24, 48), stands_for_shape=True),
    "glyphs": Bundled((3, 32, 32), (16, 32, 64), stands_for_shape=False),  # CIFAR-10's shape too
}
"""The bundled classifiers, by the data set they were trained on."""


class Classifier(FeatureNetwork):
    """A small convolutional classifier with ten classes, whose last hidden layer is the features.

    `benchmarks/train_classifier.py` trains the bundled weights. Those for the glyphs also predict
    all factors of an image, so that distances are sensitive to colour, position and size.
    """

    num_features = 64

    def __init__(self, name: str) -> None:
        """Build the classifier `name`, a key of `BUNDLED`, with fresh weights."""
        super().__init__()
        self.name = name
        self.sample_shape, widths, _ = BUNDLED[name]
        channels, height, width = self.sample_shape
        self.num_convolutions = len(widths)
        for i, out_channels in enumerate(widths):
            self.add_module(f"conv{i}", nn.Conv2d(channels, out_channels, 3, padding=1))
            channels, height, width = out_channels, height // 2, width // 2
        self.hidden = nn.Linear(channels * height * width, self.num_features)
        self.output = nn.Linear(self.num_features, 10)

    def extract(self, x: Tensor) -> FeatureBatch:
        """Hidden layer (n, 64) and logits (n, 10) of images `x` (n, c, h, w) in [-1, 1]."""
        for i in range(self.num_convolutions):
            x = functional.max_pool2d(functional.relu(self.get_submodule(f"conv{i}")(x)), 2)
        hidden = functional.relu(self.hidden(x.flatten(1)))
        return FeatureBatch(hidden, self.output(hidden))


def load_bundled(name: str) -> Classifier:
    """The bundled classifier `name`, a key of `BUNDLED`."""
    classifier = Classifier(name)
    with importlib.resources.as_file(importlib.resources.files("pidistill") / "assets") as assets:
        path = Path(assets) / f"{name}-classifier.safetensors"
        load_weights(classifier, read_tensors(path), str(path))
    return classifier
