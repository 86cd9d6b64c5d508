"""EDM's U-Nets a second time, step by step from their description, on a bare state dict.

Nothing is shared with `pidistill.networks`: resampling inserts zeros and correlates, normalisation
and attention are spelt out, and the order of the blocks is read off their names.
"""

import math

import torch
import torch.nn.functional as F

from pidistill.schedule import iddpm_sigmas


def silu(x):
    return x / (1 + torch.exp(-x))


def norm(w, name, x, eps):
    b, c = x.shape[:2]
    groups = min(32, c // 4)
    h = x.reshape(b, groups, -1)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    h = h.reshape(x.shape)
    return h * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def correlate(x, kernel, pad):
    """Correlate every channel with `kernel`, zeros around."""
    c = x.shape[1]
    return F.conv2d(F.pad(x, pad), kernel[None, None].repeat(c, 1, 1, 1), groups=c)


def filter2d(taps):
    f = torch.tensor(taps, dtype=torch.float64)
    return torch.outer(f, f) / f.sum() ** 2


def down(x, taps):
    """Correlate with padding (n-1)//2 in front, keep every second pixel."""
    p = (len(taps) - 1) // 2
    return correlate(x, filter2d(taps), (p, p, p, p))[:, :, ::2, ::2]


def up(x, taps):
    """Zeros between the pixels, then a true convolution with four times the filter."""
    b, c, height, width = x.shape
    spread = x.new_zeros(b, c, 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = x
    after = (len(taps) - 1) // 2
    before = len(taps) - 1 - after
    return correlate(spread, 4 * filter2d(taps).flip(0, 1), (before, after, before, after))


def conv(w, name, x):
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def linear(w, name, x):
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def block(w, name, x, emb, *, taps, eps, scale, adaptive, heads, up_=False, down_=False):
    def resample(y):
        return up(y, taps) if up_ else down(y, taps) if down_ else y

    h = conv(w, f"{name}.conv0", resample(silu(norm(w, f"{name}.norm0", x, eps))))
    a = linear(w, f"{name}.affine", emb)[:, :, None, None]
    if adaptive:
        half = a.shape[1] // 2
        h = silu(a[:, half:] + norm(w, f"{name}.norm1", h, eps) * (a[:, :half] + 1))
    else:
        h = silu(norm(w, f"{name}.norm1", h + a, eps))
    h = conv(w, f"{name}.conv1", h)
    x = resample(x)
    if f"{name}.skip.weight" in w:
        x = conv(w, f"{name}.skip", x)
    x = (x + h) * scale
    if f"{name}.qkv.weight" in w:
        b, c, height, width = x.shape
        n = heads(c)
        qkv = conv(w, f"{name}.qkv", norm(w, f"{name}.norm2", x, eps))
        qkv = qkv.reshape(b * n, c // n, 3, height * width)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        weights = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(c // n), dim=2)
        a = torch.einsum("nqk,nck->ncq", weights, v).reshape(b, c, height, width)
        x = (x + conv(w, f"{name}.proj", a)) * scale
    return x


def positional(c_noise, n, endpoint):
    k = torch.arange(n // 2, dtype=torch.float32)  # the precision that EDM trained them in
    angle = c_noise[:, None] * ((1 / 10000) ** (k / (n / 2 - endpoint))).double()
    return angle.cos(), angle.sin()


def one_hot(label, dim, b):
    rows = torch.zeros(b, dim, dtype=torch.float64)
    for i in range(b):
        if label is not None and label[i] >= 0:
            rows[i, label[i]] = 1
    return rows


def unet(w, config, u, emb, settings):
    """The levels: the last features, and the sum of the outputs that levels have by themselves."""
    taps = settings["taps"]
    sizes = [config["img_resolution"] // 2**i for i in range(len(config["channel_mult"]))]
    x = aux = u
    skips = []
    for r in sizes:
        p = f"enc.{r}x{r}"
        if r == sizes[0]:
            x = conv(w, f"{p}_conv", x)
        else:
            x = block(w, f"{p}_down", x, emb, down_=True, **settings)
        if f"{p}_aux_skip.weight" in w:
            aux = down(aux, taps)
            x = x + conv(w, f"{p}_aux_skip", aux)
        if f"{p}_aux_residual.weight" in w:
            # On a wide canvas, where no padding matters.
            p_f = (len(taps) - 1) // 2
            wide = F.pad(aux, (8, 8, 8, 8))
            h = F.conv2d(wide, w[f"{p}_aux_residual.weight"], padding=1)
            h = correlate(h, filter2d(taps), (p_f, p_f, p_f, p_f))[:, :, 8::2, 8::2]
            h = h[:, :, :r, :r] + w[f"{p}_aux_residual.bias"][:, None, None]
            x = aux = (x + h) / math.sqrt(2)
        skips.append(x)
        for i in range(config["num_blocks"]):
            x = block(w, f"{p}_block{i}", x, emb, **settings)
            skips.append(x)
    out = None
    for r in reversed(sizes):
        p = f"dec.{r}x{r}"
        if r == sizes[-1]:
            x = block(w, f"{p}_in0", x, emb, **settings)
            x = block(w, f"{p}_in1", x, emb, **settings)
        else:
            x = block(w, f"{p}_up", x, emb, up_=True, **settings)
        for i in range(config["num_blocks"] + 1):
            x = block(w, f"{p}_block{i}", torch.cat([x, skips.pop()], 1), emb, **settings)
        if f"{p}_aux_conv.weight" in w:
            h = conv(w, f"{p}_aux_conv", silu(norm(w, f"{p}_aux_norm", x, 1e-6)))
            out = h if out is None else h + up(out, taps)
    assert not skips
    return x, out


def song_unet(w, config, u, c_noise, label=None):
    width = config["model_channels"] * config["channel_mult_noise"]
    if config["embedding_type"] == "positional":
        cos, sin = positional(c_noise, width, 1)
    else:
        angle = 2 * math.pi * w["map_noise.freqs"] * c_noise[:, None]
        cos, sin = angle.cos(), angle.sin()
    emb = torch.cat([sin, cos], 1)
    if config["label_dim"]:
        rows = one_hot(label, config["label_dim"], len(u))
        emb = emb + linear(w, "map_label", rows * math.sqrt(config["label_dim"]))
    emb = silu(linear(w, "map_layer1", silu(linear(w, "map_layer0", emb))))
    settings = {
        "taps": config["resample_filter"],
        "eps": 1e-6,
        "scale": math.sqrt(0.5),
        "adaptive": False,
        "heads": lambda c: 1,
    }
    return unet(w, config, u, emb, settings)[1]


def dhariwal_unet(w, config, u, c_noise, label=None):
    emb = torch.cat(positional(c_noise, config["model_channels"], 0), 1)
    emb = linear(w, "map_layer1", silu(linear(w, "map_layer0", emb)))
    if config["label_dim"]:
        emb = emb + linear(w, "map_label", one_hot(label, config["label_dim"], len(u)))
    settings = {
        "taps": [1, 1],
        "eps": 1e-5,
        "scale": 1,
        "adaptive": True,
        "heads": lambda c: c // 64,
    }
    x, _ = unet(w, config, u, silu(emb), settings)
    return conv(w, "out_conv", silu(norm(w, "out_norm", x, 1e-5)))


def denoised(precond, network, x, sigma, label=None):
    """D of a `network` of ours by the table of preconditionings, in float64, one by one."""
    w = {key: value.double() for key, value in network.state_dict().items()}
    answer = {"SongUNet": song_unet, "DhariwalUNet": dhariwal_unet}[type(network).__name__]
    rows = []
    for i, s in enumerate(sigma.double().tolist()):
        match precond:
            case "EDMPrecond":
                root = math.hypot(s, 0.5)
                scales = 0.25 / root**2, s * 0.5 / root, 1 / root, math.log(s) / 4
            case "VPPrecond":
                t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(s**2)) - 0.1) / 19.9
                scales = 1, -s, 1 / math.sqrt(s**2 + 1), 999 * t
            case "VEPrecond":
                scales = 1, s, 1, math.log(s / 2)
            case "iDDPMPrecond":
                u = iddpm_sigmas(1000, 0.001, 0.008)
                scales = 1, -s, 1 / math.sqrt(s**2 + 1), 999 - int((u - s).abs().argmin())
        c_skip, c_out, c_in, c_noise = scales
        xi = x[i : i + 1].double()
        c_noise = torch.tensor([c_noise], dtype=torch.float64)
        which = None if label is None else label[i : i + 1]
        raw = answer(w, network.config, c_in * xi, c_noise, which)
        rows.append(c_skip * xi + c_out * raw[:, : x.shape[1]])
    return torch.cat(rows)
