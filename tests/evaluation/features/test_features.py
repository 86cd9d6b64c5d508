"""The contract of feature networks, and the available ones."""

import itertools
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.data import load_data
from pidistill.data.glyphs import glyphs_images
from pidistill.evaluation.features import FeatureBatch, FeatureNetwork, features_for, load_features
from pidistill.evaluation.features.base import features_of, joined
from pidistill.evaluation.features.bundled import BUNDLED
from pidistill.evaluation.frechet import frechet_distance, statistics
from pidistill.images import from_uint8, to_uint8


@pytest.mark.parametrize("name", list(BUNDLED))
class TestBundled:
    def images(self, name):
        generator = torch.Generator().manual_seed(0)
        return torch.rand(5, *BUNDLED[name].sample_shape, generator=generator) * 2.4 - 1.2

    def test_features_and_logits_come_for_every_image_alone(self, name):
        network, x = load_features(name), self.images(name)
        features, logits = network(x)
        assert features.shape == (5, network.num_features)
        assert features.dtype == torch.float32
        assert logits.shape[0] == 5
        alone = torch.cat([network(image[None]).features for image in x])
        torch.testing.assert_close(alone, features, rtol=1e-5, atol=1e-5)
        assert features.std(0).max() > 0.01

    def test_images_are_rounded_to_8_bits_and_clipped(self, name):
        network, x = load_features(name), self.images(name)
        rounded = from_uint8(to_uint8(x))
        assert torch.equal(network(x).features, network.extract(rounded).features)
        assert not torch.equal(network(x).features, network.extract(x).features)

    def test_convolutions_keep_full_precision_on_an_accelerator(self, name, monkeypatch):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        network, seen = load_features(name), []
        network.hidden.register_forward_hook(
            lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
        )
        network(self.images(name))
        assert seen == [False]
        assert torch.backends.cudnn.allow_tf32  # a flag of the process, and left alone

    def test_it_is_frozen_and_says_what_it_is(self, name):
        network = load_features(name)
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        identity = network.identity
        assert identity == load_features(name).identity
        next(network.parameters()).data.view(-1)[0] += 1e-3
        assert network.identity != identity


@pytest.mark.parametrize(
    ("shape", "data", "expected"),
    [
        ((1, 8, 8), "digits", "digits"),
        ((1, 8, 8), "samples.npz", "digits"),
        ((1, 8, 8), None, "digits"),
        ((3, 32, 32), "glyphs", "glyphs"),
        ((3, 32, 32), "folder:cifar10", None),  # the glyphs' classifier knows nothing of them
        ((3, 32, 32), None, None),
        ((1, 8, 8), "glyphs", "digits"),
        ((2,), "digits", None),
    ],
)
def test_a_network_is_chosen_by_what_samples_are_compared_with(shape, data, expected):
    found = features_for(shape, data)
    assert (None if found is None else found.name) == expected


def test_the_digits_classifier_knows_the_digits():
    data = load_data("digits")
    guess = features_for((1, 8, 8))(data.images).logits.argmax(1)
    assert (guess == data.labels).float().mean() > 0.97


NEVER_TRAINED_ON = 123
SPOILED = {
    "grey": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "shifted": lambda x: x.roll(3, dims=3),
    "mirrored": lambda x: x.flip(2),
    "noisy": lambda x: x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "blurred": lambda x: torch.nn.functional.avg_pool2d(x, 5, stride=1, padding=2),
    "two colours": lambda x: torch.cat([x[:, :, :16], x.flip(1)[:, :, 16:]], dim=2),
}


@pytest.fixture(scope="module")
def fresh_glyphs():
    return glyphs_images(2000, seed=NEVER_TRAINED_ON)


def test_the_glyphs_classifier_knows_glyphs_that_it_never_saw(fresh_glyphs):
    images, factors = fresh_glyphs
    guess = load_features("glyphs").extract(images).logits.argmax(1)
    assert (guess == factors.label).float().mean() > 0.995


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_distances_of_glyphs_see_what_differs(spoil, fresh_glyphs):
    network = load_features("glyphs")
    images, _ = fresh_glyphs

    def fitted(x):
        return statistics(network.extract(x).features)

    own, alike = fitted(images[1000:]), fitted(images[:1000])
    near = frechet_distance(alike, own)
    assert frechet_distance(fitted(spoil(images[:1000])), own) > 2 * near


def test_unknown_names_are_refused_and_weights_of_what_has_none():
    with pytest.raises(PidistillError, match=r"'inceptoin'.*digits, glyphs, inception, dinov2"):
        load_features("inceptoin")
    with pytest.raises(PidistillError, match=r"x\.pth.*'digits'"):
        load_features("digits", weights="x.pth")


class Mean(FeatureNetwork):
    name, num_features = "mean", 1

    def extract(self, x):
        return FeatureBatch(x.flatten(1).mean(1, keepdim=True), None)


class Points(Mean):
    def forward(self, x):
        return FeatureBatch(x, None)


def test_another_package_adds_a_network(monkeypatch):
    class Point:
        name = "mean"

        def load(self):
            return Mean

    def entry_points(group):
        return [Point()] if group == "pidistill.features" else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    network = load_features("mean")
    assert isinstance(network, Mean)
    assert network.takes((3, 5, 7))
    assert not network.takes((5,))
    with pytest.raises(PidistillError, match=r"'men'.*, mean"):
        load_features("men")


@given(st.lists(st.integers(0, 300), max_size=5))
def test_batches_are_joined_and_features_are_finite(cuts):
    x = torch.randn(300, 1, 2, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    counts = []
    found = features_of(x, Mean(), counts.append)
    assert sum(counts) == 300
    assert found.logits is None
    torch.testing.assert_close(found.features, Mean()(x).features)
    edges = itertools.pairwise([0, *sorted(cuts), 300])
    parts = [FeatureBatch(found.features[a:b], found.features[a:b]) for a, b in edges]
    assert torch.equal(joined(parts).features, found.features)
    assert torch.equal(joined(parts).logits, found.features)
    with pytest.raises(PidistillError, match="not finite"):
        features_of(torch.full((9, 2), torch.nan), Points())


@pytest.fixture
def without(monkeypatch):
    """Make importing a package fail, whether or not it is installed."""

    def forget(package, error):
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == package:
                    raise error

        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])

    return forget


@pytest.mark.parametrize(
    ("name", "package", "error", "words"),
    [
        ("inception", "torch_fidelity", ModuleNotFoundError("No torch_fidelity"), "torch_fidelity"),
        ("dinov2", "transformers", ModuleNotFoundError("No transformers"), "transformers"),
        (
            "inception",
            "torch_fidelity",
            RuntimeError("torchvision::nms"),
            r"nms.*torch===\d[\d.]+\"",
        ),
    ],
)
def test_what_is_not_installed_is_named_with_the_command(without, name, package, error, words):
    """A mismatched torchvision raises RuntimeError."""
    without(package, error)
    with pytest.raises(PidistillError, match=rf'{words}.*pidistill\[metrics\]"') as caught:
        load_features(name)
    assert "\n" not in str(caught.value)
