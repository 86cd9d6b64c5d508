"""The multilayer perceptron."""

import pytest
import torch

from pidistill.networks.mlp import MLP, linear_in_parts


def drawn(network):
    """`network` without its zero-initialised weights."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_it_starts_at_zero_whatever_its_input(shape):
    out = MLP(shape, width=16, num_blocks=2)(torch.randn(5, *shape), torch.randn(5))
    assert out.shape == (5, *shape)
    assert (out == 0).all()


def test_no_label_is_minus_one_or_none():
    network = drawn(MLP((3,), num_classes=4, width=16, num_blocks=2))
    u, c_noise = torch.randn(5, 3), torch.randn(5)
    none = network(u, c_noise)
    torch.testing.assert_close(network(u, c_noise, torch.full((5,), -1)), none)
    assert not torch.allclose(network(u, c_noise, torch.zeros(5, dtype=torch.int64)), none)


@pytest.mark.parametrize("width", [1, 3, 8, 50, 384])
def test_a_layer_in_parts_is_the_layer(width):
    layer = torch.nn.Linear(width, 5, dtype=torch.float64)
    h = torch.randn(4, width, dtype=torch.float64)
    torch.testing.assert_close(linear_in_parts(layer, h), layer(h))


def test_a_layer_in_parts_rounds_less():
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(384, 64)
    layer.weight.data = torch.randn(64, 384, generator=generator)
    h = torch.randn(500, 384, generator=generator)
    exact = torch.nn.functional.linear(h.double(), layer.weight.double(), layer.bias.double())
    errors = [(out.double() - exact).norm() for out in (linear_in_parts(layer, h), layer(h))]
    assert errors[0] < errors[1]
