"""The bundled classifier of 8x8 digits."""

import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.evaluation.features.base import Classifier, load_bundled

CLASSIFIER_FILE = "digits-classifier.safetensors"


class DigitsClassifier(Classifier):
    """A small convolutional classifier of 8x8 digits; its last hidden layer is the features.

    `benchmarks/train_classifier.py` trains the weights that are bundled.
    """

    sample_shape = (1, 8, 8)
    num_features = 64

    def __init__(self) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.conv0 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv1 = nn.Conv2d(24, 48, 3, padding=1)
        self.hidden = nn.Linear(48 * 2 * 2, self.num_features)
        self.output = nn.Linear(self.num_features, 10)

    def features(self, x: Tensor) -> Tensor:
        """Features (n, 64) of digits `x` (n, 1, 8, 8) in [-1, 1]."""
        h = functional.max_pool2d(functional.relu(self.conv0(x)), 2)
        h = functional.max_pool2d(functional.relu(self.conv1(h)), 2)
        return functional.relu(self.hidden(h.flatten(1)))


def load_digits_classifier() -> DigitsClassifier:
    """The bundled classifier."""
    return load_bundled(DigitsClassifier(), CLASSIFIER_FILE)
