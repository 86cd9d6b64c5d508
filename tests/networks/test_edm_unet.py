"""SongUNet and DhariwalUNet, against an independent implementation in float64."""

import pytest
import torch

from pidistill.errors import PidistillError
from pidistill.networks import new_network
from pidistill.networks.dhariwal_unet import DhariwalUNet
from pidistill.networks.song_unet import SongUNet

import unet_reference
from edm_files import randomized

SMALL = {
    "img_resolution": 16,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 16,
    "channel_mult": [1, 2, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
ADM = {**SMALL, "model_channels": 32, "channel_mult": [1, 2]}
NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
SONG_VARIANTS = {
    "ddpmpp": {},
    "ncsnpp": NCSNPP,
    "ncsnpp_labels": {**NCSNPP, "label_dim": 5},
    "labels_two_blocks": {"label_dim": 3, "num_blocks": 2, "attn_resolutions": [16, 4]},
    "skip_skip": {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": [2, 1, 2]},
    "residual_skip_wide_filter": {**NCSNPP, "decoder_type": "skip", "attn_resolutions": []},
    "residual_box_filter": {"encoder_type": "residual"},
    "skip_encoder_wide_filter": {"encoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    "one_level": {"channel_mult": [2], "channel_mult_emb": 2, "out_channels": 6},
    "grey": {"in_channels": 1, "out_channels": 2, "encoder_type": "residual"},
}
ADM_VARIANTS = {
    "adm": {},
    "adm_labels": {"label_dim": 7},
    "adm_two_heads_every_level": {
        "channel_mult": [2, 4],
        "attn_resolutions": [16, 8],
        "num_blocks": 2,
        "out_channels": 6,
    },
    "adm_three_levels": {"channel_mult": [2, 1, 2], "channel_mult_emb": 1, "label_dim": 3},
}
CASES = {name: (SongUNet, {**SMALL, **more}) for name, more in SONG_VARIANTS.items()}
CASES |= {name: (DhariwalUNet, {**ADM, **more}) for name, more in ADM_VARIANTS.items()}

both = pytest.mark.parametrize(
    ("network_class", "config"), [(SongUNet, SMALL), (DhariwalUNet, ADM)], ids=["song", "dhariwal"]
)


def inputs(config, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    size = config["img_resolution"]
    u = torch.randn(3, config["in_channels"], size, size, generator=generator, dtype=dtype)
    c_noise = torch.tensor([-1.5, 0.3, 1.1], dtype=dtype)
    label = torch.tensor([0, 2, -1]) if config.get("label_dim") else None
    return u, c_noise, label


@pytest.mark.parametrize(("network_class", "config"), CASES.values(), ids=CASES.keys())
def test_agrees_with_a_second_computation(network_class, config):
    network = randomized(network_class(**config)).double()
    u, c_noise, label = inputs(config, torch.float64)
    reference = {
        SongUNet: unet_reference.song_unet,
        DhariwalUNet: unet_reference.dhariwal_unet,
    }[network_class]
    expected = reference(network.state_dict(), network.config, u, c_noise, label)
    torch.testing.assert_close(network(u, c_noise, label), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("patch_size", [2, 4])
def test_patches_are_pixels_of_a_coarser_image_with_more_channels(patch_size):
    coarse = {
        "img_resolution": SMALL["img_resolution"] // patch_size,
        "in_channels": SMALL["in_channels"] * patch_size**2,
        "out_channels": SMALL["out_channels"] * patch_size**2,
    }
    folded = randomized(SongUNet(**{**SMALL, **coarse, "label_dim": 3}))
    network = SongUNet(**SMALL, label_dim=3, patch_size=patch_size).eval()
    network.load_state_dict(folded.state_dict())
    u, c_noise, label = inputs(network.config)
    # (b, c, H, p, W, p) with the pixel's place in its patch moved behind the channel
    parts = u.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    out = folded(parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3), c_noise, label)
    out = out.unflatten(1, (3, patch_size, patch_size)).permute(0, 1, 4, 2, 5, 3)
    assert torch.equal(network(u, c_noise, label), out.flatten(4, 5).flatten(2, 3))


@pytest.mark.parametrize("c_noise", [0.0, 12.345, 999.0])
def test_float32_agrees_over_the_range_of_vp_times(c_noise):
    network = randomized(SongUNet(**SMALL))
    u, c_noise = inputs(SMALL)[0], torch.full((3,), c_noise)
    answer = network(u, c_noise)
    exact = network.double()(u.double(), c_noise.double())
    assert (answer - exact).norm() < 1e-5 * exact.norm()


@both
def test_no_label_is_minus_one_or_none(network_class, config):
    network = randomized(network_class(**config, label_dim=4))
    u, c_noise, _ = inputs(config)
    none = network(u, c_noise)
    torch.testing.assert_close(network(u, c_noise, torch.full((3,), -1)), none)
    assert not torch.allclose(network(u, c_noise, torch.tensor([0, 1, 3])), none, atol=1e-3)


@both
def test_augmentation_weights_are_held_and_not_used(network_class, config):
    augmented = randomized(network_class(**config, augment_dim=9))
    state = augmented.state_dict()
    assert state.pop("map_augment.weight").shape == (config["model_channels"], 9)
    plain = network_class(**config).eval()
    plain.load_state_dict(state)
    u, c_noise, _ = inputs(config)
    torch.testing.assert_close(plain(u, c_noise), augmented(u, c_noise))


@both
def test_dropout_acts_in_training_only(network_class, config):
    network = randomized(network_class(**config, label_dim=4, dropout=0.5, label_dropout=0.5))
    u, c_noise, _ = inputs(config)
    label = torch.tensor([0, 1, 2])
    assert torch.equal(network(u, c_noise, label), network(u, c_noise, label))
    network.train()
    assert not torch.equal(network(u, c_noise, label), network(u, c_noise, label))


def test_the_paper_s_networks_have_the_names_of_edm_and_as_many_weights():
    with torch.device("meta"):
        ddpmpp = SongUNet(32, 3, 3, channel_mult=[2, 2, 2], augment_dim=9)
        ncsnpp = SongUNet(32, 3, 3, channel_mult=[2, 2, 2], decoder_type="skip", **NCSNPP)
        adm = DhariwalUNet(64, 3, 3, label_dim=1000)
    assert sum(p.numel() for p in ddpmpp.parameters()) / 1e6 == pytest.approx(55.7, abs=0.05)
    assert sum(p.numel() for p in adm.parameters()) / 1e6 == pytest.approx(296, abs=0.5)
    for network, present, absent in (
        (
            ddpmpp,
            "map_augment.weight map_layer0.bias enc.32x32_conv.weight "
            "enc.16x16_down.skip.resample_filter enc.16x16_block0.qkv.weight "
            "dec.8x8_in0.proj.bias dec.8x8_in1.affine.weight dec.32x32_up.conv0.resample_filter "
            "dec.32x32_block4.skip.weight dec.32x32_aux_norm.weight dec.32x32_aux_conv.bias",
            "enc.32x32_conv.resample_filter",
        ),
        (
            ncsnpp,
            "map_noise.freqs enc.16x16_aux_residual.resample_filter "
            "dec.16x16_aux_up.resample_filter dec.8x8_aux_conv.weight",
            "map_label.weight",
        ),
        (
            adm,
            "map_label.weight enc.64x64_conv.bias enc.32x32_down.conv0.resample_filter "
            "enc.32x32_down.skip.resample_filter dec.8x8_in0.qkv.weight "
            "dec.64x64_block3.skip.weight out_norm.weight out_conv.bias",
            "map_label.bias enc.32x32_down.skip.weight",  # the width stays the same there
        ),
    ):
        names = network.state_dict().keys()
        assert set(present.split()) <= names
        assert not set(absent.split()) & names


@both
def test_a_fresh_network_is_almost_zero_and_every_weight_learns(network_class, config):
    network = network_class(**config, label_dim=4)
    u, c_noise, _ = inputs(config)
    out = network(u, c_noise, torch.tensor([0, 1, 2]))
    assert out.abs().max() < 1e-3
    (out - u).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network_class", "config"),
    [(SongUNet, SMALL), (SongUNet, {**SMALL, "patch_size": 2}), (DhariwalUNet, ADM)],
)
def test_forward_derivative_in_the_noise_level_agrees_with_differences(network_class, config):
    network = randomized(network_class(**config)).double()
    u, c_noise, _ = inputs(config, torch.float64)
    one = torch.ones_like(c_noise)
    _, forward = torch.func.jvp(lambda c: network(u, c), (c_noise,), (one,))
    step = 1e-5
    difference = (network(u, c_noise + step) - network(u, c_noise - step)) / (2 * step)
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["song_unet", "dhariwal_unet"])
def test_is_built_for_samples(name):
    config = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1}
    network = new_network(name, (1, 16, 16), 10, config)
    assert network.config["img_resolution"] == 16
    out = network(torch.randn(2, 1, 16, 16), torch.zeros(2), torch.tensor([0, 9]))
    assert out.shape == (2, 1, 16, 16)
    with pytest.raises(PidistillError, match=r"\(64,\)"):
        new_network(name, (64,), 0, config)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("embedding_type", "wrong"),
        ("encoder_type", "wrong"),
        ("decoder_type", "wrong"),
        ("patch_size", 0),
        ("patch_size", 3),
        ("patch_size", 32),
    ],
)
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(PidistillError, match=f"{argument} is {value!r}"):
        SongUNet(**SMALL, **{argument: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_and_has_a_forward_derivative():
    network = randomized(SongUNet(**SMALL))
    u, c_noise, _ = inputs(SMALL)
    expected = network(u, c_noise)
    one = torch.ones_like(c_noise)
    _, slope = torch.func.jvp(lambda c: network(u, c), (c_noise,), (one,))
    network.cuda()
    u, c_noise, one = u.cuda(), c_noise.cuda(), one.cuda()
    assert (network(u, c_noise).cpu() - expected).norm() < 1e-5 * expected.norm()
    _, again = torch.func.jvp(lambda c: network(u, c), (c_noise,), (one,))
    torch.testing.assert_close(again.cpu(), slope, rtol=1e-3, atol=1e-3)
