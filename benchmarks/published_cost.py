"""Estimate the cost of the published runs from the real networks, for docs/published-presets.md.

    python benchmarks/published_cost.py

Writes benchmarks/results/published_cost.json. Takes about 20 seconds on one CPU core. Hours follow
from operation counts and an assumed throughput; nothing is timed.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pidistill.files import write_json
from pidistill.lpips import LPIPS
from pidistill.machine import machine
from pidistill.networks import build_network
from pidistill.training.config import RunConfig, parse_config, read_preset
from pidistill.training.distributed import num_micro_batches

RESULT = Path(__file__).parent / "results" / "published_cost.json"

TEACHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cifar10-published": (
        "song_unet",
        {"img_resolution": 32, "channel_mult": [2, 2, 2], "dropout": 0.0},
    ),
    "imagenet64-published": (
        "dhariwal_unet",
        {"img_resolution": 64, "label_dim": 1000, "dropout": 0.0},
    ),
}
"""The networks of EDM's checkpoints, without the augmentation embedding."""

PEAK = {
    "A100 SXM": {"tf32": 156e12, "half": 312e12},
    "H100 SXM": {"tf32": 494e12, "half": 989e12},
}
"""Peak FLOPS of tensor cores, without sparsity, from NVIDIA's data sheets."""
SHARE = {"tf32": 0.35, "half": 0.35}
"""Assumed utilisation, as a share of the peak."""


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def saved_bytes(network: nn.Module, work: Callable[[], Tensor]) -> int:
    """Bytes that `work` saves for its backward pass, without the weights of `network`."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    del result
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


def network_cost(name: str, config: dict[str, Any]) -> dict[str, int]:
    """The cost of one network evaluation for one sample."""

    def call() -> Tensor:
        label = torch.zeros(1, dtype=torch.int64) if "label_dim" in config else None
        output: Tensor = network(torch.rand(1, 3, size, size), torch.rand(1), label)
        return output

    size = config["img_resolution"]
    config = {"in_channels": 3, "out_channels": 3, **config}
    with torch.device("meta"):
        network = build_network(name, config)
        forward = operations(call)
        both = operations(lambda: call().sum().backward())
    network = build_network(name, config)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_operations": forward,
        "forward_and_backward_operations": both,
        "saved_bytes": saved_bytes(network, call),
    }


def lpips_cost() -> dict[str, int]:
    """The cost of the distance `lpips` for one sample, with the gradient of the prediction."""

    def call() -> Tensor:
        x, y = torch.rand(2, 1, 3, 224, 224)
        distance: Tensor = network(x.requires_grad_(), y, functional.avg_pool2d)
        return distance

    network = LPIPS()
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_and_backward_operations": operations(lambda: call().sum().backward()),
        "saved_bytes": saved_bytes(network, call),
    }


def run_cost(preset: str, distance: dict[str, int]) -> dict[str, Any]:
    """The cost of a full run of a preset."""
    settings = parse_config([read_preset(preset)])
    network = network_cost(*TEACHERS[preset])
    # Two evaluations of the student and one of the teacher without gradient; the distance is never
    # computed in half precision.
    student = 2 * network["forward_and_backward_operations"]
    per_sample = {"tf32": distance["forward_and_backward_operations"], "half": 0}
    precision = "tf32" if settings.mixed_precision == "no" else "half"
    per_sample[precision] += student + network["forward_operations"]
    images = settings.batch_size * settings.max_train_steps
    # Teacher, student, gradient, two optimizer moments, and the weight averages.
    copies = 5 + len(settings.ema_rates)
    hours = {
        gpu: sum(images * per_sample[p] / (peak[p] * SHARE[p]) for p in per_sample) / 3600
        for gpu, peak in PEAK.items()
    }
    saved = 2 * network["saved_bytes"] + distance["saved_bytes"]
    state = 4 * (copies * network["parameters"] + distance["parameters"])
    return {
        "network": network,
        "operations_per_sample": per_sample,
        "saved_bytes_per_sample": saved,
        "images": images,
        "operations": {p: images * count for p, count in per_sample.items()},
        "copies_of_the_weights": copies,
        "state_bytes": state,
        "assumed_gpu_hours": {gpu: round(value) for gpu, value in hours.items()},
        "plans": {num: plan(settings, num, state, saved, hours) for num in (1, 8, 64)},
    }


def plan(
    settings: RunConfig, num: int, state: int, saved: int, hours: dict[str, float]
) -> dict[str, Any]:
    """How `num` GPUs share the run with DDP: micro-batches, bytes per GPU, hours."""
    parts = num_micro_batches(settings, num)
    micro_batch = settings.batch_size // (num * parts)
    return {
        "micro_batches": parts,
        "micro_batch": micro_batch,
        "bytes": state + micro_batch * saved,
        "assumed_hours": {gpu: round(value / num) for gpu, value in hours.items()},
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distance = lpips_cost()
    result = {
        "machine": machine(),
        "assumptions": {"peak_operations_per_second": PEAK, "share_of_peak": SHARE},
        "lpips": distance,
        **{preset: run_cost(preset, distance) for preset in TEACHERS},
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
