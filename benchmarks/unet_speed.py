"""Time our SongUNet (DDPM++) against an equivalent UNet2DModel of the diffusers library.

Equivalent means the same widths, residual blocks per level, resampling inside residual blocks,
number of attention layers (one head), and no dropout. Where UNet2DModel has attention after every
decoder block of a level and DDPM++ only after the last, the others are removed, so that both do the
same work (except that DDPM++ has an extra 1x1 convolution beside each resampling block). The two
are timed alternately, so that a busy machine slows both alike; one CPU thread is timed by CPU time.

    python benchmarks/unet_speed.py --out benchmarks/results/unet_speed.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import pidistill
from pidistill.networks.diffusers_unet import DiffusersUNet
from pidistill.networks.song_unet import SongUNet


def song_unet(args: argparse.Namespace) -> SongUNet:
    """Build our network."""
    return SongUNet(
        args.resolution,
        3,
        3,
        model_channels=args.channels,
        channel_mult=args.multipliers,
        num_blocks=args.blocks,
        attn_resolutions=[args.attention],
        dropout=0.0,
    )


def equivalent_unet(args: argparse.Namespace) -> DiffusersUNet:
    """Build the library's network of the same size."""
    levels = len(args.multipliers)
    attends = [args.resolution >> level == args.attention for level in range(levels)]
    network = DiffusersUNet(
        sample_size=args.resolution,
        block_out_channels=[args.channels * multiplier for multiplier in args.multipliers],
        layers_per_block=args.blocks,
        down_block_types=["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attends[::-1]],
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=None,
        norm_num_groups=min(32, args.channels // 4),
        norm_eps=1e-6,
    )
    for block in network.unet.up_blocks:
        if getattr(block, "attentions", None) is not None:
            for i in range(len(block.attentions) - 1):
                block.attentions[i] = WithoutAttention()
    return network


class WithoutAttention(nn.Module):
    """Replaces attention in UNet2DModel where DDPM++ has none."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def forward_pass(network: nn.Module, u: Tensor, c_noise: Tensor) -> Callable[[], None]:
    """One evaluation without gradients."""

    def run() -> None:
        with torch.inference_mode():
            network.eval()(u, c_noise)

    return run


def training_step(network: nn.Module, u: Tensor, c_noise: Tensor) -> Callable[[], None]:
    """One step of AdamW on the mean square of the output."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        network.train()(u, c_noise).square().mean().backward()
        optimizer.step()

    return run


def time_in_turn(
    runs: dict[str, Callable[[], None]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float],
) -> dict[str, dict[str, float]]:
    """Median, quartiles and minimum in milliseconds of each run, after two warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            wait_for(device)
            start = clock()
            run()
            wait_for(device)
            if repeat >= 2:
                seconds[name].append(1000 * (clock() - start))
    return {name: spread(values) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    """Synchronise with `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and minimum."""
    lower, median, upper = statistics.quantiles(values, n=4)
    return {
        "median_ms": round(median, 3),
        "lower_quartile_ms": round(lower, 3),
        "upper_quartile_ms": round(upper, 3),
        "min_ms": round(min(values), 3),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "machine": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "pidistill": pidistill.__version__,
        "commit": commit,
    }


def main() -> None:
    """Time both networks and write a table and a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 2])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--attention", type=int, default=16, help="resolution with attention")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    networks = {
        "SongUNet": song_unet(args).to(device),
        "UNet2DModel": equivalent_unet(args).to(device),
    }
    u = torch.randn(args.batch, 3, args.resolution, args.resolution, device=device)
    c_noise = torch.rand(args.batch, device=device)

    one_thread = device.type == "cpu" and args.threads == 1
    clock = "process_time" if one_thread else "perf_counter"

    results: dict[str, Any] = {}
    for what, make in {"forward": forward_pass, "training step": training_step}.items():
        runs = {name: make(network, u, c_noise) for name, network in networks.items()}
        timings = time_in_turn(runs, args.repeats, device, getattr(time, clock))
        ratio = timings["SongUNet"]["median_ms"] / timings["UNet2DModel"]["median_ms"]
        results[what] = {**timings, "ours_over_theirs": round(ratio, 3)}

    parameters = {
        name: sum(weight.numel() for weight in network.parameters())
        for name, network in networks.items()
    }
    print(f"{'':15}{'SongUNet':>25}{'UNet2DModel':>25}{'ratio':>8}")
    print(f"{'parameters':15}{parameters['SongUNet']:>25,}{parameters['UNet2DModel']:>25,}")
    for what, result in results.items():
        cells = [
            f"{result[name]['median_ms']:.1f} ms "
            f"[{result[name]['lower_quartile_ms']:.1f}, {result[name]['upper_quartile_ms']:.1f}]"
            for name in networks
        ]
        print(f"{what:15}{cells[0]:>25}{cells[1]:>25}{result['ours_over_theirs']:>8}")
    if args.out is not None:
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "device")}
        content = {
            "environment": {**environment(device), "clock": clock},
            "settings": settings,
            "parameters": parameters,
            "results": results,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
