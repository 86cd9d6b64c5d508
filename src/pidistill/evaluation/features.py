"""Feature networks that Frechet distances are taken in."""

import importlib.resources
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.storage import load_weights, read_tensors

CLASSIFIER_FILE = "digits-classifier.safetensors"


class DigitsClassifier(nn.Module):
    """A small convolutional classifier of 8x8 digits; its last hidden layer is the features.

    `benchmarks/train_digits_classifier.py` trains the weights that are bundled.
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

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10) of digits `x` (n, 1, 8, 8) in [-1, 1]."""
        return self.output(self.features(x))


def load_digits_classifier() -> DigitsClassifier:
    """The bundled classifier."""
    classifier = DigitsClassifier()
    with importlib.resources.as_file(importlib.resources.files("pidistill") / "assets") as assets:
        path = Path(assets) / CLASSIFIER_FILE
        load_weights(classifier, read_tensors(path), str(path))
    return classifier.eval().requires_grad_(False)


def features_for(sample_shape: tuple[int, ...]) -> Callable[[Tensor], Tensor] | None:
    """The feature network that suits samples of a shape: (n, *shape) to (n, d), or None."""
    if tuple(sample_shape) == DigitsClassifier.sample_shape:
        return load_digits_classifier().features
    return None


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 500) -> Tensor:
    """Apply `function` to `x` (n, ...) in batches, on the CPU."""
    return torch.cat([function(part) for part in x.cpu().split(batch_size)])
