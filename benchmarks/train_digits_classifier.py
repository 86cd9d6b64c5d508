"""Trains the digits classifier whose features the Frechet distance of 8x8 digits is taken in.

    python benchmarks/train_digits_classifier.py

writes src/pidistill/assets/digits-classifier.safetensors and prints its held-out accuracy and the
Frechet distance between two halves of the digits. It takes about 10 seconds on two CPU cores.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as functional

from pidistill.data import load_data
from pidistill.data.noise import Draws
from pidistill.evaluation.evaluate import reference_statistics
from pidistill.evaluation.features.digits import CLASSIFIER_FILE, DigitsClassifier
from pidistill.storage import write_tensors

ASSETS = Path(__file__).parent.parent / "src" / "pidistill" / "assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    digits = load_data("digits")
    order = Draws(arguments.seed, 0, len(digits.images)).uniform("split").argsort()
    train, test = order[:1500], order[1500:]
    classifier = DigitsClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(arguments.epochs):
        for index in train[torch.randperm(len(train))].split(64):
            logits = classifier(digits.images[index])
            loss = functional.cross_entropy(logits, digits.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = classifier(digits.images[test]).argmax(1) == digits.labels[test]
    write_tensors(ASSETS / CLASSIFIER_FILE, classifier.state_dict())
    scores = {
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "held_out_accuracy": right.float().mean().item(),
        "split_half_frechet_distance": reference_statistics(digits.images).split_half,
    }
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
