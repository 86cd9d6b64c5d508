"""The denoiser made of a raw network and a preconditioning."""

import pytest
import torch

from pidistill.denoiser import Denoiser, PreconditionedDenoiser, call_network, over_sample
from pidistill.precondition import PRECONDITIONS, EDMPrecondition

SCALED = ["edm", "vp", "ve", "iddpm"]


class Recorder(torch.nn.Module):
    """A raw network that keeps what it is given and answers with a fixed function of it."""

    def __init__(self, channels, dtype=torch.float32):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.ones(channels, 1, 1, dtype=dtype))

    def forward(self, u, c_noise, label=None):
        self.given = u, c_noise, label
        return u.mean(1, keepdim=True) + self.bias


def denoiser(network, precondition):
    return PreconditionedDenoiser(network, precondition, sample_shape=(2, 4, 4), source="a test")


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("channels", [2, 4])
def test_it_scales_input_and_output_and_drops_a_predicted_variance(name, channels):
    precondition = PRECONDITIONS[name]()
    network = Recorder(channels, torch.float64)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    sigma, label = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64), torch.arange(3)
    denoised = denoiser(network, precondition)(x, sigma, label)
    scales = precondition.scales(sigma)
    c_skip, c_out, c_in, _ = (factor[:, None, None, None] for factor in scales)
    raw = (c_in * x).mean(1, keepdim=True).expand_as(x) + 1
    torch.testing.assert_close(denoised, c_skip * x + c_out * raw)
    torch.testing.assert_close(network.given[0], c_in * x)
    assert torch.equal(network.given[1], scales.c_noise)
    assert torch.equal(network.given[2], label)


@pytest.mark.parametrize("of_samples", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_network", [torch.float32, torch.float64])
def test_a_network_computes_in_its_own_dtype_and_answers_in_that_of_the_samples(
    of_samples, of_network
):
    network = Recorder(2, of_network)
    u = torch.randn(3, 2, 4, 4, dtype=of_samples)
    out = call_network(network, u, torch.ones(3, dtype=torch.float64), None)
    assert out.dtype == of_samples
    assert network.given[0].dtype == network.given[1].dtype == of_network


def test_values_are_spread_over_samples_of_any_shape():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for shape in ((2,), (2, 3), (2, 3, 4, 4)):
        spread = over_sample(values, torch.zeros(shape))
        assert spread.shape == (2, *[1] * (len(shape) - 1))
        assert spread.dtype == torch.float32


def test_it_takes_the_noise_levels_of_its_preconditioning():
    precondition = EDMPrecondition(sigma_min=0.01, sigma_max=10.0, sigma_data=0.7)
    model = denoiser(Recorder(2), precondition)
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.01, 10.0, 0.7)
    assert model.num_classes == 0


def test_noise_levels_out_of_order_are_refused():
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        Denoiser(sigma_min=2, sigma_max=1, sigma_data=1, sample_shape=(2,), source="a test")
