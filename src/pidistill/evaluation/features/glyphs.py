"""The bundled classifier of 32x32 glyphs."""

import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.evaluation.features.base import Classifier, load_bundled

CLASSIFIER_FILE = "glyphs-classifier.safetensors"


class GlyphsClassifier(Classifier):
    """A small convolutional classifier of 32x32 glyphs; its last hidden layer is the features.

    `benchmarks/train_classifier.py` trains the weights that are bundled. The hidden layer was made
    to tell all the factors of an image, so that distances see colours, places and sizes too.
    """

    sample_shape = (3, 32, 32)
    num_features = 64

    def __init__(self) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.conv0 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, self.num_features)
        self.output = nn.Linear(self.num_features, 10)

    def features(self, x: Tensor) -> Tensor:
        """Features (n, 64) of glyphs `x` (n, 3, 32, 32) in [-1, 1]."""
        h = x
        for conv in (self.conv0, self.conv1, self.conv2):
            h = functional.max_pool2d(functional.relu(conv(h)), 2)
        return functional.relu(self.hidden(h.flatten(1)))


def load_glyphs_classifier() -> GlyphsClassifier:
    """The bundled classifier."""
    return load_bundled(GlyphsClassifier(), CLASSIFIER_FILE)
