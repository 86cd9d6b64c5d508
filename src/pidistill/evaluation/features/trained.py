"""Feature networks of one's own, trained by `pidistill train-features`, in a folder.

`features.json` describes the network and says how good it is; the weights are safetensors beside
it.
"""

from pathlib import Path
from typing import Any

import pydantic
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.evaluation.features.base import FeatureBatch, FeatureNetwork
from pidistill.files import read_json, write_json
from pidistill.settings import STRICT, validate
from pidistill.storage import load_weights, read_tensors, write_tensors

FEATURES_FILE = "features.json"
WEIGHTS_FILE = "features.safetensors"
FORMAT = 1

WIDTH = 16
"""Channels of the first convolution; every halving doubles them, up to `WIDEST`."""
WIDEST = 128
SMALLEST = 7
"""Sides are halved until they are at most this."""
LARGE = 32
"""Images with larger sides are halved by the first convolution already."""


class Description(pydantic.BaseModel):
    """The content of `features.json`."""

    model_config = STRICT
    format: int
    sample_shape: list[int] = pydantic.Field(min_length=3, max_length=3)
    num_features: int = pydantic.Field(ge=1)
    num_classes: int = pydantic.Field(ge=0)
    """0 for an encoder that was trained without labels."""
    data: str
    """The spec of the training data."""
    facts: dict[str, Any] = {}
    """How it was trained and how good it is, such as `held_out_accuracy`."""


class Encoder(FeatureNetwork):
    """A small convolutional network, whose last hidden layer is the features.

    With classes it is a classifier, and has logits.
    """

    def __init__(self, description: Description) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.description = description
        self.name = "trained"
        self.sample_shape = tuple(description.sample_shape)
        self.num_features = description.num_features
        channels, height, width = self.sample_shape
        layers: list[nn.Module] = []
        stride = 2 if max(height, width) > LARGE else 1
        wide = WIDTH
        while not layers or max(height, width) > SMALLEST:
            conv = nn.Conv2d(channels, wide, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.GroupNorm(4, wide), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            for _ in range(2 if stride == 2 else 1):
                height, width = -(-height // 2), -(-width // 2)
            channels, wide, stride = wide, min(2 * wide, WIDEST), 1
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels * height * width, self.num_features)
        classes = description.num_classes
        self.output = nn.Linear(self.num_features, classes) if classes else None

    def extract(self, x: Tensor) -> FeatureBatch:
        """Hidden layer (n, d) and logits (n, classes) of images `x` (n, c, h, w) in [-1, 1]."""
        hidden = functional.relu(self.hidden(self.layers(x).flatten(1)))
        return FeatureBatch(hidden, None if self.output is None else self.output(hidden))


def is_features_folder(path: str | Path) -> bool:
    """Whether `path` is a folder of trained features."""
    return (Path(path) / FEATURES_FILE).is_file()


def save_features(folder: str | Path, network: Encoder) -> None:
    """Write a trained network to `folder`."""
    write_tensors(Path(folder) / WEIGHTS_FILE, network.state_dict())
    write_json(Path(folder) / FEATURES_FILE, network.description.model_dump())


def load_trained(folder: str | Path) -> Encoder:
    """Load the network in `folder`. Raises `PidistillError` if it is damaged."""
    path = Path(folder) / FEATURES_FILE
    description = validate(Description, read_json(path), str(path))
    network = Encoder(description)
    weights = Path(folder) / WEIGHTS_FILE
    load_weights(network, read_tensors(weights), str(weights))
    return network
