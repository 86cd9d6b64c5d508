"""D of denoising-diffusion-pytorch's checkpoints, read by pidistill, against the package itself.

    pip install denoising-diffusion-pytorch
    python benchmarks/agreement_lucidrains.py

`--original DIR` takes a checkout instead. The networks are small and their weights random; the
file is what the package's Trainer saves.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from pidistill import load_teacher

DIM = {"dim": 16, "dim_mults": (1, 2)}
CASES = {
    "defaults (sigmoid, pred_v)": ({}, {}),
    "cosine, pred_noise": ({}, {"beta_schedule": "cosine", "objective": "pred_noise"}),
    "linear, pred_x0, min-SNR weights": (
        {},
        {"beta_schedule": "linear", "objective": "pred_x0", "min_snr_loss_weight": True},
    ),
    "pred_v, min-SNR weights": ({}, {"min_snr_loss_weight": True}),
    "linear, pred_noise, min-SNR weights, 250 steps": (
        {},
        {
            "beta_schedule": "linear",
            "objective": "pred_noise",
            "min_snr_loss_weight": True,
            "timesteps": 250,
            "sampling_timesteps": 50,
        },
    ),
    "full_attn, heads, one channel": (
        {
            "full_attn": (True, False),
            "attn_heads": (2, 3),
            "attn_dim_head": (8, 16),
            "channels": 1,
        },
        {},
    ),
    "self_condition": ({"self_condition": True}, {}),
}


def error(unet, diffusion, folder):
    """The largest relative error of D over nine timesteps."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    torch.manual_seed(0)
    network = Unet(**DIM | unet)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model = GaussianDiffusion(network, image_size=16, **diffusion)
    average = EMA(model, beta=0.995, update_every=10)
    saved = {"step": 1, "model": model.state_dict(), "opt": {}, "ema": average.state_dict()}
    path = Path(folder) / "model-1.pt"
    torch.save(saved | {"scaler": None, "version": "2.3.1"}, path)
    teacher = load_teacher(f"lucidrains:{path}?image_size=16")
    worst = 0.0
    for step in torch.linspace(0, model.num_timesteps - 1, 9).long():
        x_t = torch.randn(2, *teacher.sample_shape)
        with torch.no_grad():
            expected = model.eval().model_predictions(x_t, step.expand(2)).pred_x_start
            sigma = model.sqrt_recipm1_alphas_cumprod[step]
            answer = teacher(x_t * (1 + sigma**2).sqrt(), sigma.expand(2))
        worst = max(worst, ((answer - expected).norm() / expected.norm()).item())
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--original", default=".", help="a checkout of the package")
    sys.path.insert(0, str(Path(parser.parse_args().original).resolve()))
    print("| model | relative error of D |\n|---|---|")
    for name, (unet, diffusion) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {error(unet, diffusion, folder):.1e} |", flush=True)


if __name__ == "__main__":
    main()
