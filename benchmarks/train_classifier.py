"""Train the bundled classifiers, whose features define the Frechet distances of our data.

    python benchmarks/train_classifier.py digits
    python benchmarks/train_classifier.py glyphs

Writes src/pidistill/assets/NAME-classifier.safetensors and prints its test accuracy and the Frechet
distance between two halves of the data. The digits take about 10 seconds on two CPU cores, the
glyphs about two minutes.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from pidistill.data import load_data
from pidistill.data.glyphs import Factors, glyphs_images
from pidistill.evaluation.features.bundled import Classifier
from pidistill.evaluation.frechet import split_half_distance
from pidistill.noise import Draws
from pidistill.storage import write_tensors

ASSETS = Path(__file__).parent.parent / "src" / "pidistill" / "assets"


class Examples(NamedTuple):
    """Images (n, c, h, w), labels (n,), and other targets for the hidden layer (n, k)."""

    images: Tensor
    labels: Tensor
    targets: Tensor


def digits_examples(seed: int) -> tuple[Examples, Examples]:
    """The digits: 1,500 for training and the rest for testing."""
    data = load_data("digits")
    order = Draws(seed, 0, len(data.images)).uniform("split").argsort()
    nothing = torch.zeros(len(order), 0)
    train, test = (
        Examples(data.images[rows], data.labels[rows], nothing[rows])
        for rows in (order[:1500], order[1500:])
    )
    return train, test


def glyphs_examples(seed: int) -> tuple[Examples, Examples]:
    """20,000 and 10,000 glyphs, from two seeds that the data set does not use."""
    train, test = (
        Examples(images, factors.label, glyphs_targets(factors))
        for images, factors in (
            glyphs_images(20_000, 2 * seed + 1),
            glyphs_images(10_000, 2 * seed + 2),
        )
    )
    return train, test


def glyphs_targets(factors: Factors) -> Tensor:
    """The factors except the label, scaled to about one; angles as cosine and sine."""
    turning = (2 * math.pi * factors.hue, 2 * math.pi * factors.ground_hue, factors.light)
    columns = [factors.x / 0.1, factors.y / 0.1, (factors.radius - 0.6) / 0.06, factors.angle / 0.2]
    columns += [wave(angle) for angle in turning for wave in (torch.cos, torch.sin)]
    return torch.stack(columns, dim=1).float()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train the classifier of one data set."""

    examples: Callable[[int], tuple[Examples, Examples]]
    """Makes the training and test examples of a seed."""
    epochs: int
    weight: float
    """Weight of the targets' squared error relative to the labels' cross-entropy."""


RECIPES = {
    "digits": Recipe(digits_examples, epochs=40, weight=0.0),
    "glyphs": Recipe(glyphs_examples, epochs=5, weight=1.0),
}


def train(data: str, examples: Examples) -> tuple[Classifier, torch.nn.Linear]:
    """Train a classifier, and the layer that predicts the targets from its features."""
    recipe = RECIPES[data]
    classifier = Classifier(data)
    head = torch.nn.Linear(classifier.num_features, examples.targets.shape[1])
    parameters = [*classifier.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(examples.images)).split(64):
            features, logits = classifier.extract(examples.images[rows])
            loss = functional.cross_entropy(logits, examples.labels[rows])
            if recipe.weight:
                errors = head(features) - examples.targets[rows]
                loss = loss + recipe.weight * errors.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier, head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.set_flush_denormal(True)
    torch.manual_seed(arguments.seed)
    recipe = RECIPES[arguments.data]
    seen, fresh = recipe.examples(arguments.seed)
    classifier, head = train(arguments.data, seen)
    with torch.no_grad():
        features, logits = classifier.extract(fresh.images)
        right = logits.argmax(1) == fresh.labels
        errors = (head(features) - fresh.targets).square().mean(0)
        of_data = classifier.extract(load_data(arguments.data).images).features
        split_half = split_half_distance(of_data)
    file = ASSETS / f"{arguments.data}-classifier.safetensors"
    write_tensors(file, classifier.state_dict())
    scores = {
        "seed": arguments.seed,
        "epochs": recipe.epochs,
        "tested_on": len(fresh.images),
        "accuracy": right.float().mean().item(),
        "squared_error_of_targets": errors.tolist(),
        "split_half_frechet_distance": split_half,
    }
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
