"""OpenAI's UNetModel: names and layouts, against an independent implementation."""

import math

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.files import write_json

CONFIG = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 4,
    "model_channels": 128,
    "channel_mult": [1, 2],
    "num_blocks": 2,
    "attn_resolutions": [4],
}
SIGMAS = [80.0, 20.0, 5.0, 1.0, 0.3, 0.05, 0.01, 0.0025]
LABELS = torch.tensor([0, 1, 2, 3, 3, 1, 0, 2])


class Res(nn.Module):
    def __init__(self, n_in, n_out, resample=lambda t: t):
        super().__init__()
        self.resample = resample
        layers = [nn.GroupNorm(32, n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1)]
        self.in_layers = nn.Sequential(*layers)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(512, 2 * n_out))
        layers = [nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(n_out, n_out, 3, padding=1)]
        self.out_layers = nn.Sequential(nn.GroupNorm(32, n_out), *layers)
        self.skip_connection = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, embedding):
        h, x = self.resample(self.in_layers[:2](x)), self.resample(x)
        h = self.out_layers[0](self.in_layers[2](h))
        scale, shift = self.emb_layers(embedding)[..., None, None].tensor_split(2, dim=1)
        return self.skip_connection(x) + self.out_layers[1:](h + h * scale + shift)


class Attention(nn.Module):
    def __init__(self, width, order):
        super().__init__()
        self.order = order
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, embedding):
        flat = x.flatten(2)
        rows = self.qkv(self.norm(flat))
        heads = []
        count = flat.shape[1] // 64
        for head in range(count):
            if self.order == "three-major":
                starts = [64 * (count * which + head) for which in range(3)]
            else:
                starts = [64 * (3 * head + which) for which in range(3)]
            q, k, v = (rows[:, start : start + 64] for start in starts)
            share = torch.einsum("bct,bcs->bts", q, k).div(8).softmax(dim=2)
            heads.append(torch.einsum("bts,bcs->bct", share, v))
        return x + self.proj_out(torch.cat(heads, dim=1)).reshape(x.shape)


def down(t):
    return functional.avg_pool2d(t, 2)


def up(t):
    return t.repeat_interleave(2, 2).repeat_interleave(2, 3)


class UNetModel(nn.Module):
    """The structure of the original for the levels 8x8 with 128 and 4x4 with 256 channels."""

    def __init__(self, order, classes):
        super().__init__()

        def low(width_in, *more):
            return nn.ModuleList([Res(width_in, 256), Attention(256, order), *more])

        def high(width_in):
            return nn.ModuleList([Res(width_in, 128)])

        self.time_embed = nn.Sequential(nn.Linear(128, 512), nn.SiLU(), nn.Linear(512, 512))
        if classes:
            self.label_emb = nn.Embedding(classes, 512)
        first = nn.ModuleList([nn.Conv2d(3, 128, 3, padding=1)])
        halved = nn.ModuleList([Res(128, 128, down)])
        inputs = [first, high(128), high(128), halved, low(128), low(256)]
        self.input_blocks = nn.ModuleList(inputs)
        self.middle_block = low(256, Res(256, 256))
        low_outputs = [low(256 + 256), low(256 + 256), low(256 + 128, Res(256, 256, up))]
        high_outputs = [high(256 + 128), high(128 + 128), high(128 + 128)]
        self.output_blocks = nn.ModuleList(low_outputs + high_outputs)
        self.out = nn.Sequential(nn.GroupNorm(32, 128), nn.SiLU(), nn.Conv2d(128, 3, 3, padding=1))

    def forward(self, x, timestep, label):
        k = torch.arange(64, dtype=x.dtype)
        angle = timestep[:, None] * torch.exp(-math.log(10000) * k / 64)
        embedding = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=1))
        if label is not None:
            embedding = embedding + self.label_emb(label)
        skips = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, embedding)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, embedding)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in block:
                x = layer(x, embedding)
        return self.out(x)


