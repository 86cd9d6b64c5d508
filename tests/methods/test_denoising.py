"""Training a denoiser: what its loss is, and that the exact denoiser has the least."""

import pytest
import torch

from pidistill import PidistillError, load_teacher
from pidistill.data import Dataset, load_data
from pidistill.denoiser import PreconditionedDenoiser, over_sample
from pidistill.methods.base import Batch
from pidistill.methods.denoising import Denoising, DenoisingSettings
from pidistill.networks.mlp import MLP
from pidistill.noise import Draws


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def build(data, **settings):
    network = MLP(data.images.shape[1:], num_classes=data.num_classes, width=8, num_blocks=1)
    torch.nn.init.normal_(network.output.weight, std=0.1)
    return Denoising.build(DenoisingSettings(**settings), teacher=None, data=data, network=network)


def batch(data, num=16, first=0):
    index = torch.arange(first, first + num)
    labels = None if data.labels is None else data.labels[index]
    return Batch(Draws(0, first, num), labels, data.images[index])


def test_the_student_is_a_denoiser_of_the_data(digits):
    student = build(digits).student
    assert isinstance(student, PreconditionedDenoiser)
    assert student.sample_shape == (1, 8, 8)
    assert student.num_classes == 10
    assert student.source == "a denoiser of digits"


def test_losses_depend_on_the_samples_alone_not_on_their_batch(digits):
    method = build(digits)
    whole = method.loss(batch(digits))
    halves = [method.loss(batch(digits, 8, first)) for first in (0, 8)]
    torch.testing.assert_close(torch.cat([h.loss for h in halves]), whole.loss, rtol=1e-4, atol=0)
    assert torch.equal(torch.cat([h.sigma for h in halves]), whole.sigma)


def test_noise_levels_are_log_normal(digits):
    method = build(digits, p_mean=-0.7, p_std=0.9)
    many = Batch(Draws(0, 0, 5000), None, digits.images[:1].expand(5000, -1, -1, -1))
    log_sigma = method.loss(many).sigma.log()
    assert log_sigma.mean().item() == pytest.approx(-0.7, abs=5 * 0.9 / 5000**0.5)
    assert log_sigma.std().item() == pytest.approx(0.9, rel=5 / 10_000**0.5)


def test_without_any_network_the_expected_loss_is_one():
    """EDM's weight makes it so: D = c_skip x is all that is known of data of variance sigma_data^2
    (Karras et al. 2022, appendix B.6).
    """
    generator = torch.Generator().manual_seed(0)
    images = 0.5 * torch.randn(20_000, 4, generator=generator)
    method = build(Dataset(images, None, 0, "Gaussian noise"))
    for parameter in method.student.network.output.parameters():
        parameter.data.zero_()
    losses = method.loss(Batch(Draws(0, 0, 20_000), None, images)).loss
    assert losses.mean().item() == pytest.approx(1, abs=5 * losses.std().item() / 20_000**0.5)


def test_the_exact_denoiser_has_the_least_loss():
    ring = load_teacher("mixture:ring")
    x0 = ring.draw(4000, torch.Generator().manual_seed(0)).float()
    method = build(Dataset(x0, None, 0, "the ring"))
    many = Batch(Draws(0, 0, 4000), None, x0)

    class Shifted(torch.nn.Module):
        sigma_data, sample_shape = method.student.sigma_data, ring.sample_shape

        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def forward(self, x, sigma, label=None):
            return ring(x, sigma, label) + self.shift * over_sample(sigma, x)

    losses = {}
    for shift in (-0.1, 0.0, 0.1):
        method.student = Shifted(shift)
        losses[shift] = method.loss(many).loss.mean().item()
    assert losses[0.0] < min(losses[-0.1], losses[0.1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_labels_are_dropped_at_their_rate(digits, share):
    method = build(digits, label_dropout=share)
    seen = []
    method.student.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2]))
    method.loss(Batch(Draws(0, 0, 1000), digits.labels[:1000], digits.images[:1000]))
    (labels,) = seen
    dropped = labels == -1
    assert torch.equal(labels[~dropped], digits.labels[:1000][~dropped])
    assert dropped.float().mean().item() == pytest.approx(share, abs=5 * 0.5 / 1000**0.5 * share)


def test_the_gradient_reaches_the_student(digits):
    method = build(digits)
    method.loss(batch(digits)).loss.mean().backward()
    assert all(p.grad is not None for p in method.student.parameters())
    assert method.student.network.input.weight.grad.abs().sum() > 0


def test_data_and_a_network_are_needed(digits):
    with pytest.raises(PidistillError, match="set both"):
        Denoising.build(DenoisingSettings(), teacher=None, data=None, network=None)
    with pytest.raises(PidistillError, match="set both"):
        Denoising.build(DenoisingSettings(), teacher=None, data=digits, network=None)
    with pytest.raises(ValueError, match="has no images"):
        build(digits).loss(Batch(Draws(0, 0, 2), None, None))
