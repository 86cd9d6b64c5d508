"""The text-conditional diffusers UNet as a raw network."""

import json

import pytest
import torch

from pidistill.errors import PidistillError
from pidistill.networks import build_network, network_name, new_network

diffusers = pytest.importorskip("diffusers")

UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
}


def build():
    torch.manual_seed(0)
    config = {"unet": UNET, "prompts": ["one", "two"], "prompt_length": 5}
    network = build_network("text_unet", config).eval()
    network.prompts = torch.randn(3, 5, 6)
    return network


def test_labels_select_prompts():
    network = build()
    u, timestep = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 12.5, 999.0])
    label = torch.tensor([1, 0, -1])
    expected = network.unet(u, timestep, network.prompts[[1, 0, 2]]).sample
    torch.testing.assert_close(network(u, timestep, label), expected)
    torch.testing.assert_close(network(u, timestep)[2], expected[2])


def test_it_is_rebuilt_from_its_json_config_with_its_weights_and_prompts():
    network = build()
    copy = build_network(network_name(network), json.loads(json.dumps(network.config))).eval()
    copy.load_state_dict(network.state_dict(), strict=True)
    u, timestep, label = torch.randn(1, 4, 8, 8), torch.tensor([3.0]), torch.tensor([1])
    assert torch.equal(copy(u, timestep, label), network(u, timestep, label))


def test_it_is_differentiable_in_forward_mode():
    network = build().double()
    u, timestep = torch.randn(2, 4, 8, 8).double(), torch.tensor([7.0, 500.0]).double()

    def at(t):
        return network(u, t, torch.tensor([0, 1]))

    value, tangent = torch.func.jvp(at, (timestep,), (torch.ones_like(timestep),))
    step = 0.05  # the library embeds timesteps in float32
    difference = (at(timestep + step) - at(timestep - step)) / (2 * step)
    assert (tangent - difference).norm() < 2e-3 * tangent.norm()
    (value + tangent).square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [("addition_embed_type", "text_time"), ("encoder_hid_dim_type", "text_proj")],
)
def test_conditions_beyond_one_text_are_refused(name, value):
    config = {"unet": {**UNET, name: value}, "prompts": ["one"], "prompt_length": 5}
    with pytest.raises(PidistillError, match=f"the UNet's {name} is '{value}'; expected null"):
        build_network("text_unet", config)


def test_it_cannot_be_made_for_samples_alone():
    with pytest.raises(PidistillError, match="its prompts have to be encoded"):
        new_network("text_unet", (4, 8, 8), 2, {})