def build(order="three-major", classes=4):
    torch.manual_seed(0)
    network = UNetModel(order, classes).eval()
    for weight in network.parameters():  # biases and normalisations are random as well
        weight.data += 0.02 * torch.randn(weight.shape)
    return network


def write(
    tmp_path,
    weights,
    config=None,
    precondition="edm_timestep",
    name="dhariwal_unet",
    settings=None,
    **top,
):
    torch.save(weights, tmp_path / "a.pt")
    description = {
        "network": {"name": name, "config": CONFIG | (config or {})},
        "precondition": {"name": precondition, "config": settings or {}},
    }
    write_json(tmp_path / "a.json", description | top)
    return f"edm:{tmp_path / 'a.pt'}"


@pytest.mark.parametrize(
    ("order", "classes", "top"),
    [
        ("three-major", 4, {}),
        ("three-major", 0, {"qkv_order": "three-major"}),
        ("legacy", 4, {"qkv_order": "legacy"}),
    ],
)
def test_agrees_with_a_second_computation(order, classes, top, tmp_path):
    network = build(order, classes)
    locator = write(tmp_path, network.state_dict(), {"label_dim": classes}, **top)
    teacher = load_teacher(locator)
    assert (teacher.sample_shape, teacher.num_classes) == ((3, 8, 8), classes)
    assert (teacher.sigma_min, teacher.sigma_max, teacher.sigma_data) == (0.002, 80.0, 0.5)

    sigma = torch.tensor(SIGMAS)
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x = x * (0.5 + sigma[:, None, None, None])
    label = LABELS if classes else None
    s = sigma.double()[:, None, None, None]
    root = (s**2 + 0.25).sqrt()
    with torch.no_grad():
        answer = teacher(x, sigma, label).double()
        raw = network.double()(x.double() / root, 250 * sigma.double().log(), label)
    skipped = 0.25 / root**2 * x.double()
    expected = skipped + s * 0.5 / root * raw
    for i in range(8):
        assert (answer[i] - expected[i]).norm() < 1e-5 * expected[i].norm()


@pytest.mark.parametrize(
    ("settings", "alphas_bar", "scale"),
    [
        (
            {"noise_schedule": "linear"},
            (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0),
            1,
        ),
        (
            {"noise_schedule": "linear", "diffusion_steps": 500, "predict_xstart": True},
            (1 - torch.linspace(2e-4, 0.04, 500, dtype=torch.float64)).cumprod(0),
            1,
        ),
        (
            {"noise_schedule": "cosine", "diffusion_steps": 4000, "rescale_timesteps": True},
            (
                (
                    (torch.arange(1, 4001, dtype=torch.float64) / 4000 + 0.008)
                    / 1.008
                    * math.pi
                    / 2
                ).cos()
                ** 2
            )
            / math.cos(0.008 / 1.008 * math.pi / 2) ** 2,
            0.25,
        ),
    ],
)
def test_the_processes_of_guided_diffusion(settings, alphas_bar, scale, tmp_path):
    """D from q(x_t | x_0) at the timesteps of the process."""
    network = build("legacy")
    options = {"precondition": "guided_diffusion", "settings": settings, "qkv_order": "legacy"}
    teacher = load_teacher(write(tmp_path, network.state_dict(), **options))
    steps = torch.linspace(0, 0.9 * len(alphas_bar), 8).long()
    bar = alphas_bar[steps][:, None, None, None]
    x_t = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    sigma = ((1 - bar) / bar).sqrt()
    with torch.no_grad():
        answer = teacher((x_t / bar.sqrt()).float(), sigma.flatten().float(), LABELS)
        raw = network.double()(x_t, steps.double() * scale, LABELS)
    expected = (
        raw if settings.get("predict_xstart") else (x_t - (1 - bar).sqrt() * raw) / bar.sqrt()
    )
    for one, other in zip(answer, expected, strict=True):
        assert (one - other).norm() < 2e-5 * other.norm()


