"""The classifiers that come with the package, each for the images of one of its data sets."""

import importlib.resources
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork
from pidistill.storage import load_weights, read_tensors


class Bundled(NamedTuple):
    """What a bundled classifier is made for."""

    sample_shape: tuple[int, ...]
    widths: tuple[int, ...]
    """Channels of its convolutions."""
    stands_for_shape: bool
    """Whether images of this shape are hardly ever anything but what it was trained on."""


BUNDLED = {
    "digits": Bundled((1, 8, 8), (24, 48), stands_for_shape=True),
    "glyphs": Bundled((3, 32, 32), (16, 32, 64), stands_for_shape=False),  # CIFAR-10's shape too
}
"""The bundled classifiers, by the data set that they were trained on."""


class Classifier(FeatureNetwork):
    """A small convolutional classifier of ten classes; its last hidden layer is features.

    `benchmarks/train_classifier.py` trains the bundled weights: those for the glyphs to tell all
    factors of an image, so that distances see colours, places and sizes too.
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
