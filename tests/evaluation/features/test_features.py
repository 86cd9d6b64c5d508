"""The contract of feature networks, and which there are."""

import sys

import numpy as np
import pytest
import torch

from pidistill import PidistillError
from pidistill.cli import main
from pidistill.data import load_data
from pidistill.evaluation.features import BUNDLED, NAMES, PUBLISHED, features_for, features_named
from pidistill.images import from_uint8, to_uint8


def named(name):
    return features_named(name, BUNDLED[name].sample_shape)


@pytest.mark.parametrize("name", list(BUNDLED))
class TestBundled:
    def images(self, name):
        generator = torch.Generator().manual_seed(0)
        return torch.rand(5, *BUNDLED[name].sample_shape, generator=generator) * 2.4 - 1.2

    def test_features_and_logits_come_for_every_image_alone(self, name):
        network, x = named(name), self.images(name)
        features, logits = network(x)
        assert features.shape == (5, network.num_features)
        assert features.dtype == torch.float32
        assert logits.shape[0] == 5
        alone = torch.cat([network(image[None]).features for image in x])
        torch.testing.assert_close(alone, features, rtol=1e-5, atol=1e-5)
        assert features.std(0).max() > 0.01

    def test_images_are_rounded_to_8_bits_and_clipped(self, name):
        network, x = named(name), self.images(name)
        rounded = from_uint8(to_uint8(x))
        assert torch.equal(network(x).features, network.extract(rounded).features)
        assert not torch.equal(network(x).features, network.extract(x).features)

    def test_convolutions_keep_full_precision_on_an_accelerator(self, name, monkeypatch):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        named(name)
        assert not torch.backends.cudnn.allow_tf32

    def test_it_is_frozen_and_says_what_it_is(self, name):
        network = named(name)
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert network.identity == named(name).identity
        assert network.identity.startswith(f"{network.name}-")
        next(network.parameters()).data.view(-1)[0] += 1e-3
        assert network.identity != named(name).identity


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


def test_unknown_names_and_shapes_are_refused():
    assert NAMES == ("auto", "digits", "glyphs", "inception", "dinov2")
    with pytest.raises(PidistillError, match="expected one of auto, digits, glyphs, inception"):
        features_named("inceptoin", (3, 32, 32))
    with pytest.raises(PidistillError, match=r"shape \(3, 7, 9\); choose one of inception, dinov2"):
        features_named("auto", (3, 7, 9))
    for name in BUNDLED:
        with pytest.raises(PidistillError, match=rf"the features {name!r} are of samples of shape"):
            features_named(name, (2,))
    for name in PUBLISHED:
        with pytest.raises(PidistillError, match=r"images of 1 or 3 channels.* shape \(2,\)"):
            features_named(name, (2,))


@pytest.fixture
def without(monkeypatch):
    """Make importing a package raise an error, whether it is installed or not."""

    def forget(package, error):
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == package:
                    raise error

        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])

    return forget


def test_the_command_line_says_what_to_install(without, tmp_path, capsys):
    np.savez(tmp_path / "samples.npz", samples=np.zeros((8, 3, 32, 32), np.float32))
    np.savez(tmp_path / "edm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    without("torch_fidelity", ModuleNotFoundError("No module named 'torch_fidelity'"))
    files = [str(tmp_path / "samples.npz"), "--reference", str(tmp_path / "edm.npz")]
    assert main(["evaluate", *files, "--features", "inception", "--metrics", "fid"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert 'pip install "pidistill[metrics]"' in line


@pytest.mark.parametrize(
    ("name", "package"), [("inception", "torch_fidelity"), ("dinov2", "transformers")]
)
def test_what_is_not_installed_is_named_with_the_command(without, name, package):
    without(package, ModuleNotFoundError(f"No module named {package!r}"))
    with pytest.raises(PidistillError, match=rf'{package}.*pip install "pidistill\[metrics\]"'):
        features_named(name, (3, 32, 32))


def test_a_torchvision_of_another_build_is_named_with_the_command(without):
    without("torch_fidelity", RuntimeError("operator torchvision::nms does not exist"))
    with pytest.raises(
        PidistillError, match=r"nms does not exist.*torch===\d[\d.]+\".*\[metrics\]"
    ) as error:
        features_named("inception", (3, 32, 32))
    assert "\n" not in str(error.value)