def test_the_wrong_order_is_another_function(tmp_path):
    """The comparison above would detect it."""
    weights = build().state_dict()
    x, sigma = torch.randn(1, 3, 8, 8), torch.ones(1)
    with torch.no_grad():
        one = load_teacher(write(tmp_path, weights))(x, sigma, LABELS[:1])
        other = load_teacher(write(tmp_path, weights, qkv_order="legacy"))(x, sigma, LABELS[:1])
    assert (one - other).norm() > 1e-3 * one.norm()


def test_two_dimensional_attention_a_prefix_and_half_precision_are_read(tmp_path):
    """As attention is in consistency-models."""
    flat = {key: w.half() for key, w in build().state_dict().items()}
    image = {f"module.{key}": w[..., None] if w.ndim == 3 else w for key, w in flat.items()}
    one = load_teacher(write(tmp_path, flat)).network.state_dict()
    other = load_teacher(write(tmp_path, image)).network.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert {weight.dtype for weight in one.values()} == {torch.float32}


def guided(**settings):
    return {"precondition": "guided_diffusion", "settings": settings}


ODD_WIDTH = {"model_channels": 160, "channel_mult": [1, 1]}
KEY = "output_blocks.2.2.in_layers.2.weight"


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        ({KEY: None}, {}, f"lacks the weight '{KEY}'"),
        ({"input_blocks.0.0.weight": None}, {}, r"lacks the weight 'input_blocks.0.0.weight'"),
        ({"middle_block.1.encoder_kv.bias": 3}, {}, "unexpected weight 'middle_block.1.encoder_kv"),
        ({"middle_block.1.qkv.bias": 3}, {}, r"in0.qkv.bias' has shape \(3,\)"),
        ({}, {"config": {"label_dim": 0}}, "unexpected weight 'label_emb.weight'"),
        ({}, {"config": {"label_dim": 5}}, r"'map_label.weight' has shape \(512, 4\)"),
        ({}, {"config": {"model_channels": 64}}, "norm0 normalises its 64 channels in 16 groups"),
        ({}, {"config": ODD_WIDTH}, "attention over 160 channels"),
        ({}, {"config": {"model_channels": 136}}, "cannot be built"),
        ({}, {"qkv_order": "other"}, "'other'; expected three-major or legacy"),
        ({}, {"qkv_order": [1]}, r"qkv_order \[1\]"),
        (
            {},
            {"precondition": "edm"},
            r"'edm_timestep' \(consistency-models\) or 'guided_diffusion'",
        ),
        ({}, guided(noise_schedule="sqrt"), "noise_schedule 'sqrt'; expected linear or cosine"),
        ({}, guided(), "wrong precondition in its JSON file: .*noise_schedule"),
        ({}, guided(noise_schedule="linear", diffusion_steps=1), "diffusion_steps 1"),
        ({}, guided(noise_schedule="linear", sigma_max=1e3), "noise levels from 0.01"),
        ({"input_blocks.3.0.op.weight": 3}, {}, "built without resblock_updown"),
        ({"input_blocks.1.0.emb_layers.1.weight": 128}, {}, "built without use_scale_shift_norm"),
        ({}, {"config": {"num_heads": 3}}, "expected a multiple of 3, the number of heads"),
        ({}, {"name": "song_unet"}, "a guided-diffusion UNetModel, which do not fit 'song_unet'"),
    ],
)
def test_what_does_not_fit_is_named(change, options, match, tmp_path):
    weights = dict(build().state_dict())
    for key, size in change.items():
        weights.pop(key, None)
        if size:
            weights[key] = torch.zeros(size)
    with pytest.raises(PidistillError, match=match) as caught:
        load_teacher(write(tmp_path, weights, **options))
    assert "\n" not in str(caught.value)
