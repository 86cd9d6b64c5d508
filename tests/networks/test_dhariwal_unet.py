"""DhariwalUNet against a second computation from its description, in float64."""

import pytest
import torch

from pidistill.networks import build_network, network_name
from pidistill.networks.dhariwal_unet import DhariwalUNet

import unet_reference
from edm_files import randomized

SMALL = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
VARIANTS = {
    "unconditional": {},
    "labels": {"label_dim": 7},
    "two_heads_every_level": {
        "channel_mult": [2, 4],
        "attn_resolutions": [16, 8],
        "num_blocks": 2,
        "out_channels": 6,
    },
    "three_levels": {"channel_mult": [2, 1, 2], "channel_mult_emb": 1, "label_dim": 2},
}


def inputs(config, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    size = config["img_resolution"]
    u = torch.randn(3, config["in_channels"], size, size, generator=generator, dtype=dtype)
    c_noise = torch.tensor([-1.5, 0.3, 1.1], dtype=dtype)
    label = torch.tensor([0, 1, -1]) if config.get("label_dim") else None
    return u, c_noise, label


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_agrees_with_a_second_computation(variant):
    network = randomized(DhariwalUNet(**{**SMALL, **variant})).double()
    u, c_noise, label = inputs(network.config)
    expected = unet_reference.dhariwal_unet(network.state_dict(), network.config, u, c_noise, label)
    torch.testing.assert_close(network(u, c_noise, label), expected, rtol=1e-10, atol=1e-10)


def test_the_paper_s_adm_has_296_million_weights_and_the_names_of_edm():
    with torch.device("meta"):
        network = DhariwalUNet(64, 3, 3, label_dim=1000)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(296, abs=0.5)
    names = network.state_dict().keys()
    assert {
        "map_label.weight",
        "enc.64x64_conv.bias",
        "enc.32x32_down.conv0.resample_filter",
        "enc.32x32_down.skip.resample_filter",
        "dec.8x8_in0.qkv.weight",
        "dec.64x64_block3.skip.weight",
        "out_norm.weight",
        "out_conv.bias",
    } <= names
    assert "enc.32x32_down.skip.weight" not in names  # the width stays the same there
    assert "map_label.bias" not in names


def test_no_label_is_every_way_of_saying_so():
    network = randomized(DhariwalUNet(**SMALL, label_dim=4))
    u, c_noise, _ = inputs(SMALL, torch.float32)
    none = network(u, c_noise)
    torch.testing.assert_close(network(u, c_noise, torch.full((3,), -1)), none)
    assert not torch.allclose(network(u, c_noise, torch.tensor([0, 1, 3])), none, atol=1e-3)


def test_augmentation_weights_are_held_and_not_used():
    augmented = randomized(DhariwalUNet(**SMALL, augment_dim=9))
    state = augmented.state_dict()
    assert state.pop("map_augment.weight").shape == (32, 9)
    plain = DhariwalUNet(**SMALL).eval()
    plain.load_state_dict(state)
    u, c_noise, _ = inputs(SMALL, torch.float32)
    torch.testing.assert_close(plain(u, c_noise), augmented(u, c_noise))


def test_the_forward_derivative_in_the_noise_level_agrees_with_a_difference():
    network = randomized(DhariwalUNet(**SMALL)).double()
    u, c_noise, _ = inputs(SMALL)
    one = torch.ones_like(c_noise)
    _, forward = torch.func.jvp(lambda c: network(u, c), (c_noise,), (one,))
    step = 1e-5
    difference = (network(u, c_noise + step) - network(u, c_noise - step)) / (2 * step)
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-8)


def test_a_fresh_network_is_almost_zero_and_every_weight_learns():
    network = DhariwalUNet(**SMALL, label_dim=4)
    u, c_noise, _ = inputs(SMALL, torch.float32)
    out = network(u, c_noise, torch.tensor([0, 1, 2]))
    assert out.abs().max() < 1e-3
    (out - u).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_is_rebuilt_from_its_config():
    network = DhariwalUNet(**SMALL, label_dim=3)
    again = build_network(network_name(network), network.config)
    assert again.config == network.config
    assert again.state_dict().keys() == network.state_dict().keys()
