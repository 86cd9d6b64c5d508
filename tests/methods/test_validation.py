"""Validation of a denoiser: what is held out, and errors that are known in closed form."""

import re

import pytest
import torch

from pidistill.cli.teacher_quality import how_good
from pidistill.data import Dataset, load_data
from pidistill.denoiser import as_denoiser
from pidistill.methods.denoising import Denoising, DenoisingSettings
from pidistill.methods.validation import Validation
from pidistill.networks.mlp import MLP
from pidistill.noise import Draws
from pidistill.training.batches import make_batch


def gaussian(num, mirrored=False):
    """Two classes with means 0.5 and -0.5, each pixel of standard deviation 0.2."""
    labels = torch.arange(num) % 2
    x = 0.2 * torch.randn(num, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x += (0.5 - labels.float())[:, None, None, None]
    if mirrored:
        x, labels = torch.cat([x, x.flip(3)]), labels.repeat(2)
    return Dataset(x, labels, 2, "two Gaussians", mirrored=mirrored)


def exact(x, sigma, label):
    variance = 0.04 / (0.04 + sigma[:, None, None, None] ** 2)
    mean = (0.5 - label.float())[:, None, None, None]
    return mean + variance * (x - mean)


@pytest.mark.parametrize("num", [1000, 10_000])
def test_the_exact_denoiser_leaves_what_noise_hides(num):
    shape = {"sample_shape": (1, 4, 4), "num_classes": 2}
    denoiser = as_denoiser(exact, sigma_min=0.01, sigma_max=80, sigma_data=0.5, **shape)
    validation = Validation(gaussian(num), 0.1)
    found = validation.measure(denoiser)
    assert found["images"] == min(1000, num // 10)
    for part in ("held_out", "seen"):
        for sigma, error in found[part].items():
            variance = float(sigma) ** 2
            assert error == pytest.approx(variance / (variance + 0.04), rel=0.1)
    assert found["variance"] == pytest.approx(0.04, rel=0.1)
    good, text = how_good(found, 10**6)  # it knows each pixel alone, as the exact one does here
    assert not good
    assert re.search("at noise level 0.3 is (9.|10.)% of that of judging each pixel alone", text)
    worse = as_denoiser(
        lambda *x: exact(*x) + 0.1, sigma_min=0.01, sigma_max=80, sigma_data=0.5, **shape
    )
    good, text = how_good(validation.measure(worse), 10**6)
    assert not good
    assert re.search(r"at noise level 10 is 1\.[23] times", text)


def test_held_out_images_are_not_trained_on_nor_their_mirror_images():
    data = gaussian(1000, mirrored=True)
    network = MLP((1, 4, 4), num_classes=2, width=8, num_blocks=1)
    settings = DenoisingSettings(held_out=0.02)
    method = Denoising.build(settings, teacher=None, data=data, network=network)
    held_out = method.validation.held_out
    assert held_out.tolist() == [*held_out[:20], *(held_out[:20] + 1000)]
    assert sorted([*held_out.tolist(), *method.rows.tolist()]) == list(range(2000))
    x = make_batch(method, data, Draws(0, 0, 20_000), torch.device("cpu")).x0
    drawn = {tuple(row) for row in x.flatten(1).tolist()}
    assert len(drawn) == 1960
    assert drawn.isdisjoint({tuple(row) for row in data.batch(held_out).flatten(1).tolist()})


def test_few_images_are_all_trained_on():
    data = load_data("digits")
    assert [len(part) for part in data.held_out(0.02, 1000)] == [35, 1762]
    assert [len(part) for part in data.held_out(0.008, 1000)] == [0, 1797]
    network = MLP((1, 8, 8), num_classes=10, width=8, num_blocks=1)
    method = Denoising.build(DenoisingSettings(), teacher=None, data=data, network=network)
    found = method.validate()["validation"]
    assert found["held_out"] == {}
    assert "has seen" in how_good(found, 0)[1]


def test_what_is_said_of_a_good_teacher():
    good = {"0.1": 0.02, "0.3": 0.1, "1": 0.4, "3": 0.8, "10": 1.0}
    found = {"images": 40, "classes": 3, "variance": 0.2, "held_out": good, "seen": dict(good)}
    assert how_good(found, 10**6)[0]
    for change, images, words in (
        ({}, 1000, "6,000 steps"),
        ({"seen": {**good, "1": 0.2}}, 10**6, "remembers"),
        ({"held_out": {}, "classes": 0}, 10**6, "has seen, its error as a share .*mean image is"),
    ):
        trained, text = how_good({**found, **change}, images)
        assert trained
        assert re.search(words, text)
