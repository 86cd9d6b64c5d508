"""ScoreSDE checkpoints against a compact second implementation of their module list."""

import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import unet_reference
from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.teachers import score_sde

WIDE = [1, 3, 3, 1]
silu = F.silu


class Fourier(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(n), requires_grad=False)

    def forward(self, x):
        angle = 2 * math.pi * x[:, None] * self.W
        return torch.cat([angle.sin(), angle.cos()], 1)


class NIN(nn.Module):
    """A matrix on the channels, stored as (in, out)."""

    def __init__(self, n):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(n, n)), nn.Parameter(torch.randn(n))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


def group_norm(n):
    return nn.GroupNorm(min(n // 4, 32), n, eps=1e-6)


class Attention(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.GroupNorm_0 = group_norm(n)
        for i in range(4):
            setattr(self, f"NIN_{i}", NIN(n))

    def forward(self, x):
        h = self.GroupNorm_0(x)
        q, k, v = (nin(h).flatten(2) for nin in (self.NIN_0, self.NIN_1, self.NIN_2))
        weights = torch.softmax(q.mT @ k / math.sqrt(x.shape[1]), -1)
        return (x + self.NIN_3((v @ weights.mT).reshape(x.shape))) / math.sqrt(2)


class Block(nn.Module):
    def __init__(self, n_in, n_out, emb, taps, resample=None):
        super().__init__()
        self.taps, self.resample = taps, resample
        self.GroupNorm_0 = group_norm(n_in)
        self.Conv_0 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.Dense_0 = nn.Linear(emb, n_out)
        self.GroupNorm_1 = group_norm(n_out)
        self.Conv_1 = nn.Conv2d(n_out, n_out, 3, padding=1)
        if n_in != n_out or resample:
            self.Conv_2 = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, temb):
        h = silu(self.GroupNorm_0(x))
        if self.resample:
            h, x = self.resample(h, self.taps), self.resample(x, self.taps)
        h = self.Conv_0(h) + self.Dense_0(silu(temb))[:, :, None, None]
        h = self.Conv_1(silu(self.GroupNorm_1(h)))
        return ((self.Conv_2(x) if hasattr(self, "Conv_2") else x) + h) / math.sqrt(2)


class FilteredConv(nn.Module):
    """Filters, then convolves every second pixel, all padding first."""

    def __init__(self, n_in, n_out, taps):
        super().__init__()
        self.taps = taps
        self.Conv2d_0 = nn.Conv2d(n_in, n_out, 3, stride=2)

    def forward(self, x):
        return self.Conv2d_0(
            unet_reference.correlate(x, unet_reference.filter2d(self.taps), (2,) * 4)
        )


class Combine(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.Conv = nn.Conv2d(n_in, n_out, 1)


class ScoreNetwork(nn.Module):
    """The raw network of ScoreSDE: a flat list of modules, used in order."""

    def __init__(self, nf, mult, blocks, size, attention, *, fourier, taps, encoder, decoder):
        super().__init__()
        self.register_buffer("sigmas", torch.linspace(50, 0.01, 10).double())
        self.nf, self.levels, self.blocks, self.attention = nf, len(mult), blocks, attention
        self.encoder, self.decoder, self.fourier, self.taps = encoder, decoder, fourier, taps
        emb, n, aux = 4 * nf, nf, 3
        m = [Fourier(nf)] if fourier else []
        m += [nn.Linear(2 * nf if fourier else nf, emb), nn.Linear(emb, emb)]
        m += [nn.Conv2d(3, nf, 3, padding=1)]
        kept = [n]
        for level, k in enumerate(mult):
            for _ in range(blocks):
                m += [Block(n, nf * k, emb, taps)]
                n = nf * k
                m += [Attention(n)] if size >> level in attention else []
                kept += [n]
            if level < len(mult) - 1:
                m += [Block(n, n, emb, taps, unet_reference.down)]
                m += [Combine(3, n)] if encoder == "input_skip" else []
                if encoder == "residual":
                    m += [FilteredConv(aux, n, taps)]
                    aux = n
                kept += [n]
        m += [Block(n, n, emb, taps), Attention(n), Block(n, n, emb, taps)]
        for level, k in reversed(list(enumerate(mult))):
            for _ in range(blocks + 1):
                m += [Block(n + kept.pop(), nf * k, emb, taps)]
                n = nf * k
            m += [Attention(n)] if size >> level in attention else []
            if decoder == "output_skip":
                m += [group_norm(n), nn.Conv2d(n, 3, 3, padding=1)]
            if level > 0:
                m += [Block(n, n, emb, taps, unet_reference.up)]
        if decoder == "none":
            m += [group_norm(n), nn.Conv2d(n, 3, 3, padding=1)]
        self.all_modules = nn.ModuleList(m)

    def forward(self, x, time):
        m = iter(self.all_modules)
        if self.fourier:
            temb = next(m)(time.log())
        else:
            cos, sin = unet_reference.positional(time, self.nf, 1)
            temb = torch.cat([sin, cos], 1)
        temb = next(m)(temb)
        temb = next(m)(silu(temb))
        aux, hs = x, [next(m)(x)]
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(m)(hs[-1], temb)
                hs.append(next(m)(h) if h.shape[-1] in self.attention else h)
            if level < self.levels - 1:
                h = next(m)(hs[-1], temb)
                if self.encoder == "input_skip":
                    aux = unet_reference.down(aux, self.taps)
                    h = h + next(m).Conv(aux)
                if self.encoder == "residual":
                    h = aux = (next(m)(aux) + h) / math.sqrt(2)
                hs.append(h)
        h = next(m)(hs[-1], temb)
        h = next(m)(h)
        h = next(m)(h, temb)
        out = None
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                h = next(m)(torch.cat([h, hs.pop()], 1), temb)
            h = next(m)(h) if h.shape[-1] in self.attention else h
            if self.decoder == "output_skip":
                out = 0 if out is None else unet_reference.up(out, self.taps)
                g = silu(next(m)(h))
                out = out + next(m)(g)
            if level > 0:
                h = next(m)(h, temb)
        if self.decoder == "none":
            g = silu(next(m)(h))
            out = next(m)(g)
        assert next(m, None) is None
        return out


CONFIG = {
    "nf": 8,
    "mult": (1, 2),
    "blocks": 1,
    "size": 32,
    "attention": (16,),
    "fourier": False,
    "taps": [1, 1],
    "encoder": "none",
    "decoder": "none",
}
NCSNPP = {**CONFIG, "fourier": True, "taps": WIDE, "encoder": "residual"}
SAID = {"sde": "vpsde", "image_size": 32, "fir": False}
CASES = {
    "ddpmpp": CONFIG,
    "ddpmpp_two_blocks": {
        **CONFIG,
        "blocks": 2,
        "mult": (2, 1, 2),
        "size": 16,
        "attention": (16, 4),
    },
    "ncsnpp_vp": {**NCSNPP, "fourier": False},
    "ncsnpp_ve": NCSNPP,
    "ncsnpp_ve_output_skip": {**NCSNPP, "decoder": "output_skip", "mult": (1, 2, 2)},
    "ncsnpp_ve_input_skip": {**NCSNPP, "encoder": "input_skip"},
    "one_level": {**CONFIG, "mult": (1,), "attention": ()},
}


def network(config, seed=0):
    torch.manual_seed(seed)
    net = ScoreNetwork(**config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if not name.endswith("all_modules.0.W"):
                noise = torch.randn_like(p)
                p.copy_(
                    noise / p[0].numel() ** 0.5 if p.ndim > 1 else 0.3 * noise + ("Norm" in name)
                )
    return net.eval()


def checkpoint(net):
    """What a training run saves: raw weights that differ from the averaged ones."""
    averaged = [p.detach().clone() for p in net.parameters() if p.requires_grad]
    model = {
        f"module.{key}": value if key in ("sigmas", "all_modules.0.W") else value + 1
        for key, value in net.state_dict().items()
    }
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 2e-4}],
    }
    ema = {"decay": 0.9999, "num_updates": 3, "shadow_params": averaged}
    return {"optimizer": optimizer, "model": model, "ema": ema, "step": 3}


def expected_denoised(net, x, sigma):
    """D by Tweedie's formula in the coordinates that the network was trained in."""
    net, x, sigma = net.double(), x.double(), sigma.double()[:, None, None, None]
    if net.fourier:  # variance exploding, images in [0, 1]
        y, s = (x + 1) / 2, sigma / 2
        score = net(2 * y - 1, s.flatten()) / s
        return 2 * (y + s**2 * score) - 1
    alpha = 1 / (1 + sigma**2).sqrt()
    std = sigma * alpha
    t = ((0.1**2 + 2 * 19.9 * (-2 * alpha.log())).sqrt() - 0.1) / 19.9
    y = alpha * x
    score = -net(y, 999 * t.flatten()) / std
    return (y + std**2 * score) / alpha


def said(config):
    return {
        "sde": "vesde" if config["fourier"] else "vpsde",
        "image_size": config["size"],
        "fir": config["taps"] == WIDE,
    }


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_agrees_with_a_second_implementation(config, described, tmp_path):
    net = network(config)
    path = tmp_path / "checkpoint_8.pth"
    torch.save(checkpoint(net), path)
    if described or len(config["attention"]) != 1:
        (tmp_path / "checkpoint_8.json").write_text(json.dumps(said(config)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            teacher = load_teacher(str(path))
    else:
        with pytest.warns(UserWarning, match="SDE was assumed|and 32x32"):
            teacher = load_teacher(f"score-sde:{path}")
    assert teacher.sample_shape == (3, config["size"], config["size"])
    assert teacher.num_classes == 0
    sigma = torch.tensor([30.0, 2.0, 0.3, 0.03])
    x = torch.randn(4, *teacher.sample_shape) * (0.5 + sigma[:, None, None, None])
    with torch.no_grad():
        answer = teacher(x, sigma)
        expected = expected_denoised(net, x, sigma)
    for one, other in zip(answer.double(), expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_noise_levels_are_those_of_the_sde(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(checkpoint(network(NCSNPP)), path)
    (tmp_path / "a.json").write_text(json.dumps(said(NCSNPP)))
    teacher = score_sde.load(str(path))
    assert (teacher.sigma_min, teacher.sigma_max) == pytest.approx((0.02, 100.0))
    (tmp_path / "a.json").write_text(
        json.dumps(said(NCSNPP) | {"sigma_max": 380, "sigma_min": 0.5})
    )
    teacher = score_sde.load(str(path))
    assert (teacher.sigma_min, teacher.sigma_max) == (1.0, 760.0)
    torch.save(checkpoint(network(CONFIG)), path)
    (tmp_path / "a.json").write_text(json.dumps({**SAID, "beta_max": 10.1}))
    assert score_sde.load(str(path)).precondition.beta_d == pytest.approx(10.0)


def test_the_legacy_format_and_a_buffer_free_model_are_read(tmp_path):
    content = checkpoint(network(CONFIG))
    del content["model"]["module.sigmas"]
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "a.json").write_text(json.dumps(SAID))
    assert score_sde.load(str(tmp_path / "a.pth")).sigma_max == pytest.approx(152.167, rel=1e-4)


class TestBadFiles:
    @staticmethod
    def fails(tmp_path, content, match, description=SAID):
        path = tmp_path / "a.pth"
        torch.save(content, path)
        (tmp_path / "a.json").write_text(json.dumps(description))
        with pytest.raises(PidistillError, match=match) as caught:
            score_sde.load(str(path))
        assert "\n" not in str(caught.value)

    def test_code_is_not_executed(self, tmp_path):
        self.fails(tmp_path, {"model": print}, "cannot be read with weights_only=True")

    def test_something_else_is_refused(self, tmp_path):
        self.fails(tmp_path, {"state_dict": {}}, "not a checkpoint of ScoreSDE")
        self.fails(tmp_path, [1], "not a checkpoint of ScoreSDE")
        content = checkpoint(network(CONFIG))
        content["model"]["module.extra"] = 1
        self.fails(tmp_path, content, "holds more than tensors")

    def test_averages_must_match_the_weights(self, tmp_path):
        content = checkpoint(network(CONFIG))
        content["ema"]["shadow_params"].pop()
        self.fails(tmp_path, content, "averaged weights; expected")
        content = checkpoint(network(CONFIG))
        content["ema"]["shadow_params"][0] = torch.zeros(3)
        self.fails(tmp_path, content, r"'all_modules.0.weight' has shape \(3,\)")

    def test_other_networks_are_refused(self, tmp_path):
        net = network(CONFIG)
        net.all_modules[3].NIN_0 = NIN(8)  # as in blocks of type 'ddpm'
        self.fails(tmp_path, checkpoint(net), "module 3 has the parts .*NIN_0.*not supported")
        net = network(CONFIG)
        net.extra = nn.Linear(2, 2)
        self.fails(tmp_path, checkpoint(net), "unexpected weight 'extra.weight'")
        net = network(CONFIG)
        del net.all_modules[-1]
        self.fails(tmp_path, checkpoint(net), "modules with weights; expected")
        net = network(CONFIG)
        del net.all_modules[4]
        self.fails(tmp_path, checkpoint(net), "not those of|expected")

    @pytest.mark.parametrize(
        ("description", "match"),
        [
            ({"sde": "subvpsde"}, "sde is 'subvpsde' .* only 'vpsde' is supported"),
            ({"image_size": 31}, "image_size is 31 .* expected a multiple of 2"),
            ({"image_size": "32"}, "image_size is '32'"),
            ({"fir": 1}, "fir is 1"),
            ({"beta_max": 0.01}, "beta_max is 0.01"),
            ({"sigma_min": "a"}, "sigma_min is 'a'"),
            ({"nf": 8}, "unknown entry 'nf'"),
        ],
    )
    def test_a_wrong_description_is_named(self, description, match, tmp_path):
        self.fails(tmp_path, checkpoint(network(CONFIG)), match, SAID | description)

    def test_an_image_size_that_nothing_tells_is_asked_for(self, tmp_path):
        content = checkpoint(network(CASES["one_level"]))
        self.fails(tmp_path, content, r'put {"image_size": N} into a.json', {"fir": False})

    def test_truncation_is_one_error(self, tmp_path):
        path = tmp_path / "a.pth"
        torch.save(checkpoint(network(CONFIG)), path)
        data = path.read_bytes()
        for length in range(0, len(data), len(data) // 20):
            path.write_bytes(data[:length])
            with pytest.raises(PidistillError, match="cannot be read"):
                score_sde.load(str(path))

    def test_byte_flips_are_one_error_or_load(self, tmp_path):
        path = tmp_path / "a.pth"
        torch.save(checkpoint(network(CONFIG)), path)
        (tmp_path / "a.json").write_text(json.dumps(SAID))
        data = path.read_bytes()
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            damaged = bytearray(data)
            damaged[int(torch.randint(len(data), (), generator=generator))] ^= 0x55
            damaged[int(torch.randint(6000, (), generator=generator))] ^= 0x55
            path.write_bytes(damaged)
            try:
                score_sde.load(str(path))
            except PidistillError as error:
                message = str(error)
                assert "\n" not in message

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(PidistillError, match="is not a file; expected score-sde:FILE"):
            load_teacher("score-sde:none.pth")
