"""ScoreSDE checkpoints of small networks, by a second implementation of their module list."""

import math

import torch
import torch.nn.functional as F
from torch import nn

import unet_reference

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
        kernel = unet_reference.filter2d(self.taps)
        return self.Conv2d_0(unet_reference.correlate(x, kernel, (2,) * 4))


class Combine(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.Conv_0 = nn.Conv2d(n_in, n_out, 1)


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
                m += [Combine(3, n)] if encoder in ("input_skip", "input_cat") else []
                n *= 2 if encoder == "input_cat" else 1
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
                if self.encoder in ("input_skip", "input_cat"):
                    aux = unet_reference.down(aux, self.taps)
                    g = next(m).Conv_0(aux)
                    h = g + h if self.encoder == "input_skip" else torch.cat([g, h], 1)
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


BOX = {"fourier": False, "taps": [1, 1], "encoder": "none", "decoder": "none"}
CONFIG = {"nf": 8, "mult": (1, 2), "blocks": 1, "size": 32, "attention": (16,), **BOX}
NCSNPP = {**CONFIG, "fourier": True, "taps": WIDE, "encoder": "residual"}
SAID = {"sde": "vpsde", "image_size": 32, "fir": False}
CASES = {
    "ddpmpp": CONFIG,
    "ddpmpp_two_blocks": CONFIG
    | {"blocks": 2, "mult": (2, 1, 2), "size": 16, "attention": (16, 4)},
    "ncsnpp_vp": {**NCSNPP, "fourier": False},
    "ncsnpp_ve": NCSNPP,
    "ncsnpp_ve_output_skip": {**NCSNPP, "decoder": "output_skip", "mult": (1, 2, 2)},
    "ncsnpp_ve_input_skip": {
        **NCSNPP,
        "encoder": "input_skip",
        "decoder": "output_skip",
        "mult": (1, 1, 2),
    },
    "ncsnpp_ve_input_cat": {**NCSNPP, "encoder": "input_cat", "mult": (1, 2, 1)},
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
    moments = {0: {"step": 3, "exp_avg": torch.zeros(2)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 2e-4}]}
    ema = {"decay": 0.9999, "num_updates": 3, "shadow_params": averaged}
    return {"optimizer": optimizer, "model": model, "ema": ema, "step": 3}


def said(config):
    return {
        "sde": "vesde" if config["fourier"] else "vpsde",
        "image_size": config["size"],
        "fir": config["taps"] == WIDE,
    }
