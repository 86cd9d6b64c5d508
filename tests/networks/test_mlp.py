"""The multilayer perceptron."""

import pytest
import torch

from pidistill.networks.mlp import MLP


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
