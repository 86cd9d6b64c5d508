"""Classifier-free guidance, against Gaussian mixtures in closed form."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pidistill.denoiser import PreconditionedDenoiser
from pidistill.errors import PidistillError
from pidistill.guidance import GuidedDenoiser
from pidistill.networks.mlp import MLP
from pidistill.precondition import EDMPrecondition
from pidistill.teachers.mixture import MixtureDenoiser

MEANS = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], dtype=torch.float64)
VARIANCE = 0.1


def mixture():
    return MixtureDenoiser(
        MEANS, torch.full((3, 1), VARIANCE, dtype=torch.float64), conditional=True
    )


def noisy(num=6):
    generator = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-1, 1, num, dtype=torch.float64)
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    return x * (1 + sigma[:, None]), sigma, torch.arange(num) % 3


@pytest.mark.parametrize("w", [-0.5, 0.0, 0.5, 1.0, 1.5, 7.5])
def test_it_is_the_denoiser_of_the_tilted_density(w):
    """`D_w = x + sigma^2 grad ((1 - w) log p(x) + w log p(x | c))`: Tweedie's formula."""
    x, sigma, label = noisy()
    x.requires_grad_()
    deviation = (VARIANCE + sigma**2).sqrt()[:, None, None].expand(-1, 3, 2)
    parts = Independent(Normal(MEANS.expand(len(x), 3, 2), deviation), 1)
    log_p = MixtureSameFamily(Categorical(torch.ones(len(x), 3)), parts).log_prob(x)
    log_p_given_c = parts.log_prob(x[:, None])[torch.arange(len(x)), label]
    (score,) = torch.autograd.grad(((1 - w) * log_p + w * log_p_given_c).sum(), x)
    expected = x + sigma[:, None] ** 2 * score
    guided = GuidedDenoiser(mixture(), w)(x, sigma, label)
    torch.testing.assert_close(guided, expected, rtol=1e-9, atol=1e-9)


def test_without_a_label_it_is_the_unconditional_denoiser():
    x, sigma, label = noisy()
    guided = GuidedDenoiser(mixture(), 4.0)
    unconditional = mixture()(x, sigma)
    torch.testing.assert_close(guided(x, sigma), unconditional)
    torch.testing.assert_close(guided(x, sigma, torch.full_like(label, -1)), unconditional)


def test_a_denoiser_without_labels_is_refused():
    unconditional = MixtureDenoiser(MEANS, torch.full((3, 1), VARIANCE))
    with pytest.raises(PidistillError, match="has no labels"):
        GuidedDenoiser(unconditional, 2.0)


def test_it_passes_on_what_a_student_needs():
    inner = PreconditionedDenoiser(
        MLP((2,), num_classes=3, width=8, num_blocks=1),
        EDMPrecondition(sigma_max=10.0),
        sample_shape=(2,),
        num_classes=3,
        source="test",
    )
    guided = GuidedDenoiser(inner, 2.0)
    assert guided.network_to_copy() == (inner.network, inner.precondition)
    assert guided.evaluations_per_call == 2
    assert guided.decoder is None
    assert (guided.sigma_max, guided.num_classes, guided.sample_shape) == (10.0, 3, (2,))
    assert GuidedDenoiser(mixture(), 2.0).network_to_copy() is None
