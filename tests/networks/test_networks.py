"""The registry of networks, and unregistered networks."""

import json

import pytest
import torch

from pidistill import PidistillError
from pidistill.networks import (
    build_described,
    build_network,
    describe_network,
    fresh_network,
    new_network,
    require_fit,
)


class Bare(torch.nn.Module):
    """A user's network with a weight that has no initialiser."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(2))
        self.linear = torch.nn.Linear(2, 2)
        self.register_buffer("table", torch.tensor([3.0]))


class Own(Bare):
    def reset_parameters(self):
        torch.nn.init.normal_(self.scale)


def test_a_network_is_built_again_from_its_description():
    network = new_network("mlp", (1, 4, 4), 3, {"width": 24, "num_blocks": 1})
    again = build_described(json.loads(json.dumps(describe_network(network))))
    again.load_state_dict(network.state_dict())
    assert again.config == network.config
    values = [network.config[key] for key in ("sample_shape", "num_classes", "width")]
    assert values == [[1, 4, 4], 3, 24]


def test_a_network_of_another_class_is_described_but_not_built():
    description = json.loads(json.dumps(describe_network(Own())))
    assert description == {"name": None, "class": f"{__name__}:Own", "config": None}
    with pytest.raises(PidistillError, match=rf"{__name__}:Own.*network="):
        build_described(description)


def test_mistakes_are_named():
    with pytest.raises(PidistillError, match="'unet'; expected one of mlp"):
        new_network("unet", (2,), 0, {})
    for arguments in ({"depth": 3}, {"width": "3"}, {"width": -3}):
        with pytest.raises(PidistillError, match=rf"'mlp'.*{next(iter(arguments))}|'mlp'.*-3"):
            build_network("mlp", {"sample_shape": [2], **arguments})
    sizes = {"model_channels": 4, "channel_mult": [1, 1, 1]}
    for channel_mult, size in (("1,2", 8), ([1, 1, 1], 6), ([1, 1, 1, 1, 1], 8)):
        with pytest.raises(PidistillError, match=r"channel_mult"):
            new_network("song_unet", (1, size, size), 0, {**sizes, "channel_mult": channel_mult})
    with pytest.raises(PidistillError, match="num_classes is 4"):
        new_network("mlp", (2,), 3, {"num_classes": 4})


def test_a_network_that_does_not_fit_its_samples_is_refused():
    network = build_network("mlp", {"sample_shape": [3]})
    require_fit(network, (3,), 0)
    with pytest.raises(PidistillError, match=r"'mlp' .*\(4,\)"):
        require_fit(network, (4,), 0)


def test_a_fresh_network_of_another_class_is_a_copy_with_weights_drawn_anew():
    network = Own()
    network.table *= 2
    fresh = fresh_network(network)
    assert type(fresh) is Own
    assert torch.equal(fresh.table, network.table)
    before = dict(network.named_parameters())
    for name, weight in fresh.named_parameters():
        assert not torch.equal(weight, before[name]), name
    assert torch.equal(network.scale, torch.ones(2))
    with pytest.raises(PidistillError, match=f"{__name__}:Bare .*reset_parameters"):
        fresh_network(Bare())
