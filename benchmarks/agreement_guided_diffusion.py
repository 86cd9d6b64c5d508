"""D of guided-diffusion's networks, read by pidistill, against the original program.

    git clone https://github.com/openai/guided-diffusion
    python benchmarks/agreement_guided_diffusion.py --original guided-diffusion

The flags are those of the published models; the networks are small and their weights random.
"""

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

import torch

from pidistill import load_teacher

FLAGS = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "32",
    "num_head_channels": 64,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "learn_sigma": True,
    "class_cond": True,
}
CASES = {
    "64x64, cosine": {"noise_schedule": "cosine", "use_new_attention_order": True},
    "256x256, linear": {"noise_schedule": "linear"},
    "256x256, linear, unconditional": {"noise_schedule": "linear", "class_cond": False},
    "128x128, linear, 4 heads": {
        "noise_schedule": "linear",
        "num_heads": 4,
        "num_head_channels": -1,
    },
    "cosine, 4000 steps, rescaled": {
        "noise_schedule": "cosine",
        "diffusion_steps": 4000,
        "rescale_timesteps": True,
    },
    "linear, 500 steps, predicts x0": {
        "noise_schedule": "linear",
        "diffusion_steps": 500,
        "predict_xstart": True,
        "learn_sigma": False,
    },
    "linear, respaced to ddim50": {"noise_schedule": "linear", "timestep_respacing": "ddim50"},
}
PROCESS = ("noise_schedule", "diffusion_steps", "predict_xstart", "rescale_timesteps")


def description(flags):
    """The JSON file beside the weights."""
    channels = 6 if flags["learn_sigma"] else 3
    config = {
        "img_resolution": flags["image_size"],
        "in_channels": 3,
        "out_channels": channels,
        "label_dim": 1000 if flags["class_cond"] else 0,
        "model_channels": flags["num_channels"],
        "channel_mult": [int(k) for k in flags["channel_mult"].split(",")],
        "num_blocks": flags["num_res_blocks"],
        "attn_resolutions": [int(k) for k in flags["attention_resolutions"].split(",")],
        "num_heads": flags["num_heads"] if flags["num_head_channels"] == -1 else 0,
    }
    return {
        "network": {"name": "dhariwal_unet", "config": config},
        "precondition": {
            "name": "guided_diffusion",
            "config": {key: flags[key] for key in PROCESS},
        },
        "qkv_order": "three-major" if flags["use_new_attention_order"] else "legacy",
    }


def error(flags, folder):
    """The largest relative error of D over eight of the process's steps."""
    script = importlib.import_module("guided_diffusion.script_util")
    torch.manual_seed(0)
    flags = script.model_and_diffusion_defaults() | FLAGS | flags
    model, process = script.create_model_and_diffusion(**flags)
    with torch.no_grad():
        for weight in model.eval().parameters():
            weight += 0.02 * torch.randn_like(weight)
    torch.save(model.state_dict(), Path(folder) / "model.pt")
    (Path(folder) / "model.json").write_text(json.dumps(description(flags)))
    teacher = load_teacher(f"edm:{folder}/model.pt")
    worst = 0.0
    for step in torch.linspace(0, process.num_timesteps - 1, 8).long():
        x_t, label = torch.randn(1, 3, 64, 64), torch.tensor([7]) if flags["class_cond"] else None
        sigma = torch.tensor(process.sqrt_recipm1_alphas_cumprod[step])
        arguments = {"model_kwargs": {"y": label} if flags["class_cond"] else {}}
        with torch.no_grad():
            expected = process.p_mean_variance(
                model, x_t, step[None], clip_denoised=False, **arguments
            )["pred_xstart"]
            x = (x_t.double() * (1 + sigma**2).sqrt()).float()
            answer = teacher(x, sigma.float()[None], label)
        worst = max(worst, ((answer - expected).norm() / expected.norm()).item())
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--original", required=True, help="a checkout of guided-diffusion")
    sys.path.insert(0, str(Path(parser.parse_args().original).resolve()))
    print("| model | relative error of D |\n|---|---|")
    for name, flags in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {error(flags, folder):.1e} |", flush=True)


if __name__ == "__main__":
    main()
