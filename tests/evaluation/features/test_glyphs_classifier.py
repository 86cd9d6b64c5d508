"""The bundled classifier of glyphs: what it knows, and what distances see."""

import pytest
import torch

from pidistill.data.glyphs import glyphs_images
from pidistill.evaluation.features import features_for
from pidistill.evaluation.features.glyphs import GlyphsClassifier, load_glyphs_classifier
from pidistill.evaluation.frechet import frechet_distance, statistics

NEVER_TRAINED_ON = 123


@pytest.fixture(scope="module")
def fresh():
    return glyphs_images(2000, seed=NEVER_TRAINED_ON)


def distance(first, second):
    features = load_glyphs_classifier().features
    return frechet_distance(statistics(features(first)), statistics(features(second)))


def test_it_knows_glyphs_that_it_never_saw(fresh):
    images, factors = fresh
    guess = load_glyphs_classifier()(images).argmax(1)
    assert (guess == factors.label).float().mean() > 0.995


def test_it_is_chosen_for_glyphs():
    network = features_for((3, 32, 32), "glyphs")
    assert network.name == "glyphs"
    features, logits = network(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, GlyphsClassifier.num_features)
    assert logits.shape == (2, 10)


SPOILED = {
    "grey": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "shifted": lambda x: x.roll(3, dims=3),
    "mirrored": lambda x: x.flip(2),
    "noisy": lambda x: x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "blurred": lambda x: torch.nn.functional.avg_pool2d(x, 5, stride=1, padding=2),
    "two colours": lambda x: torch.cat([x[:, :, :16], x.flip(1)[:, :, 16:]], dim=2),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_distances_see_what_differs(spoil, fresh):
    images, _ = fresh
    alike = distance(images[:1000], images[1000:])
    assert distance(spoil(images[:1000]), images[1000:]) > 2 * alike
