"""The U-Nets of the diffusers library as raw networks."""

import importlib
import json

import pytest
import torch

from pidistill.errors import PidistillError
from pidistill.networks import (
    build_described,
    build_network,
    describe_network,
    diffusers_unet,
    new_network,
)

diffusers = pytest.importorskip("diffusers")

UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "block_out_channels": [8, 16],
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
}
TEXT_UNET = {
    **UNET,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
}
PROMPTS = {"prompts": ["one", "two"], "prompt_length": 5}


def build(**config):
    torch.manual_seed(0)
    return build_network("diffusers_unet", {**UNET, **config}).eval()


def build_text():
    torch.manual_seed(0)
    network = build_network("text_unet", {"unet": TEXT_UNET, **PROMPTS}).eval()
    network.prompts = torch.randn(3, 5, 6)
    return network


def inputs(channels=3):
    return torch.randn(3, channels, 8, 8), torch.tensor([0.0, 12.5, 999.0])


def test_it_is_the_library_s_network():
    network = build()
    u, timestep = inputs()
    torch.testing.assert_close(network(u, timestep), network.unet(u, timestep).sample)


def test_labels_select_prompts():
    network = build_text()
    u, timestep = inputs(4)
    expected = network.unet(u, timestep, network.prompts[[1, 0, 2]]).sample
    torch.testing.assert_close(network(u, timestep, torch.tensor([1, 0, -1])), expected)
    torch.testing.assert_close(network(u, timestep)[2], expected[2])


@pytest.mark.parametrize(
    ("make", "channels"), [(lambda: build(num_class_embeds=5), 3), (build_text, 4)]
)
def test_it_is_rebuilt_from_its_json_config_with_its_weights(make, channels):
    network = make()
    again = build_described(json.loads(json.dumps(describe_network(network)))).eval()
    again.load_state_dict(network.state_dict(), strict=True)
    u, timestep = inputs(channels)
    label = torch.tensor([0, 1, -1])
    assert torch.equal(again(u, timestep, label), network(u, timestep, label))


def test_it_can_be_made_for_samples_of_a_shape():
    from_the_samples = ("sample_size", "in_channels", "out_channels")
    config = {name: value for name, value in UNET.items() if name not in from_the_samples}
    network = new_network("diffusers_unet", (1, 8, 16), 5, config)
    u, label = torch.randn(2, 1, 8, 16), torch.tensor([4, -1])
    assert network(u, torch.zeros(2), label).shape == u.shape


def test_weights_of_the_library_s_network_load_strictly():
    network = build(num_class_embeds=5, time_embedding_type="learned", num_train_timesteps=1000)
    original = diffusers.UNet2DModel(**network.unet.config).eval()
    network.unet.load_state_dict(original.state_dict(), strict=True)
    u, label = inputs()[0], torch.tensor([0, 4, 2])
    timestep = torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        network(u, timestep.float(), label), original(u, timestep, label).sample
    )


@pytest.mark.parametrize("null_class", [None, 4])
def test_no_label_is_the_null_class_or_adds_nothing(null_class):
    network = build(num_class_embeds=5, null_class=null_class)
    u, timestep = inputs()
    absent = network(u, timestep)
    assert torch.equal(absent, network(u, timestep, torch.tensor([-1, -1, -1])))
    assert not torch.equal(absent, network(u, timestep, torch.tensor([1, 1, 1])))
    if null_class is None:
        network.unet.class_embedding.weight.data[4] = 0
    assert torch.equal(absent, network(u, timestep, torch.tensor([4, 4, 4])))


def test_learned_timesteps_are_linear_between_whole_ones():
    embedding = build(time_embedding_type="learned", num_train_timesteps=10).unet.time_proj
    rows = embedding(torch.tensor([3.0, 3.25, 4.0, 9.0]))
    torch.testing.assert_close(rows[1], 0.75 * rows[0] + 0.25 * rows[2])
    assert torch.equal(rows[3], embedding.weight[9])


@pytest.mark.parametrize(
    ("make", "channels", "label"), [(build, 3, None), (build_text, 4, torch.tensor([0, 1, -1]))]
)
def test_it_is_differentiable_in_forward_mode(make, channels, label):
    """Fused attention and group norm need help; see `library_network`."""
    network = make().double()
    u, timestep = inputs(channels)
    u, timestep = u.double(), timestep.double() + 1

    def at(t):
        return network(u, t, label)

    value, tangent = torch.func.jvp(at, (timestep,), (torch.ones_like(timestep),))
    step = 0.05  # the library embeds timesteps in float32
    difference = (at(timestep + step) - at(timestep - step)) / (2 * step)
    assert (tangent - difference).norm() < 2e-3 * tangent.norm()
    (value + tangent).square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize(
    ("name", "config", "named"),
    [
        ("diffusers_unet", {**UNET, "class_embed_type": "timestep"}, "class_embed_type.*timestep"),
        ("diffusers_unet", {**UNET, "blocks_out": 3}, "UNet2DModel.*blocks_out"),
        ("diffusers_unet", {**UNET, "block_out_channels": [8]}, "UNet2DModel.*block_out_channels"),
        ("text_unet", {"unet": {**TEXT_UNET, "encoder_hid_dim_type": "x"}, **PROMPTS}, "is 'x'"),
    ],
)
def test_arguments_that_are_not_supported_are_named(name, config, named):
    with pytest.raises(PidistillError, match=named):
        build_network(name, config)


def test_a_network_of_prompts_cannot_be_made_for_samples_alone():
    with pytest.raises(PidistillError, match="prompts"):
        new_network("text_unet", (4, 8, 8), 2, {})


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(PidistillError, match=r'pip install "pidistill\[diffusers\]"'):
        diffusers_unet.require("diffusers")
