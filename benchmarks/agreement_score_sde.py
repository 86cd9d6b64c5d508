"""D of ScoreSDE's checkpoints, read by pidistill, against the original program.

    git clone https://github.com/yang-song/score_sde_pytorch
    pip install ml_collections
    python benchmarks/agreement_score_sde.py --original score_sde_pytorch

The published configurations are made narrow, of at most four levels, and their weights random;
everything else is as published. A definition in torch replaces the CUDA extension of the original.
"""

import argparse
import importlib
import sys
import tempfile
import types
import warnings
from pathlib import Path

import torch
import torch.nn.functional as functional

from pidistill import load_teacher

CONFIGS = {
    "vp/cifar10_ddpmpp": "sde=vpsde&continuous=false",
    "vp/cifar10_ddpmpp_continuous": "sde=vpsde&continuous=true",
    "vp/cifar10_ncsnpp_deep_continuous": "sde=vpsde&continuous=true",
    "subvp/cifar10_ddpmpp_continuous": "sde=subvpsde",
    "subvp/cifar10_ncsnpp_continuous": "sde=subvpsde",
    "ve/cifar10_ncsnpp": "sde=vesde",
    "ve/celeba_ncsnpp": "sde=vesde",
    "ve/cifar10_ncsnpp_continuous": "",
    "ve/ffhq_256_ncsnpp_continuous": "",
    "ve/church_ncsnpp_continuous": "",
    "ve/celebahq_ncsnpp_continuous": "",
    "ve/ffhq_256_ncsnpp_continuous, cat": "",
}
"""Configurations, and the settings that must be stated."""


def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
    """Insert zeros, pad, convolve with `kernel`, keep every `down`-th pixel."""
    b, c, h, w = x.shape
    spread = x.new_zeros(b, c, h, up, w, up)
    spread[:, :, :, 0, :, 0] = x
    spread = functional.pad(spread.reshape(b * c, 1, h * up, w * up), (*pad, *pad))
    out = functional.conv2d(spread, kernel.flip(0, 1)[None, None].to(x))[..., ::down, ::down]
    return out.reshape(b, c, *out.shape[2:])


def original_score(name):
    """The original's network and score function for a published configuration, made narrow."""
    utils, sde_lib = importlib.import_module("models.utils"), importlib.import_module("sde_lib")
    importlib.import_module("models.ncsnpp")  # registers the network
    folder, _, rest = name.partition("/")
    module = importlib.import_module(f"configs.{folder}.{rest.partition(',')[0]}")
    config = module.get_config()
    config.model.nf = 16
    config.model.ch_mult = config.model.ch_mult[:4]
    config.data.image_size = min(config.data.image_size, 64)
    if name.endswith("cat"):
        config.model.progressive_combine = "cat"
    network = utils.get_model("ncsnpp")(config).eval()
    model, continuous = config.model, config.training.continuous
    sde = {
        "vpsde": lambda: sde_lib.VPSDE(model.beta_min, model.beta_max, model.num_scales),
        "subvpsde": lambda: sde_lib.subVPSDE(model.beta_min, model.beta_max, model.num_scales),
        "vesde": lambda: sde_lib.VESDE(model.sigma_min, model.sigma_max, model.num_scales),
    }[config.training.sde]()
    score = utils.get_score_fn(sde, network, train=False, continuous=continuous)
    return network, sde, score, config


def save(network, path):
    """The checkpoint that the original writes."""
    ema = importlib.import_module("models.ema")
    average = ema.ExponentialMovingAverage(network.parameters(), decay=0.999)
    saved = {
        "optimizer": {},
        "model": torch.nn.DataParallel(network).state_dict(),
        "ema": average.state_dict(),
        "step": 1,
    }
    torch.save(saved, path)


def original_d(sde, score, config, z, t):
    """x in EDM coordinates, its noise level, and Tweedie's D from the original's score.

    `z` is noise on the clean image zero of EDM coordinates.
    """
    image = torch.zeros_like(z) + (0.0 if config.data.centered else 0.5)
    std = sde.marginal_prob(image, t)[1]
    unit = sde.marginal_prob(torch.ones(len(z), 1, 1, 1), t)[0]  # the factor of the clean image
    if config.training.sde == "vpsde" and not config.training.continuous:
        index = (t * (sde.N - 1)).round().long()
        unit = sde.sqrt_alphas_cumprod[index].to(z)[:, None, None, None]
        std = sde.sqrt_1m_alphas_cumprod[index].to(z)
    std = std.reshape(-1, 1, 1, 1)
    y = image * unit + std * z
    clean = (y + std**2 * score(y, t)) / unit
    scale = 1 if config.data.centered else 2
    to_edm = lambda v: scale * v - (scale - 1)  # noqa: E731
    return to_edm(y / unit), (scale * std / unit).flatten(), to_edm(clean)


def error(name, stated, folder):
    """The largest relative error of D over eight levels of the original's time."""
    torch.manual_seed(0)
    network, sde, score, config = original_score(name)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if weight.requires_grad and "GroupNorm" not in key:
                weight.copy_(torch.randn_like(weight) / max(1, weight[0].numel()) ** 0.5)
    path = Path(folder) / "checkpoint_1.pth"
    save(network, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = load_teacher(f"score-sde:{path}{'?' if stated else ''}{stated}")
    assert teacher.sample_shape[1] == config.data.image_size, teacher.sample_shape
    steps = torch.tensor([5, 60, 150, 300, 450, 600, 800, 999])
    worst = 0.0
    for step in steps:
        t = (step[None] * (sde.N // 1000)).double() / (sde.N - 1)
        z = torch.randn(1, *teacher.sample_shape)
        with torch.no_grad():
            x, sigma, expected = original_d(sde, score, config, z, t.float())
            answer = teacher(x, sigma.float())
        worst = max(worst, ((answer - expected).norm() / expected.norm()).item())
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--original", required=True, help="a checkout of score_sde_pytorch")
    sys.path.insert(0, str(Path(parser.parse_args().original).resolve()))
    sys.modules["op"] = types.SimpleNamespace(upfirdn2d=upfirdn2d)
    print("| configuration | options | relative error of D |\n|---|---|---|")
    for name, stated in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| `{name}` | `{stated}` | {error(name, stated, folder):.1e} |", flush=True)


if __name__ == "__main__":
    main()
